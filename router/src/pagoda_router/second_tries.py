"""Whether a request that a worker failed or refused before its first token is tried again. The dispatcher asks, and waits anew."""

from collections.abc import Callable

from pagoda_router.backends.base import BackendStream, RefusedByWorker
from pagoda_router.errors import NoWorker, Overloaded, UpstreamFailed
from pagoda_router.generation import EndReason
from pagoda_router.lanes import Lane, Pending
from pagoda_router.metrics import RouterMetrics
from pagoda_router.placing import Placer
from pagoda_router.refusals import Refusals

MOST_ATTEMPTS = 3
"""Submits that a worker did not take."""
MOST_RETRIES = 1
"""Second tries after a worker took a request and was lost: a request that kills engines must not tour the fleet."""


class SecondTries:
    def __init__(self, metrics: RouterMetrics, placer: Placer, refusals: Refusals, clock: Callable[[], float]) -> None:
        self._metrics = metrics
        self._placer = placer
        self._refusals = refusals
        self._clock = clock

    def failed(self, pending: Pending, stream: BackendStream, *, is_shut_down: bool) -> None:
        """A worker took the request and failed before the first token: raises UpstreamFailed unless it deserves another try."""
        stream.abandon()
        drained = stream.failure_reason is EndReason.SHUTDOWN
        harmless = stream.lost or drained or not stream.begun
        if is_shut_down or not harmless or pending.retries >= MOST_RETRIES:
            raise UpstreamFailed(f"{pending.model} failed before the first token: {stream.failure}")
        pending.retries += 1
        pending.patient_from_s = self._clock()
        pending.avoid.add(stream.worker)
        reason = "worker_drained" if drained else "worker_lost"
        pending.generation.trace.attempts[-1].failed = reason
        self._metrics.retried(pending.model, reason)

    def refused(self, pending: Pending, stream: BackendStream, refused: RefusedByWorker, lane: Lane) -> None:
        """Raises what the client gets unless another worker, or another moment, may take it."""
        if refused.error is not None:
            raise refused.error
        pending.attempts += 1
        pending.avoid.add(stream.worker)
        others = any(view.routable and view.worker not in pending.avoid for view in self._placer.views(pending))
        if pending.attempts >= MOST_ATTEMPTS or (refused.overloaded and not others):
            self._metrics.rejected(pending.model, "worker_refused")
            kind = Overloaded if refused.overloaded else NoWorker
            retry_s = self._refusals.retry_after(lane, pending, pending.cost.kv_tokens, self._clock())
            raise kind(f"{pending.model} takes no more requests now: {refused}", retry_after_s=retry_s)
        pending.generation.trace.attempts[-1].failed = "refused"
        self._metrics.retried(pending.model, "refused")
