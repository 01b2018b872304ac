"""Processes pinned to cores, and what they took: CPU seconds and memory of a process with all its children. Knows no router."""

import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from pagoda_bench.errors import SettingsError
from pagoda_bench.peers.process import PeerProcess


def two_cores() -> tuple[int, int]:
    """One for the router, one for everything else. Raises SettingsError."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SettingsError("two cores are needed: one for the router, one for load generator and mocks")
    return cores[0], cores[1]


class Pinned(PeerProcess):
    """Its cores are its children's too."""

    def __init__(self, command: Sequence[str], cores: Sequence[int], *, log: Path, env: Mapping[str, str] | None = None) -> None:
        pin = ["taskset", "-c", ",".join(map(str, cores))]
        super().__init__([*pin, *command], log=log, env=env or {})  # taskset becomes the command: the pid stays
        self._taken_ns: dict[Path, int] = {}
        """By thread."""

    @property
    def pid(self) -> int:
        return self._child.pid

    def pause(self) -> None:
        """Until resumed it takes no CPU, whatever it has left to do."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        self.resume()
        super().stop()

    def _signal(self, number: signal.Signals) -> None:
        for process in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def cpu_s(self) -> float:
        """To the nanosecond; the usual counters tick every 10 ms. Of threads that have ended, what they had when they were seen last."""
        for process in self._family():
            for task in Path(f"/proc/{process.pid}/task").glob("*"):
                try:
                    self._taken_ns[task] = int((task / "schedstat").read_text().split()[0])
                except OSError:  # a thread that ended between two looks
                    continue
        return sum(self._taken_ns.values()) / 1e9

    def rss_bytes(self) -> int:
        total = 0
        for process in self._family():
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return total
