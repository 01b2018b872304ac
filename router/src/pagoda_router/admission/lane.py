"""One model's line at this router: what waits, and what its requests taught. The dispatcher owns it and brings the clock."""

import asyncio
import logging
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

from pagoda_router.admission.credits import OutputLengths, Price
from pagoda_router.admission.demand import Demand, WakeTimes
from pagoda_router.admission.drain import ClassDrains
from pagoda_router.admission.queue import WaitingRoom
from pagoda_router.errors import RouterError
from pagoda_router.generation import Generation, ModelName, RequestClass, WorkerId
from pagoda_router.placement.policy import Placement
from pagoda_router.placement.prefixes import PrefixChain
from pagoda_router.tracing.record import Attempt, WorkerTimes

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Held:
    """A request in the waiting room. As such, one whose prompt cannot be tokenized before a worker has described the model."""

    model: ModelName
    lane: "Lane"
    """The model's."""
    variant: str | None
    """The client insists on it. None: drawn by weight."""
    ticket: int
    arrived_s: float
    patient_from_s: float
    """Since when it waits for room: the latest of its arrival, the moment in which a worker could answer at all, and a second try."""
    tenant: str = ""
    request_class: RequestClass = RequestClass.LATENCY
    deadline_s: float = float("inf")
    """Its own."""
    place: "asyncio.Future[Any]" = field(init=False)
    """Of one that waits: None when a held one may be tokenized; a BackendStream for a Pending."""

    def fail(self, error: RouterError) -> None:
        """Of one that waits."""
        if not self.place.done():
            self.place.set_exception(error)


@dataclass(slots=True, kw_only=True)
class Pending(Held):
    """A priced request from its arrival to its first token."""

    generation: Generation
    cost: Price
    avoid: set[WorkerId] = field(default_factory=set)
    """Workers that refused or lost it."""
    attempts: int = 0
    retries: int = 0
    engines_died: set[object] = field(default_factory=set)
    """Its streams whose engine died while it had them; one set for all that is asked of this request."""
    served_variant: str | None = None
    """Of the worker that has it; None: none has."""
    chain: PrefixChain | None = None
    """Of its prompt's blocks, once somebody looked for them."""

    def for_the_rest(self, rest: Generation, cost: Price, lost: WorkerId, now_s: float) -> "Pending":
        """What asks for the rest of an answer that its worker began: at the same place in line, of the same variant, with new patience."""
        if self.deadline_s < float("inf"):
            rest = replace(rest, deadline_s=max(0.001, self.deadline_s - now_s))
        return Pending(
            model=self.model,
            lane=self.lane,
            variant=self.served_variant,
            ticket=self.ticket,
            arrived_s=now_s,
            patient_from_s=now_s,
            tenant=self.tenant,
            request_class=self.request_class,
            deadline_s=self.deadline_s,
            generation=rest,
            cost=cost,
            avoid={lost},
            engines_died=self.engines_died,
        )

    def note_attempt(self, placement: Placement, now_s: float, times: WorkerTimes) -> None:
        """In the request's trace. `now_s`: when the choice began; `times`: what that worker will tell of it."""
        self.generation.trace.attempts.append(
            Attempt(
                placed_s=now_s,
                worker=placement.worker,
                policy=placement.policy,
                reason=placement.reason,
                reserved_tokens=placement.reserved_tokens,
                predicted_ms=placement.predicted_ms,
                predicted_cached_tokens=placement.cached_tokens,
                runner_up=placement.runner_up,
                runner_up_ms=placement.runner_up_ms,
                times=times,
                variant=self.served_variant or "",
            )
        )
        if log.isEnabledFor(logging.DEBUG):
            log.debug("placed request=%s %s", self.generation.request_id, placement)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """Of what waits for one model at this router."""

    max_tokens: int
    """A model's own routing.maxQueueTokens overrides it."""
    max_requests: int = 4096
    timeout_s: float = 60.0
    """Of the latency class: somebody reads along, and gives up sooner than a batch does."""
    throughput_timeout_s: float = 300.0
    promote_after_s: float = 30.0
    waves: bool = False

    def patience_s(self, request_class: RequestClass) -> float:
        return self.timeout_s if request_class is RequestClass.LATENCY else self.throughput_timeout_s

    def room(self) -> WaitingRoom[Held]:
        return WaitingRoom(self.max_tokens, max_requests=self.max_requests, promote_after_s=self.promote_after_s, waves=self.waves)


class Lane:
    def __init__(self, room: WaitingRoom[Held], began_s: float) -> None:
        self.room = room
        self.outputs = OutputLengths()
        self.drains = ClassDrains()
        self.demand = Demand(began_s)
        self.wakes = WakeTimes()
        self.routable: Collection[str] = ()
        """Variants with a worker that can answer, at the last look while somebody waited."""
        self.cold: set[str] = set()
        """Groups that wait for a worker to come."""

    def note_groups(self, routable: Collection[str], now_s: float) -> bool:
        """True when a group that was cold has a worker now: its requests' patience for room begins."""
        present = self.room.group_sizes()
        woken = {group for group in self.cold if group in routable or (group == "" and routable and "" not in present)}
        if woken:
            self.wakes.woke(now_s)
            for waiting in self.room:
                if waiting.group in woken:
                    waiting.request.patient_from_s = now_s
        self.cold = {group for group in present if group not in routable}
        if self.cold:
            self.wakes.waits(now_s)
        elif not woken:
            self.wakes.gave_up()
        return bool(woken)
