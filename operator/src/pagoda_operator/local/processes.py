"""One child process of the supervisor: started with its own session and log, dying with the supervisor, ended as a group.

Knows nothing of pods. Called by pod.py.
"""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SPAWN = str(Path(__file__).with_name("spawn.py"))
LARGEST_LOG_BYTES = 16 * 2**20
LOGFMT_MESSAGE = re.compile(r'^time=.* msg=("(?:[^"\\]|\\.)*")')
TAIL_BYTES = 64 * 1024


class ChildProcess:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    @classmethod
    async def start(cls, argv: Sequence[str], env: Mapping[str, str], *, cwd: Path, log: Path) -> "ChildProcess":
        command = (sys.executable, "-I", "-S", SPAWN, "--die-with", str(os.getpid()), "--", *argv)
        # the log is opened in append mode: a restart continues it, whoever follows it keeps following
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *command, env=dict(env), cwd=cwd, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        return cls(process)

    async def wait(self) -> int:
        """The exit status, negative for a signal. What is left of the group is killed: as in a container, the first process ends all."""
        status = await self._process.wait()
        self._signal_group(signal.SIGKILL)
        return status

    def terminate(self) -> None:
        """To the first process only: it drains and ends its own children in its own order."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            pass


def rotate(log: Path, *, keep_up_to_bytes: int = 0) -> None:
    """Moves a log aside as .1 when it is larger than that."""
    if log.exists() and log.stat().st_size > keep_up_to_bytes:
        log.replace(log.with_name(f"{log.name}.1"))


def last_lines(log: Path, count: int) -> list[str]:
    """The end of a log, newest last; empty when there is none."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - TAIL_BYTES))
            lines = stream.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [line for line in lines if line.strip()][-count:]


def plain(line: str) -> str:
    """The message of a structured log line; any other line as it is."""
    found = LOGFMT_MESSAGE.search(line)
    if found is None:
        return line.strip()
    try:
        return str(json.loads(found.group(1)))
    except ValueError:
        return line.strip()


def describe_exit(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
