"""Who waits for a place: a lane per model, waits that end by a place, by a limit or because the router stops.

Owns the lanes, with what was learned per model, and the timer that looks for waits that are over. Where there is a place placing.py knows,
what a refusal says refusals.py; the dispatcher asks for places.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from pagoda_router.admission.lane import Held, Lane, Pending, QueueLimits
from pagoda_router.admission.refusals import Refusals
from pagoda_router.admission.waiting import Waiting
from pagoda_router.dispatch.placing import Placer
from pagoda_router.errors import NoWorker
from pagoda_router.fleet import Fleet
from pagoda_router.generation import ModelName, RequestClass
from pagoda_router.metrics.requests import RouterMetrics

EXPIRY_CHECK_S = 0.1


class WaitingRooms:
    def __init__(
        self, fleet: Fleet, metrics: RouterMetrics, placer: Placer, refusals: Refusals, limits: QueueLimits, clock: Callable[[], float]
    ) -> None:
        self._fleet = fleet
        self._metrics = metrics
        self._placer = placer
        self._refusals = refusals
        self._limits = limits
        self._clock = clock
        self._lanes: dict[ModelName, Lane] = {}
        self._tickets = 0
        self._expiry: asyncio.TimerHandle | None = None
        self._closed_because = ""
        self._began_s = clock()

    def lane(self, model: ModelName) -> Lane:
        lane = self._lanes.get(model)
        if lane is None:
            lane = self._lanes[model] = Lane(self._limits.room(), self._began_s)
            self._metrics.introduce(model)
        return lane

    def next_ticket(self) -> int:
        self._tickets += 1
        return self._tickets

    def check_open(self) -> None:
        """Raises NoWorker once the router stops."""
        if self._closed_because:
            raise NoWorker(self._closed_because, retry_after_s=1.0)

    def make_room(self, request: Held, cost_tokens: int) -> None:
        """Others may have to leave a full room for it. Raises when it has no place, or no chance."""
        self.check_open()
        lane, now_s = request.lane, self._clock()
        soonest_s = self._placer.soonest_s(request) if request.deadline_s < float("inf") else None
        for waiting in self._refusals.make_room(request, cost_tokens, self._limits, now_s, soonest_s):
            lane.room.remove(waiting)
            waiting.request.fail(self._refusals.displaced(waiting, now_s))

    async def wait(self, request: Held, cost_tokens: int) -> Any:
        """For its turn: what `Held.place` says. Nearly always it comes into an empty room, and goes on at once."""
        if (placed := self._placer.place_at_once(request)) is not None:
            return placed
        model, lane = request.model, request.lane
        request.place = asyncio.get_running_loop().create_future()
        generation = request.generation if isinstance(request, Pending) else None
        waiting = Waiting(
            request,
            cost_tokens,
            request.ticket,
            priority=0 if generation is None else generation.priority,
            deadline_s=request.deadline_s,
            group=self._placer.group_of(request),
            tenant=request.tenant,
            request_class=request.request_class,
            service_tokens=0,  # placing tells what it costs where it goes; one that is held is charged when it comes back
            arrived_s=request.arrived_s,
        )
        lane.room.push(waiting)
        has_to_wait = False
        try:
            self._placer.place_waiting(model, lane)
            has_to_wait = not request.place.done()
            if has_to_wait:
                waiting.cached_tokens = self._placer.cached_tokens(request)
                self._watch_expiry()
                self._queue_changed(model)
            return await request.place
        except BaseException:
            place = request.place
            if isinstance(request, Pending) and place.done() and not place.cancelled() and place.exception() is None:
                place.result().abandon()  # placed in the very moment in which the client left, or we failed
            raise
        finally:
            if lane.room.remove(waiting):
                self._placer.place_waiting(model, lane)  # what waited behind it may fit
            if has_to_wait:
                self._queue_changed(model)

    def _watch_expiry(self) -> None:
        if self._expiry is None:
            self._expiry = asyncio.get_running_loop().call_later(EXPIRY_CHECK_S, self._expire)

    def _expire(self) -> None:
        self._expiry = None
        now_s = self._clock()
        for name, lane in self._lanes.items():
            if not len(lane.room):
                continue
            self._placer.place_waiting(name, lane)
            model = self._fleet.find(name)
            for waiting in list(lane.room):
                error = self._refusals.overdue(model, waiting, self._limits, now_s)
                if error is not None:
                    lane.room.remove(waiting)
                    waiting.request.fail(error)
            self._placer.place_waiting(name, lane)  # what waited behind them may fit
        if any(len(lane.room) for lane in self._lanes.values()):
            self._watch_expiry()

    def waiting_by_variant(self, model: ModelName) -> dict[str, int]:
        """Requests; under "" those that will take whichever comes first."""
        lane = self._lanes.get(model)
        return lane.room.group_sizes() if lane is not None else {}

    def queue(self, model: ModelName) -> tuple[int, int]:
        """Requests and tokens that wait."""
        lane = self._lanes.get(model)
        return (len(lane.room), lane.room.tokens) if lane is not None else (0, 0)

    def close(self, reason: str) -> None:
        """Whoever waits is refused with `reason`, and so is whoever comes."""
        self._closed_because = reason
        for lane in self._lanes.values():
            for waiting in list(lane.room):
                lane.room.remove(waiting)
                waiting.request.fail(NoWorker(reason, retry_after_s=1.0))

    def _queue_changed(self, model: ModelName) -> None:
        lane = self.lane(model)
        self._metrics.queue_changed(model, {each: lane.room.size_of(each) for each in RequestClass})
