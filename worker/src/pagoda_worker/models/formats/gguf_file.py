"""A GGUF file's header: metadata, and where each tensor lies (ggml's docs/gguf.md). Reads one file; knows no model.

Everything in it is checked before it is used: counts, lengths, types, and that every tensor is within the file.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pagoda_worker.errors import ModelError, UnsupportedModel

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MOST = 1 << 28
"""Entries of a list, bytes of a text: beyond it a number is no count but damage."""


@dataclass(frozen=True, slots=True)
class BlockType:
    """How one type of ggml stores numbers."""

    name: str
    values: int
    """In a block."""
    nbytes: int
    """Of a block."""


TYPES = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2),
    2: BlockType("Q4_0", 32, 18),
    3: BlockType("Q4_1", 32, 20),
    6: BlockType("Q5_0", 32, 22),
    7: BlockType("Q5_1", 32, 24),
    8: BlockType("Q8_0", 32, 34),
    10: BlockType("Q2_K", 256, 84),
    11: BlockType("Q3_K", 256, 110),
    12: BlockType("Q4_K", 256, 144),
    13: BlockType("Q5_K", 256, 176),
    14: BlockType("Q6_K", 256, 210),
    30: BlockType("BF16", 1, 2),
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    shape: tuple[int, ...]
    """Rows first, as torch has it; the file has them the other way round."""
    type: BlockType
    offset: int
    """From the beginning of the file."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) // self.type.values * self.type.nbytes


@dataclass(frozen=True, slots=True)
class GgufFile:
    path: Path
    metadata: dict[str, Any]
    """Lists are their lengths, but for those that were asked for."""
    tensors: dict[str, GgufTensor]


def gguf_in(folder: Path) -> Path | None:
    """The folder's GGUF file; None: it has a config.json, or no GGUF file. Raises ModelError for several."""
    if (folder / "config.json").exists():
        return None
    files = sorted(folder.glob("*.gguf"))
    if len(files) > 1:
        raise ModelError(f"{folder} holds {len(files)} GGUF files: put the one to serve into a folder of its own")
    return files[0] if files else None


def read_header(path: Path, *, lists_of: str | None = None) -> GgufFile:
    """`lists_of`: of metadata that begins so lists are kept, others are only counted. Raises ModelError for a file that is none, damaged or
    cut short, UnsupportedModel for what the engine does not read."""
    try:
        with path.open("rb") as file:
            return _Header(path, file, lists_of).read()
    except (OSError, struct.error, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read: its header is damaged or cut short ({error})") from error


class _Header:
    def __init__(self, path: Path, file: BinaryIO, lists_of: str | None) -> None:
        self._path, self._file, self._size, self._lists_of = path, file, path.stat().st_size, lists_of

    def read(self) -> GgufFile:
        if self._file.read(4) != MAGIC:
            raise ModelError(f"{self._path} is no GGUF file: it does not begin with {MAGIC.decode()}")
        version = self._number("<I")
        if version not in VERSIONS:
            raise UnsupportedModel(f"{self._path}: version {version} of GGUF is not supported; {' and '.join(map(str, VERSIONS))} are")
        tensor_count, entries = self._count(), self._count()
        metadata = dict(self._entry() for _ in range(entries))
        described = [self._tensor() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ModelError(f"{self._path}: general.alignment must be a positive integer, it is {alignment!r}")
        start = -(-self._file.tell() // alignment) * alignment
        tensors = {name: GgufTensor(shape, type_, start + offset) for name, shape, type_, offset in described}
        for name, tensor in sorted(tensors.items(), key=lambda each: each[1].offset):
            if (end := tensor.offset + tensor.nbytes) > self._size:
                raise ModelError(
                    f"{self._path}: tensor {name!r} ends at byte {end}, the file has {self._size}: it is cut short; fetch it again"
                )
        return GgufFile(self._path, metadata, tensors)

    def _entry(self) -> tuple[str, Any]:
        name, kind = self._text(), self._number("<I")
        kept = self._lists_of is not None and kind == _ARRAY and name.startswith(self._lists_of)
        return name, self._list() if kept else self._value(kind)

    def _tensor(self) -> tuple[str, tuple[int, ...], BlockType, int]:
        name = self._text()
        dimensions = self._number("<I")
        if dimensions > 4:
            raise ModelError(f"{self._path}: tensor {name!r} has {dimensions} dimensions; the file is damaged")
        shape = tuple(reversed([self._count() for _ in range(dimensions)]))
        kind = self._number("<I")
        if kind not in TYPES:
            known = ", ".join(each.name for each in TYPES.values())
            raise UnsupportedModel(f"{self._path}: tensor {name!r} is of ggml's type {kind}, which is not supported; {known} are")
        if not shape or shape[-1] % TYPES[kind].values:
            raise ModelError(f"{self._path}: tensor {name!r} of shape {list(shape)} is in no whole blocks of {TYPES[kind].name}")
        return name, shape, TYPES[kind], int(self._number("<Q"))

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind == _ARRAY:
            return self._skip_list()
        if kind not in _SCALARS:
            raise ModelError(f"{self._path}: a value of type {kind}, which GGUF does not have; the file is damaged")
        return self._number(_SCALARS[kind])

    def _list(self) -> list[Any]:
        kind, count = self._number("<I"), self._count()
        return [self._value(kind) for _ in range(count)]

    def _skip_list(self) -> int:
        kind, count = self._number("<I"), self._count()
        if kind in _SCALARS:
            self._file.seek(count * struct.calcsize(_SCALARS[kind]), 1)
        else:
            for _ in range(count):
                self._value(kind)
        return count

    def _text(self) -> str:
        return self._exactly(self._count()).decode("utf-8")

    def _count(self) -> int:
        count = int(self._number("<Q"))
        if count > _MOST:
            raise ModelError(f"{self._path}: a count of {count} in its header; the file is damaged")
        return count

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._exactly(struct.calcsize(form)))[0]

    def _exactly(self, count: int) -> bytes:
        found = self._file.read(count)
        if len(found) < count:
            raise ModelError(f"{self._path} cannot be read: its header ends after {self._size} bytes: it is cut short; fetch it again")
        return found
