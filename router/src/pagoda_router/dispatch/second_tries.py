"""Whether a request that a worker failed or refused is tried again, before its first token or after. The dispatcher asks, and waits anew.

Keeps both within their budgets (retry_budget.py): what a failing fleet is asked again must not be what brings the rest of it down.
"""

from collections.abc import Callable
from dataclasses import dataclass

from pagoda_router.admission.lane import Pending
from pagoda_router.admission.refusals import Refusals
from pagoda_router.backends.base import BackendStream, RefusedByWorker
from pagoda_router.dispatch.endings import raise_failure
from pagoda_router.dispatch.placing import Placer
from pagoda_router.dispatch.retry_budget import WINDOW_S, RetryBudget
from pagoda_router.errors import EnginesDied, FirstTokenTimeout, NoWorker, Overloaded, RetryBudgetSpent, UpstreamFailed
from pagoda_router.generation import Ended, EndReason
from pagoda_router.metrics.requests import RouterMetrics

MOST_ATTEMPTS = 3
"""Submits that a worker did not take."""
MOST_RETRIES = 1
"""Second tries after a worker took a request and was lost: a request that kills engines must not tour the fleet."""
MOST_ENGINES = 2
"""That may die while they have a request. Then it is taken for the cause: a third one would be stopped for it too."""
SPENT_RETRY_S = 5.0
"""Told with a spent budget: by then its window has moved on by one step."""


@dataclass(frozen=True, slots=True)
class RetryShares:
    """Of the requests of the last minute, or of those in flight where they are more."""

    retries: float = 0.1
    """Tried again before their first token, which costs the fleet a whole request each."""
    replays: float = 1.0
    """Gone on with elsewhere after it. A worker that dies takes its share of all streams with it, at once: half of them in a fleet of two.
    Each costs a prefill, and was admitted; the bound is for workers that go on dying."""


class SecondTries:
    def __init__(self, metrics: RouterMetrics, placer: Placer, refusals: Refusals, clock: Callable[[], float], shares: RetryShares) -> None:
        self._metrics = metrics
        self._placer = placer
        self._refusals = refusals
        self._clock = clock
        self._retries = RetryBudget(shares.retries)
        self._replays = RetryBudget(shares.replays)

    def came(self) -> None:
        """A request: the more there are, the more may be tried again."""
        now_s = self._clock()
        self._retries.came(now_s)
        self._replays.came(now_s)

    def failed(self, pending: Pending, stream: BackendStream, *, is_shut_down: bool, in_flight: int) -> None:
        """A worker took the request and failed before the first token: raises UpstreamFailed unless it deserves another try."""
        stream.abandon()
        self._suspect(pending, stream)
        drained = stream.failure_reason is EndReason.SHUTDOWN
        harmless = stream.lost or drained or not stream.begun
        if is_shut_down or not harmless or pending.retries >= MOST_RETRIES:
            kind = FirstTokenTimeout if stream.failure_reason is EndReason.TIMED_OUT else UpstreamFailed
            raise kind(f"{pending.model} failed before the first token: {stream.failure}")
        if not self._retries.take(self._clock(), in_flight):
            raise self._spent(pending, "retries", stream.failure)
        pending.retries += 1
        pending.patient_from_s = self._clock()
        pending.avoid.add(stream.worker)
        reason = _reason(stream, stream.failure_reason)
        pending.generation.trace.attempts[-1].failed = reason
        self._metrics.retried(pending.model, reason)

    def go_on(self, pending: Pending, lost: BackendStream, end: Ended, *, is_shut_down: bool, in_flight: int) -> None:
        """A worker was lost in the middle of an answer: raises what ends the answer unless another one may go on with it."""
        self._suspect(pending, lost)
        if is_shut_down or not self._placer.can_resume(pending):
            raise_failure(end)
        if not self._replays.take(self._clock(), in_flight):
            raise self._spent(pending, "replays", end.detail)
        reason = _reason(lost, end.reason)
        for attempt in pending.generation.trace.attempts:
            if attempt.worker == lost.worker and not attempt.failed:
                attempt.failed = reason
        self._metrics.replayed(pending.model)

    def may_hedge(self, *, in_flight: int) -> bool:
        """Whether the budget of retries has one left: looked at before somebody is asked twice, spent by `hedged`."""
        return self._retries.has(self._clock(), in_flight)

    def hedged(self, *, in_flight: int) -> None:
        self._retries.take(self._clock(), in_flight)

    def _suspect(self, pending: Pending, stream: BackendStream) -> None:
        if not stream.engine_died:
            return
        pending.engines_died.add(stream)
        if len(pending.engines_died) >= MOST_ENGINES:
            self._metrics.suspected(pending.model)
            raise EnginesDied(
                f"{len(pending.engines_died)} engines of {pending.model} died while they had this request, so it is not tried again: "
                "if it was the cause, others like it will be too"
            )

    def _spent(self, pending: Pending, what: str, why: str) -> RetryBudgetSpent:
        self._metrics.retry_budget_spent(pending.model, what)
        return RetryBudgetSpent(
            f"{why}; it was not tried again: too many {what} of {pending.model} in the last {WINDOW_S:.0f} s. Send it again in a moment",
            retry_after_s=SPENT_RETRY_S,
        )

    def refused(self, pending: Pending, stream: BackendStream, refused: RefusedByWorker, *, in_flight: int) -> None:
        """Raises what the client gets unless another worker, or another moment, may take it."""
        if refused.error is not None:
            raise refused.error
        pending.attempts += 1
        if refused.passed_credits and pending.attempts < MOST_ATTEMPTS:
            pending.generation.trace.attempts[-1].failed = "refused"
            self._metrics.retried(pending.model, "refused")
            return  # it waits for credits, as it would have done had it known
        pending.avoid.add(stream.worker)
        others = any(view.routable and view.worker not in pending.avoid for view in self._placer.views(pending))
        if pending.attempts >= MOST_ATTEMPTS or (refused.overloaded and not others):
            self._metrics.rejected(pending.model, "worker_refused")
            kind = Overloaded if refused.overloaded else NoWorker
            retry_s = self._refusals.retry_after(pending, pending.cost.kv_tokens, self._clock())
            raise kind(f"{pending.model} takes no more requests now: {refused}", retry_after_s=retry_s)
        if not self._retries.take(self._clock(), in_flight):
            raise self._spent(pending, "retries", str(refused))
        pending.generation.trace.attempts[-1].failed = "refused"
        self._metrics.retried(pending.model, "refused")


def _reason(stream: BackendStream, end: EndReason) -> str:
    if stream.engine_died:
        return "engine_died"
    return {EndReason.SHUTDOWN: "worker_drained", EndReason.TIMED_OUT: "timed_out"}.get(end, "worker_lost")
