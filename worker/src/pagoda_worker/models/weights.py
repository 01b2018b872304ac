"""Checkpoint files → tensors that are already where the model wants them.

Owns reading of safetensors (one file or a sharded index). Knows no architecture: models hand over destinations by checkpoint name. One
tensor at a time is read from the mapped file and copied, so that loading never holds a second copy of the model. Pickles are never read.
"""

import ctypes
import json
import mmap
import struct
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pagoda_worker.errors import ModelError
from pagoda_worker.layers.parallel import Part

INDEX = "model.safetensors.index.json"


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


Copied = Callable[[int, int], None]
"""(bytes read so far, bytes in all), called after every tensor."""


def load_weights(
    folder: Path,
    destinations: Mapping[str, Tensor],
    *,
    parts: Mapping[str, Part] = MappingProxyType({}),
    ignored_suffixes: Iterable[str] = (),
    optional_prefix: str = "",
    copied: Copied = lambda done, total: None,
) -> None:
    """Fills every destination; `parts`: those that hold part of a tensor, of which no more is read. Raises ModelError naming file and
    tensor when one is missing, unexpected, cut short or of another shape."""
    missing = set(destinations)
    ignored = tuple(ignored_suffixes)
    total, done = checkpoint_bytes(folder), 0
    for path in _files(folder):
        try:
            with safe_open(path, framework="pt", device="cpu") as shard:
                for name in shard.keys():  # noqa: SIM118  (not a dict)
                    if name.endswith(ignored):
                        continue
                    place = name.removeprefix(optional_prefix)
                    if place not in destinations:
                        raise ModelError(f"{path}: tensor {name!r} has no place in this architecture")
                    done += _copy(path, name, shard, destinations[place], parts.get(place))
                    copied(done, total)
                    missing.discard(place)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} cannot be read: {_diagnose(path) or error}") from error
    if missing:
        first = min(missing)
        raise ModelError(f"{folder}: tensor {first!r} is missing ({len(missing)} missing in all)")


def fill_randomly(destinations: Mapping[str, Tensor], parts: Mapping[str, Part] = MappingProxyType({}), *, seed: int = 0) -> None:
    """Numbers for a model that is only timed: the same for the same seed and kind of device, made where they lie. The spread keeps
    activations finite and the best tokens apart. A part gets what it would have of the whole, which is made beside it, one at a time."""
    generators: dict[torch.device, torch.Generator] = {}
    for name, tensor in destinations.items():
        if tensor.ndim == 1:
            tensor.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        generator = generators.get(tensor.device) or torch.Generator(tensor.device).manual_seed(seed)
        generators[tensor.device] = generator
        part = parts.get(name)
        whole = tensor if part is None else _empty_like(tensor, part.shape(tensor.shape))
        whole.normal_(0.0, 1.5 * whole.shape[-1] ** -0.5, generator=generator)
        if part is not None:
            _copy_part(whole, part, tensor)


def _empty_like(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """With its order of dimensions in memory, which is the order in which random numbers are drawn."""
    if tensor.is_contiguous():
        return tensor.new_empty(shape)
    return tensor.new_empty(shape[::-1]).T


def _copy_part(whole: Any, part: Part, destination: Tensor) -> int:
    """`whole`: a tensor, or what safetensors reads slices of. Bytes that the whole has there."""
    at = read = 0
    for start, stop in part.ranges:
        piece: Tensor = whole[start:stop] if part.dim == 0 else whole[:, start:stop]
        destination.narrow(part.dim, at, stop - start).copy_(piece)
        at, read = at + stop - start, read + piece.nbytes
        if not isinstance(whole, Tensor):
            _unmap(piece)
    return read * part.whole // max(at, 1)


def _files(folder: Path) -> list[Path]:
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


def _copy(path: Path, name: str, shard: Any, destination: Tensor, part: Part | None) -> int:
    """Bytes of the tensor in the file."""
    slices = shard.get_slice(name)
    shape = tuple(slices.get_shape())
    asked = tuple(destination.shape) if part is None else part.shape(destination.shape)
    if shape != asked:
        raise ModelError(f"{path}: tensor {name!r} has shape {list(shape)}, config.json asks for {list(asked)}")
    if part is not None:
        return _copy_part(slices, part, destination)
    tensor: Tensor = shard.get_tensor(name)
    destination.copy_(tensor)
    _unmap(tensor)
    return tensor.nbytes


def _unmap(tensor: Tensor) -> None:
    """What was copied out of the mapped file leaves this process's resident memory at once (it stays in the page cache); else that would
    grow to twice the model. Whole pages within the tensor only: its neighbours are still to be read."""
    if sys.platform == "linux":
        first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        values = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1  # a slice has gaps
        length = tensor.data_ptr() + values * tensor.itemsize - first
        if length >= mmap.PAGESIZE:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(length // mmap.PAGESIZE * mmap.PAGESIZE), mmap.MADV_DONTNEED)


def stored_dtype(folder: Path) -> str:
    """safetensors' name of the first tensor's dtype: for folders whose config.json does not tell."""
    path = _files(folder)[0]
    try:
        with safe_open(path, framework="pt", device="cpu") as shard:
            first = next(iter(shard.keys()), None)
            return "" if first is None else str(shard.get_slice(first).get_dtype())
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read: {_diagnose(path) or error}") from error


def checkpoint_bytes(folder: Path) -> int:
    """Raises ModelError when a file that the index names is not there."""
    try:
        return sum(path.stat().st_size for path in _files(folder))
    except OSError as error:
        raise ModelError(f"{error.filename} cannot be read: {error.strerror}") from error
