"""Finds and ends processes of a state folder by the run id in their environment, whoever their parent is now.

Works without the supervisor and without any file. Called by launch.py and by `pagoda doctor`.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil

from pagoda_operator.local.home import Home

KILL_WAIT_S = 5.0
POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Ended:
    terminated: int = 0
    killed: int = 0
    left: tuple[int, ...] = ()
    """pids that even SIGKILL did not end."""


def processes_of(home: Home) -> list[psutil.Process]:
    """Everything with a run id of this folder: supervisor, routers, workers and their engines. Never the asking process."""
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            run_id = process.environ().get("PAGODA_RUN_ID", "")
            if home.owns_run(run_id) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def end_processes(home: Home, *, grace_s: float) -> Ended:
    """SIGTERM, the grace, SIGKILL; looks again until nothing is left, as a dying process may have started another."""
    terminated = killed = 0
    processes = processes_of(home)
    _each(processes, psutil.Process.terminate)
    alive = wait_until_gone(processes, grace_s)
    terminated += len(processes) - len(alive)
    for _ in range(3):
        remaining = {process.pid: process for process in (*alive, *processes_of(home))}
        if not remaining:
            break
        _each(list(remaining.values()), psutil.Process.kill)
        alive = wait_until_gone(list(remaining.values()), KILL_WAIT_S)
        killed += len(remaining) - len(alive)
    return Ended(terminated, killed, tuple(process.pid for process in processes_of(home)))


def wait_until_gone(processes: Sequence[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Those that are still there then. A zombie is gone: where the first process of a container reaps nothing it stays for ever."""
    deadline = time.monotonic() + timeout_s
    while alive := [process for process in processes if _lives(process)]:
        if time.monotonic() > deadline:
            return alive
        time.sleep(POLL_S)
    return []


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _each(processes: Sequence[psutil.Process], act: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        try:
            act(process)
        except psutil.NoSuchProcess:
            continue
