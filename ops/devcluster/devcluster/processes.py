"""Starting processes with a log of their own, and waiting until they answer or have ended."""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from devcluster.components import Command
from devcluster.errors import NotStarted
from devcluster.programs import SYSTEM_PATH

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def start(
    command: Command, log: Path, *, environment: Mapping[str, str] | None = None, die_with_parent: bool = False
) -> subprocess.Popen[bytes]:
    """In a session of its own, so that Ctrl-C at our terminal reaches us alone and we stop things in order."""

    def before_exec() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    with log.open("ab") as output:
        return subprocess.Popen(
            command.argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(environment) if environment is not None else None,
            cwd=log.parent,
            start_new_session=True,
            preexec_fn=before_exec if die_with_parent else None,
        )


def stop(process: subprocess.Popen[bytes], grace_s: float) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(
    answers: Callable[[], bool], alive: Callable[[], bool], *, name: str, log: Path, timeout_s: float, failure: str | None = None
) -> None:
    """`failure` says what is missing when time is up; None: that `name` did not answer."""
    deadline = time.monotonic() + timeout_s
    while not answers():
        if not alive():
            raise NotStarted(f"{name} ended while starting", log)
        if time.monotonic() > deadline:
            raise NotStarted(f"{failure or f'{name} did not answer'} within {timeout_s:.0f} s", log)
        time.sleep(0.05)


def start_time(pid: int) -> str | None:
    """What tells a process from a later one with the same pid; None when there is none (or a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def clean_environment(programs: Path, **extra: str) -> dict[str, str]:
    """For our daemons: no proxy, no KUBECONFIG and nothing else from the caller's shell may change what they do."""
    return {"PATH": f"{programs}:{SYSTEM_PATH}", "HOME": os.environ.get("HOME", "/root"), **extra}
