"""The waiting room of one model: bounded, and who goes next. Pure: the caller brings the clock. Called by the dispatcher.

    class        latency before throughput; a throughput request that has waited long gets an eighth of what starts (AGED_SHARE)
      tenant       who was served least of the class (tenants.py)
        line         priority, deadline, arrival (waiting.py)

A request that does not fit yet may be overtaken by later, smaller ones, but by no more tokens than it costs itself: then what is behind it
waits until it has gone. So room is used while it is small, and a large request starts at the latest after one more load of its own size.
Requests of different groups (variants) use different workers and never wait for each other.
"""

import math
from collections.abc import Callable, Collection, Iterator
from heapq import heapify, heappop, heapreplace
from itertools import islice
from typing import Generic, TypeVar

from pagoda_router.admission.drain import Ahead
from pagoda_router.admission.waiting import ClassLines, Waiting
from pagoda_router.generation import RequestClass

T = TypeVar("T")

LOOK_AHEAD = 32
"""Requests of a group that do not fit, after which a scan stops looking for one that does."""
AGED_SHARE = 1 / 8
"""Of the tokens that a group starts, for a promoted request while the class before it waits too: it goes on, and does not take over."""


class WaitingRoom(Generic[T]):
    def __init__(self, max_tokens: int, *, max_requests: int = 2**31, promote_after_s: float = math.inf, waves: bool = False) -> None:
        """`promote_after_s`: age from which a throughput request has its share also while latency requests wait. `waves`: a tenant's
        requests of one shape go together."""
        self.max_tokens = max_tokens
        self.max_requests = max_requests
        self.promote_after_s = promote_after_s
        self.waves = waves
        self.tokens = 0
        self._requests = 0
        self._classes: dict[RequestClass, ClassLines[T]] = {request_class: ClassLines() for request_class in RequestClass}
        self._groups: dict[str, int] = {}
        self._aged_tokens: dict[str, float] = {}
        """By group: what promoted requests may start before the class ahead of them does."""
        self._wave_shapes: dict[str, int] = {}

    # ------------------------------------------------------------ who is here

    def __len__(self) -> int:
        return self._requests

    def __iter__(self) -> Iterator[Waiting[T]]:
        return (waiting for lines in self._classes.values() for waiting in lines)

    def push(self, waiting: Waiting[T]) -> None:
        self._classes[waiting.request_class].add(waiting)
        self.tokens += waiting.cost_tokens
        self._requests += 1
        self._groups[waiting.group] = self._groups.get(waiting.group, 0) + 1

    def remove(self, waiting: Waiting[T]) -> bool:
        """False when it has left already."""
        if not self._classes[waiting.request_class].discard(waiting):
            return False
        self.tokens -= waiting.cost_tokens
        self._requests -= 1
        self._groups[waiting.group] -= 1
        if not self._groups[waiting.group]:
            del self._groups[waiting.group]
            self._aged_tokens.pop(waiting.group, None)
            self._wave_shapes.pop(waiting.group, None)
        return True

    def regroup(self, waiting: Waiting[T], group: str) -> None:
        if self.remove(waiting):
            waiting.group = group
            self.push(waiting)

    def group_sizes(self) -> dict[str, int]:
        """Requests that wait, by group; none is 0."""
        return dict(self._groups)

    def size_of(self, request_class: RequestClass) -> tuple[int, int]:
        """Requests and tokens of one class."""
        return self._classes[request_class].requests, self._classes[request_class].tokens

    def served_tokens(self, tenant: str, request_class: RequestClass) -> int:
        """The counter by which it takes turns with others of its class."""
        return self._classes[request_class].counters.served(tenant)

    # ------------------------------------------------------------ bounds

    def has_room(self, cost_tokens: int) -> bool:
        """One request may always wait alone, however large: otherwise it could never be served."""
        return not self._groups or (self.tokens + cost_tokens <= self.max_tokens and len(self) < self.max_requests)

    def displaced_by(
        self, cost_tokens: int, tenant: str, request_class: RequestClass, max_requests: int | None = None
    ) -> list[Waiting[T]] | None:
        """Who must leave a full room for this newcomer; [] when there is room, None when nobody must: the newcomer is refused.

        First the classes behind its own, then, of its own class, tenants that would still have no less waiting than it would: so one that
        floods the room keeps nobody out. Of the greediest tenant the newest goes: it has waited least. `max_requests`: a smaller bound.
        """
        most = self.max_requests if max_requests is None else min(max_requests, self.max_requests)
        if not self._groups:
            return []
        excess_tokens, excess = self.tokens + cost_tokens - self.max_tokens, len(self) + 1 - most
        displaced: list[Waiting[T]] = []
        for leaving in self._least_entitled(cost_tokens, tenant, request_class):
            if excess_tokens <= 0 and excess <= 0:
                break
            displaced.append(leaving)
            excess_tokens, excess = excess_tokens - leaving.cost_tokens, excess - 1
        return displaced if excess_tokens <= 0 and excess <= 0 else None

    def _least_entitled(self, cost_tokens: int, tenant: str, request_class: RequestClass) -> Iterator[Waiting[T]]:
        classes = list(RequestClass)
        for behind in reversed(classes[classes.index(request_class) + 1 :]):
            yield from self._classes[behind].of_the_greediest()
        lines = self._classes[request_class]
        yield from lines.of_the_greediest(but=tenant, keeps_tokens=lines.tokens_of.get(tenant, 0) + cost_tokens)

    def ahead_of(self, cost_tokens: int, tenant: str, request_class: RequestClass, order: tuple[int, float, int] | None = None) -> Ahead:
        """What starts before one more request of `tenant` with this order (None: behind all its own)."""
        classes = list(RequestClass)
        before = sum(self._classes[each].tokens for each in classes[: classes.index(request_class)])
        return Ahead(before, self._classes[request_class].tokens_ahead(tenant, cost_tokens, order))

    # ------------------------------------------------------------ turns

    def start_those_that_fit(self, start: Callable[[Waiting[T]], bool], now_s: float = 0.0) -> None:
        """Offers waiting requests in turn; `start` answers whether it found a place: then the request leaves and its tenant is charged."""
        if self._requests == 1:  # while there is room for all, a newcomer is alone here
            (group,) = self._groups
            alone = next(found for lines in self._classes.values() if (found := lines.oldest(group)) is not None)
            if start(alone):
                self._leaves(alone, (), now_s)
            return
        for group in list(self._groups):
            self._offer(group, start, now_s)

    def served_alone(self, tenant: str, request_class: RequestClass, service_tokens: int) -> None:
        """One that found the room empty and a worker with place for it: as if it had come in and left again."""
        assert not self._requests
        self._classes[request_class].counters.served_alone(tenant, service_tokens)

    def settle(self, tenant: str, request_class: RequestClass, unused_service_tokens: int) -> None:
        """Of what the tenant was charged for a request that is over; negative when it took more."""
        self._classes[request_class].counters.charge(tenant, -unused_service_tokens)

    def _offer(self, group: str, start: Callable[[Waiting[T]], bool], now_s: float) -> None:
        turns = [_Turns(lines, group) for lines in self._classes.values() if group in lines.groups]
        blocked: dict[Waiting[T], None] = {}
        patience_tokens = too_dear = math.inf
        while (waiting := self._next(turns, group, blocked, now_s)) is not None:
            cost_tokens, uncached_tokens = waiting.cost_tokens, waiting.cost_tokens - waiting.cached_tokens
            # What did not fit need not be tried in a dearer one: an offer is a look at every worker.
            if cost_tokens <= patience_tokens and uncached_tokens < too_dear and start(waiting):
                self._leaves(waiting, blocked, now_s)
                for earlier in blocked:
                    earlier.overtaken_tokens += cost_tokens
                patience_tokens -= cost_tokens
            else:
                if cost_tokens <= patience_tokens:
                    too_dear = min(too_dear, cost_tokens)  # its price where nothing of it is cached
                blocked[waiting] = None
                patience_tokens = min(patience_tokens, cost_tokens - waiting.overtaken_tokens)
            if patience_tokens <= 0 or len(blocked) >= LOOK_AHEAD:
                return

    def _next(self, turns: "list[_Turns[T]]", group: str, blocked: Collection[Waiting[T]], now_s: float) -> Waiting[T] | None:
        wave = self._wave_shapes.get(group) if self.waves else None
        for turn in turns:
            waiting = turn.next(blocked, wave)
            if waiting is None:
                continue
            if waiting.request_class is RequestClass.LATENCY and self._aged_tokens:
                aged = self._aged(group, now_s)
                if aged is not None and aged not in blocked and self._aged_tokens.get(group, 0.0) >= aged.cost_tokens:
                    return aged
            return waiting
        return None

    def _aged(self, group: str, now_s: float) -> Waiting[T] | None:
        oldest = self._classes[RequestClass.THROUGHPUT].oldest(group)
        return oldest if oldest is not None and now_s - oldest.arrived_s >= self.promote_after_s else None

    def _leaves(self, waiting: Waiting[T], blocked: Collection[Waiting[T]], now_s: float) -> None:
        """It has a place: its tenant pays, what it passed in its own line is overtaken, a promoted one behind it comes nearer."""
        group, lines = waiting.group, self._classes[waiting.request_class]
        aged = self._aged(group, now_s) if self._classes[RequestClass.THROUGHPUT].requests else None
        if aged is waiting:
            self._aged_tokens.pop(group, None)
        elif aged is not None and waiting.request_class is RequestClass.LATENCY:
            saved_tokens = self._aged_tokens.get(group, 0.0) + AGED_SHARE * waiting.cost_tokens
            self._aged_tokens[group] = min(saved_tokens, aged.cost_tokens)
        if self.waves and aged is not waiting:
            self._wave_shapes[group] = waiting.shape
            for earlier in lines.before(waiting):
                earlier.overtaken_tokens += waiting.cost_tokens if earlier not in blocked else 0
        lines.charge(waiting)
        self.remove(waiting)


