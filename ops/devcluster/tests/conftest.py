"""The command itself, as a user runs it: plain python3, nothing installed."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from devcluster import programs
from devcluster.errors import Missing

ROOT = Path(__file__).resolve().parent.parent
Command = Callable[..., subprocess.CompletedProcess[str]]


def found(names: tuple[str, ...]) -> Path:
    """The programs, or a skip that says how to get them; with PAGODA_REQUIRE_ALL and PAGODA_KUBE_BIN set their absence is a failure."""
    try:
        return programs.find(names)
    except Missing as error:
        if os.environ.get("PAGODA_REQUIRE_ALL") and os.environ.get("PAGODA_KUBE_BIN"):
            raise
        pytest.skip(str(error))


@pytest.fixture
def devcluster(tmp_path: Path) -> Command:
    """python3 ops/devcluster …, with a state folder of the test's own."""
    environment = {name: value for name, value in os.environ.items() if name != "KUBECONFIG"} | {
        "DEVCLUSTER_DIR": str(tmp_path / "cluster")
    }

    def run(*words: str, stdin: IO[str] | None = None, **extra: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", str(ROOT), *words]
        return subprocess.run(command, env=environment | extra, stdin=stdin, capture_output=True, text=True, timeout=240, check=False)

    return run
