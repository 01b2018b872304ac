"""Where fetched models lie, so that the fetch step and the worker that reads after it agree. Knows the file system, no network, no locks.

CACHE/hf--ORG--NAME--1a2b3c4d/        one folder a source; the digits keep sources apart whose names look alike
    refs/main                         the commit that a revision meant when it was last resolved
    0123…cdef/                        one commit, complete: it appears by one rename
        config.json, model.safetensors, …, .pagoda-fetched.json (the marker)
    0123…cdef.part/                   one commit on its way; NAME.part within it is a file on its way
    lock                              held by the one fetch at work
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pagoda_worker.errors import ConfigError

DEFAULT_REVISION = "main"
MARKER = ".pagoda-fetched.json"
PART = ".part"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True, slots=True)
class RemoteSource:
    """hf://ORG/NAME or s3://BUCKET/PREFIX."""

    scheme: str
    path: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"

    @property
    def bucket(self) -> str:
        return self.path.partition("/")[0]

    @property
    def prefix(self) -> str:
        return self.path.partition("/")[2]


def parse_remote(source: str, named: str = "PAGODA_MODEL_SOURCE") -> RemoteSource:
    """`named`: who gave it. Raises ConfigError."""
    scheme, _, path = source.partition("://")
    path = path.rstrip("/")
    if scheme == "hf" and not _HUB_NAME.fullmatch(path):
        raise ConfigError(f"{named} {source}: write hf://ORGANISATION/NAME")
    if scheme == "s3":
        bucket, _, prefix = path.partition("/")
        if not _BUCKET.fullmatch(bucket) or not prefix or ".." in prefix.split("/"):
            raise ConfigError(f"{named} {source}: write s3://BUCKET/FOLDER")
    if scheme not in ("hf", "s3"):
        raise ConfigError(f"{named} {source}: hf://ORGANISATION/NAME and s3://BUCKET/FOLDER can be fetched")
    return RemoteSource(scheme, path)


@dataclass(frozen=True, slots=True)
class Fetched:
    """One complete commit, as its marker tells."""

    folder: Path
    commit: str
    bytes_total: int


class SourceFolder:
    """All that the cache holds of one source."""

    def __init__(self, cache: Path, source: RemoteSource) -> None:
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", source.path.replace("/", "--"))[:120]
        digits = hashlib.sha256(str(source).encode()).hexdigest()[:8]
        self.source = source
        self.cache = cache
        self.path = cache / f"{source.scheme}--{readable}--{digits}"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    def commit_folder(self, commit: str) -> Path:
        return self.path / commit

    def staging(self, commit: str) -> Path:
        return self.path / f"{commit}{PART}"

    def stale_staging(self, commit: str) -> list[Path]:
        """Of other commits; nobody works on them while the lock is held."""
        return [each for each in self.path.glob(f"*{PART}") if each != self.staging(commit)]

    def find(self, revision: str) -> Fetched | None:
        """The complete copy of a revision; of a branch, the commit it meant when it was last fetched."""
        commit = revision if self.is_pinned(revision) else self._ref(revision)
        return self.read_marker(commit) if commit else None

    def is_pinned(self, revision: str) -> bool:
        """It can only ever mean one commit. Buckets have no revisions, only what is there now."""
        return self.source.scheme == "hf" and is_commit(revision)

    def read_marker(self, commit: str) -> Fetched | None:
        folder = self.commit_folder(commit)
        try:
            marker = json.loads((folder / MARKER).read_text("utf-8"))
            files: dict[str, int] = {each["name"]: each["size"] for each in marker["files"]}
            if any((folder / name).stat().st_size != size for name, size in files.items()):
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return Fetched(folder, commit, sum(files.values()))

    def write_ref(self, revision: str, commit: str) -> None:
        if not self.is_pinned(revision):
            write_atomically(self._ref_file(revision), commit.encode())

    def _ref(self, revision: str) -> str:
        try:
            commit = self._ref_file(revision).read_text("utf-8").strip()
        except OSError:
            return ""
        return commit if re.fullmatch(r"[0-9a-f]{16,64}", commit) else ""

    def _ref_file(self, revision: str) -> Path:
        return self.path / "refs" / (quote(revision, safe="") if self.source.scheme == "hf" else "latest")


def is_commit(revision: str) -> bool:
    return _COMMIT.fullmatch(revision) is not None


def marker_content(source: RemoteSource, revision: str, commit: str, files: Mapping[str, Mapping[str, Any]]) -> bytes:
    described = [{"name": name, **facts} for name, facts in sorted(files.items())]
    return json.dumps({"source": str(source), "revision": revision, "commit": commit, "files": described}, indent=1).encode()


def write_atomically(path: Path, content: bytes) -> None:
    """All of it or nothing, also when the machine goes down."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
