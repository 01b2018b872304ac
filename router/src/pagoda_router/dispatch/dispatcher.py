"""Admits and runs generations: waiting room → worker → stream. Implements generation.Dispatcher; hears of capacity as LinkListener.

Owns what runs. What waits, and what was learned per model, is waiting_rooms.py's; decisions are the pure modules' (admission, queue,
demand), placing is placing.py's, refusing refusals.py's; links do the talking. A request is handed to its caller at its first token: until
then a lost worker costs a second try instead of a broken stream, and a refusal has an HTTP status.
"""

import time
from collections.abc import Callable
from functools import partial
from random import Random
from types import TracebackType

from pagoda_router.admission.credits import price
from pagoda_router.admission.demand import Demand
from pagoda_router.admission.lane import Held, Lane, Pending, QueueLimits
from pagoda_router.admission.refusals import Refusals
from pagoda_router.backends.base import NOT_LISTENING, BackendStream, RefusedByWorker, Settlement
from pagoda_router.dispatch.choosing import WorkerChooser
from pagoda_router.dispatch.continuing import ContinuedStream
from pagoda_router.dispatch.hedging import Hedges
from pagoda_router.dispatch.placing import Placer
from pagoda_router.dispatch.second_tries import RetryShares, SecondTries
from pagoda_router.dispatch.stalls import StageTimeouts, StallWatch
from pagoda_router.dispatch.waiting_rooms import WaitingRooms
from pagoda_router.drafting.drafting import Drafting
from pagoda_router.fleet import Fleet
from pagoda_router.generation import (
    NOBODY,
    Arrival,
    Ended,
    EndReason,
    Generation,
    GenerationStream,
    ModelName,
    Sender,
    WorkerId,
)
from pagoda_router.metrics.requests import RouterMetrics
from pagoda_router.placement.decisions import DecisionRing
from pagoda_router.placement.prefixes import PrefixChain


