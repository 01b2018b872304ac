"""Triton's kernels without a GPU: in the interpreter, in processes of their own, since Triton reads the variable when it is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

INTERPRETED = Path(__file__).parent / "interpreted"


@pytest.mark.parametrize("name", sorted(path.name for path in INTERPRETED.glob("test_*.py")))
def test_kernels_equal_their_references_in_the_interpreter(name: str):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(INTERPRETED / name)],
        env={**os.environ, "TRITON_INTERPRET": "1"}, cwd=INTERPRETED.parents[1], capture_output=True, text=True, timeout=115, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
