"""Finds and ends processes of a state folder by the run id in their environment, whoever their parent is now.

Works without the supervisor and without any file. Called by launch.py and by `pagoda doctor`.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil

from pagoda_operator.local.home import Home

KILL_WAIT_S = 5.0


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
    gone, alive = psutil.wait_procs(processes, timeout=grace_s)
    terminated += len(gone)
    for _ in range(3):
        remaining = {process.pid: process for process in (*alive, *processes_of(home))}
        if not remaining:
            break
        _each(list(remaining.values()), psutil.Process.kill)
        gone, alive = psutil.wait_procs(list(remaining.values()), timeout=KILL_WAIT_S)
        killed += len(gone)
    return Ended(terminated, killed, tuple(process.pid for process in processes_of(home)))


def _each(processes: Sequence[psutil.Process], act: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        try:
            act(process)
        except psutil.NoSuchProcess:
            continue
