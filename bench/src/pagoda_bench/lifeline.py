"""Ends what a rig started, however the rig's own process ends: done, by a signal that raises, by SIGKILL.

A keeper, a small process in a session of its own, reads a pipe that only the rig holds open. At its end the keeper ends every process whose
environment carries the rig's mark, and those of their sessions: some servers overwrite their environment, and a session's first process
may have ended. Made by what starts processes (local_stack.py, peers/process.py, operator_scale/).

    python -m pagoda_bench.lifeline NAME VALUE [FOLDER]     until stdin, a session a line, ends; FOLDER is removed then
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import psutil

GRACE_S = 10.0
"""From SIGTERM to SIGKILL, of processes that nobody waits for any more."""


class Mark(NamedTuple):
    """A variable in the environment of all that one rig starts, and of what that starts in turn."""

    name: str
    value: str

    @staticmethod
    def fresh() -> "Mark":
        return Mark("BENCH_RIG", uuid4().hex)


class Lifeline:
    def __init__(self, mark: Mark, *, folder: Path | None = None) -> None:
        """Made before the first process with this mark. `folder`: goes with them."""
        command = [sys.executable, "-m", "pagoda_bench.lifeline", *mark, *([] if folder is None else [str(folder)])]
        self._keeper = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def holds(self, session: int) -> None:
        """One that began with a marked process."""
        assert self._keeper.stdin is not None
        self._keeper.stdin.write(b"%d\n" % session)
        self._keeper.stdin.flush()

    def close(self) -> None:
        """Returns when nothing with this mark is left."""
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        self._keeper.wait()


def raise_on_sigterm() -> Callable[[], None]:
    """For a process that holds rigs or temporary folders: SIGTERM unwinds it like Ctrl-C. The second one ends it at once, and its lifelines
    do the rest. What is returned takes it back."""

    def ended(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, ended)

    def take_back() -> None:
        signal.signal(signal.SIGTERM, before)

    return take_back


def end_all(mark: Mark, known: Iterable[int] = (), *, grace_s: float = GRACE_S) -> None:
    """SIGTERM, the grace, SIGKILL; looks again until nothing is left, as a dying process may have started another. `known`: sessions."""
    sessions = set(known)
    told: set[psutil.Process] = set()
    late_s = time.monotonic() + grace_s
    while family := list(_family(mark, sessions)):
        is_late = time.monotonic() > late_s
        for process in family:
            if is_late or process not in told:
                told.add(process)
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    process.send_signal(signal.SIGKILL if is_late else signal.SIGTERM)
        psutil.wait_procs(family, timeout=0.2)


def _family(mark: Mark, sessions: set[int]) -> Iterator[psutil.Process]:
    """`sessions`: that marked processes lead, added to."""
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            session = os.getsid(process.pid)
            if process.environ().get(mark.name) == mark.value:
                if session == process.pid:
                    sessions.add(session)
                yield process
            elif session in sessions:
                yield process
        except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError):
            continue


def main(name: str, value: str, folder: str | None = None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # whoever ends a whole group or user must not leave the rest behind
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sessions = [int(line) for line in sys.stdin]
    end_all(Mark(name, value), sessions)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