class FleetDispatcher:
    def __init__(
        self,
        fleet: Fleet,
        metrics: RouterMetrics,
        *,
        limits: QueueLimits,
        clock: Callable[[], float] = time.monotonic,
        rng: Random | None = None,
        decision_ring: int = 1000,
        timeouts: StageTimeouts | None = None,
        retries: RetryShares | None = None,
        hedge_factor: float = 0.0,
    ) -> None:
        """`hedge_factor`: times its predicted first token's wait, after which a request is sent to a second worker too. 0: never."""
        self._fleet = fleet
        self._metrics = metrics
        self._clock = clock
        rng = rng or Random()
        self.decisions = DecisionRing(decision_ring)
        self.chooser = WorkerChooser(rng, self.decisions)
        refusals = Refusals(fleet, metrics, rng)
        self._placer = Placer(fleet, metrics, self.chooser, Drafting(fleet, metrics, rng), limits.promote_after_s, clock, rng)
        self._second_tries = SecondTries(metrics, self._placer, refusals, clock, retries or RetryShares())
        self._hedges = Hedges(hedge_factor, self._placer, self._second_tries, metrics, lambda: len(self._running))
        self._stalls = StallWatch(timeouts or StageTimeouts(), clock, self._stalled)
        self._rooms = WaitingRooms(fleet, metrics, self._placer, refusals, limits, clock)
        self._running: set[BackendStream | ContinuedStream] = set()
        self._shut_down = False

    # ------------------------------------------------------------ Dispatcher

    def generate(self, generation: Generation) -> "_Generating":
        return _Generating(self, generation)

    def came(self, generation: Generation) -> Demand:
        """Its model's, which has counted it. Raises ModelNotFound."""
        self._fleet.model(generation.model)
        demand = self._rooms.lane(generation.model).demand
        demand.came(again=generation.arrival is not None)
        return demand

    async def begin(self, generation: Generation, demand: Demand) -> GenerationStream:
        """`demand`: that `came` told. Who gets the stream calls `end`."""
        if generation.arrival is None:
            self._second_tries.came()
        pending = self._price(generation, await self._placer.hashed(generation))
        first = await self._begin(pending)
        if generation.relay is None or generation.relay.stream:  # else this is its whole answer
            now_s = self._clock()
            demand.answered(now_s, now_s - pending.patient_from_s)
        stream = ContinuedStream(generation, first, partial(self._go_on, pending))
        self._running.add(stream)
        return stream

    async def end(self, stream: GenerationStream) -> None:
        """Nobody reads on."""
        assert isinstance(stream, ContinuedStream)
        self._running.discard(stream)
        await stream.leave()

    def expected_output_tokens(self, generation: Generation) -> int:
        return generation.n * self._rooms.lane(generation.model).outputs.predict(generation)

    async def hold(self, model: ModelName, variant: str | None, cost_tokens: int, sender: Sender = NOBODY) -> Arrival:
        self._fleet.model(model)
        lane = self._rooms.lane(model)
        lane.demand.came()
        try:
            now_s = self._clock()
            held = Held(
                model=model,
                lane=lane,
                variant=variant,
                ticket=self._rooms.next_ticket(),
                arrived_s=now_s,
                patient_from_s=now_s,
                tenant=sender.tenant,
                request_class=sender.request_class,
            )
            self._rooms.make_room(held, cost_tokens)
            await self._rooms.wait(held, cost_tokens)
            return Arrival(held.ticket, held.arrived_s)
        finally:
            lane.demand.left(self._clock())

    async def _begin(self, pending: Pending) -> BackendStream:
        """Waits, places, submits, until a worker has answered with a first token (or the request's end)."""
        while True:
            stream = await self._wait_for_place(pending)
            asked: set[BackendStream] = set()
            try:
                self._runs(asked, stream)
                won = await self._hedges.first_output(pending, stream, partial(self._runs, asked))
                if not won.failure:
                    return won
                self._second_tries.failed(pending, stream, is_shut_down=self._shut_down, in_flight=len(self._running))
            except RefusedByWorker as refused:
                self._second_tries.refused(pending, stream, refused, in_flight=len(self._running))
            except BaseException:
                stream.abandon()
                raise
            finally:
                self._running -= asked

    def _runs(self, asked: set[BackendStream], stream: BackendStream) -> None:
        asked.add(stream)
        self._running.add(stream)
        self._stalls.add(stream)

    async def _go_on(self, pending: Pending, rest: Generation, lost: BackendStream, end: Ended) -> BackendStream:
        """After a first token: the rest of one sequence, by another worker of the variant that began it. It goes before what came later."""
        self._second_tries.go_on(pending, lost, end, is_shut_down=self._shut_down, in_flight=len(self._running))
        cost = price(rest, pending.lane.outputs.predict(rest), self._fleet.block_size(pending.model))
        return await self._begin(pending.for_the_rest(rest, cost, lost.worker, self._clock()))

    def _stalled(self, stream: BackendStream) -> None:
        self.chooser.timed_out(stream.worker, self._clock())

    def _price(self, generation: Generation, chain: PrefixChain | None) -> Pending:
        """Raises Overloaded, DeadlineInfeasible or ColdStart when the waiting room has no place for it."""
        model, lane, now_s = generation.model, self._rooms.lane(generation.model), self._clock()
        cost = price(generation, lane.outputs.predict(generation), self._fleet.block_size(model))
        arrival = generation.arrival
        arrived_s = arrival.at_s if arrival is not None else now_s
        pending = Pending(
            model=model,
            lane=lane,
            variant=generation.variant,
            ticket=arrival.ticket if arrival is not None else self._rooms.next_ticket(),
            arrived_s=arrived_s,
            patient_from_s=now_s,
            tenant=generation.tenant,
            request_class=generation.request_class,
            deadline_s=arrived_s + generation.deadline_s if generation.deadline_s is not None else float("inf"),
            generation=generation,
            cost=cost,
            chain=chain,
        )
        generation.trace.queued_s, generation.trace.predicted_output_tokens = now_s, cost.output_tokens
        if arrival is None:  # else it was admitted when it was held
            self._rooms.make_room(pending, cost.kv_tokens)
        return pending

    async def _wait_for_place(self, pending: Pending) -> BackendStream:
        self._rooms.check_open()
        stream: BackendStream = await self._rooms.wait(pending, pending.cost.kv_tokens)
        return stream

    # ------------------------------------------------------------ LinkListener

    def capacity_changed(self, model: ModelName) -> None:
        self._placer.place_waiting(model, self._rooms.lane(model))

    def settled(self, settlement: Settlement) -> None:
        if settlement.is_draft:
            return
        lane = self._rooms.lane(settlement.model)
        self.chooser.settled(settlement, self._clock())
        tenant, request_class = settlement.tenant, settlement.request_class
        if settlement.ran:
            lane.drains.settle(request_class, self._clock(), settlement.reserved_tokens)
        lane.room.settle(tenant, request_class, settlement.charged_service_tokens - settlement.service_tokens)
        self._metrics.settled(settlement)
        for tokens in settlement.output_tokens:
            lane.outputs.observe(tenant, request_class, tokens)

    def session_ended(self, worker: WorkerId, reason: str) -> None:
        self._metrics.session_ended()
        if reason != NOT_LISTENING:
            self._stalls.cut_off(worker)

    def worker_in_s(self, model: ModelName) -> float | None:
        found = self._fleet.find(model)
        return None if found is None else self._rooms.lane(model).wakes.remaining_s(self._clock(), found.wake_s)

    # ------------------------------------------------------------ for __main__ and internal

    def now_s(self) -> float:
        """On the clock that demand is told in."""
        return self._clock()

    def demand(self, model: ModelName) -> Demand:
        return self._rooms.lane(model).demand

    def waiting_by_variant(self, model: ModelName) -> dict[str, int]:
        """Requests; under "" those that will take whichever comes first."""
        return self._rooms.waiting_by_variant(model)

    def queue(self, model: ModelName) -> tuple[int, int]:
        """Requests and tokens that wait."""
        return self._rooms.queue(model)

    def line(self, model: ModelName) -> Lane:
        """To be read."""
        return self._rooms.lane(model)

    def shut_down(self, reason: str) -> None:
        """The drain ran out of time: everything still waiting or running ends with `reason`, nothing new begins."""
        self._shut_down = True
        self._rooms.close(reason)
        for stream in list(self._running):
            stream.end_all(EndReason.SHUTDOWN, reason)


class _Generating:
    """One generation's life here. A generator as context would be three more coroutines a request."""

    __slots__ = ("_demand", "_dispatcher", "_generation", "_stream")

    def __init__(self, dispatcher: FleetDispatcher, generation: Generation) -> None:
        self._dispatcher = dispatcher
        self._generation = generation

    async def __aenter__(self) -> GenerationStream:
        dispatcher, generation = self._dispatcher, self._generation
        demand = self._demand = dispatcher.came(generation)
        try:
            stream = self._stream = await dispatcher.begin(generation, demand)
        except BaseException:
            demand.left(dispatcher.now_s())
            raise
        return stream

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            await self._dispatcher.end(self._stream)
        finally:
            self._demand.left(self._dispatcher.now_s())
