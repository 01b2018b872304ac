"""Admits, places and runs generations: waiting room → worker → stream. Implements generation.Dispatcher; hears of capacity as LinkListener.

Owns what waits and what it learned per model. Decisions are the pure modules' (admission, queue, policy); links do the talking. A request
is handed to its caller at its first token: until then a lost worker costs a second try instead of a broken stream, and a refusal has an
HTTP status.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from random import Random

from pagoda_router.admission import OutputHistory, Price, price
from pagoda_router.backends.base import BackendStream, RefusedByWorker
from pagoda_router.errors import ContextTooLong, DeadlineExceeded, NoWorker, Overloaded, RouterError, UpstreamFailed
from pagoda_router.fleet import Fleet
from pagoda_router.generation import EndReason, Generation, GenerationStream, ModelName, WorkerId
from pagoda_router.metrics import RouterMetrics
from pagoda_router.policy import Placement, Refusal, WorkerView, place
from pagoda_router.queue import DrainRate, Waiting, WaitingRoom, retry_after_s

log = logging.getLogger(__name__)

EXPIRY_CHECK_S = 0.1
NO_WORKER_GRACE_S = 5.0
"""How long a request waits for a model that has no worker and none on its way: a supervisor may be replacing it."""
MOST_ATTEMPTS = 3
"""Submits that a worker did not take."""
MOST_RETRIES = 1
"""Second tries after a worker took a request and was lost: a request that kills engines must not tour the fleet."""


@dataclass(slots=True)
class Pending:
    """A request from its arrival to its first token."""

    generation: Generation
    cost: Price
    ticket: int
    arrived_s: float
    deadline_s: float
    avoid: set[WorkerId] = field(default_factory=set)
    """Workers that refused or lost it."""
    attempts: int = 0
    retries: int = 0
    stream: "asyncio.Future[BackendStream]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass(slots=True)
class Lane:
    """One model's waiting room and what its requests taught."""

    room: WaitingRoom[Pending]
    history: OutputHistory = field(default_factory=OutputHistory)
    drain: DrainRate = field(default_factory=DrainRate)


