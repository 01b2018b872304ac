"""How fast requests of each class leave, and what that means for one that waits: predicted waits and Retry-After. Pure: the caller's clock.

The dispatcher keeps one `ClassDrains` per model and tells it of every reservation that is over.
"""

from collections import deque
from dataclasses import dataclass
from random import Random

from pagoda_router.generation import RequestClass

DRAIN_WINDOW_S = 10.0
UNKNOWN_WAIT_S = 10.0
"""Told to clients before anything was ever settled."""
LEAST_WAIT_S, MOST_WAIT_S = 1.0, 60.0
"""Clients honour Retry-After up to a minute or two; beyond it they give up or ignore it."""


class DrainRate:
    """Tokens settled per second over the last seconds: what an honest Retry-After rests on."""

    def __init__(self) -> None:
        self._settled: deque[tuple[float, int]] = deque()
        self._sum = 0
        self._last_rate = 0.0

    def settle(self, now_s: float, tokens: int) -> None:
        self._settled.append((now_s, tokens))
        self._sum += tokens
        self._forget(now_s)

    def tokens_per_s(self, now_s: float) -> float:
        """0 when nothing was ever settled. A quiet window keeps the last rate: the fleet was idle, not slow."""
        self._forget(now_s)
        if self._settled:
            self._last_rate = self._sum / max(1.0, min(DRAIN_WINDOW_S, now_s - self._settled[0][0]))
        return self._last_rate

    def _forget(self, now_s: float) -> None:
        while self._settled and self._settled[0][0] < now_s - DRAIN_WINDOW_S:
            self._sum -= self._settled.popleft()[1]


@dataclass(frozen=True, slots=True)
class Ahead:
    """Tokens that wait and go before one more request."""

    of_classes_before: int
    of_its_class: int


class ClassDrains:
    """One model's drain rates. A class gets what it drains itself and what the classes behind it drain, which it goes before."""

    def __init__(self) -> None:
        self._rates = {request_class: DrainRate() for request_class in RequestClass}

    def settle(self, request_class: RequestClass, now_s: float, tokens: int) -> None:
        self._rates[request_class].settle(now_s, tokens)

    def tokens_per_s(self, request_class: RequestClass, now_s: float) -> float:
        """0 when nothing was ever settled."""
        classes = list(RequestClass)
        return sum(self._rates[each].tokens_per_s(now_s) for each in classes[classes.index(request_class) :])

    def wait_s(self, request_class: RequestClass, ahead: Ahead, now_s: float) -> float | None:
        """Until these have gone: no sooner than all of them at the rate of all, nor than those of its class at its class's rate. None:
        nothing to go by."""
        rate_of_all = self.tokens_per_s(next(iter(RequestClass)), now_s)
        if rate_of_all <= 0:
            return None
        wait_s, own_rate = (ahead.of_classes_before + ahead.of_its_class) / rate_of_all, self.tokens_per_s(request_class, now_s)
        return max(wait_s, ahead.of_its_class / own_rate) if own_rate > 0 else wait_s


def retry_after_s(wait_s: float | None, rng: Random) -> float:
    """± 10 %, so that refused clients do not come back together. `wait_s` None: not known."""
    wait_s = UNKNOWN_WAIT_S if wait_s is None else wait_s
    return min(MOST_WAIT_S, max(LEAST_WAIT_S, wait_s * rng.uniform(0.9, 1.1)))
