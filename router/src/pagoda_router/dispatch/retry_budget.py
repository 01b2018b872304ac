"""How many second tries a router may make: a share of its requests, so that a failing fleet is not asked twice for everything. Pure.

The dispatcher owns one for tries before the first token and one for replays after it, and brings the clock.
"""

from collections import deque
from dataclasses import dataclass

WINDOW_S = 60.0
SLOTS = 12
"""Of the window: what is older leaves it in steps of 5 s."""
FLOOR = 10
"""Per window, whatever the traffic: the tenth of three requests would be none."""


@dataclass(slots=True)
class _Slot:
    number: int
    requests: int = 0
    tries: int = 0


class RetryBudget:
    def __init__(self, share: float, *, floor: int = FLOOR, window_s: float = WINDOW_S) -> None:
        """`share`: of the requests that came within the window; 0.1: every tenth may be tried again. A share of 0 allows none at all."""
        self._share = share
        self._floor = floor if share > 0 else 0
        self._slot_s = window_s / SLOTS
        self._slots: deque[_Slot] = deque()

    def came(self, now_s: float) -> None:
        """A request, for the first time."""
        self._slot(now_s).requests += 1

    def take(self, now_s: float, in_flight: int = 0) -> bool:
        """Whether one more try may be made; True spends it. `in_flight`: requests that run now, also those that came before the window."""
        newest = self._slot(now_s)
        if not self.has(now_s, in_flight):
            return False
        newest.tries += 1
        return True

    def has(self, now_s: float, in_flight: int = 0) -> bool:
        """What `take` would answer, without spending it."""
        self._slot(now_s)
        requests = max(in_flight, sum(slot.requests for slot in self._slots))
        return sum(slot.tries for slot in self._slots) < max(self._floor, int(self._share * requests))

    def _slot(self, now_s: float) -> _Slot:
        number = int(now_s // self._slot_s)
        if not self._slots or self._slots[-1].number < number:
            self._slots.append(_Slot(number))
            while self._slots[0].number <= number - SLOTS:
                self._slots.popleft()
        return self._slots[-1]
