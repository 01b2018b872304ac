"""Who of those waiting joins a step, and who makes way for them.

Owns how many places the batch that runs still has; called by the scheduler before and after it planned those who run already. What a
newcomer needs is residency's to say, the choices are policy's and batching's. Knows no tensors.
"""

import itertools

from pagoda_worker.scheduling.batching import open_places, reserved_tokens
from pagoda_worker.scheduling.plan import StepPlan
from pagoda_worker.scheduling.policy import victims_needed
from pagoda_worker.scheduling.residency import Found, Residency
from pagoda_worker.scheduling.roster import Roster, priority_of
from pagoda_worker.scheduling.scheduler_limits import SchedulerLimits, Totals
from pagoda_worker.scheduling.sequence import Sequence
from pagoda_worker.scheduling.turns import Turn

MAX_NEWCOMERS = 8
"""Waiting sequences that one step weighs against prompts in progress."""


class Admission:
    def __init__(self, roster: Roster, residency: Residency, limits: SchedulerLimits, totals: Totals) -> None:
        self._roster = roster
        self._residency = residency
        self._blocks = residency.blocks
        self._limits = limits
        self._totals = totals
        self._places = 0
        """How many of those waiting may still join the batch that runs."""

    def make_way(self, plan: StepPlan, now: float, turn: Turn) -> bool:
        """Before anything else is planned: who makes way must not be part of the step. Says whether someone was preempted."""
        preempted, running = False, self._roster.running
        while (first := self._roster.first_waiting) and running and priority_of(running[-1]) < priority_of(first):
            # Preempted by this plan, or by the one before: its newest token is not known yet. Or it is not its turn.
            if first.pending or not turn.includes(first) or not self._roster.adapters.has_room(first.adapter):
                break
            victims = [s for s in reversed(running) if priority_of(s) < priority_of(first)]
            count = self._victims_needed(self._find(first), victims)
            if count is None or (count == 0 and not preempted):
                break
            for victim in victims[:count]:
                self._roster.preempt(plan, victim)
            preempted = True
            self._places = self._limits.max_running
            if self.admit(plan, now, self._limits.max_batch_tokens, turn) is None:
                break
        return preempted

    def _victims_needed(self, found: Found, victims: list[Sequence]) -> int | None:
        shared = set(found.shared)
        return victims_needed(
            self._residency.need(found),
            free=self._blocks.free_blocks,
            free_rows=self._roster.free_rows,
            running=len(self._roster.running),
            freed=[sum(1 for b in s.blocks if self._blocks.references(b) == 1 and b not in shared) for s in victims],
        )

    def newcomers(self, turn: Turn) -> list[tuple[Sequence, int]]:
        """Waiting sequences, in order, that `admit` would let in now, with the tokens they have to compute. What is left for one that does
        not come is computed by nobody: if it waits for what runs, for ever."""
        found_room: list[tuple[Sequence, int]] = []
        free, running = self._blocks.free_blocks, len(self._roster.running)
        ready = (sequence for sequence in self._roster.waiting if not sequence.held)
        known = itertools.takewhile(lambda each: not each.pending, ready)
        for sequence in itertools.islice(known, min(self._roster.free_rows, MAX_NEWCOMERS)):
            if not turn.includes(sequence) or not self._roster.adapters.has_room(sequence.adapter):
                break
            found = self._find(sequence)
            free -= self._residency.need(found)
            if free < running:
                break
            running += 1
            found_room.append((sequence, len(sequence.tokens) - found.computed))
        return found_room

    def open_places(self, now: float) -> None:
        """Once a step, before anyone is admitted to it."""
        waiting = self._roster.waiting
        self._places = open_places(
            self._limits.policy,
            size=self._limits.max_running,
            left=self._places,
            running=len(self._roster.running),
            waiting=len(waiting),
            waited_s=now - waiting[0].accepted if waiting else 0.0,
        )

    def admit(self, plan: StepPlan, now: float, budget: int, turn: Turn) -> Sequence | None:
        """The first in waiting, when it is its turn, with all blocks of its present length, or without pages of any length it may reach;
        nobody overtakes it. A spare block for every four running sequences keeps the newcomer from being preempted at once; one for each
        left a seventh of the cache unused (docs/log.md)."""
        roster, policy = self._roster, self._limits.policy
        sequence = roster.first_waiting
        if sequence is None or sequence.pending or not roster.free_rows or not self._places or not turn.includes(sequence):
            return None
        if not roster.adapters.has_room(sequence.adapter):
            return None
        found = self._find(sequence)
        if policy.whole_prompts and len(sequence.tokens) - found.computed > budget:
            return None
        spare = -(-len(roster.running) // 4) if policy.paged_kv else 0
        if self._residency.need(found) + spare > self._blocks.free_blocks and roster.running:
            return None
        roster.waiting.remove(sequence)
        self._places -= 1
        self._residency.enter(plan, sequence, found)
        if not sequence.first_scheduled:
            self._count_first(sequence, len(found.shared) * self._blocks.block_size, now)
        roster.open(plan, sequence)
        return sequence

    def _find(self, sequence: Sequence) -> Found:
        length, longest = len(sequence.tokens), self._limits.max_model_len
        return self._residency.find(sequence, reserved_tokens(self._limits.policy, length=length, max_model_len=longest))

    def _count_first(self, sequence: Sequence, on_device: int, now: float) -> None:
        sequence.first_scheduled = now
        sequence.cached_tokens = min(sequence.computed, sequence.output_start)
        hits = min(on_device, sequence.output_start)
        self._totals.prefix_queries += sequence.output_start
        self._totals.prefix_hits += hits
        if self._residency.tier.count:
            self._totals.host_queries += sequence.output_start - hits
            self._totals.host_hits += sequence.cached_tokens - hits
