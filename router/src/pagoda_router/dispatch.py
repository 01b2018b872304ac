"""Admits, places and runs generations: waiting room → worker → stream. Implements generation.Dispatcher; hears of capacity as LinkListener.

Owns what waits and what it learned per model. Decisions are the pure modules' (admission, queue, policy, demand); links do the talking. A
request is handed to its caller at its first token: until then a lost worker costs a second try instead of a broken stream, and a refusal
has an HTTP status.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random
from typing import Any

from pagoda_router.admission import price
from pagoda_router.backends.base import BackendStream, RefusedByWorker, Settlement
from pagoda_router.demand import Demand
from pagoda_router.errors import ContextTooLong, NoWorker, Overloaded, RouterError, UpstreamFailed
from pagoda_router.fleet import Fleet
from pagoda_router.generation import Arrival, EndReason, Generation, GenerationStream, ModelName, WorkerId
from pagoda_router.lanes import Held, Lane, Pending, Refusals
from pagoda_router.metrics import RouterMetrics
from pagoda_router.policy import Refusal, WorkerView, choose_variant, place
from pagoda_router.queue import Waiting, WaitingRoom

EXPIRY_CHECK_S = 0.1
MOST_ATTEMPTS = 3
"""Submits that a worker did not take."""
MOST_RETRIES = 1
"""Second tries after a worker took a request and was lost: a request that kills engines must not tour the fleet."""


class FleetDispatcher:
    def __init__(
        self,
        fleet: Fleet,
        metrics: RouterMetrics,
        *,
        max_queue_tokens: int,
        queue_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        rng: Random | None = None,
    ) -> None:
        self._fleet = fleet
        self._metrics = metrics
        self._max_queue_tokens = max_queue_tokens
        self._queue_timeout_s = queue_timeout_s
        self._clock = clock
        self._rng = rng or Random()
        self._refusals = Refusals(fleet, metrics, self._rng)
        self._lanes: dict[ModelName, Lane] = {}
        self._running: set[BackendStream] = set()
        self._tickets = 0
        self._expiry: asyncio.TimerHandle | None = None
        self._shut_down = ""
        self._began_s = clock()

    # ------------------------------------------------------------ Dispatcher

    @asynccontextmanager
    async def generate(self, generation: Generation) -> AsyncIterator[GenerationStream]:
        self._fleet.model(generation.model)
        demand = self._lane(generation.model).demand
        demand.came(again=generation.arrival is not None)
        try:
            stream = await self._begin(generation)
            self._running.add(stream)
            try:
                yield stream
            finally:
                self._running.discard(stream)
                stream.abandon()
        finally:
            demand.left(self._clock())

    async def hold(self, model: ModelName, variant: str | None, cost_tokens: int) -> Arrival:
        self._fleet.model(model)
        demand = self._lane(model).demand
        demand.came()
        try:
            now_s = self._clock()
            held = Held(model=model, variant=variant, ticket=self._next_ticket(), arrived_s=now_s, patient_from_s=now_s)
            self._check_admission(held, cost_tokens)
            await self._wait(held, cost_tokens)
            return Arrival(held.ticket, held.arrived_s)
        finally:
            demand.left(self._clock())

    async def _begin(self, generation: Generation) -> BackendStream:
        """Waits, places, submits, until a worker has answered with a first token (or the request's end)."""
        pending = self._price(generation)
        while True:
            stream = await self._wait_for_place(pending)
            self._running.add(stream)
            try:
                await stream.wait_for_output()
                if not stream.failure:
                    now_s = self._clock()
                    self._lane(pending.model).demand.answered(now_s, now_s - pending.patient_from_s)
                    return stream
                self._count_failure(pending, stream)
            except RefusedByWorker as refused:
                self._count_refusal(pending, stream, refused)
            except BaseException:
                stream.abandon()
                raise
            finally:
                self._running.discard(stream)

    def _price(self, generation: Generation) -> Pending:
        """Raises Overloaded or ColdStart when the waiting room has no place for it."""
        model, lane, now_s = generation.model, self._lane(generation.model), self._clock()
        cost = price(generation, lane.history.predict(generation), self._fleet.block_size(model))
        arrival = generation.arrival
        arrived_s = arrival.at_s if arrival is not None else now_s
        pending = Pending(
            model=model,
            variant=generation.variant,
            ticket=arrival.ticket if arrival is not None else self._next_ticket(),
            arrived_s=arrived_s,
            patient_from_s=now_s,
            deadline_s=arrived_s + generation.deadline_s if generation.deadline_s is not None else float("inf"),
            generation=generation,
            cost=cost,
        )
        generation.trace.queued_s, generation.trace.predicted_output_tokens = now_s, cost.output_tokens
        if arrival is None:  # else it was admitted when it was held
            self._check_admission(pending, cost.kv_tokens)
        return pending

    def _check_admission(self, request: Held, cost_tokens: int) -> None:
        if self._shut_down:
            raise NoWorker(self._shut_down, retry_after_s=1.0)
        model, lane = self._fleet.model(request.model), self._lane(request.model)
        lane.room.max_tokens = self._max_queue_tokens if model.max_queue_tokens is None else model.max_queue_tokens
        is_full, is_crowded = not lane.room.has_room(cost_tokens), len(lane.room) >= model.max_waiting
        if not (is_full or is_crowded or model.hopeless):
            return
        if self._fleet.can_answer(request.model, request.variant):
            if is_full:
                raise self._refusals.queue_full(lane, request.model, cost_tokens, self._clock())
        elif model.hopeless:
            raise self._refusals.hopeless(model)
        elif is_full or is_crowded:
            raise self._refusals.too_many_wait(lane, model, self._clock())

    async def _wait_for_place(self, pending: Pending) -> BackendStream:
        if self._shut_down:
            raise NoWorker(self._shut_down, retry_after_s=1.0)
        pending.place = asyncio.get_running_loop().create_future()
        stream: BackendStream = await self._wait(pending, pending.cost.kv_tokens, pending.generation.priority)
        return stream

    async def _wait(self, request: Held, cost_tokens: int, priority: int = 0) -> Any:
        model = request.model
        lane = self._lane(model)
        group = self._fleet.only_variant(model) if request.variant is None else request.variant
        if group is None:
            group = self._draw(model, self._fleet.routable_variants(model))
        waiting = Waiting(request, cost_tokens, request.ticket, priority=priority, deadline_s=request.deadline_s, group=group)
        lane.room.push(waiting)
        self._place_waiting(model)
        try:
            if not request.place.done():
                self._watch_expiry()
                self._queue_changed(model)
            return await request.place
        except asyncio.CancelledError:
            place = request.place
            if isinstance(request, Pending) and place.done() and not place.cancelled() and place.exception() is None:
                place.result().abandon()  # placed in the very moment in which the client left
            raise
        finally:
            if lane.room.remove(waiting):
                self._place_waiting(model)  # what waited behind it may fit
            self._queue_changed(model)

    # ------------------------------------------------------------ placing

    def _place_waiting(self, model: ModelName) -> None:
        lane = self._lanes.get(model)
        if lane is None or not (len(lane.room) or lane.cold):
            return
        lane.room.start_those_that_fit(self._start)
        if (len(lane.room) or lane.cold) and self._review(model, lane):
            lane.room.start_those_that_fit(self._start)

    def _review(self, model: ModelName, lane: Lane) -> bool:
        """Which groups wait for a worker to come, and which have one now; True when a request may go where it could not before."""
        routable, now_s = self._fleet.routable_variants(model), self._clock()
        only = self._fleet.only_variant(model)
        if routable != lane.routable:
            lane.routable = routable
            for waiting in [waiting for waiting in lane.room if waiting.request.variant is None and waiting.group not in routable]:
                group = only if only is not None else self._draw(model, routable)
                if group != waiting.group:
                    lane.room.regroup(waiting, group)
                    waiting.request.patient_from_s = now_s
        return lane.note_groups(routable, now_s)

    def _draw(self, model: ModelName, routable: frozenset[str]) -> str:
        """The variant that takes the next request; empty while none can."""
        found = self._fleet.find(model)
        return "" if found is None else choose_variant(found.variants, routable, self._rng) or ""

    def _start(self, waiting: Waiting[Held]) -> bool:
        """Submits the request to the best worker; True when it needs no place any more."""
        request = waiting.request
        if request.place.done():
            return True
        if not isinstance(request, Pending):
            if self._fleet.text(request.model, request.variant) is None:
                return False
            request.place.set_result(None)
            return True
        now_s = self._clock()
        relays = request.generation.relay is not None
        group = (link for link in self._fleet.links(request.model) if link.endpoint.variant == waiting.group)
        links = {link.worker: link for link in group if link.endpoint.relays == relays}
        found = place(request.cost, [link.view(request.cost) for link in links.values()], self._rng, request.avoid)
        if isinstance(found, Refusal):
            if found.why != "too_large":
                return False
            request.place.set_exception(ContextTooLong(f"{found.message}: shorten the prompt", param="messages"))
            return True
        generation = request.generation
        if generation.deadline_s is not None:
            generation = replace(generation, deadline_s=max(0.001, generation.deadline_s - (now_s - request.arrived_s)))
        stream = links[found.worker].submit(generation, request.cost, found.reserved_tokens)
        request.place.set_result(stream)
        request.note_attempt(found, now_s, stream.times)
        self._metrics.placed(generation.model, now_s - request.arrived_s, found)
        return True

    def _count_failure(self, pending: Pending, stream: BackendStream) -> None:
        """A worker took the request and failed before the first token: raises unless it deserves another try."""
        stream.abandon()
        drained = stream.failure_reason is EndReason.SHUTDOWN
        harmless = stream.lost or drained or not stream.begun
        if self._shut_down or not harmless or pending.retries >= MOST_RETRIES:
            raise UpstreamFailed(f"{pending.generation.model} failed before the first token: {stream.failure}")
        pending.retries += 1
        pending.patient_from_s = self._clock()
        pending.avoid.add(stream.worker)
        reason = "worker_drained" if drained else "worker_lost"
        pending.generation.trace.attempts[-1].failed = reason
        self._metrics.retried(pending.generation.model, reason)

    def _count_refusal(self, pending: Pending, stream: BackendStream, refused: RefusedByWorker) -> None:
        if refused.error is not None:
            raise refused.error
        pending.attempts += 1
        pending.avoid.add(stream.worker)
        model = pending.generation.model
        others = any(view.routable and view.worker not in pending.avoid for view in self._views(pending))
        if pending.attempts >= MOST_ATTEMPTS or (refused.overloaded and not others):
            self._metrics.rejected(model, "worker_refused")
            kind = Overloaded if refused.overloaded else NoWorker
            raise kind(
                f"{model} takes no more requests now: {refused}", retry_after_s=self._refusals.retry_after(self._lane(model), self._clock())
            )
        pending.generation.trace.attempts[-1].failed = "refused"
        self._metrics.retried(model, "refused")

    # ------------------------------------------------------------ refusing

    def _watch_expiry(self) -> None:
        if self._expiry is None:
            self._expiry = asyncio.get_running_loop().call_later(EXPIRY_CHECK_S, self._expire)

    def _expire(self) -> None:
        self._expiry = None
        now_s = self._clock()
        for name, lane in self._lanes.items():
            if not len(lane.room):
                continue
            self._place_waiting(name)
            model = self._fleet.find(name)
            for waiting in list(lane.room):
                error = self._refusals.overdue(lane, model, waiting, self._queue_timeout_s, now_s)
                if error is not None:
                    lane.room.remove(waiting)
                    _fail(waiting.request, error)
            self._place_waiting(name)  # what waited behind them may fit
        if any(len(lane.room) for lane in self._lanes.values()):
            self._watch_expiry()

    # ------------------------------------------------------------ LinkListener

    def capacity_changed(self, model: ModelName) -> None:
        self._lane(model)
        self._place_waiting(model)

    def settled(self, settlement: Settlement) -> None:
        lane = self._lane(settlement.model)
        if settlement.ran:
            lane.drain.settle(self._clock(), settlement.reserved_tokens)
        self._metrics.settled(settlement)
        for tokens in settlement.output_tokens:
            lane.history.observe(tokens)

    def session_ended(self, worker: WorkerId, reason: str) -> None:
        self._metrics.session_ended()

    # ------------------------------------------------------------ for __main__ and internal

    def now_s(self) -> float:
        """On the clock that demand is told in."""
        return self._clock()

    def demand(self, model: ModelName) -> Demand:
        return self._lane(model).demand

    def waiting_by_variant(self, model: ModelName) -> dict[str, int]:
        """Requests; under "" those that will take whichever comes first."""
        lane = self._lanes.get(model)
        return lane.room.group_sizes() if lane is not None else {}

    def queue(self, model: ModelName) -> tuple[int, int]:
        """Requests and tokens that wait."""
        lane = self._lanes.get(model)
        return (len(lane.room), lane.room.tokens) if lane is not None else (0, 0)

    def shut_down(self, reason: str) -> None:
        """The drain ran out of time: everything still waiting or running ends with `reason`, nothing new begins."""
        self._shut_down = reason
        for lane in self._lanes.values():
            for waiting in list(lane.room):
                lane.room.remove(waiting)
                _fail(waiting.request, NoWorker(reason, retry_after_s=1.0))
        for stream in list(self._running):
            stream.end_all(EndReason.SHUTDOWN, reason)

    # ------------------------------------------------------------ parts

    def _lane(self, model: ModelName) -> Lane:
        lane = self._lanes.get(model)
        if lane is None:
            lane = self._lanes[model] = Lane(WaitingRoom(self._max_queue_tokens), self._began_s)
            self._metrics.introduce(model)
        return lane

    def _next_ticket(self) -> int:
        self._tickets += 1
        return self._tickets

    def _views(self, pending: Pending) -> list[WorkerView]:
        """Of the workers that may run it."""
        return [link.view() for link in self._fleet.links(pending.model) if pending.variant in (None, link.endpoint.variant)]

    def _queue_changed(self, model: ModelName) -> None:
        self._metrics.queue_changed(model, *self.queue(model))


def _fail(request: Held, error: RouterError) -> None:
    if not request.place.done():
        request.place.set_exception(error)
