"""Who is here: every live sequence, in which line or row it stands, and the endings that nobody has heard of yet.

Owns queues, rows and families of siblings, and moves sequences between them; blocks follow through residency. Called by the scheduler and
its parts, which decide who moves. Knows neither budgets nor tensors.

    siblings of a leader ──its prompt is computed──▶ running, or waiting when there is no row
    waiting ──open──▶ running (a row) ──preempt──▶ waiting again
    any of them ──end──▶ gone
"""

import bisect
from collections import Counter
from functools import partial

from pagoda_worker.request import Finish, FinishReason, Request, SequenceUpdate
from pagoda_worker.scheduling.adapters import Adapter, AdapterSlots
from pagoda_worker.scheduling.plan import StepPlan
from pagoda_worker.scheduling.residency import Residency
from pagoda_worker.scheduling.scheduler_limits import Totals
from pagoda_worker.scheduling.sequence import Sequence


class Roster:
    def __init__(self, residency: Residency, totals: Totals, adapters: AdapterSlots, *, rows: int, eos: frozenset[int]) -> None:
        self.adapters = adapters
        self.running: list[Sequence] = []
        """In order; who comes last is preempted first."""
        self.waiting: list[Sequence] = []
        """In order; who has no row and leads its siblings."""
        self.prefilling: set[Sequence] = set()
        """Of those that run, whose prompt is not planned to its end."""
        self._residency = residency
        self._totals = totals
        self._requests: dict[str, dict[int, Sequence]] = {}
        """Every live sequence, siblings that wait for their prompt included."""
        self._outbox: list[SequenceUpdate] = []
        """Endings that no step caused; leave with the next settle."""
        self._rows = rows
        self._free_rows = list(range(rows - 1, -1, -1))
        self._timed: set[Sequence] = set()
        """Sequences with a deadline."""
        self._arrivals = 0
        self._live = 0
        """Sequences in `_requests`."""
        self.alone = 0
        """Of them, those that no step may compute together with others."""
        self._eos = eos

    # ------------------------------------------------------------ coming

    def enlist(self, request: Request, *, now: float, seed: int, limit: int, root: bytes, adapter: Adapter | None = None) -> list[Sequence]:
        """As in Sequence; `seed` is that of sequence 0. The first one waits, the others wait for its prompt."""
        new = partial(Sequence, request, arrival=self._arrivals, accepted=now, limit=limit, root=root, eos=self._eos, adapter=adapter)
        family = [new(i, seed=seed + i) for i in range(request.n)]
        self._arrivals += 1
        self._live += len(family)
        self.alone += request.runs_alone
        self._requests[request.request_id] = {sequence.index: sequence for sequence in family}
        if request.deadline_s is not None:
            self._timed.update(family)
        leader, *leader.siblings = family
        self.wait(leader)
        return family

    def open(self, plan: StepPlan, sequence: Sequence) -> None:
        sequence.row = self._free_rows.pop()
        if sequence.adapter is not None:
            sequence.adapter_slot, is_new = self.adapters.enter(sequence.adapter)
            if is_new:
                plan.adapters.append((sequence.adapter_slot, sequence.adapter))
        bisect.insort(self.running, sequence, key=order_of)
        if sequence.remaining > 0:
            self.prefilling.add(sequence)
        plan.opened.append(sequence)

    def wait(self, sequence: Sequence) -> None:
        bisect.insort(self.waiting, sequence, key=order_of)

    # ------------------------------------------------------------ making room

    def preempt(self, plan: StepPlan, sequence: Sequence) -> None:
        self._give_row_back(sequence)
        self._residency.preempt(plan, sequence)
        self.wait_again(sequence)

    def wait_again(self, sequence: Sequence) -> None:
        sequence.preemptions += 1
        self._totals.preemptions += 1
        self._totals.swaps += bool(sequence.swapped)
        self.wait(sequence)

    def leave_running(self, sequence: Sequence) -> None:
        self._give_row_back(sequence)
        self._residency.leave(sequence)

    def _give_row_back(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.prefilling.discard(sequence)
        self._free_rows.append(sequence.row)
        sequence.row = -1
        if sequence.adapter_slot >= 0:
            self.adapters.leave(sequence.adapter_slot)
            sequence.adapter_slot = -1

    # ------------------------------------------------------------ leaving

    def end(self, sequence: Sequence, reason: FinishReason, *, stop_token_id: int | None = None, detail: str = "") -> Finish:
        """The one place where a sequence leaves. Its siblings, if it led them, go on with the next one in front."""
        sequence.ended = True
        if sequence.row >= 0:
            self.leave_running(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
            self._residency.drop_swapped(sequence)
        request_id = sequence.request.request_id
        family = self._requests[request_id]
        del family[sequence.index]
        self._live -= 1
        self.alone -= sequence.request.runs_alone
        if not family:
            del self._requests[request_id]
        self._timed.discard(sequence)
        if sequence.siblings:
            leader, *leader.siblings = sequence.siblings
            self.wait(leader)
        else:
            for other in family.values():
                if sequence in other.siblings:
                    other.siblings.remove(sequence)
        return Finish(reason, sequence.usage(), sequence.timings(), stop_token_id, detail)

    def end_early(self, sequence: Sequence, reason: FinishReason, detail: str = "") -> None:
        """Not by a token: told with the next settle."""
        finish = self.end(sequence, reason, detail=detail)
        self._outbox.append(SequenceUpdate(sequence.request.request_id, sequence.index, [], None, finish))

    def expire(self, now: float) -> None:
        if self._timed:
            for sequence in [s for s in self._timed if s.deadline is not None and now >= s.deadline]:
                self.end_early(sequence, FinishReason.DEADLINE)

    def take_endings(self) -> list[SequenceUpdate]:
        endings, self._outbox = self._outbox, []
        return endings

    # ------------------------------------------------------------ what is told

    @property
    def has_work(self) -> bool:
        return bool(self._requests or self._outbox)

    @property
    def free_rows(self) -> int:
        return len(self._free_rows)

    @property
    def first_waiting(self) -> Sequence | None:
        return next((each for each in self.waiting if not each.held), None)

    @property
    def num_waiting(self) -> int:
        return self._live - len(self.running)

    def knows(self, request_id: str) -> bool:
        return request_id in self._requests

    def family(self, request_id: str) -> list[Sequence]:
        """Those still here; none of an id that is unknown or over."""
        return list(self._requests.get(request_id, {}).values())

    def everyone(self) -> list[Sequence]:
        return [sequence for family in self._requests.values() for sequence in family.values()]

    def check(self) -> None:
        """Asserts that lines, rows and requests agree."""
        rows = [sequence.row for sequence in self.running]
        assert sorted(rows + self._free_rows) == list(range(self._rows)), "a row is lost or owned twice"
        assert {each for each in self.running if each.remaining > 1} <= self.prefilling <= set(self.running)
        assert all(each.remaining for each in self.prefilling), "a prompt that is computed counts as one that is not"
        self.adapters.check(Counter(sequence.adapter_slot for sequence in self.running if sequence.adapter_slot >= 0))
        assert self._live == len(self.everyone()), "the count of sequences is wrong"
        assert self.alone == sum(each.request.runs_alone for each in self.everyone()), "the count of those that run alone is wrong"
        assert self.running == sorted(self.running, key=order_of)
        assert self.waiting == sorted(self.waiting, key=order_of)
        if not self._requests:
            assert not self.running, "running without a request"
            assert not self.waiting, "waiting without a request"
            assert not self._timed, "a deadline without a request"


def priority_of(sequence: Sequence) -> int:
    return sequence.request.priority


def order_of(sequence: Sequence) -> tuple[int, int, int]:
    return sequence.order
