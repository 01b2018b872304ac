"""Decides what each step computes: one token budget over all sequences, no phases.

Owns sequences and their order; called by the engine, which gives it the time. Knows neither tensors nor clocks; where keys and values
lie is residency's, the choices are policy's.

A step spends `max_batch_tokens`: first one token for every running sequence that decodes, then what is left for prompts, by class and
within a class as policy.share_prefill says; while something decodes prompts get at most `long_prefill_tokens`. A sequence is admitted with
all blocks of its present length, so only decoding can run out of blocks; then the last in order gives all of its blocks back and waits at
the front. A waiting sequence of a higher class takes the place of running ones of lower classes, never of its own, so nobody is pushed back
and forth. The first in order is never preempted, and alone it fits (checked at submission): there is always progress. Under lasting load of
a higher class a lower one waits: deadlines end that.
"""

import bisect
import itertools
from dataclasses import replace

from pagoda_worker.batching import FULL_ENGINE, open_places, reserved_tokens
from pagoda_worker.blocks import BlockPool, root_hash
from pagoda_worker.errors import RequestRefused
from pagoda_worker.plan import Chunk, Sampled, Sequence, StepPlan
from pagoda_worker.policy import prefill_budget, share_prefill, victims_needed
from pagoda_worker.request import Finish, FinishReason, Request, SequenceUpdate, TokenLogprobs
from pagoda_worker.residency import Found, KvUse, Residency
from pagoda_worker.scheduler_limits import SchedulerLimits, Totals, check_room

MAX_NEWCOMERS = 8
"""Waiting sequences that one step weighs against prompts in progress."""


