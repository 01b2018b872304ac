"""The worker's engine in a process of its own, one job after the other, spoken to in JSON lines. Used by the tour and by `costs`.

Imports nothing of the worker: processes and JSON are what they share.
"""

import json
import sys
from pathlib import Path
from typing import Any

from pagoda_bench.peers.process import PeerProcess
from pagoda_bench.peers.system import PeerUnavailable


class OfflineWorker:
    """The engine in a process of its own, one job after the other; every job has an engine of its own."""

    def __init__(self, *, log: Path) -> None:
        self._process = PeerProcess([sys.executable, "-m", "pagoda_worker.offline", "--lines"], log=log, env={}, pipes=True)

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Raises PeerUnavailable with the worker's last words."""
        try:
            self._process.stdin.write(json.dumps(asked).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise PeerUnavailable(f"the engine {self._process.end()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        self._process.stop()
