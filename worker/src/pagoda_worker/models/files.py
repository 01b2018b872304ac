"""A model folder's files, opened: JSON, and the tensors of safetensors (one file or a sharded index) by name. Pickles are never read.

Tensors are mapped, not read: whoever copies one gives its pages back, so that loading never holds a second copy of the model.
"""

import ctypes
import json
import math
import mmap
import struct
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pagoda_worker.errors import ModelError

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2}
_BYTES |= {"I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """As a file's header has it."""

    path: Path
    shape: tuple[int, ...]
    dtype: str
    """safetensors' name, `BF16`, or ggml's, `Q4_K`."""
    nbytes: int

    @property
    def count(self) -> int:
        return math.prod(self.shape)


class Tensors(Protocol):
    """The tensors of one checkpoint, by the names of its files."""

    stored: dict[str, StoredTensor]
    """In the files' order."""

    def read(self, name: str) -> Tensor:
        """On the CPU; mapped where the file has it as it is. Raises ModelError."""
        ...

    def numbers(self, name: str) -> Tensor:
        """The same as plain numbers, whatever `read` gives for the quantized. Raises ModelError."""
        ...

    def copy(self, name: str, destination: Tensor) -> None:
        """Of the same shape. Raises ModelError."""
        ...

    def give_back(self, tensor: Tensor) -> None:
        """A tensor that was read and is of no more use: what was mapped for it need not stay in memory."""
        ...


class Safetensors:
    """Open while `open_safetensors` is."""

    def __init__(self, files: dict[Path, Any]) -> None:
        self._files = files
        self.stored: dict[str, StoredTensor] = {}
        for path, file in files.items():
            for name in file.keys():  # noqa: SIM118  (not a dict)
                header = file.get_slice(name)
                if name in self.stored:
                    raise ModelError(f"{path}: tensor {name!r} is in {self.stored[name].path.name} too")
                shape, dtype = tuple(header.get_shape()), str(header.get_dtype())
                self.stored[name] = StoredTensor(path, shape, dtype, math.prod(shape) * _BYTES.get(dtype, 1))

    def read(self, name: str) -> Tensor:
        path = self.stored[name].path
        try:
            tensor: Tensor = self._files[path].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} cannot be read: {_diagnose(path) or error}") from error
        return tensor

    def numbers(self, name: str) -> Tensor:
        return self.read(name)

    def copy(self, name: str, destination: Tensor) -> None:
        tensor = self.read(name)
        destination.copy_(tensor)
        self.give_back(tensor)

    def give_back(self, tensor: Tensor) -> None:
        give_back(tensor)


@contextmanager
def open_safetensors(folder: Path) -> Iterator[Safetensors]:
    """Raises ModelError."""
    with ExitStack() as stack:
        files = {}
        for path in safetensors_files(folder):
            try:
                files[path] = stack.enter_context(safe_open(path, framework="pt", device="cpu"))
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{path} cannot be read: {_diagnose(path) or error}") from error
        yield Safetensors(files)


def give_back(tensor: Tensor) -> None:
    """What was copied out of the mapped file leaves this process's resident memory at once (it stays in the page cache); else that would
    grow to twice the model. Whole pages within the tensor only: its neighbours are still to be read. Called for mapped tensors only."""
    if sys.platform == "linux":
        first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = tensor.data_ptr() + tensor.nbytes - first
        if length >= mmap.PAGESIZE:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(length // mmap.PAGESIZE * mmap.PAGESIZE), mmap.MADV_DONTNEED)


def held_bytes(name: str, stored: StoredTensor, itemsize: int) -> int:
    """In memory, of a quantized checkpoint: integers and fp8 as they are, scales in float32, the rest at the model's dtype. Zero points are
    bytes there, not nibbles: too few to count. `stored` of safetensors, or Q4_0 or plain-to-be of GGUF."""
    if stored.dtype == "Q4_0":
        return stored.count // 2 + stored.count // 32 * 4
    if stored.dtype in ("I8", "U8", "I32", "I64", "F8_E4M3"):
        return stored.nbytes
    return stored.count * (4 if "scale" in name.rpartition(".")[2] else itemsize)


def read_json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist: {folder} is not a Hugging Face model folder") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object")
    return value


def safetensors_files(folder: Path) -> list[Path]:
    if (folder / INDEX).exists():
        shards = read_json(folder, INDEX).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise ModelError(f"{folder / INDEX}: weight_map must map tensor names to file names")
        return [folder / name for name in sorted(set(shards.values()))]
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    if pickles := sorted(path.name for path in folder.glob("*.bin")):
        raise ModelError(f"{folder} holds {pickles[0]}, a pickle that could run code of its own and is never read: save it as safetensors")
    raise ModelError(f"{folder} holds neither model.safetensors nor {INDEX}; other weight formats are not read")


def _diagnose(path: Path) -> str:
    """Which tensor a damaged file lacks; empty when its header does not tell. The library names neither file nor tensor."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            size = path.stat().st_size
            if length > size:
                return f"its header claims {length} bytes, the file has {size}: it is damaged or cut short"
            tensors = json.loads(file.read(length))
        ends = sorted((each["data_offsets"][1] + 8 + length, name) for name, each in tensors.items() if name != "__metadata__")
    except (OSError, struct.error, ValueError, LookupError, TypeError, AttributeError):
        return ""
    lost = [(end, name) for end, name in ends if end > size]
    return f"tensor {lost[0][1]!r} ends at byte {lost[0][0]}, the file has {size}: it is cut short; fetch it again" if lost else ""


def safetensors_dtype(folder: Path) -> str:
    """Of the first tensor of floats; quantized values do not count. Raises ModelError."""
    with open_safetensors(folder) as tensors:
        dtypes = [each.dtype for each in tensors.stored.values()]
    return next((dtype for dtype in dtypes if dtype in ("BF16", "F16", "F32", "F64")), dtypes[0] if dtypes else "")
