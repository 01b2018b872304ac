"""How far a worker's CLOCK_MONOTONIC is from ours, judged by pings. Pure: the link of a session brings the readings.

ours     sent ────────────────▶ received          a stamp of one shared clock lies between the two; one that ever does not is of
theirs        read ── replied                     another host, and is moved by its distance from the middle, at most half a round trip off
"""

from collections import deque
from dataclasses import dataclass

PINGS = 16
"""Remembered: of a window of half a minute the quickest round trip says most, and clocks of two hosts drift apart slowly."""


@dataclass(frozen=True, slots=True)
class ClockReading:
    shared: bool
    """One host: its stamps are ours as they are."""
    offset_us: int
    """Theirs minus ours; 0 when shared."""
    uncertainty_us: int
    """Half the round trip that the offset rests on; 0 when shared."""

    def ours_us(self, worker_us: int) -> int:
        return worker_us - self.offset_us


class WorkerClock:
    """Of one session."""

    def __init__(self) -> None:
        self.reading: ClockReading | None = None
        """None: no ping was answered yet, so its stamps mean nothing here."""
        self._pings: deque[tuple[int, int, bool]] = deque(maxlen=PINGS)

    def ponged(self, sent_us: int, read_us: int, replied_us: int, received_us: int) -> None:
        """`read_us`, `replied_us`: the worker's; what it spent between them is no part of the way (NTP's on-wire estimate, RFC 5905)."""
        round_trip_us = max(0, received_us - sent_us - (replied_us - read_us))
        offset_us = (read_us - sent_us + replied_us - received_us) // 2
        self._pings.append((round_trip_us, offset_us, sent_us <= read_us <= replied_us <= received_us))
        if all(between for _, _, between in self._pings):
            self.reading = ClockReading(shared=True, offset_us=0, uncertainty_us=0)
        else:
            quickest_us, offset_us, _ = min(self._pings)
            self.reading = ClockReading(shared=False, offset_us=offset_us, uncertainty_us=quickest_us // 2 + 1)