class _Turns(Generic[T]):
    """One look through the lines of one class and group: whose turn it is while requests leave."""

    def __init__(self, lines: ClassLines[T], group: str) -> None:
        self._lines = lines.groups[group]
        self._counters = lines.counters
        self._passed: dict[str, int] = {}
        """By tenant: how many at the line's beginning are blocked."""
        self._only = next(iter(self._lines)) if len(self._lines) == 1 else None
        self._heap = [] if self._only is not None else [self._turn(tenant, line[0]) for tenant, line in self._lines.items()]
        heapify(self._heap)

    def next(self, blocked: Collection[Waiting[T]], wave: int | None) -> Waiting[T] | None:
        """`wave`: the shape that goes together now. An entry of the heap may be older than its tenant's counter: it is never too large."""
        if self._only is not None:
            return self._candidate(self._only, blocked, wave)
        while self._heap:
            tenant = self._heap[0][-1]
            waiting = self._candidate(tenant, blocked, wave)
            if waiting is None:
                heappop(self._heap)
            elif (turn := self._turn(tenant, waiting)) > self._heap[0]:
                heapreplace(self._heap, turn)
            else:
                return waiting
        return None

    def _turn(self, tenant: str, waiting: Waiting[T]) -> tuple[int, int, int, int, str]:
        return (*self._counters.turn(tenant, waiting.cached_tokens), waiting.ticket, tenant)

    def _candidate(self, tenant: str, blocked: Collection[Waiting[T]], wave: int | None) -> Waiting[T] | None:
        """The line's first, or one of the wave's shape not far behind it, if those in between can still be overtaken."""
        line, at = self._lines.get(tenant, ()), self._passed.get(tenant, 0)
        while at < len(line) and line[at] in blocked:
            at += 1
        self._passed[tenant] = at
        if at == len(line):
            return None
        first = line[at]
        if wave is None or first.shape == wave:
            return first
        patience_tokens = first.cost_tokens - first.overtaken_tokens
        for waiting in islice(line, at + 1, at + LOOK_AHEAD):
            if waiting.shape == wave and waiting.cost_tokens <= patience_tokens and waiting not in blocked:
                return waiting
            patience_tokens = min(patience_tokens, waiting.cost_tokens - waiting.overtaken_tokens)
        return first
