"""Builds the compiled rig of bench/router-load into the user's cache, once for each state of its source. Called by run.py and the tests."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from pagoda_bench.errors import BenchError
from pagoda_bench.peers.environment import environments

SOURCE = Path(__file__).parents[3] / "router-load"
"""bench/router-load of this checkout."""
BUILD_TIMEOUT_S = 300


class NoProgram(BenchError):
    """The rig cannot be built here; the message says what is missing."""


def build() -> Path:
    """The program, compiled first when its source changed. Raises NoProgram."""
    sources = sorted(
        file for file in SOURCE.iterdir() if file.name == "go.mod" or (file.suffix == ".go" and not file.stem.endswith("_test"))
    )
    digest = hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in sources)).hexdigest()[:16]
    program = environments().parent / f"router-load-{digest}"
    if program.exists():
        return program
    go = shutil.which("go")
    if go is None:
        raise NoProgram(
            "Go ≥ 1.25 is not on PATH: the load generator and the mocks are compiled with it (go.dev/dl, or Debian's golang-go)"
        )
    program.parent.mkdir(parents=True, exist_ok=True)
    unfinished = program.with_suffix(f".{os.getpid()}")
    env = {**os.environ, "CGO_ENABLED": "0"}
    done = subprocess.run(
        [go, "build", "-o", str(unfinished), "."], cwd=SOURCE, env=env, capture_output=True, text=True, check=False, timeout=BUILD_TIMEOUT_S
    )
    if done.returncode != 0:
        raise NoProgram(f"go build in bench/router-load failed: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    unfinished.replace(program)
    return program