class FleetDispatcher:
    def __init__(
        self,
        fleet: Fleet,
        metrics: RouterMetrics,
        *,
        max_queue_tokens: int,
        queue_timeout_s: float,
        no_worker_grace_s: float = NO_WORKER_GRACE_S,
        clock: Callable[[], float] = time.monotonic,
        rng: Random | None = None,
    ) -> None:
        self._fleet = fleet
        self._metrics = metrics
        self._max_queue_tokens = max_queue_tokens
        self._queue_timeout_s = queue_timeout_s
        self._no_worker_grace_s = min(no_worker_grace_s, queue_timeout_s)
        self._clock = clock
        self._rng = rng or Random()
        self._lanes: dict[ModelName, Lane] = {}
        self._running: set[BackendStream] = set()
        self._tickets = 0
        self._expiry: asyncio.TimerHandle | None = None
        self._shut_down = ""

    # ------------------------------------------------------------ Dispatcher

    @asynccontextmanager
    async def generate(self, generation: Generation) -> AsyncIterator[GenerationStream]:
        stream = await self._begin(generation)
        self._running.add(stream)
        try:
            yield stream
        finally:
            self._running.discard(stream)
            stream.abandon()

    async def _begin(self, generation: Generation) -> BackendStream:
        """Waits, places, submits, until a worker has answered with a first token (or the request's end)."""
        pending = self._price(generation)
        while True:
            stream = await self._wait_for_place(pending)
            self._running.add(stream)
            try:
                await stream.wait_for_output()
                if not stream.failure:
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
        model = self._fleet.model(generation.model)
        lane = self._lane(model.name)
        lane.room.max_tokens = self._max_queue_tokens if model.max_queue_tokens is None else model.max_queue_tokens
        cost = price(generation, lane.history.predict(generation), self._fleet.block_size(model.name))
        if not lane.room.has_room(cost.kv_tokens):
            raise self._queue_full(model.name, lane, cost)
        now_s = self._clock()
        self._tickets += 1
        patience_s = self._queue_timeout_s if generation.deadline_s is None else min(self._queue_timeout_s, generation.deadline_s)
        return Pending(generation, cost, self._tickets, now_s, now_s + patience_s)

    async def _wait_for_place(self, pending: Pending) -> BackendStream:
        if self._shut_down:
            raise NoWorker(self._shut_down, retry_after_s=1.0)
        model = pending.generation.model
        lane = self._lane(model)
        waiting = Waiting(
            pending,
            pending.cost.kv_tokens,
            pending.ticket,
            priority=pending.generation.priority,
            enqueued_s=pending.arrived_s,
            deadline_s=pending.deadline_s,
        )
        pending.stream = asyncio.get_running_loop().create_future()
        lane.room.push(waiting)
        self._place_waiting(model)
        try:
            if not pending.stream.done():
                self._watch_expiry()
                self._queue_changed(model)
            return await pending.stream
        except asyncio.CancelledError:
            if pending.stream.done() and not pending.stream.cancelled() and pending.stream.exception() is None:
                pending.stream.result().abandon()  # placed in the very moment in which the client left
            raise
        finally:
            if lane.room.remove(waiting):
                self._place_waiting(model)  # what waited behind it may fit
            self._queue_changed(model)

    # ------------------------------------------------------------ placing

    def _place_waiting(self, model: ModelName) -> None:
        lane = self._lanes.get(model)
        if lane is not None and len(lane.room):
            lane.room.start_those_that_fit(self._start)

    def _start(self, waiting: Waiting[Pending]) -> bool:
        """Submits the request to the best worker; True when it needs no place any more."""
        pending = waiting.request
        if pending.stream.done():
            return True
        links = {link.worker: link for link in self._fleet.links(pending.generation.model)}
        views = [link.view(pending.cost) for link in links.values()]
        found = place(pending.cost, views, self._rng, pending.avoid)
        if isinstance(found, Refusal):
            if found.why != "too_large":
                return False
            pending.stream.set_exception(ContextTooLong(f"{found.message}: shorten the prompt", param="messages"))
            return True
        now_s = self._clock()
        generation = pending.generation
        if generation.deadline_s is not None:
            generation = replace(generation, deadline_s=max(0.001, generation.deadline_s - (now_s - pending.arrived_s)))
        pending.stream.set_result(links[found.worker].submit(generation, pending.cost, found.reserved_tokens))
        self._metrics.placed(generation.model, now_s - pending.arrived_s, found.reserved_tokens)
        _log_placement(pending, found)
        return True

    def _count_failure(self, pending: Pending, stream: BackendStream) -> None:
        """A worker took the request and failed before the first token: raises unless it deserves another try."""
        stream.abandon()
        drained = stream.failure_reason is EndReason.SHUTDOWN
        harmless = stream.lost or drained or not stream.begun
        if self._shut_down or not harmless or pending.retries >= MOST_RETRIES:
            raise UpstreamFailed(f"{pending.generation.model} failed before the first token: {stream.failure}")
        pending.retries += 1
        pending.avoid.add(stream.worker)
        self._metrics.retried(pending.generation.model, "worker_drained" if drained else "worker_lost")

    def _count_refusal(self, pending: Pending, stream: BackendStream, refused: RefusedByWorker) -> None:
        if refused.error is not None:
            raise refused.error
        pending.attempts += 1
        pending.avoid.add(stream.worker)
        model = pending.generation.model
        others = any(view.routable and view.worker not in pending.avoid for view in self._views(model))
        if pending.attempts >= MOST_ATTEMPTS or (refused.overloaded and not others):
            self._metrics.rejected(model, "worker_refused")
            kind = Overloaded if refused.overloaded else NoWorker
            raise kind(f"{model} takes no more requests now: {refused}", retry_after_s=self._retry_after(model))
        self._metrics.retried(model, "refused")

    # ------------------------------------------------------------ refusing

    def _watch_expiry(self) -> None:
        if self._expiry is None:
            self._expiry = asyncio.get_running_loop().call_later(EXPIRY_CHECK_S, self._expire)

    def _expire(self) -> None:
        self._expiry = None
        now_s = self._clock()
        for model, lane in self._lanes.items():
            for waiting in lane.room.take_expired(now_s):
                _fail(waiting.request, self._timed_out(waiting.request, now_s))
            if not self._fleet.is_awaited(model):
                for waiting in [w for w in lane.room if now_s - w.enqueued_s >= self._no_worker_grace_s]:
                    lane.room.remove(waiting)
                    _fail(waiting.request, self._no_worker(model))
            self._place_waiting(model)  # what waited behind them may fit
        if any(len(lane.room) for lane in self._lanes.values()):
            self._watch_expiry()

    def _timed_out(self, pending: Pending, now_s: float) -> RouterError:
        model, waited_s = pending.generation.model, now_s - pending.arrived_s
        if pending.generation.deadline_s is not None and waited_s >= pending.generation.deadline_s:
            self._metrics.rejected(model, "deadline")
            return DeadlineExceeded(f"the request's deadline of {pending.generation.deadline_s:g} s passed while it waited for {model}")
        if not any(view.routable for view in self._views(model)):
            return self._no_worker(model)
        self._metrics.rejected(model, "queue_timeout")
        retry_s = self._retry_after(model)
        return Overloaded(
            f"{model} had no room for {pending.cost.kv_tokens} tokens within {waited_s:.0f} s: retry in {retry_s:.0f} s",
            retry_after_s=retry_s,
        )

    def _queue_full(self, model: ModelName, lane: Lane, cost: Price) -> Overloaded:
        self._metrics.rejected(model, "queue_full")
        retry_s = self._retry_after(model)
        return Overloaded(
            f"{lane.room.tokens} tokens wait for {model} and this request adds {cost.kv_tokens}; the limit is {lane.room.max_tokens}: "
            f"retry in {retry_s:.0f} s",
            retry_after_s=retry_s,
        )

    def _no_worker(self, model: ModelName) -> NoWorker:
        self._metrics.rejected(model, "no_worker")
        reasons = sorted({view.reason for view in self._views(model) if view.reason})
        why = "; ".join(reasons) or ("a worker is starting" if self._fleet.is_awaited(model) else "it has none")
        return NoWorker(f"no worker of {model} can answer now: {why}", retry_after_s=NO_WORKER_GRACE_S * self._rng.uniform(0.9, 1.1))

    def _retry_after(self, model: ModelName) -> float:
        lane = self._lane(model)
        return retry_after_s(lane.room.tokens, lane.drain.tokens_per_s(self._clock()), self._rng)

    # ------------------------------------------------------------ LinkListener

    def capacity_changed(self, model: ModelName) -> None:
        self._place_waiting(model)

    def settled(
        self, model: ModelName, reserved_tokens: int, predicted_output_tokens: int, output_tokens: Sequence[int], *, ran: bool
    ) -> None:
        lane = self._lane(model)
        if ran:
            lane.drain.settle(self._clock(), reserved_tokens)
        self._metrics.settled(model, reserved_tokens)
        for tokens in output_tokens:
            lane.history.observe(tokens)
            self._metrics.output_learned(model, predicted_output_tokens, tokens)

    def session_ended(self, worker: WorkerId, reason: str) -> None:
        self._metrics.session_ended()

    # ------------------------------------------------------------ for __main__ and internal

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
            lane = self._lanes[model] = Lane(WaitingRoom(self._max_queue_tokens))
        return lane

    def _views(self, model: ModelName) -> list[WorkerView]:
        return [link.view() for link in self._fleet.links(model)]

    def _queue_changed(self, model: ModelName) -> None:
        self._metrics.queue_changed(model, *self.queue(model))


def _fail(pending: Pending, error: RouterError) -> None:
    if not pending.stream.done():
        pending.stream.set_exception(error)


def _log_placement(pending: Pending, placement: Placement) -> None:
    if log.isEnabledFor(logging.DEBUG):
        log.debug(
            "placed request=%s worker=%s predicted_ms=%.1f reserved=%d reason=%r runner_up=%s runner_up_ms=%s",
            pending.generation.request_id, placement.worker, placement.predicted_ms, placement.reserved_tokens,
            placement.reason, placement.runner_up, placement.runner_up_ms,
        )  # fmt: skip
