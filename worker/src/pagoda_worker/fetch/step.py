"""The fetch step: resolve, look whether it is there, wait for the lock, check the disk, download, publish by one rename.

    find → resolve → find → [ lock → find → tidy → disk → download → publish ]
Whatever ends this process, at any point, leaves either a complete commit or parts that the next start goes on from. Called by __main__.
"""

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from pagoda_worker.errors import ConfigError, ConnectionLost, DiskFull, FetchError, gigabytes
from pagoda_worker.fetch.download import NO_SPACE, Pause, Tally, download
from pagoda_worker.fetch.origin import Listing, Origin, choose, choose_adapter
from pagoda_worker.fetch.settings import FetchSettings
from pagoda_worker.readiness import Readiness
from pagoda_worker.settings.model_cache import (
    MARKER,
    PART,
    Fetched,
    RemoteSource,
    SourceFolder,
    marker_content,
    parse_remote,
    sync_folder,
    write_atomically,
)

PARALLEL_FILES = 4
LOCK_POLL_S = 0.5
RESOLVE_TRIES = 6
RESOLVE_TRIES_WITH_A_COPY = 2

log = logging.getLogger(__name__)


class FetchState:
    """How far it is; written by the step, read by the probe server and the log."""

    def __init__(self, source: str) -> None:
        self.begin(source)

    def begin(self, source: str) -> None:
        """What is fetched from here on."""
        self.source = source
        self.doing = "asking for its files"
        self.bytes_total: int | None = None
        self.count: Callable[[], int] = lambda: 0

    def readiness(self) -> Readiness:
        return Readiness(
            ready=False, reason="WeightsDownload", message=self.sentence(), bytes_done=self.bytes_done, bytes_total=self.bytes_total
        )

    @property
    def bytes_done(self) -> int | None:
        return None if self.bytes_total is None else self.count()

    def sentence(self) -> str:
        if self.bytes_total is None or self.bytes_done is None:
            return f"{self.source}: {self.doing}"
        return f"{self.source}: {self.doing}, {gigabytes(self.bytes_done)} of {gigabytes(self.bytes_total)}"


