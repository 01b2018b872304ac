"""A GGUF file as a checkpoint: its tensors by the names of transformers, and which of them are held as they are. Pure but for reading it.

Q4_0 becomes the one form of int4; every other type is dequantized where it is read, a linear or some rows at once. Made by checkpoint.py.
"""

import ctypes
import math
import mmap
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pagoda_worker.errors import ModelError
from pagoda_worker.models.files import StoredTensor
from pagoda_worker.models.formats.gguf_blocks import dequantized, q4_0
from pagoda_worker.models.formats.gguf_config import ROPE_FACTORS, checkpoint_name, config_of, llama3_rope, turned_back, turned_heads
from pagoda_worker.models.formats.gguf_file import GgufFile, GgufTensor, read_header
from pagoda_worker.models.formats.stored import ReadWeight, StoredModule

HELD = "Q4_0"
_VALUES_AT_ONCE = 1 << 24


class GgufTensors:
    """Mapped while this lives."""

    stored: dict[str, StoredTensor]

    def __init__(self, file: GgufFile, config: Mapping[str, Any]) -> None:
        """Raises ModelError for a tensor that has no place in any model."""
        self._bytes = torch.from_numpy(np.memmap(file.path, mode="c"))  # copy on write: torch takes no memory that it may not write
        self._config, self._own, self.stored = config, {}, {}
        for own, tensor in sorted(file.tensors.items(), key=lambda each: each[1].offset):
            name = checkpoint_name(own)
            if own == ROPE_FACTORS:
                continue
            if name is None:
                raise ModelError(f"{file.path}: tensor {own!r} has no place in this architecture")
            self._own[name] = (own, tensor)
            self.stored[name] = StoredTensor(file.path, tensor.shape, tensor.type.name, tensor.nbytes)

    def read(self, name: str) -> Tensor:
        """Numbers in float32, and of what is held as it is the blocks, [out, in / 32, 18] uint8; in memory of their own."""
        own, tensor = self._own[name]
        if tensor.type.name != HELD or len(tensor.shape) != 2:
            return self.numbers(name)
        rows = self._blocks(tensor, 0, tensor.shape[0]).view(tensor.shape[0], -1, tensor.type.nbytes).clone()
        self._give_back(tensor)
        heads = turned_heads(own, self._config)
        return turned_back(rows, heads) if heads else rows

    def numbers(self, name: str) -> Tensor:
        """In float32."""
        numbers = torch.empty(self._own[name][1].shape)
        self.copy(name, numbers)
        return numbers

    def copy(self, name: str, destination: Tensor) -> None:
        own, tensor = self._own[name]
        if heads := turned_heads(own, self._config):
            rows = torch.empty(tensor.shape)
            self._fill(rows, tensor)
            destination.copy_(turned_back(rows, heads))
        else:
            self._fill(destination, tensor)

    def give_back(self, tensor: Tensor) -> None:
        """Nothing: what was read is no part of the mapping."""

    def _fill(self, destination: Tensor, tensor: GgufTensor) -> None:
        """A few rows at a time: as numbers in float32 a large embedding is as large as a model."""
        rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
        width = math.prod(tensor.shape) // max(rows, 1)
        flat, step = destination.view(rows, width), max(_VALUES_AT_ONCE // max(width, 1), 1)
        for first in range(0, rows, step):
            last = min(first + step, rows)
            flat[first:last].copy_(dequantized(tensor.type.name, self._blocks(tensor, first, last, rows=rows)).view(last - first, width))
        self._give_back(tensor)

    def _blocks(self, tensor: GgufTensor, first: int, last: int, *, rows: int | None = None) -> Tensor:
        """Of rows first … last: [N, bytes of a block]."""
        row = tensor.nbytes // (rows or tensor.shape[0])
        part = self._bytes[tensor.offset + first * row : tensor.offset + last * row]
        return part.view(-1, tensor.type.nbytes).clone() if tensor.type.values == 1 else part.view(-1, tensor.type.nbytes)

    def _give_back(self, tensor: GgufTensor) -> None:
        """See files.py."""
        if sys.platform == "linux":
            address = self._bytes.data_ptr() + tensor.offset
            first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
            whole = (address + tensor.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
            if whole > 0:
                ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(whole), mmap.MADV_DONTNEED)


class GgufLayout:
    """Which modules of one file are held as they are."""

    used = frozenset({"weight"})
    unread: frozenset[str] = frozenset()
    kept = True

    def __init__(self, tensors: GgufTensors) -> None:
        self._held = {name.removesuffix(".weight") for name, each in tensors.stored.items() if each.dtype == HELD and len(each.shape) == 2}
        kinds = {each.dtype for each in tensors.stored.values() if len(each.shape) > 1}
        self.title = f"GGUF, {', '.join(sorted(kinds))}" + ("" if kinds <= {HELD, "F32", "F16", "BF16"} else "; all but Q4_0 held plain")

    def quantizes(self, name: str, parts: frozenset[str]) -> bool:
        return name in self._held

    def read(self, module: StoredModule) -> ReadWeight:
        out, size = module.shape
        return q4_0(module.take("weight", (out, size // 32, 18), torch.uint8))


def read_gguf(path: Path) -> tuple[dict[str, Any], GgufFile]:
    """(what config.json would say, the header). Raises ModelError, UnsupportedModel."""
    file = read_header(path)
    config = config_of(file)
    if ROPE_FACTORS in file.tensors:
        tensor, theta = file.tensors[ROPE_FACTORS], float(config["rope_parameters"]["rope_theta"])
        with path.open("rb") as data:
            data.seek(tensor.offset)
            factors = torch.frombuffer(bytearray(data.read(tensor.nbytes)), dtype=torch.float32)
        config["rope_parameters"] |= llama3_rope(factors, theta, file)
    return config, file
