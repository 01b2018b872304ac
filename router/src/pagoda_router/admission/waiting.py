"""Requests that wait, in lines by class, group and tenant, each in order. Pure records; queue.py owns them and decides.

A line's order is the tenant's own: priority, then the earliest deadline (without one: after those with one), then arrival.
"""

import math
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pagoda_router.admission.tenants import TenantCounters
from pagoda_router.generation import RequestClass

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Waiting(Generic[T]):
    request: T
    cost_tokens: int
    """Of KV cache: what is bounded, and what must fit."""
    ticket: int
    """Order of arrival."""
    priority: int = 0
    deadline_s: float = math.inf
    """On the caller's clock; past it the request is refused."""
    group: str = ""
    """Changed by `WaitingRoom.regroup` only."""
    tenant: str = ""
    request_class: RequestClass = RequestClass.LATENCY
    service_tokens: int | None = None
    """What its tenant is charged at dispatch. None: its cost."""
    cached_tokens: int = 0
    """Of its prompt, expected in some worker's prefix cache."""
    arrived_s: float = -math.inf
    """On the caller's clock: from when its age counts."""
    overtaken_tokens: int = 0
    """Of requests that went first although their turn was later."""
    order: tuple[int, float, int] = field(init=False)
    """Among those of its tenant."""

    def __post_init__(self) -> None:
        self.order = (-self.priority, self.deadline_s, self.ticket)

    @property
    def shape(self) -> int:
        """Requests of one shape differ at most twofold in predicted length."""
        return self.cost_tokens.bit_length()


Line = list[Waiting[T]]
"""One tenant's requests of one class and group, in order."""


class ClassLines(Generic[T]):
    """All that waits of one class: its lines by group and tenant, its tenants' counters."""

    def __init__(self) -> None:
        self.counters = TenantCounters()
        self.requests = self.tokens = 0
        self.tokens_of: dict[str, int] = {}
        """Waiting, by tenant."""
        self.groups: dict[str, dict[str, Line[T]]] = {}
        self._requests_of: dict[str, int] = {}
        self._by_arrival: dict[str, OrderedDict[Waiting[T], None]] = {}
        """Ordered, as a plain dict looks for its first key past all that left before it."""

    def __iter__(self) -> Iterator[Waiting[T]]:
        return (waiting for lines in self.groups.values() for line in lines.values() for waiting in line)

    def add(self, waiting: Waiting[T]) -> None:
        tenant, group = waiting.tenant, waiting.group
        if tenant in self._requests_of:
            self._requests_of[tenant] += 1
            self.tokens_of[tenant] += waiting.cost_tokens
        else:
            self.counters.activate(tenant, self.tokens_of)
            self._requests_of[tenant], self.tokens_of[tenant] = 1, waiting.cost_tokens
        if group not in self.groups:
            self.groups[group], self._by_arrival[group] = {}, OrderedDict()
        line = self.groups[group].setdefault(tenant, [])
        if line and waiting.order < line[-1].order:
            insort(line, waiting, key=_order)
        else:
            line.append(waiting)
        self._by_arrival[group][waiting] = None
        self.requests += 1
        self.tokens += waiting.cost_tokens

    def discard(self, waiting: Waiting[T]) -> bool:
        """False when it is not here."""
        tenant, group = waiting.tenant, waiting.group
        arrivals = self._by_arrival.get(group)
        if arrivals is None or waiting not in arrivals:
            return False
        del arrivals[waiting]
        lines = self.groups[group]
        line = lines[tenant]
        place = 0 if line[0] is waiting else bisect_left(line, waiting.order, key=_order)
        while line[place] is not waiting:
            place += 1  # the prompts of one request share its ticket
        del line[place]
        if not line:
            del lines[tenant]
            if not lines:
                del self.groups[group], self._by_arrival[group]
        self.requests -= 1
        self.tokens -= waiting.cost_tokens
        if self._requests_of[tenant] > 1:
            self._requests_of[tenant] -= 1
            self.tokens_of[tenant] -= waiting.cost_tokens
        else:
            del self._requests_of[tenant], self.tokens_of[tenant]
            self.counters.forget_idle(self.tokens_of)
        return True

    def charge(self, waiting: Waiting[T]) -> None:
        """It leaves for a worker, and is still here."""
        tokens = waiting.cost_tokens if waiting.service_tokens is None else waiting.service_tokens
        self.counters.charge(waiting.tenant, tokens, is_alone=len(self.tokens_of) == 1)

    def oldest(self, group: str) -> Waiting[T] | None:
        return next(iter(self._by_arrival.get(group, ())), None)

    def before(self, waiting: Waiting[T]) -> Line[T]:
        """Those of its own line whose turn was earlier."""
        line = self.groups[waiting.group][waiting.tenant]
        return line[: line.index(waiting)]

    def of_the_greediest(self, *, but: str | None = None, keeps_tokens: int = 0) -> Iterator[Waiting[T]]:
        """The newest of whichever tenant has most waiting, again and again, as if each had left; until none would keep `keeps_tokens`."""
        tokens_of = {tenant: tokens for tenant, tokens in self.tokens_of.items() if tenant != but}
        by_arrival: dict[str, list[Waiting[T]]] = {}
        while tokens_of:
            greediest = max(tokens_of, key=lambda tenant: tokens_of[tenant])
            if greediest not in by_arrival:
                lines = [lines[greediest] for lines in self.groups.values() if greediest in lines]
                by_arrival[greediest] = sorted((each for line in lines for each in line), key=lambda each: each.ticket)
            newest = by_arrival[greediest].pop()
            tokens_of[greediest] -= newest.cost_tokens
            if tokens_of[greediest] < keeps_tokens:
                del tokens_of[greediest]  # a smaller one of its own may still go, but its turn to be spared has come
                continue
            yield newest
            if not by_arrival[greediest]:
                del tokens_of[greediest]

    def tokens_ahead(self, tenant: str, cost_tokens: int, order: tuple[int, float, int] | None) -> int:
        """Tokens that go before one more request of `tenant`: its own with an earlier turn, and of each other tenant as much as it gets
        meanwhile. `order` None: behind all its own."""
        if order is None:
            own = self.tokens_of.get(tenant, 0)
        else:
            lines = [lines.get(tenant, []) for lines in self.groups.values()]
            own = sum(waiting.cost_tokens for line in lines for waiting in line[: bisect_left(line, order, key=_order)])
        return own + sum(min(tokens, own + cost_tokens) for other, tokens in self.tokens_of.items() if other != tenant)


def _order(waiting: Waiting[T]) -> tuple[int, float, int]:
    return waiting.order
