"""The waiting room of one model: bounded in tokens, ordered by class, fair to large requests. Pure: the caller brings the clock.

Order: priority, then arrival. A request that does not fit yet may be overtaken by later, smaller ones, but by no more tokens than it
costs itself: then what is behind it waits until it has gone. So room is used while it is small, and a large request starts at the latest
after one more load of its own size. Requests of different groups (variants) use different workers and never wait for each other. Called
by the dispatcher.
"""

from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Generic, TypeVar

T = TypeVar("T")

LOOK_AHEAD = 32
"""Requests of a group that do not fit, after which a scan stops looking for one that does."""


@dataclass(slots=True, eq=False)
class Waiting(Generic[T]):
    request: T
    cost_tokens: int
    ticket: int
    """Order of arrival."""
    priority: int = 0
    deadline_s: float = float("inf")
    """On the caller's clock; past it the request is refused."""
    group: str = ""
    """Changed by `WaitingRoom.regroup` only."""
    overtaken_tokens: int = 0
    """Of requests that went first although they came later."""
    order: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.order = (-self.priority, self.ticket)


@dataclass(slots=True)
class _Scan(Generic[T]):
    """One look through a group."""

    blocked: list[Waiting[T]] = field(default_factory=list)
    patience_tokens: float = float("inf")
    is_over: bool = False


class WaitingRoom(Generic[T]):
    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.tokens = 0
        self._line: list[Waiting[T]] = []
        self._groups: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[Waiting[T]]:
        return iter(self._line)

    def has_room(self, cost_tokens: int) -> bool:
        """One request may always wait alone, however large: otherwise it could never be served."""
        return not self._line or self.tokens + cost_tokens <= self.max_tokens

    def push(self, waiting: Waiting[T]) -> None:
        insort(self._line, waiting, key=_order)
        self.tokens += waiting.cost_tokens
        self._groups[waiting.group] += 1

    def group_sizes(self) -> dict[str, int]:
        """Requests that wait, by group; none is 0."""
        return dict(self._groups)

    def regroup(self, waiting: Waiting[T], group: str) -> None:
        self._leave_group(waiting)
        waiting.group = group
        self._groups[group] += 1

    def _leave_group(self, waiting: Waiting[T]) -> None:
        self._groups[waiting.group] -= 1
        if not self._groups[waiting.group]:
            del self._groups[waiting.group]

    def remove(self, waiting: Waiting[T]) -> bool:
        """False when it has left already."""
        place = bisect_left(self._line, waiting.order, key=_order)
        while place < len(self._line) and self._line[place] is not waiting:
            if self._line[place].order != waiting.order:
                return False
            place += 1  # the prompts of one request share its ticket
        if place == len(self._line):
            return False
        del self._line[place]
        self.tokens -= waiting.cost_tokens
        self._leave_group(waiting)
        return True

    def start_those_that_fit(self, start: Callable[[Waiting[T]], bool]) -> None:
        """Offers each waiting request in order; `start` answers whether it found a place, and then the request has left."""
        scans: dict[str, _Scan[T]] = {}
        for waiting in list(self._line):
            scan = scans.get(waiting.group)
            if scan is None:
                scan = scans[waiting.group] = _Scan()
            elif scan.is_over:
                continue
            if waiting.cost_tokens <= scan.patience_tokens and start(waiting):
                self.remove(waiting)
                for earlier in scan.blocked:
                    earlier.overtaken_tokens += waiting.cost_tokens
                scan.patience_tokens -= waiting.cost_tokens
            else:
                scan.blocked.append(waiting)
                scan.patience_tokens = min(scan.patience_tokens, waiting.cost_tokens - waiting.overtaken_tokens)
            if scan.patience_tokens <= 0 or len(scan.blocked) >= LOOK_AHEAD:
                scan.is_over = True
                if all(group in scans and scans[group].is_over for group in self._groups):
                    return

    def take_expired(self, now_s: float) -> list[Waiting[T]]:
        expired = [waiting for waiting in self._line if waiting.deadline_s <= now_s]
        for waiting in expired:
            self.remove(waiting)
        return expired


def _order(waiting: Waiting[T]) -> tuple[int, int]:
    return waiting.order


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


def retry_after_s(tokens_ahead: int, tokens_per_s: float, rng: Random) -> float:
    """When the line ahead will have gone, ± 10 % so that refused clients do not come back together."""
    wait = tokens_ahead / tokens_per_s if tokens_per_s > 0 else UNKNOWN_WAIT_S
    return min(MOST_WAIT_S, max(LEAST_WAIT_S, wait * rng.uniform(0.9, 1.1)))
