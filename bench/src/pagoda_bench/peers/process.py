"""One peer's process: started in a session of its own with its output in a log, ended by pid with every child it made, and with this
process however that ends."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

from pagoda_bench.lifeline import Lifeline, Mark

STOP_TIMEOUT_S = 20.0


class PeerProcess:
    def __init__(self, command: Sequence[str], *, log: Path, env: Mapping[str, str], pipes: bool = False) -> None:
        """`pipes`: the caller speaks to it over stdin and stdout; otherwise both streams go to the log."""
        self.log = log
        mark = Mark.fresh()
        self._lifeline = Lifeline(mark)
        try:
            with log.open("wb") as sink:
                self._child = subprocess.Popen(
                    command,
                    env={**os.environ, **env, mark.name: mark.value},
                    stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                    stdout=subprocess.PIPE if pipes else sink,
                    stderr=sink,
                    start_new_session=True,
                )
        except OSError:
            self._lifeline.close()
            raise
        self._lifeline.holds(self._child.pid)

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def stdin(self) -> IO[bytes]:
        assert self._child.stdin is not None
        return self._child.stdin

    @property
    def stdout(self) -> IO[bytes]:
        assert self._child.stdout is not None
        return self._child.stdout

    def ended(self) -> bool:
        return self._child.poll() is not None

    def end(self) -> str:
        """How it ended, for one that is known to end, and its last words."""
        try:
            status = self._child.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return f"stopped answering: {self.last_words()}"
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return f"ended with {how}: {self.last_words()}"

    def last_words(self) -> str:
        """The log's last line that tells an error, else its last line."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        telling = [line for line in lines if "Error" in line]
        return (telling or lines or ["nothing in its log"])[-1][:300]

    def stop(self) -> None:
        """SIGTERM to the first process, then SIGKILL to whatever it left."""
        family = self._family()
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(STOP_TIMEOUT_S)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._child.wait(STOP_TIMEOUT_S)
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._lifeline.close()

    def _family(self) -> list[psutil.Process]:
        try:
            first = psutil.Process(self._child.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []
