"""One model's line at this router: what waits, what its requests taught, and the words in which one is turned away.

A lane belongs to the dispatcher, which moves requests in and out; here are the records, and when a wait has lasted long enough. The caller
brings the clock.
"""

import asyncio
import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from random import Random
from typing import Any

from pagoda_router.admission import OutputHistory, Price
from pagoda_router.demand import Demand, WakeTimes
from pagoda_router.discovery.snapshot import ModelObject
from pagoda_router.errors import ColdStart, DeadlineExceeded, ModelNotFound, ModelUnavailable, Overloaded, RouterError
from pagoda_router.fleet import Fleet
from pagoda_router.generation import Generation, ModelName, WorkerId
from pagoda_router.metrics import RouterMetrics
from pagoda_router.policy import Placement
from pagoda_router.prefixes import PrefixChain
from pagoda_router.queue import LEAST_WAIT_S, MOST_WAIT_S, UNKNOWN_WAIT_S, DrainRate, Waiting, WaitingRoom, retry_after_s
from pagoda_router.tracing.record import Attempt, WorkerTimes

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Held:
    """A request in the waiting room. As such, one whose prompt cannot be tokenized before a worker has described the model."""

    model: ModelName
    variant: str | None
    """The client insists on it. None: drawn by weight."""
    ticket: int
    arrived_s: float
    patient_from_s: float
    """Since when it waits for room: the latest of its arrival, the moment in which a worker could answer at all, and a second try."""
    deadline_s: float = float("inf")
    """Its own."""
    place: "asyncio.Future[Any]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """None when a held one may be tokenized; a BackendStream for a Pending."""


@dataclass(slots=True, kw_only=True)
class Pending(Held):
    """A priced request from its arrival to its first token."""

    generation: Generation
    cost: Price
    avoid: set[WorkerId] = field(default_factory=set)
    """Workers that refused or lost it."""
    attempts: int = 0
    retries: int = 0
    chain: PrefixChain | None = None
    """Of its prompt's blocks, once somebody looked for them."""

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
            )
        )
        if log.isEnabledFor(logging.DEBUG):
            log.debug("placed request=%s %s", self.generation.request_id, placement)


class Lane:
    def __init__(self, room: WaitingRoom[Held], began_s: float) -> None:
        self.room = room
        self.history = OutputHistory()
        self.drain = DrainRate()
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


class Refusals:
    """Why a request is turned away: status, sentence, and an honest Retry-After."""

    def __init__(self, fleet: Fleet, metrics: RouterMetrics, rng: Random) -> None:
        self._fleet = fleet
        self._metrics = metrics
        self._rng = rng

    def queue_full(self, lane: Lane, model: ModelName, cost_tokens: int, now_s: float) -> Overloaded:
        self._metrics.rejected(model, "queue_full")
        retry_s = self.retry_after(lane, now_s)
        return Overloaded(
            f"{lane.room.tokens} tokens wait for {model} and this request adds {cost_tokens}; the limit is {lane.room.max_tokens}: "
            f"retry in {retry_s:.0f} s",
            retry_after_s=retry_s,
        )

    def too_many_wait(self, lane: Lane, model: ModelObject, now_s: float) -> ColdStart:
        self._metrics.rejected(model.name, "cold_start_full")
        retry_s = self.retry_after_wake(lane, model, now_s)
        return ColdStart(
            f"{len(lane.room)} requests with {lane.room.tokens} tokens wait already for a worker of {model.name} to come "
            f"({self._fleet.why_not(model.name)}): retry in {retry_s:.0f} s",
            retry_after_s=retry_s,
        )

    def hopeless(self, model: ModelObject) -> ModelUnavailable:
        self._metrics.rejected(model.name, "unavailable")
        return ModelUnavailable(f"no worker of {model.name} can come: {model.hopeless}", retry_after_s=MOST_WAIT_S)

    def overdue(
        self, lane: Lane, model: ModelObject | None, waiting: Waiting[Held], queue_timeout_s: float, now_s: float
    ) -> RouterError | None:
        """What ends this wait; None: it may go on."""
        request = waiting.request
        if model is None:
            return ModelNotFound(f"the model {request.model} was deleted while the request waited for it", param="model")
        if request.deadline_s <= now_s:
            return self._deadline(request, now_s)
        waited_s = now_s - request.arrived_s
        if waiting.group in lane.cold:
            if model.hopeless:
                return self.hopeless(model)
            return self._asleep_too_long(lane, model, waited_s, now_s) if waited_s >= model.wake_timeout_s else None
        if now_s - request.patient_from_s >= queue_timeout_s or waited_s >= model.wake_timeout_s + queue_timeout_s:
            return self._crowded_too_long(lane, model, waiting, waited_s, now_s)
        return None

    def _deadline(self, request: Held, now_s: float) -> DeadlineExceeded:
        self._metrics.rejected(request.model, "deadline")
        allowed_s = request.deadline_s - request.arrived_s
        return DeadlineExceeded(f"the request's deadline of {allowed_s:g} s passed while it waited for {request.model}")

    def _asleep_too_long(self, lane: Lane, model: ModelObject, waited_s: float, now_s: float) -> ColdStart:
        self._metrics.rejected(model.name, "cold_start")
        why = self._fleet.why_not(model.name) or "the wanted variant has none"
        return ColdStart(
            f"no worker of {model.name} came within {waited_s:.0f} s: {why}", retry_after_s=self.retry_after_wake(lane, model, now_s)
        )

    def _crowded_too_long(self, lane: Lane, model: ModelObject, waiting: Waiting[Held], waited_s: float, now_s: float) -> Overloaded:
        self._metrics.rejected(model.name, "queue_timeout")
        retry_s = self.retry_after(lane, now_s)
        return Overloaded(
            f"{model.name} had no room for {waiting.cost_tokens} tokens within {waited_s:.0f} s: retry in {retry_s:.0f} s",
            retry_after_s=retry_s,
        )

    def retry_after(self, lane: Lane, now_s: float) -> float:
        """When the line ahead will have gone."""
        return retry_after_s(lane.room.tokens, lane.drain.tokens_per_s(now_s), self._rng)

    def retry_after_wake(self, lane: Lane, model: ModelObject, now_s: float) -> float:
        """When a worker will have come, by how long it took before."""
        remaining_s = lane.wakes.remaining_s(now_s, model.wake_s)
        wait_s = UNKNOWN_WAIT_S if remaining_s is None else remaining_s
        return min(MOST_WAIT_S, max(LEAST_WAIT_S, wait_s * self._rng.uniform(0.9, 1.1)))
