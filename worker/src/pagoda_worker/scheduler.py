"""Decides what each step computes: one token budget over all sequences, no phases.

Owns sequences, their order and their blocks; called by the engine, which gives it the time. Knows neither tensors nor clocks.

A step spends `max_batch_tokens`: first one token for every running sequence that decodes, then what is left for prompts in progress, then
for waiting sequences in order of priority and arrival. A sequence is admitted with all blocks of its present length, so only decoding can
run out of blocks; then the last in order gives all of its blocks back and waits at the front (its computed prefix mostly survives in the
cache). The first in order is never preempted, and alone it fits (checked at submission): there is always progress.
"""

import bisect
from dataclasses import dataclass, replace

from pagoda_worker.batching import FULL_ENGINE, AdmissionPolicy, open_places, reserved_tokens
from pagoda_worker.blocks import BlockPool, root_hash
from pagoda_worker.errors import ContextTooLong, RequestRefused
from pagoda_worker.plan import Chunk, Sampled, Sequence, StepPlan
from pagoda_worker.prefix import cached_prefix, register_prefix
from pagoda_worker.request import Finish, FinishReason, Request, SequenceUpdate, TokenLogprobs


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    max_running: int
    max_batch_tokens: int
    max_model_len: int
    prefix_caching: bool = True
    eos_token_ids: tuple[int, ...] = ()
    policy: AdmissionPolicy = FULL_ENGINE


@dataclass(slots=True)
class Totals:
    """Since the start; read by the engine for its state."""

    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0