class Scheduler:
    def __init__(self, blocks: BlockPool, limits: SchedulerLimits) -> None:
        self.blocks = blocks
        self.limits = limits
        self.residency = Residency(blocks, limits.host, prefix_caching=limits.prefix_caching)
        self.totals = Totals()
        self.running: list[Sequence] = []
        """In order; who comes last is preempted first."""
        self.waiting: list[Sequence] = []
        self._requests: dict[str, dict[int, Sequence]] = {}
        """Every live sequence, siblings that wait for their prompt included."""
        self._outbox: list[SequenceUpdate] = []
        """Endings that no step caused; leave with the next settle."""
        self._free_rows = list(range(limits.max_running - 1, -1, -1))
        self._places = 0
        """How many of those waiting may still join the batch that runs."""
        self._timed: set[Sequence] = set()
        """Sequences with a deadline."""
        self._arrivals = 0
        self._eos = frozenset(limits.eos_token_ids)

    # ------------------------------------------------------------ what comes in

    @property
    def has_work(self) -> bool:
        return bool(self._requests or self._outbox)

    def submit(self, request: Request, *, now: float, seed: int) -> list[Sequence]:
        """`seed` is that of sequence 0; the next ones count up. Structured ones are held until `release`. Raises RequestRefused,
        ContextTooLong."""
        limit = min(len(request.prompt_ids) + request.max_tokens, self.limits.max_model_len)
        if request.request_id in self._requests:
            raise RequestRefused(f"request id {request.request_id!r} is already in use", param="request_id")
        check_room(request, limit, self.limits, self.blocks)
        root = root_hash(request.cache_salt)
        family = [
            Sequence(request, index, arrival=self._arrivals, accepted=now, limit=limit, seed=seed + index, root=root)
            for index in range(request.n)
        ]
        self._arrivals += 1
        self._requests[request.request_id] = {sequence.index: sequence for sequence in family}
        if request.deadline_s is not None:
            self._timed.update(family)
        leader, *leader.siblings = family
        bisect.insort(self.waiting, leader, key=_order)
        return family

    def release(self, request_id: str) -> None:
        """What held it back is there. Unknown ids are ignored, here and below: the request may have been cancelled."""
        for sequence in self._requests.get(request_id, {}).values():
            sequence.held = False

    def drop(self, request_id: str) -> bool:
        """A held request that turned out to be impossible; it leaves without an ending. Says whether it was still there."""
        family = list(self._requests.get(request_id, {}).values())
        for sequence in family:
            self._end(sequence, FinishReason.CANCELLED)
        return bool(family)

    def complete(self, request_id: str) -> None:
        """A held request whose resumed output is all there is to say."""
        for sequence in list(self._requests.get(request_id, {}).values()):
            self._end_early(sequence, FinishReason.STOP)

    def cancel(self, request_id: str, sequence: int | None = None) -> None:
        """Frees at once; the ending leaves with the next settle. Unknown ids are ignored: the request may just have ended."""
        for member in list(self._requests.get(request_id, {}).values()):
            if sequence is None or member.index == sequence:
                self._end_early(member, FinishReason.CANCELLED)

    def abandon(self, detail: str) -> None:
        """Ends everything; forgets every prefix, since blocks are registered before their step ran."""
        for family in list(self._requests.values()):
            for member in list(family.values()):
                self._end_early(member, FinishReason.ENGINE_ERROR, detail)
        self.residency.forget_prefixes()

    def inherit_scrubs(self, other: "Scheduler") -> None:
        """Of a scheduler that used the same blocks before: what it would have zeroed."""
        self.residency.inherit_scrubs(other.residency)

    def expire(self, now: float) -> None:
        if self._timed:
            for sequence in [s for s in self._timed if s.deadline is not None and now >= s.deadline]:
                self._end_early(sequence, FinishReason.DEADLINE)

    # ------------------------------------------------------------ one step

    def schedule(self, now: float) -> StepPlan:
        """The step before may still be in flight: each of its samplers counts one more token, which nobody knows yet. Blocks that ended or
        preempted sequences gave back may be handed out while that step still writes to them: the device runs steps in order, so that the
        new owner's writes come after, and nobody reads a slot before its owner wrote it."""
        self.expire(now)
        plan = self.residency.begin_step()
        full = self.limits.policy == FULL_ENGINE
        preempted = self._make_way(plan, now) if full else False
        lacking, prompts = self._plan_decodes(plan)
        preempted = preempted or lacking
        cap = self.limits.long_prefill_tokens if full else None
        budget = prefill_budget(self.limits.max_batch_tokens, len(plan.decodes), cap)
        budget -= self._plan_prompts(plan, prompts, budget, admitting=full and not preempted)
        self._places = self._open_places(now)
        while budget > 0 and not preempted and (admitted := self._admit(plan, now, budget)):
            budget -= self._plan_chunk(plan, admitted, budget)
        self.residency.end_step(plan)
        return plan

    def _make_way(self, plan: StepPlan, now: float) -> bool:
        """Before anything else is planned: who makes way must not be part of the step. Says whether someone was preempted."""
        preempted = False
        while (first := self._first_waiting()) and self.running and _priority(self.running[-1]) < _priority(first):
            if first.pending:  # preempted by this plan, or by the one before: its newest token is not known yet
                break
            found = self._find(first)
            shared = set(found.shared)
            victims = [s for s in reversed(self.running) if _priority(s) < _priority(first)]
            count = victims_needed(
                self.residency.need(found),
                free=self.blocks.free_blocks,
                free_rows=len(self._free_rows),
                running=len(self.running),
                freed=[sum(1 for b in s.blocks if self.blocks.references(b) == 1 and b not in shared) for s in victims],
            )
            if count is None or (count == 0 and not preempted):
                break
            for victim in victims[:count]:
                self._preempt(plan, victim)
            preempted = True
            self._places = self.limits.max_running
            if self._admit(plan, now, self.limits.max_batch_tokens) is None:
                break
        return preempted

    def _plan_decodes(self, plan: StepPlan) -> "tuple[bool, list[tuple[Sequence, int]]]":
        """Everyone in order gets the block its next token needs, if need be from the last in order. Says whether someone was preempted, and
        who is left with how many tokens of a prompt. The one loop over everything that runs: it looks at each sequence once."""
        preempted, prompts, residency = False, [], self.residency
        for sequence in list(self.running):
            if len(plan.decodes) == self.limits.max_batch_tokens:
                break
            remaining = sequence.remaining
            if remaining <= 0 or sequence.row < 0:
                continue
            if remaining > 1 or not sequence.decodes_alone or sequence in plan.opened:
                prompts.append((sequence, remaining))
                continue
            if residency.lacks_block(sequence):
                while self.blocks.free_blocks == 0 and sequence.row >= 0 and residency.lacks_block(sequence):
                    preempted = True
                    self._preempt(plan, self.running[-1])
                if sequence.row < 0:
                    continue
                residency.give_block(plan, sequence)
            sequence.computed += 1
            sequence.pending += 1
            residency.register(sequence)
            plan.decodes.append(sequence)
        return preempted, prompts

    def _plan_prompts(self, plan: StepPlan, prompts: "list[tuple[Sequence, int]]", budget: int, *, admitting: bool) -> int:
        """Chunks of prompts in progress. Waiting ones that are about to be admitted count in the sharing, so their part is left for them.
        Returns the tokens spent."""
        wishes = [(sequence, tokens) for sequence, tokens in prompts if sequence.row >= 0]
        if not wishes or budget <= 0:
            return 0
        if admitting:
            wishes += self._newcomers()
        wishes.sort(key=lambda wish: wish[0].order)
        counts = share_prefill([(_priority(sequence), tokens) for sequence, tokens in wishes], budget)
        spent = 0
        for (sequence, _), count in zip(wishes, counts, strict=True):
            if sequence.row >= 0 and count:
                spent += self._plan_chunk(plan, sequence, count)
        return spent

    def _newcomers(self) -> list[tuple[Sequence, int]]:
        """Waiting sequences, in order, that rows and blocks would let in now, with the tokens they have to compute."""
        found_room: list[tuple[Sequence, int]] = []
        free, running = self.blocks.free_blocks, len(self.running)
        ready = (sequence for sequence in self.waiting if not sequence.held)
        known = itertools.takewhile(lambda each: not each.pending, ready)
        for sequence in itertools.islice(known, min(len(self._free_rows), MAX_NEWCOMERS)):
            found = self._find(sequence)
            free -= self.residency.need(found)
            if free < running:
                break
            running += 1
            found_room.append((sequence, len(sequence.tokens) - found.computed))
        return found_room

    def _plan_chunk(self, plan: StepPlan, sequence: Sequence, budget: int) -> int:
        count = min(budget, sequence.remaining)
        start = sequence.computed
        sequence.computed += count
        self.residency.register(sequence)
        complete = sequence.remaining == 0
        samplers = [sequence, *self._part(plan, sequence)] if complete and not sequence.request.embedding else []
        for sampler in samplers:
            sampler.pending += 1
        plan.chunks.append(Chunk(sequence, start, count, samplers))
        self.totals.prompt_tokens += count
        return count

    def _part(self, plan: StepPlan, leader: Sequence) -> list[Sequence]:
        """The prompt is computed: siblings take a reference to all of its blocks. Those that find no row wait like anyone else."""
        siblings, leader.siblings = leader.siblings, []
        for sibling in siblings:
            sibling.prompt_told = True
        parted = siblings[: len(self._free_rows)]
        for sibling in parted:
            self.residency.join(sibling, leader)
            sibling.cached_tokens, sibling.first_scheduled = leader.cached_tokens, leader.first_scheduled
            self._open(plan, sibling)
        for sibling in siblings[len(parted) :]:
            bisect.insort(self.waiting, sibling, key=_order)
        return parted

    def _first_waiting(self) -> Sequence | None:
        return next((each for each in self.waiting if not each.held), None)

    def _find(self, sequence: Sequence) -> Found:
        length, longest = len(sequence.tokens), self.limits.max_model_len
        return self.residency.find(sequence, reserved_tokens(self.limits.policy, length=length, max_model_len=longest))

    def _open_places(self, now: float) -> int:
        return open_places(
            self.limits.policy,
            size=self.limits.max_running,
            left=self._places,
            running=len(self.running),
            waiting=len(self.waiting),
            waited_s=now - self.waiting[0].accepted if self.waiting else 0.0,
        )

    def _admit(self, plan: StepPlan, now: float, budget: int) -> Sequence | None:
        """The first in waiting, with all blocks of its present length, or without pages of any length it may reach; nobody overtakes it.
        One spare block for each running sequence keeps the newcomer from being preempted at once."""
        sequence = self._first_waiting()
        if sequence is None or sequence.pending or not self._free_rows or not self._places:
            return None
        found, policy = self._find(sequence), self.limits.policy
        if policy.whole_prompts and len(sequence.tokens) - found.computed > budget:
            return None
        spare = len(self.running) if policy.paged_kv else 0
        if self.residency.need(found) + spare > self.blocks.free_blocks and self.running:
            return None
        self.waiting.remove(sequence)
        self._places -= 1
        self.residency.enter(plan, sequence, found)
        if not sequence.first_scheduled:
            self._count_first(sequence, len(found.shared) * self.blocks.block_size, now)
        self._open(plan, sequence)
        return sequence

    def _count_first(self, sequence: Sequence, on_device: int, now: float) -> None:
        sequence.first_scheduled = now
        sequence.cached_tokens = min(sequence.computed, sequence.output_start)
        hits = min(on_device, sequence.output_start)
        self.totals.prefix_queries += sequence.output_start
        self.totals.prefix_hits += hits
        if self.residency.tier.count:
            self.totals.host_queries += sequence.output_start - hits
            self.totals.host_hits += sequence.cached_tokens - hits

    def _open(self, plan: StepPlan, sequence: Sequence) -> None:
        sequence.row = self._free_rows.pop()
        bisect.insort(self.running, sequence, key=_order)
        plan.opened.append(sequence)

    def _preempt(self, plan: StepPlan, sequence: Sequence) -> None:
        self._give_row_back(sequence)
        self.residency.preempt(plan, sequence)
        self._wait_again(sequence)

    def _wait_again(self, sequence: Sequence) -> None:
        sequence.preemptions += 1
        self.totals.preemptions += 1
        self.totals.swaps += bool(sequence.swapped)
        bisect.insort(self.waiting, sequence, key=_order)

    def _leave_running(self, sequence: Sequence) -> None:
        self._give_row_back(sequence)
        self.residency.leave(sequence)

    def _give_row_back(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._free_rows.append(sequence.row)
        sequence.row = -1

    # ------------------------------------------------------------ after the step

    def settle(self, plan: StepPlan, sampled: Sampled, now: float) -> list[SequenceUpdate]:
        """Of the oldest step in flight. Sequences that ended since it was planned are passed over."""
        updates, self._outbox = self._outbox, []
        samplers = plan.sampling()
        assert len(samplers) == len(sampled.token_ids)
        batch = plan.sequences
        for position, (sequence, token) in enumerate(zip(samplers, sampled.token_ids, strict=True)):
            sequence.pending -= 1
            broken = position in sampled.broken
            if sequence.ended:
                if broken:
                    self.residency.distrust(sequence)
                continue
            sequence.note_step(batch)
            if broken:
                updates.append(sequence.update([], None, self._end_broken(sequence)))
                continue
            if position in sampled.stuck:
                updates.append(sequence.update([], None, self._end(sequence, FinishReason.ENGINE_ERROR, detail=sampled.stuck[position])))
                continue
            update = self._append(sequence, token, sampled.logprobs.get(position), now, complete=position in sampled.complete)
            if position in sampled.prompt_logprobs:
                update = replace(update, prompt_logprobs=sampled.prompt_logprobs[position])
            updates.append(update)
        for index, chunk in enumerate(plan.chunks):
            if not chunk.sequences and not chunk.sequence.ended:
                chunk.sequence.note_step(batch)
                if index in sampled.embeddings:
                    updates.append(self._embedded(chunk.sequence, sampled.embeddings[index], now))
                elif not chunk.sequence.announced:
                    updates.append(chunk.sequence.update([], None, None))
        if not self.limits.policy.kv_cache:
            self._forget_all()
        return updates

    def _forget_all(self) -> None:
        """Without a KV cache everyone begins again in the next step, with its tokens and nothing else."""
        for sequence in list(self.running):
            self._leave_running(sequence)
            bisect.insort(self.waiting, sequence, key=_order)

    def _embedded(self, sequence: Sequence, embedding: list[float], now: float) -> SequenceUpdate:
        """`embedding` empty: not finite."""
        if not embedding:
            return sequence.update([], None, self._end_broken(sequence))
        sequence.first_token = sequence.last_token = now
        return replace(sequence.update([], None, self._end(sequence, FinishReason.STOP)), embedding=embedding)

    def _append(
        self, sequence: Sequence, token: int, logprobs: TokenLogprobs | None, now: float, *, complete: bool = False
    ) -> SequenceUpdate:
        """`complete`: its grammar takes nothing more; the token counts, and the end reads as if eos had come."""
        sequence.tokens.append(token)
        sequence.sampled += 1
        self.totals.generation_tokens += 1
        if not sequence.first_token:
            sequence.first_token, sequence.prompt_told = now, True
        sequence.last_token = now
        request = sequence.request
        if token in request.stop_token_ids or (token in self._eos and not request.ignore_eos):
            return sequence.update([], None, self._end(sequence, FinishReason.STOP, stop_token_id=token))
        finish = None
        if complete:
            finish = self._end(sequence, FinishReason.STOP, stop_token_id=next(iter(self.limits.eos_token_ids), None))
        elif len(sequence.tokens) >= sequence.limit:
            finish = self._end(sequence, FinishReason.LENGTH)
        elif sequence.row >= 0 and sequence.pending:  # else planning knew all of its tokens
            self.residency.register(sequence)
        return sequence.update([token], None if logprobs is None else [logprobs], finish)

    # ------------------------------------------------------------ endings

    def _end(self, sequence: Sequence, reason: FinishReason, *, stop_token_id: int | None = None, detail: str = "") -> Finish:
        """The one place where a sequence leaves. Its siblings, if it led them, go on with the next one in front."""
        sequence.ended = True
        if sequence.row >= 0:
            self._leave_running(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
            self.residency.drop_swapped(sequence)
        request_id = sequence.request.request_id
        family = self._requests[request_id]
        del family[sequence.index]
        if not family:
            del self._requests[request_id]
        self._timed.discard(sequence)
        if sequence.siblings:
            leader, *leader.siblings = sequence.siblings
            bisect.insort(self.waiting, leader, key=_order)
        else:
            for other in family.values():
                if sequence in other.siblings:
                    other.siblings.remove(sequence)
        return Finish(reason, sequence.usage(), sequence.timings(), stop_token_id, detail)

    def _end_early(self, sequence: Sequence, reason: FinishReason, detail: str = "") -> None:
        finish = self._end(sequence, reason, detail=detail)
        self._outbox.append(SequenceUpdate(sequence.request.request_id, sequence.index, [], None, finish))

    def _end_broken(self, sequence: Sequence) -> Finish:
        """Non-finite logits: nobody may share what this sequence computed, and what nobody holds any more is zeroed."""
        self.residency.distrust(sequence)
        detail = "the model produced numbers that are not finite for this request; a lower temperature or another dtype may help"
        return self._end(sequence, FinishReason.ENGINE_ERROR, detail=detail)

    def withdraw(self, failed: StepPlan, later: list[StepPlan], detail: str) -> None:
        """`failed` cannot be computed: its sequences end. Blocks are registered at planning, so whoever in `later` was to share what it
        would have written leaves those plans and computes it anew."""
        size = self.blocks.block_size
        spans = [(s, s.computed - 1, 1) for s in failed.decodes] + [(c.sequence, c.start, c.count) for c in failed.chunks]
        lost = {block for s, start, count in spans for block in s.blocks[start // size : -(-(start + count) // size)]}
        self.blocks.discredit(list(lost))
        for sampler in failed.sampling():
            sampler.pending -= 1
        for member in {*failed.sampling(), *(chunk.sequence for chunk in failed.chunks)}:
            self._end_early(member, FinishReason.ENGINE_ERROR, detail)
        for plan in later:
            decodes = [s for s in plan.decodes if lost.intersection(s.blocks)]
            chunks = [c for c in plan.chunks if lost.intersection(c.sequence.blocks)]
            plan.decodes = [s for s in plan.decodes if s not in decodes]
            plan.chunks = [c for c in plan.chunks if c not in chunks]
            dropped = StepPlan(decodes=decodes, chunks=chunks)
            for sampler in dropped.sampling():
                sampler.pending -= 1
            for member in {*dropped.sampling(), *(chunk.sequence for chunk in chunks)}:
                self.blocks.discredit([block for block in member.blocks if self.blocks.references(block) == 1])
                self._leave_running(member)  # never to the host: its blocks do not hold what was planned
                self._wait_again(member)

    # ------------------------------------------------------------ what is told

    @property
    def num_waiting(self) -> int:
        return sum(len(family) for family in self._requests.values()) - len(self.running)

    @property
    def queued_prefill_tokens(self) -> int:
        return sum(s.remaining for s in self.waiting) + sum(tokens for s in self.running if (tokens := s.remaining) > 1)

    def kv_use(self) -> KvUse:
        return self.residency.use(self.running)

    def check(self) -> None:
        """Asserts that sequences, rows and blocks agree."""
        self.residency.check(self.running, self.waiting)
        rows = [sequence.row for sequence in self.running]
        assert sorted(rows + self._free_rows) == list(range(self.limits.max_running)), "a row is lost or owned twice"
        assert self.running == sorted(self.running, key=_order)
        assert self.waiting == sorted(self.waiting, key=_order)
        if not self._requests:
            assert not self.running, "running without a request"
            assert not self.waiting, "waiting without a request"
            assert not self._timed, "a deadline without a request"
            assert self.blocks.free_blocks == self.blocks.count, "blocks are held while nothing runs"


def _priority(sequence: Sequence) -> int:
    return sequence.request.priority


def _order(sequence: Sequence) -> tuple[int, int, int]:
    return sequence.order
