"""What one model's traffic was like at this router: what the operator scales by, and how long a wake takes. Pure: the caller's clock.

The dispatcher keeps one Demand and one WakeTimes per model; internal.py reports the first.
"""

from collections import deque
from typing import Any

TTFT_WINDOW_S = 60.0
MOST_SAMPLES = 2048
"""Of the window: quantiles of the latest so many are good enough, and a busy minute costs no more memory."""
WAKES = 3


class Demand:
    def __init__(self, began_s: float) -> None:
        """`began_s`: since when this router could have seen requests."""
        self.arrivals = 0
        self._present = 0
        self._left_s = began_s
        self._ttfts: deque[tuple[float, float]] = deque(maxlen=MOST_SAMPLES)

    def came(self, *, again: bool = False) -> None:
        self._present += 1
        self.arrivals += not again

    def left(self, now_s: float) -> None:
        self._present -= 1
        self._left_s = now_s

    def answered(self, now_s: float, ttft_s: float) -> None:
        self._ttfts.append((now_s, ttft_s))

    def idle_s(self, now_s: float) -> float:
        """Since anything waited or ran."""
        return 0.0 if self._present else max(0.0, now_s - self._left_s)

    def ttft_s(self, now_s: float) -> dict[str, Any] | None:
        """None: nothing got a first token in the window."""
        while self._ttfts and self._ttfts[0][0] < now_s - TTFT_WINDOW_S:
            self._ttfts.popleft()
        if not self._ttfts:
            return None
        ordered = sorted(ttft for _, ttft in self._ttfts)
        return {"p50": _quantile(ordered, 0.5), "p95": _quantile(ordered, 0.95), "count": len(ordered)}


def _quantile(ordered: list[float], q: float) -> float:
    return round(ordered[min(len(ordered) - 1, int(q * len(ordered)))], 6)


class WakeTimes:
    """From the first request that waits for a worker until one can answer."""

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._latest: deque[float] = deque(maxlen=WAKES)

    def waits(self, now_s: float) -> None:
        if self._since_s is None:
            self._since_s = now_s

    def woke(self, now_s: float) -> None:
        if self._since_s is not None:
            self._latest.append(now_s - self._since_s)
            self._since_s = None

    def gave_up(self) -> None:
        """Nobody waits any more: how long it would have taken is not known."""
        self._since_s = None

    def remaining_s(self, now_s: float, usual_s: float | None) -> float | None:
        """Until a worker can answer, by the slowest of the last wakes; `usual_s` before any was seen here. None: nothing to go by."""
        whole_s = max(self._latest) if self._latest else usual_s
        if whole_s is None:
            return None
        return max(0.0, whole_s - (now_s - self._since_s if self._since_s is not None else 0.0))
