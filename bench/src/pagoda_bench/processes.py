"""Finds the processes of one local stack by the state folder in their environment: for tests that kill things and prove none is left."""

from collections.abc import Iterator
from pathlib import Path

import psutil


def of_home(home: Path) -> Iterator[psutil.Process]:
    """Processes started for this PAGODA_HOME, zombies left out."""
    for process in psutil.process_iter(["cmdline"]):
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("PAGODA_HOME") == str(home):
                yield process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def running(home: Path, module: str) -> list[psutil.Process]:
    """Those started as `python -m MODULE`."""
    return [process for process in of_home(home) if module in process.cmdline()]
