"""Triton's kernels in its interpreter: a process of its own, since Triton reads the variable when it is imported."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

INTERPRETED = Path(__file__).parent / "interpreted"


class Interpreted(NamedTuple):
    process: "subprocess.Popen[bytes]"
    log: Path


@contextmanager
def interpreted(log: Path) -> Iterator[Interpreted]:
    """All files in one process: to start one costs as much as the tests of a file. It takes what others leave of the cores."""
    command = ["nice", "-n", "19", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(INTERPRETED)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    with log.open("w") as said, subprocess.Popen(command, env=environment, cwd=INTERPRETED.parents[1], stdout=said, stderr=said) as process:
        yield Interpreted(process, log)
        process.kill()