class Scheduler:
    def __init__(self, blocks: BlockPool, limits: SchedulerLimits) -> None:
        self.blocks = blocks
        self.limits = limits
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
        self._scrubs: list[int] = []
        self._arrivals = 0
        self._eos = frozenset(limits.eos_token_ids)

    # ------------------------------------------------------------ what comes in

    @property
    def has_work(self) -> bool:
        return bool(self._requests or self._outbox)

    def submit(self, request: Request, *, now: float, seed: int) -> list[Sequence]:
        """`seed` is that of sequence 0; the next ones count up. Structured ones are held until `release`. Raises RequestRefused,
        ContextTooLong."""
        length = len(request.prompt_ids) + len(request.resume_ids)
        limit = min(len(request.prompt_ids) + request.max_tokens, self.limits.max_model_len)
        self._check(request, length, limit)
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

    def _check(self, request: Request, length: int, limit: int) -> None:
        if request.request_id in self._requests:
            raise RequestRefused(f"request id {request.request_id!r} is already in use", param="request_id")
        if length >= self.limits.max_model_len:
            raise ContextTooLong(
                f"the prompt has {length} tokens; this model takes {self.limits.max_model_len} in all, prompt and output together: "
                f"shorten the prompt to at most {self.limits.max_model_len - 1}",
                param="prompt_ids",
            )
        if len(request.resume_ids) >= request.max_tokens:
            raise RequestRefused(
                f"resume_ids holds {len(request.resume_ids)} tokens and max_tokens is {request.max_tokens}: nothing is left to generate",
                param="resume_ids",
            )
        # The last sampled token is never written to the cache.
        needed, capacity = self._blocks_for(limit - 1), self.blocks.count
        if needed > capacity:
            size = self.blocks.block_size
            raise ContextTooLong(
                f"prompt and max_tokens need {needed * size} tokens of KV cache; the whole cache holds {capacity * size}: "
                f"shorten the prompt or lower max_tokens",
                param="max_tokens",
            )

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
        self.blocks.drop_cache()

    def inherit_scrubs(self, other: "Scheduler") -> None:
        """Of a scheduler that used the same blocks before: what it would have zeroed."""
        self._scrubs += other._scrubs

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
        plan = StepPlan()
        preempted = self._plan_decodes(plan)
        budget = self.limits.max_batch_tokens - len(plan.decodes)
        for sequence in list(self.running):
            if budget > 0 and sequence.remaining > 0 and not sequence.decoding:
                budget -= self._plan_chunk(plan, sequence, budget)
        self._places = self._open_places(now)
        while budget > 0 and not preempted and (admitted := self._admit(plan, now, budget)):
            budget -= self._plan_chunk(plan, admitted, budget)
        if not plan.empty:  # else nobody would zero them
            plan.scrubs, self._scrubs = self._scrubs, []
        return plan

    def _plan_decodes(self, plan: StepPlan) -> bool:
        """Everyone in order gets the block its next token needs, if need be from the last in order. Says whether someone was preempted."""
        preempted = False
        for sequence in list(self.running):
            if len(plan.decodes) == self.limits.max_batch_tokens:
                break
            if sequence.row < 0 or not sequence.decoding:
                continue
            while self._lacks_block(sequence) and self.blocks.free_blocks == 0:
                preempted = True
                self._preempt(self.running[-1])
                if sequence.row < 0:
                    break
            else:
                self._give_block(plan, sequence)
                sequence.computed += 1
                sequence.pending += 1
                self._register(sequence)
                plan.decodes.append(sequence)
        return preempted

    def _lacks_block(self, sequence: Sequence) -> bool:
        """The position to be written lies past the last block, or in one that several sequences hold."""
        at = sequence.computed // self.blocks.block_size
        return at == len(sequence.blocks) or self.blocks.references(sequence.blocks[at]) > 1

    def _give_block(self, plan: StepPlan, sequence: Sequence) -> None:
        if not self._lacks_block(sequence):
            return
        at = sequence.computed // self.blocks.block_size
        (block,) = self.blocks.take(1)
        if at == len(sequence.blocks):
            sequence.blocks.append(block)
        else:
            shared = sequence.blocks[at]
            plan.copies.append((shared, block))
            self.blocks.release([shared])
            sequence.blocks[at] = block
        plan.added_blocks.append((sequence.row, at, block))

    def _plan_chunk(self, plan: StepPlan, sequence: Sequence, budget: int) -> int:
        count = min(budget, sequence.remaining)
        start = sequence.computed
        sequence.computed += count
        self._register(sequence)
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
            self.blocks.share(leader.blocks)
            sibling.blocks = list(leader.blocks)
            sibling.hashes = list(leader.hashes)
            sibling.computed, sibling.registered = leader.computed, leader.registered
            sibling.cached_tokens, sibling.first_scheduled = leader.cached_tokens, leader.first_scheduled
            self._open(plan, sibling)
        for sibling in siblings[len(parted) :]:
            bisect.insort(self.waiting, sibling, key=_order)
        return parted

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
        sequence = next((each for each in self.waiting if not each.held), None)
        if sequence is None or sequence.pending or not self._free_rows or not self._places:
            return None
        policy, length = self.limits.policy, len(sequence.tokens)
        hits = cached_prefix(self.blocks, sequence) if self._reads_prefix(sequence) else []
        if policy.whole_prompts and length - len(hits) * self.blocks.block_size > budget:
            return None
        fresh = self._blocks_for(reserved_tokens(policy, length=length, max_model_len=self.limits.max_model_len)) - len(hits)
        spare = len(self.running) if policy.paged_kv else 0
        if fresh + spare + self.blocks.evictable_among(hits) > self.blocks.free_blocks and self.running:
            return None
        self.waiting.remove(sequence)
        self._places -= 1
        self.blocks.share(hits)
        sequence.blocks = [*hits, *self.blocks.take(fresh)]
        sequence.registered = len(hits)
        sequence.computed = len(hits) * self.blocks.block_size
        if not sequence.first_scheduled:
            sequence.first_scheduled = now
            sequence.cached_tokens = min(sequence.computed, sequence.output_start)
            self.totals.prefix_queries += sequence.output_start
            self.totals.prefix_hits += sequence.cached_tokens
        self._open(plan, sequence)
        return sequence

    def _open(self, plan: StepPlan, sequence: Sequence) -> None:
        sequence.row = self._free_rows.pop()
        bisect.insort(self.running, sequence, key=_order)
        plan.opened.append(sequence)

    def _preempt(self, sequence: Sequence) -> None:
        self._leave_running(sequence)
        sequence.preemptions += 1
        self.totals.preemptions += 1
        bisect.insort(self.waiting, sequence, key=_order)

    def _leave_running(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._free_rows.append(sequence.row)
        if sequence.pending:
            # What the step in flight writes there may turn out not to be finite after someone else has the block.
            self._scrubs += [block for block in sequence.blocks[sequence.registered :] if self.blocks.references(block) == 1]
        self.blocks.release(sequence.blocks)
        sequence.row, sequence.computed, sequence.registered, sequence.blocks = -1, 0, 0, []

    def _register(self, sequence: Sequence) -> None:
        """At planning, not after the step: keys and values of a layer are all written before any are read, so that a burst of requests
        with one prompt computes it once. A block with a token that is still being sampled waits until that is known."""
        if self._shares_prefix(sequence):
            register_prefix(self.blocks, sequence)

    def _reads_prefix(self, sequence: Sequence) -> bool:
        """Logprobs of a prompt need its hidden states, which no cache has; once they are told, blocks will do."""
        return self._shares_prefix(sequence) and sequence.prompt_told

    def _shares_prefix(self, sequence: Sequence) -> bool:
        return self.limits.prefix_caching and sequence.request.use_prefix_cache

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
                    self._distrust(sequence)
                continue
            self._note_step(sequence, batch)
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
                self._note_step(chunk.sequence, batch)
                if index in sampled.embeddings:
                    updates.append(self._embedded(chunk.sequence, sampled.embeddings[index], now))
                elif not chunk.sequence.announced:
                    updates.append(chunk.sequence.update([], None, None))
        if not self.limits.policy.kv_cache:
            self._forget_all()
        return updates

    def _note_step(self, sequence: Sequence, batch: int) -> None:
        sequence.steps += 1
        if sequence.request.want_timings:
            sequence.note_batch(batch)

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
        elif sequence.row >= 0:
            self._register(sequence)
        return sequence.update([token], None if logprobs is None else [logprobs], finish)

    # ------------------------------------------------------------ endings

    def _end(self, sequence: Sequence, reason: FinishReason, *, stop_token_id: int | None = None, detail: str = "") -> Finish:
        """The one place where a sequence leaves. Its siblings, if it led them, go on with the next one in front."""
        sequence.ended = True
        if sequence.row >= 0:
            self._leave_running(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
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
        self.blocks.discredit(sequence.blocks)
        self._scrubs += [block for block in sequence.blocks if self.blocks.references(block) == 1]
        if sequence.row < 0:
            self._distrust(sequence)
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
                self._preempt(member)

    def _distrust(self, sequence: Sequence) -> None:
        """What the prefix cache still has of a sequence that left before its step said that its numbers are not finite."""
        found = self.blocks.match(sequence.hashes[1:])
        self.blocks.share(found)
        self.blocks.discredit(found)
        self._scrubs += [block for block in found if self.blocks.references(block) == 1]
        self.blocks.release(found)

    # ------------------------------------------------------------ what is told

    @property
    def num_waiting(self) -> int:
        return sum(len(family) for family in self._requests.values()) - len(self.running)

    @property
    def queued_prefill_tokens(self) -> int:
        return sum(s.remaining for s in self.waiting) + sum(s.remaining for s in self.running if s.remaining > 1)

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.blocks.block_size)

    def check(self) -> None:
        """Asserts that sequences, rows and blocks agree."""
        self.blocks.check([sequence.blocks for sequence in self.running])
        rows = [sequence.row for sequence in self.running]
        assert sorted(rows + self._free_rows) == list(range(self.limits.max_running)), "a row is lost or owned twice"
        assert self.running == sorted(self.running, key=_order)
        assert self.waiting == sorted(self.waiting, key=_order)
        assert all(not sequence.blocks and sequence.row < 0 for sequence in self.waiting)
        if not self._requests:
            assert not self.running, "running without a request"
            assert not self.waiting, "waiting without a request"
            assert not self._timed, "a deadline without a request"
            assert self.blocks.free_blocks == self.blocks.count, "blocks are held while nothing runs"


def _order(sequence: Sequence) -> tuple[int, int, int]:
    return sequence.order
