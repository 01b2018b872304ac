"""Which workers are left alone for a while: those that fail request after request, and those that fell far behind their peers. Pure.

closed ──failures in a row, slow or silent──▶ open ──open_s──▶ half-open: one request at a time ──it ended well──▶ closed
                                               ▲                    └── it failed: open again, twice as long ──┘

Of one model's variant; the caller (choosing.py) brings views and the clock. A shunned worker is still taken when all others could never run
the request: a breaker must not turn a bad fleet into none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from pagoda_router.generation import WorkerId
from pagoda_router.placement.facts import WorkerView
from pagoda_router.placement.prediction import UNMEASURED_PREFILL_TOKENS_PER_S

FAILURES_IN_A_ROW = 3
FIRST_OPEN_S, LONGEST_OPEN_S = 5.0, 60.0
REVIEW_S = 1.0
"""Between two looks at who is slow."""
SLOW_TIMES = 3.0
"""The median of what its peers would need for a batch of its size."""
SLOW_FOR_S = 4.0
"""Without a break, before it is ejected: a step with a long prompt in it is slow too, once. With the review's second, within 10 s."""
SILENT_S = 5.0
"""Without a word while it has something to do, beyond three times what its prefill should take."""


class Cause(StrEnum):
    FAILURES = "failures"
    SLOW = "slow"
    SILENT = "silent"


@dataclass(slots=True)
class _Record:
    failures: int = 0
    open_until_s: float = 0.0
    open_s: float = 0.0
    """How long it was open last; doubled when it opens again."""
    cause: Cause | None = None
    """None: closed."""
    is_probed: bool = False
    """Half-open, and its one request is on its way."""
    slow_since_s: float | None = None


class HealthBoard:
    def __init__(self) -> None:
        self._records: dict[WorkerId, _Record] = {}
        self._reviewed_s = float("-inf")

    # ------------------------------------------------------------ what happened

    def placed(self, worker: WorkerId, now_s: float) -> None:
        record = self._records.get(worker)
        if record is not None and record.cause is not None and now_s >= record.open_until_s:
            record.is_probed = True

    def ended(self, worker: WorkerId, now_s: float, *, is_failure: bool, ran: bool) -> None:
        """A request of ours is over there. `ran`: it was the worker's to get right."""
        record = self._records.get(worker)
        if is_failure:
            record = record or self._records.setdefault(worker, _Record())
            record.failures += 1
            if record.is_probed or record.failures >= FAILURES_IN_A_ROW:
                self._open(record, Cause.FAILURES, now_s)
        elif record is not None:
            if ran:
                record.failures = 0
            if record.is_probed:
                record.is_probed = False
                if ran:
                    record.cause, record.slow_since_s = None, None

    def forget_all_but(self, workers: Sequence[WorkerId]) -> None:
        for gone in self._records.keys() - set(workers):
            del self._records[gone]

    # ------------------------------------------------------------ what follows

    def shunned(self, views: Sequence[WorkerView], now_s: float) -> frozenset[WorkerId]:
        if now_s - self._reviewed_s >= REVIEW_S:
            self._reviewed_s = now_s
            self._review([view for view in views if view.routable], now_s)
        if not self._records:
            return frozenset()
        return frozenset(
            worker
            for worker, record in self._records.items()
            if record.cause is not None and (record.is_probed or now_s < record.open_until_s)
        )

    def causes(self) -> dict[WorkerId, Cause]:
        """Of those that are not closed."""
        return {worker: record.cause for worker, record in self._records.items() if record.cause is not None}

    def _review(self, views: Sequence[WorkerView], now_s: float) -> None:
        slow = slow_workers(views)
        shunned = sum(record.cause is not None for record in self._records.values())
        for view in views:
            record = self._records.get(view.worker)
            is_slow, is_silent = view.worker in slow, _is_silent(view)
            if not (is_slow or is_silent):
                if record is not None and record.cause is None:
                    record.slow_since_s = None
                continue
            record = record or self._records.setdefault(view.worker, _Record())
            if record.cause is not None:
                continue
            if record.slow_since_s is None:
                record.slow_since_s = now_s
            due = is_silent or now_s - record.slow_since_s >= SLOW_FOR_S
            if due and 2 * (shunned + 1) <= len(views):  # at most half: what befalls most of a fleet is no exception
                self._open(record, Cause.SILENT if is_silent else Cause.SLOW, now_s)
                shunned += 1

    def _open(self, record: _Record, cause: Cause, now_s: float) -> None:
        again = record.open_s and now_s < record.open_until_s + LONGEST_OPEN_S
        record.open_s = min(LONGEST_OPEN_S, 2 * record.open_s) if again else FIRST_OPEN_S
        record.open_until_s = now_s + record.open_s
        record.cause, record.failures, record.is_probed, record.slow_since_s = cause, 0, False, None


def slow_workers(views: Sequence[WorkerView]) -> frozenset[WorkerId]:
    """Those whose step takes far longer than their peers' would with a batch of the same size: a minority, or one of two. Half of a fleet
    is another kind of machine, which predictions know."""
    measured = [view for view in views if view.decode_step_ms > 0]
    if len(measured) < 2:
        return frozenset()
    least_ms = min(view.decode_step_ms for view in measured)
    slow = []
    for view in measured:
        if view.running and view.decode_step_ms > SLOW_TIMES * least_ms:  # most are not: peers are asked only about the others
            peers_ms = median(_step_ms(peer, view.running) for peer in measured if peer is not view)
            if view.decode_step_ms > SLOW_TIMES * peers_ms:
                slow.append(view.worker)
    return frozenset(slow) if 2 * len(slow) < len(measured) or len(measured) == 2 else frozenset()


def _step_ms(peer: WorkerView, sequences: int) -> float:
    """What it would need for so many; as prediction.py assumes it where it has not been learned."""
    more_ms = peer.decode_step_ms_per_sequence
    if more_ms is not None:
        return max(0.0, peer.decode_step_ms + more_ms * (sequences - peer.running))
    full = max(1, peer.max_running)
    return peer.decode_step_ms * (1 + sequences / full) / (1 + peer.running / full)


def _is_silent(view: WorkerView) -> bool:
    prefill_s = view.queued_prefill_tokens / (view.prefill_tokens_per_s or UNMEASURED_PREFILL_TOKENS_PER_S)
    return not view.sleeps and view.silent_s > SILENT_S + 3 * prefill_s
