"""A tensor parallel engine whose further ranks are threads of the test's process: the same messages and meetings, without a start of Python
and an import of torch for each. test_rank_processes.py has the real processes."""

import socket
import threading
from pathlib import Path
from typing import Any

from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.errors import RanksOutOfStep
from pagoda_worker.execution.ranks import Ranks
from pagoda_worker.rank_process import Connection, serve


class RankThread:
    """As subprocess.Popen, with the status that a process would end with."""

    def __init__(self, theirs: socket.socket) -> None:
        self.returncode: int | None = None
        connection = Connection(theirs.dup())
        self._thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
        self._thread.start()

    def _serve(self, connection: Connection) -> None:
        try:
            self.returncode = serve(connection)
        finally:
            connection.close()

    def kill(self) -> None:
        """It ends when its socket does."""

    def wait(self, timeout: float | None = None) -> int:
        self._thread.join(timeout)
        return self.returncode or 0


def engine_of_ranks(folder: Path, count: int, **settings: Any) -> Engine:
    """As small_engine. Its `close` joins the threads."""
    defaults: dict[str, Any] = {"device": "cpu", "max_running": 16, "max_batch_tokens": 512}
    config = EngineConfig(model_dir=folder, tensor_parallel=count, **{**defaults, **settings})
    losses: list[RanksOutOfStep] = []
    return Engine(config, ranks=Ranks.start(config, spawn=RankThread, lost=losses.append))
