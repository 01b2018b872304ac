"""One remote file → one verified file, whatever interrupts it: lost connections are gone on from, a kill leaves a NAME.part that the next
start goes on from, a wrong hash is fetched once more. Knows no protocol: an Origin gives bytes.
"""

import contextlib
import errno
import hashlib
import logging
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pagoda_worker.errors import ConnectionLost, DiskFull, FetchError
from pagoda_worker.fetch.origin import Origin, RemoteFile
from pagoda_worker.settings.model_cache import PART

MAX_FAILURES = 8
"""In a row without a new byte worth the name; about a minute with the waits between."""
PROGRESS_BYTES = 64 * 1024
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 20.0
HASH_CHUNK_BYTES = 4 << 20
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

log = logging.getLogger(__name__)


class Tally:
    """Bytes that are there, by file; read by whoever tells of progress."""

    def __init__(self) -> None:
        self._by_file: dict[str, int] = {}
        self._lock = threading.Lock()

    def set(self, name: str, count: int) -> None:
        with self._lock:
            self._by_file[name] = count

    @property
    def bytes_done(self) -> int:
        with self._lock:
            return sum(self._by_file.values())


class Pause:
    """Waits between tries, doubling; `sleep` is the caller's, so that a stop can cut it short."""

    def __init__(self, sleep: Callable[[float], object], *, most: int = MAX_FAILURES) -> None:
        self._sleep = sleep
        self._most = most
        self._failures = 0

    def progressed(self) -> None:
        self._failures = 0

    def after(self, error: ConnectionLost) -> None:
        """Raises FetchError when it has been tried often enough."""
        self._failures += 1
        if self._failures >= self._most:
            raise FetchError(f"{error}; given up after {self._failures} tries") from error
        wait_s = max(error.after_s, min(FIRST_WAIT_S * 2 ** (self._failures - 1), LONGEST_WAIT_S) * random.uniform(0.7, 1.3))
        log.warning("%s; trying again in %.1f s", error, wait_s)
        self._sleep(wait_s)


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


class PartFile:
    """NAME.part: what is there so far and its hash. Only appended to, so that every byte of it counts after a kill."""

    def __init__(self, folder: Path, file: RemoteFile) -> None:
        self._file = file
        self._path = folder / f"{file.name}{PART}"
        self._final = folder / file.name
        self._open = self._path.open("a+b", buffering=0)
        self._hash = _new_hash(file)
        self._open.seek(0)
        self.size = 0
        while data := self._open.read(HASH_CHUNK_BYTES):
            self._hash.update(data)
            self.size += len(data)
        if self.size > file.size:
            self.restart()

    def append(self, data: bytes) -> None:
        """Raises DiskFull."""
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._open.write(rest) :]
        except OSError as error:
            if error.errno in NO_SPACE:
                raise DiskFull(f"{self._path.parent} is full: no room for the rest of {self._file.name}") from error
            raise FetchError(f"{self._path} cannot be written: {error.strerror}") from error
        self._hash.update(data)
        self.size += len(data)

    def restart(self) -> None:
        self._open.truncate(0)
        self._hash = _new_hash(self._file)
        self.size = 0

    def is_right(self) -> bool:
        return self._file.digest is None or self._hash.hexdigest() == self._file.digest[1]

    def publish(self) -> None:
        os.fsync(self._open.fileno())
        self._path.replace(self._final)

    def close(self) -> None:
        self._open.close()


def _new_hash(file: RemoteFile) -> _Hash:
    if file.digest is not None and file.digest[0] == "git":
        return hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    return hashlib.sha256()


def download(
    origin: Origin, file: RemoteFile, folder: Path, tally: Tally, *, sleep: Callable[[float], object], stopped: Callable[[], bool]
) -> None:
    """Returns at once when the file is there. Raises FetchError."""
    final = folder / file.name
    if final.is_file() and final.stat().st_size == file.size:
        tally.set(file.name, file.size)
        return
    final.unlink(missing_ok=True)
    part = PartFile(folder, file)
    try:
        pause, wrong = Pause(sleep), 0
        while not stopped():
            _fill(origin, file, part, pause, tally, stopped)
            if part.size == file.size and part.is_right():
                part.publish()
                return
            if part.size == file.size:
                wrong += 1
                if wrong == 2:
                    part.restart()
                    raise FetchError(
                        f"{file.name} arrived twice with another hash than its origin tells: it is damaged there or on the way"
                    )
                log.warning("%s arrived with a wrong hash and is fetched once more", file.name)
                part.restart()
    finally:
        part.close()


def _fill(origin: Origin, file: RemoteFile, part: PartFile, pause: Pause, tally: Tally, stopped: Callable[[], bool]) -> None:
    """One connection's worth."""
    tally.set(file.name, part.size)
    before = part.size
    try:
        if part.size < file.size:
            with contextlib.closing(origin.read(file, part.size)) as answer:
                for data in answer:
                    part.append(data[: file.size - part.size])
                    tally.set(file.name, part.size)
                    if part.size - before >= PROGRESS_BYTES:
                        pause.progressed()
                    if stopped() or part.size == file.size:
                        return
            raise ConnectionLost(f"{file.name}: the answer ended at byte {part.size} of {file.size}")
    except ConnectionLost as error:
        if error.refused_range:
            part.restart()
        pause.after(error)
