"""Why a request is turned away: error, sentence, and an honest Retry-After; and when a wait has lasted long enough.

Reads lane and fleet and counts the refusal; the dispatcher raises it. The caller brings the clock.
"""

from random import Random

from pagoda_router.admission.drain import retry_after_s
from pagoda_router.admission.lane import Held, Lane, Pending, QueueLimits
from pagoda_router.admission.waiting import Waiting
from pagoda_router.discovery.model_object import ModelObject
from pagoda_router.errors import ColdStart, DeadlineExceeded, DeadlineInfeasible, ModelNotFound, ModelUnavailable, Overloaded, RouterError
from pagoda_router.fleet import Fleet
from pagoda_router.metrics.requests import RouterMetrics


class Refusals:
    def __init__(self, fleet: Fleet, metrics: RouterMetrics, rng: Random) -> None:
        self._fleet = fleet
        self._metrics = metrics
        self._rng = rng

    # ------------------------------------------------------------ at the door

    def make_room(self, request: Held, cost_tokens: int, limits: QueueLimits, now_s: float, soonest_s: float | None) -> list[Waiting[Held]]:
        """Those that have to leave a full room for it. Raises when it has no place, or no chance. `soonest_s`: until its first token, if
        it were on its way; None: nobody knows, or it has all the time."""
        model, lane = self._fleet.model(request.model), request.lane
        room = lane.room
        room.max_tokens = limits.max_tokens if model.max_queue_tokens is None else model.max_queue_tokens
        may_miss = isinstance(request, Pending) and request.deadline_s < float("inf")
        why_hopeless = model.why_hopeless(request.variant)
        if not (may_miss or why_hopeless or not room.has_room(cost_tokens) or len(room) >= model.max_waiting):
            return []  # the usual case needs no look at the workers
        can_answer = self._fleet.can_answer(request.model, request.variant)
        if why_hopeless and not can_answer:
            raise self.hopeless(model, why_hopeless)
        # A model that sleeps is woken by those that wait for it, also by those in a hurry.
        if can_answer and isinstance(request, Pending) and (too_late := self.too_late(request, soonest_s, now_s)) is not None:
            raise too_late
        bound = None if can_answer else model.max_waiting
        displaced = room.displaced_by(cost_tokens, request.tenant, request.request_class, bound)
        if displaced is None:
            raise self.queue_full(request, cost_tokens, now_s) if can_answer else self.too_many_wait(lane, model, now_s)
        return list(displaced)

    def queue_full(self, request: Held, cost_tokens: int, now_s: float) -> Overloaded:
        self._metrics.rejected(request.model, "queue_full")
        retry_s, room = self.retry_after(request, cost_tokens, now_s), request.lane.room
        if room.tokens + cost_tokens <= room.max_tokens:
            what = f"{len(room)} requests wait for {request.model}; the limit is {room.max_requests}"
        else:
            what = f"{room.tokens} tokens wait for {request.model} and this request adds {cost_tokens}; the limit is {room.max_tokens}"
        return Overloaded(f"{what}: retry in {retry_s:.0f} s", retry_after_s=retry_s)

    def displaced(self, waiting: Waiting[Held], now_s: float) -> RouterError:
        """Of one that waits, for a newcomer more entitled to its place."""
        request = waiting.request
        self._metrics.rejected(request.model, "displaced")
        model = self._fleet.find(request.model)
        message = (
            f"the queue of {request.model} is full and this request gave its place to a sender with less in it, or of a class before it"
        )
        if waiting.group in request.lane.cold and model is not None:
            return ColdStart(message, retry_after_s=self.retry_after_wake(request.lane, model, now_s))
        return Overloaded(message, retry_after_s=self.retry_after(request, waiting.cost_tokens, now_s))

    def too_late(self, request: Pending, soonest_s: float | None, now_s: float) -> DeadlineInfeasible | None:
        """What waits ahead, or its own first token, takes longer than its deadline allows. None: it may make it, or nobody knows."""
        allowed_s, lane = request.deadline_s - now_s, request.lane
        order = (-request.generation.priority, request.deadline_s, request.ticket)
        ahead = lane.room.ahead_of(request.cost.kv_tokens, request.tenant, request.request_class, order)
        wait_s = lane.drains.wait_s(request.request_class, ahead, now_s) or 0.0
        needed_s = max(wait_s, soonest_s or 0.0)
        if needed_s <= allowed_s:
            return None
        self._metrics.rejected(request.model, "deadline_infeasible")
        if wait_s > allowed_s:
            tokens = ahead.of_classes_before + ahead.of_its_class
            why = f"{tokens} tokens wait before this request, about {wait_s:.1f} s, and its deadline allows {allowed_s:.1f} s"
        else:
            why = f"the quickest worker needs about {_ms(needed_s)} to its first token, and this request's deadline allows {_ms(allowed_s)}"
        return DeadlineInfeasible(
            f"{why}: allow more time, or send it when there is less to do",
            retry_after_s=retry_after_s(needed_s - allowed_s, self._rng),
        )

    def too_many_wait(self, lane: Lane, model: ModelObject, now_s: float) -> ColdStart:
        self._metrics.rejected(model.name, "cold_start_full")
        retry_s = self.retry_after_wake(lane, model, now_s)
        return ColdStart(
            f"{len(lane.room)} requests with {lane.room.tokens} tokens wait already for a worker of {model.name} to come "
            f"({self._fleet.why_not(model.name)}): retry in {retry_s:.0f} s",
            retry_after_s=retry_s,
        )

    def hopeless(self, model: ModelObject, why: str) -> ModelUnavailable:
        self._metrics.rejected(model.name, "unavailable")
        return ModelUnavailable(f"no worker of {model.name} can come: {why}")

    # ------------------------------------------------------------ of one that waits

    def overdue(self, model: ModelObject | None, waiting: Waiting[Held], limits: QueueLimits, now_s: float) -> RouterError | None:
        """What ends this wait; None: it may go on."""
        request = waiting.request
        lane = request.lane
        if model is None:
            return ModelNotFound(f"the model {request.model} was deleted while the request waited for it", param="model")
        if request.deadline_s <= now_s:
            return self._deadline(request, now_s)
        waited_s = now_s - request.arrived_s
        if waiting.group in lane.cold:
            if why := model.why_hopeless(request.variant):
                return self.hopeless(model, why)
            return self._asleep_too_long(lane, model, waited_s, now_s) if waited_s >= model.wake_timeout_s else None
        patience_s = limits.patience_s(request.request_class)
        if now_s - request.patient_from_s >= patience_s or waited_s >= model.wake_timeout_s + patience_s:
            return self._crowded_too_long(waiting, waited_s, now_s)
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

    def _crowded_too_long(self, waiting: Waiting[Held], waited_s: float, now_s: float) -> Overloaded:
        request = waiting.request
        self._metrics.rejected(request.model, "queue_timeout")
        retry_s = self.retry_after(request, waiting.cost_tokens, now_s)
        return Overloaded(
            f"{request.model} had no room for {waiting.cost_tokens} tokens within {waited_s:.0f} s: retry in {retry_s:.0f} s",
            retry_after_s=retry_s,
        )

    # ------------------------------------------------------------ when to come back

    def retry_after(self, request: Held, cost_tokens: int, now_s: float) -> float:
        """When what goes before it will have gone, at its class's own rate."""
        lane = request.lane
        ahead = lane.room.ahead_of(cost_tokens, request.tenant, request.request_class)
        return retry_after_s(lane.drains.wait_s(request.request_class, ahead, now_s), self._rng)

    def retry_after_wake(self, lane: Lane, model: ModelObject, now_s: float) -> float:
        """When a worker will have come, by how long it took before."""
        return retry_after_s(lane.wakes.remaining_s(now_s, model.wake_s), self._rng)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.{0 if seconds >= 0.01 else 1}f} ms"  # 1.4 against 1.0 would both be 1
