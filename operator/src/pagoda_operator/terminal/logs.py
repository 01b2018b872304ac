"""`pagoda logs`: the ends of log files, and what is added to them. Files only; works without a supervisor. Called by cli.py."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pagoda_operator.local.processes import last_lines

POLL_S = 0.2


def tails(files: Sequence[Path], count: int) -> Iterator[str]:
    """With several files each line says which it is from."""
    for file in files:
        for line in last_lines(file, count):
            yield _label(file, files) + line


def follow(files: Sequence[Path]) -> Iterator[str]:
    """New lines from now on, until interrupted. A file that was moved aside is read to its end, then its successor."""
    streams = {file: file.open(errors="replace") for file in files}
    for stream in streams.values():
        stream.seek(0, 2)
    while True:
        idle = True
        for file, stream in list(streams.items()):
            while line := stream.readline():
                idle = False
                yield _label(file, files) + line.rstrip("\n")
            if file.exists() and file.stat().st_ino != Path(f"/proc/self/fd/{stream.fileno()}").stat().st_ino:
                stream.close()
                streams[file] = file.open(errors="replace")
                idle = False
        if idle:
            time.sleep(POLL_S)


def _label(file: Path, files: Sequence[Path]) -> str:
    return f"{file.stem}: " if len(files) > 1 else ""
