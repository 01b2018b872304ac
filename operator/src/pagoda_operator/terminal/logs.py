"""`pagoda logs`: the ends of log files, and what is added to them. Files only; works without a supervisor. Called by commands.py."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

TAIL_BYTES = 1 << 20
POLL_S = 0.2


def show(files: Sequence[Path], count: int, *, follow: bool) -> Iterator[str]:
    """The last lines of each file and, with follow, every line after them until interrupted. With several files each line says its own."""
    streams: dict[Path, TextIO] = {file: file.open(errors="replace") for file in files}
    try:
        for file, stream in streams.items():
            for line in _tail(stream, count):
                yield _label(file, files) + line
        while follow:
            idle = True
            for file in files:
                for line in streams[file]:
                    idle = False
                    yield _label(file, files) + line.rstrip("\n")
                streams[file] = _successor(file, streams[file])
            if idle:
                time.sleep(POLL_S)
    finally:
        for stream in streams.values():
            stream.close()


def _tail(stream: TextIO, count: int) -> list[str]:
    """Leaves the stream where the last of these lines ends, so that following it misses none."""
    size = stream.seek(0, 2)
    stream.seek(max(0, size - TAIL_BYTES))
    lines = stream.read().splitlines()
    return lines[-count:] if count > 0 else []


def _successor(file: Path, stream: TextIO) -> TextIO:
    """A file that was moved aside has been read to its end; its successor is read from its beginning."""
    if not file.exists() or file.stat().st_ino == Path(f"/proc/self/fd/{stream.fileno()}").stat().st_ino:
        return stream
    stream.close()
    return file.open(errors="replace")


def _label(file: Path, files: Sequence[Path]) -> str:
    return f"{file.stem}: " if len(files) > 1 else ""
