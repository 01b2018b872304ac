"""How late the generator itself is: another process writes the time into a pipe, the event loop under load reads it as it reads answers.

What lies between is what every measured chunk may be late by, for the same reasons: the loop is busy, or the machine is. Run as a program,
this file is the writing process; it imports nothing heavy.
"""

import asyncio
import contextlib
import os
import signal
import struct
import sys
import time
from array import array
from collections.abc import AsyncIterator
from dataclasses import dataclass

_STAMP = struct.Struct("d")
_EVERY_S = 0.005
P50_BOUND_S = 0.001
P99_BOUND_S = 0.010


@dataclass(frozen=True, slots=True)
class Lateness:
    p50_s: float
    p99_s: float
    max_s: float
    samples: int

    @property
    def is_within_bounds(self) -> bool:
        return self.p50_s <= P50_BOUND_S and self.p99_s <= P99_BOUND_S

    def __str__(self) -> str:
        return f"p50 {self.p50_s * 1e3:.2f} ms, p99 {self.p99_s * 1e3:.2f} ms, max {self.max_s * 1e3:.2f} ms ({self.samples} samples)"


def summarise(late_s: "array[float]") -> Lateness:
    """Nearest rank; zeros for no sample."""
    ordered = sorted(late_s)
    if not ordered:
        return Lateness(0.0, 0.0, 0.0, 0)
    last = len(ordered) - 1
    return Lateness(ordered[last // 2], ordered[min(last, int(len(ordered) * 0.99))], ordered[-1], len(ordered))


class _Reader(asyncio.Protocol):
    def __init__(self, late_s: "array[float]") -> None:
        self._late_s = late_s
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        data = self._rest + data
        whole = len(data) - len(data) % _STAMP.size
        self._late_s.extend(now - stamp for (stamp,) in _STAMP.iter_unpack(data[:whole]))
        self._rest = data[whole:]


@contextlib.asynccontextmanager
async def lateness_probe() -> AsyncIterator["array[float]"]:
    """Seconds of lateness, one value every 5 ms, while the context lasts."""
    late_s: array[float] = array("d")
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(sys.executable, "-I", "-S", __file__, stdout=writing, stdin=asyncio.subprocess.PIPE)
    os.close(writing)
    loop = asyncio.get_running_loop()
    pipe = os.fdopen(reading, "rb", buffering=0)
    transport, _ = await loop.connect_read_pipe(lambda: _Reader(late_s), pipe)
    try:
        yield late_s
    finally:
        assert process.stdin is not None
        process.stdin.close()  # the writer ends when its own standard input does
        transport.close()
        await process.wait()


def _write_stamps() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; this process ends with its standard input
    os.set_blocking(0, False)
    while True:
        try:
            if os.read(0, 1) == b"":
                return
        except BlockingIOError:
            pass
        try:
            os.write(1, _STAMP.pack(time.monotonic()))
        except OSError:
            return
        time.sleep(_EVERY_S)


if __name__ == "__main__":
    _write_stamps()