class Step:
    """`run` once. `open_origin`, `free_bytes` and `sleep` are the world's; tests give their own."""

    def __init__(
        self,
        settings: FetchSettings,
        state: FetchState,
        *,
        open_origin: Callable[[RemoteSource, FetchSettings], Origin],
        free_bytes: Callable[[Path], int],
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._settings = settings
        self._state = state
        self._open_origin = open_origin
        self._free_bytes = free_bytes
        self._sleep = sleep

    def run(self) -> Fetched | None:
        """None: this source is a folder already. Raises ConfigError and FetchError."""
        source = self._settings.source
        if source.startswith(("file://", "builtin://", "/")):
            log.info("%s is a folder: nothing to fetch", source)
            return None
        remote = parse_remote(source)
        revision = self._settings.revision
        folder = SourceFolder(self._settings.cache, remote)
        found = folder.find(revision)
        if found is not None and folder.is_pinned(revision):
            return _tell_complete(remote, found)
        with contextlib.closing(self._open_origin(remote, self._settings)) as origin:
            return self._complete(folder, origin, found, revision)

    def _complete(self, folder: SourceFolder, origin: Origin, found: Fetched | None, revision: str) -> Fetched:
        try:
            listing = self._resolve(origin, found)
        except ConnectionLost as error:
            assert found is not None, "without a copy, losing the hub is given up as a FetchError"
            log.warning("%s; the complete copy of commit %s is used, which may be older", error, found.commit)
            return found
        try:
            return self._ensure(folder, origin, listing, revision)
        except OSError as error:
            if error.errno in NO_SPACE:
                raise DiskFull(f"{self._settings.cache} is full: {error}") from error
            raise FetchError(f"{self._settings.cache} cannot be used: {error}") from error

    def _resolve(self, origin: Origin, found: Fetched | None) -> Listing:
        """Raises ConnectionLost only when there is a copy to fall back to."""
        if found is None:
            pause = Pause(self._sleep, most=RESOLVE_TRIES)
            while True:
                try:
                    return origin.resolve()
                except ConnectionLost as error:
                    pause.after(error)
        for _ in range(RESOLVE_TRIES_WITH_A_COPY - 1):
            with contextlib.suppress(ConnectionLost):
                return origin.resolve()
        return origin.resolve()

    def _ensure(self, folder: SourceFolder, origin: Origin, listing: Listing, revision: str) -> Fetched:
        found = folder.read_marker(listing.commit)
        if found is None or not _ref_is_right(folder, revision, listing.commit):
            folder.path.mkdir(parents=True, exist_ok=True)
            self._state.bytes_total = listing.bytes_total
            with self._lock(folder, listing):
                found = folder.read_marker(listing.commit)
                if found is None:
                    with _removing_when_full(folder.staging(listing.commit)):
                        self._download(folder, origin, listing)
                        self._publish(folder, listing, revision)
                    found = folder.read_marker(listing.commit)
                folder.write_ref(revision, listing.commit)
        if found is None:
            raise FetchError(f"{folder.commit_folder(listing.commit)} changed while it was completed: does something else write to it?")
        return _tell_complete(folder.source, found)

    @contextlib.contextmanager
    def _lock(self, folder: SourceFolder, listing: Listing) -> Iterator[None]:
        """flock: the kernel gives it back whatever happens to its holder."""
        with folder.lock.open("wb") as file:
            self._state.count = lambda: _bytes_in(folder.staging(listing.commit))
            told = False
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                        raise FetchError(
                            f"{folder.path} is on a volume without file locks ({error.strerror}): use one per replica"
                        ) from error
                if not told:
                    told, self._state.doing = True, "another replica fetches it"
                    log.info("another replica fetches %s; waiting for it", folder.source)
                self._sleep(LOCK_POLL_S)
            yield

    def _download(self, folder: SourceFolder, origin: Origin, listing: Listing) -> None:
        staging = self._tidy(folder, listing)
        self._check_disk(folder, listing)
        staging.mkdir(exist_ok=True)
        tally, stop = Tally(), threading.Event()
        for file in listing.files:
            tally.set(file.name, _present(staging, file.name, file.size))
        self._state.count = lambda: tally.bytes_done
        self._state.doing = f"fetching commit {listing.commit[:12]}"
        log.info("%s, into %s", self._state.sentence(), staging)

        def one(position: int) -> None:
            download(origin, listing.files[position], staging, tally, sleep=lambda seconds: stop.wait(seconds), stopped=stop.is_set)

        with ThreadPoolExecutor(PARALLEL_FILES, thread_name_prefix="fetch") as pool:
            tasks = [pool.submit(one, position) for position in range(len(listing.files))]
            done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
            stop.set()
            for task in tasks:
                task.cancel()
        for task in done:
            if isinstance(error := task.exception(), DiskFull):
                shutil.rmtree(staging, ignore_errors=True)  # what cannot be completed must not fill the volume
                raise error
        for task in done:
            task.result()

    def _tidy(self, folder: SourceFolder, listing: Listing) -> Path:
        """What earlier starts left and nobody goes on from. A published commit that has lost files becomes the staging folder again."""
        staging, complete = folder.staging(listing.commit), folder.commit_folder(listing.commit)
        for stale in folder.stale_staging(listing.commit):
            log.info("removing %s, which was never completed", stale)
            shutil.rmtree(stale, ignore_errors=True)
        for leftover in folder.path.glob("refs/*.new"):
            leftover.unlink(missing_ok=True)
        if complete.exists():
            log.warning("%s is damaged and is completed again", complete)
            shutil.rmtree(staging, ignore_errors=True)
            complete.rename(staging)
        wanted = {file.name for file in listing.files}
        if staging.is_dir():
            for each in staging.iterdir():
                if each.name.removesuffix(PART) not in wanted:
                    each.unlink()
        return staging

    def _check_disk(self, folder: SourceFolder, listing: Listing) -> None:
        staging = folder.staging(listing.commit)
        needed = sum(file.size - _present(staging, file.name, file.size) for file in listing.files)
        free = self._free_bytes(folder.path)
        if needed > free:
            raise DiskFull.before(self._settings.source, needed, self._settings.cache, free)

    def _publish(self, folder: SourceFolder, listing: Listing, revision: str) -> None:
        staging = folder.staging(listing.commit)
        files = {file.name: {"size": file.size, "digest": ":".join(file.digest) if file.digest else None} for file in listing.files}
        write_atomically(staging / MARKER, marker_content(folder.source, revision, listing.commit, files))
        staging.rename(folder.commit_folder(listing.commit))
        sync_folder(folder.path)


def _tell_complete(remote: RemoteSource, found: Fetched) -> Fetched:
    log.info("%s is complete: commit %s, %s in %s", remote, found.commit[:12], gigabytes(found.bytes_total), found.folder)
    return found


@contextlib.contextmanager
def _removing_when_full(staging: Path) -> Iterator[None]:
    """While the lock is held: without it, what is removed may be another replica's next try."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            shutil.rmtree(staging, ignore_errors=True)
        raise


def _ref_is_right(folder: SourceFolder, revision: str, commit: str) -> bool:
    known = folder.find(revision)
    return known is not None and known.commit == commit


def _present(staging: Path, name: str, size: int) -> int:
    """Bytes of one file that need not be fetched again, as far as sizes tell."""
    for path in (staging / name, staging / f"{name}{PART}"):
        with contextlib.suppress(OSError):
            return min(path.stat().st_size, size)
    return 0


def _bytes_in(staging: Path) -> int:
    total = 0
    with contextlib.suppress(OSError), os.scandir(staging) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                total += entry.stat().st_size
    return total


def free_bytes(folder: Path) -> int:
    facts = os.statvfs(folder)
    return facts.f_bavail * facts.f_frsize


def open_origin(source: RemoteSource, settings: FetchSettings) -> Origin:
    """Imports only the client that is needed."""
    chosen = choose_adapter if settings.is_adapter else choose
    if source.scheme == "hf":
        from pagoda_worker.fetch.hub import Hub

        return Hub(source, settings.revision, endpoint=settings.endpoint, token=settings.hub_token, choose=chosen)
    if source.scheme == "s3":
        from pagoda_worker.fetch.bucket import Bucket

        return Bucket(source, endpoint=settings.endpoint, choose=chosen)
    raise ConfigError(f"{source}: there is no client for {source.scheme}://")
