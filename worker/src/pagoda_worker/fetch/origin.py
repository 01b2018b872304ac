"""What a place that holds models can do, and which of its files serving needs. Knows no network; hub.py and bucket.py do."""

import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from pagoda_worker.errors import SourceMissing

INDEX = "model.safetensors.index.json"
TEXTS = (
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
MAX_INDEX_BYTES = 64 << 20


Bytes = Generator[bytes, None, None]
Digest = tuple[Literal["sha256", "git"], str]
"""`git`: the sha1 of git's blob, which the hub tells of small files."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    name: str
    size: int
    digest: Digest | None = None
    version: str = ""
    """What must not change while the file is read in parts; an S3 ETag."""


@dataclass(frozen=True, slots=True)
class Listing:
    commit: str
    files: tuple[RemoteFile, ...]

    @property
    def bytes_total(self) -> int:
        return sum(file.size for file in self.files)


Choose = Callable[[str, Mapping[str, RemoteFile], Callable[[RemoteFile, int], Bytes]], tuple[RemoteFile, ...]]
"""(source, its files, how to read one) → those to fetch; raises SourceMissing."""


class Origin(Protocol):
    def resolve(self) -> Listing:
        """What the revision means now. Raises FetchError; ConnectionLost when asking again may help."""
        ...

    def read(self, file: RemoteFile, offset: int) -> Bytes:
        """The rest of the file from `offset` on; closing it ends the answer. Raises like resolve, also in the middle."""
        ...

    def close(self) -> None: ...


def choose(source: str, there: Mapping[str, RemoteFile], read: Callable[[RemoteFile, int], Bytes]) -> tuple[RemoteFile, ...]:
    """Configuration, tokenizer, template and safetensors of the folder itself; never pickles, never code. Raises SourceMissing."""
    for name in ("config.json", "tokenizer.json"):
        if name not in there:
            raise SourceMissing(f"{source} has no {name}: it must be a model in the transformers format with a fast tokenizer")
    chosen = [there["config.json"], there["tokenizer.json"], *(there[name] for name in TEXTS if name in there)]
    if INDEX in there:
        chosen += [there[INDEX], *_shards(source, there, b"".join(read(_bounded(source, there[INDEX]), 0)))]
    elif "model.safetensors" in there:
        chosen.append(there["model.safetensors"])
    else:
        others = sorted(name for name in there if name.endswith((".bin", ".pt", ".pth", ".gguf", ".ckpt")))
        instead = f"; {others[0]} is not read: ask its owner for safetensors, or convert it" if others else ""
        raise SourceMissing(f"{source} has neither model.safetensors nor {INDEX}{instead}")
    return tuple(chosen)


def choose_adapter(source: str, there: Mapping[str, RemoteFile], read: Callable[[RemoteFile, int], Bytes]) -> tuple[RemoteFile, ...]:
    """Of a LoRA adapter as PEFT saves it. Raises SourceMissing."""
    for name in ADAPTER:
        if name not in there:
            raise SourceMissing(f"{source} has no {name}: it must be a LoRA adapter as PEFT saves it, with safetensors")
    return tuple(there[name] for name in ADAPTER)


def _bounded(source: str, file: RemoteFile) -> RemoteFile:
    if file.size > MAX_INDEX_BYTES:
        raise SourceMissing(f"{source}: {file.name} has {file.size} bytes; no index is that large")
    return file


def _shards(source: str, there: Mapping[str, RemoteFile], index: bytes) -> list[RemoteFile]:
    try:
        names = sorted(set(json.loads(index)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SourceMissing(f"{source}: {INDEX} has no weight_map from tensor names to file names") from None
    for name in names:
        if name not in there or "/" in name or not name.endswith(".safetensors"):
            raise SourceMissing(f"{source}: {INDEX} names {name!r}, which is not a safetensors file beside it")
    return [there[name] for name in names]
