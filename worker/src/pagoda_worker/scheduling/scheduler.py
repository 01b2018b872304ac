"""Decides what each step computes: one token budget over all sequences, no phases.

Owns the parts of that decision and plans those who run: who is here is the roster's, who joins is admission's, what a step did is
settling's, where keys and values lie is residency's. Called by the engine, which gives it the time. Knows neither tensors nor clocks.

A step spends `max_batch_tokens`: first one token for every running sequence that decodes, then what is left for prompts, by class and
within a class as policy.share_prefill says; while something decodes prompts get at most `long_prefill_tokens`. A sequence is admitted with
all blocks of its present length, so only decoding can run out of blocks; then the last in order gives all of its blocks back and waits at
the front. A waiting sequence of a higher class takes the place of running ones of lower classes, never of its own, so nobody is pushed back
and forth. The first in order is never preempted, and alone it fits (checked at submission): there is always progress. Under lasting load of
a higher class a lower one waits: deadlines end that.
"""

from pagoda_worker.errors import RequestRefused
from pagoda_worker.request import FinishReason, Request, SequenceUpdate
from pagoda_worker.scheduling.adapters import Adapter, AdapterSlots
from pagoda_worker.scheduling.admission import Admission
from pagoda_worker.scheduling.batching import FULL_ENGINE
from pagoda_worker.scheduling.blocks import BlockPool, root_hash
from pagoda_worker.scheduling.plan import Chunk, StepPlan
from pagoda_worker.scheduling.policy import prefill_budget, share_prefill
from pagoda_worker.scheduling.residency import KvUse, Residency
from pagoda_worker.scheduling.roster import Roster, priority_of
from pagoda_worker.scheduling.sampled import Sampled
from pagoda_worker.scheduling.scheduler_limits import SchedulerLimits, Totals, check_room
from pagoda_worker.scheduling.sequence import Sequence
from pagoda_worker.scheduling.settling import Settling
from pagoda_worker.scheduling.turns import SHARED, Turn, Turns
from pagoda_worker.scheduling.verification import Verification


class Scheduler:
    def __init__(self, blocks: BlockPool, limits: SchedulerLimits) -> None:
        self.blocks = blocks
        self.limits = limits
        self.residency = Residency(blocks, limits.host, prefix_caching=limits.prefix_caching)
        self.totals = Totals()
        self.adapters = AdapterSlots(limits.adapter_slots)
        self._roster = Roster(self.residency, self.totals, self.adapters, rows=limits.max_running, eos=frozenset(limits.eos_token_ids))
        self._admission = Admission(self._roster, self.residency, limits, self.totals)
        self._settling = Settling(self._roster, self.residency, limits, self.totals)
        self._turns = Turns()

    # ------------------------------------------------------------ what comes in

    def submit(self, request: Request, *, now: float, seed: int, adapter: Adapter | None = None) -> list[Sequence]:
        """`adapter`: what the request's name means now. `seed` is that of sequence 0; the next ones count up. Structured ones are held
        until `release`. Raises RequestRefused, ContextTooLong."""
        limit = min(len(request.prompt_ids) + request.max_tokens, self.limits.max_model_len)
        if self._roster.knows(request.request_id):
            raise RequestRefused(f"request id {request.request_id!r} is already in use", param="request_id")
        check_room(request, limit, self.limits, self.blocks)
        root = root_hash(request.cache_salt, request.adapter if adapter is None else adapter.label)
        return self._roster.enlist(request, now=now, seed=seed, limit=limit, root=root, adapter=adapter)

    def release(self, request_id: str) -> None:
        """What held it back is there. Unknown ids are ignored, here and below: the request may have been cancelled."""
        for sequence in self._roster.family(request_id):
            sequence.held = False

    def drop(self, request_id: str) -> bool:
        """A held request that turned out to be impossible; it leaves without an ending. Says whether it was still there."""
        family = self._roster.family(request_id)
        for sequence in family:
            self._roster.end(sequence, FinishReason.CANCELLED)
        return bool(family)

    def complete(self, request_id: str) -> None:
        """A held request whose resumed output is all there is to say."""
        for sequence in self._roster.family(request_id):
            self._roster.end_early(sequence, FinishReason.STOP)

    def cancel(self, request_id: str, sequence: int | None = None) -> None:
        """Frees at once; the ending leaves with the next settle. Unknown ids are ignored: the request may just have ended."""
        for member in self._roster.family(request_id):
            if sequence is None or member.index == sequence:
                self._roster.end_early(member, FinishReason.CANCELLED)

    def find(self, request_id: str, index: int) -> Sequence | None:
        """One that lives."""
        return next((member for member in self._roster.family(request_id) if member.index == index), None)

    def abandon(self, detail: str) -> None:
        """Ends everything; forgets every prefix, since blocks are registered before their step ran."""
        for member in self._roster.everyone():
            self._roster.end_early(member, FinishReason.ENGINE_ERROR, detail)
        self.residency.forget_prefixes()
        self.adapters.clear()

    def inherit_scrubs(self, other: "Scheduler") -> None:
        """Of a scheduler that used the same blocks before: what it would have zeroed."""
        self.residency.inherit_scrubs(other.residency)

    # ------------------------------------------------------------ one step

    def schedule(self, now: float) -> StepPlan:
        """The step before may still be in flight: each of its samplers counts one more token, which nobody knows yet. Blocks that ended or
        preempted sequences gave back may be handed out while that step still writes to them: the device runs steps in order, so that the
        new owner's writes come after, and nobody reads a slot before its owner wrote it."""
        self._roster.expire(now)
        plan = self.residency.begin_step()
        turn = self._turns.next(self.running, self._roster.first_waiting) if self._roster.alone else SHARED
        self._plan(plan, turn, now)
        if plan.empty and turn.only is not None:  # it found no room: then the others may have theirs
            self._plan(plan, SHARED, now)
        self.residency.end_step(plan)
        return plan

    def _plan(self, plan: StepPlan, turn: Turn, now: float) -> None:
        full = self.limits.policy == FULL_ENGINE
        preempted = self._admission.make_way(plan, now, turn) if full else False
        members = [sequence for sequence in self.running if turn.includes(sequence)] if self._roster.alone else list(self.running)
        lacking, prompts = self._plan_decodes(plan, members)
        preempted = preempted or lacking
        cap = self.limits.long_prefill_tokens if full else None
        budget = prefill_budget(self.limits.max_batch_tokens, plan.decode_tokens, cap)
        if turn.only is not None and cap is not None and len(self.running) > (turn.only.row >= 0):
            budget = min(budget, cap)  # alone in its step is not alone here: others wait for their next token meanwhile
        budget -= self._plan_prompts(plan, prompts, budget, newcomers_of=turn if full and not preempted and turn.only is None else None)
        self._admission.open_places(now)
        while budget > 0 and not preempted and (admitted := self._admission.admit(plan, now, budget, turn)):
            budget -= self._plan_chunk(plan, admitted, budget)

    def _plan_decodes(self, plan: StepPlan, members: list[Sequence]) -> "tuple[bool, list[tuple[Sequence, int]]]":
        """Everyone in order gets the block its next token needs, if need be from the last in order. Says whether someone was preempted, and
        who is left with how many tokens of a prompt. The one loop over everything that runs: it looks at each sequence once."""
        preempted, prompts, residency, decodes = False, [], self.residency, plan.decodes
        most, block_size = self.limits.max_batch_tokens, self.blocks.block_size
        spare = most - len(members)
        for sequence in members:
            if len(decodes) == most:
                break
            remaining = sequence.remaining
            if remaining == 1 and sequence.computed < sequence.unasked_until:  # most rows of most steps
                sequence.computed += 1
                sequence.pending += 1
                decodes.append(sequence)
                continue
            if remaining <= 0 or sequence.row < 0:
                continue
            if remaining > 1 or not sequence.decodes_alone or sequence in plan.opened:
                prompts.append((sequence, remaining))
                continue
            if residency.lacks_block(sequence):
                while self.blocks.free_blocks == 0 and sequence.row >= 0 and residency.lacks_block(sequence):
                    preempted = True
                    self._roster.preempt(plan, self.running[-1])
                if sequence.row < 0:
                    continue
                residency.give_block(plan, sequence)
            sequence.computed += 1
            sequence.pending += 1
            residency.register(sequence)
            self._roster.prefilling.discard(sequence)
            if sequence.drafts and (verified := self._plan_verification(plan, sequence, spare)):
                spare, most = spare - verified, most - 1 - verified
                continue
            sequence.unasked_until = -(-sequence.computed // block_size) * block_size - 1
            decodes.append(sequence)
        return preempted, prompts

    def _plan_verification(self, plan: StepPlan, sequence: Sequence, spare: int) -> int:
        """It decodes, and verifies as many of its drafts as the step has tokens to `spare`, the sequence may still have, and blocks are
        free for. Returns how many."""
        count = min(len(sequence.drafts), spare, sequence.limit - sequence.length)
        if count > 0:
            count = self.residency.room_for_drafts(plan, sequence, count, spare=len(self.running))
        if count <= 0:
            sequence.drafts = []
            return 0
        del sequence.drafts[count:]
        plan.verifications.append(Verification(sequence, sequence.computed - 1, list(sequence.drafts)))
        sequence.pending += count
        sequence.verifying, sequence.written_to, sequence.unasked_until = True, sequence.computed + count, 0
        return count

    def _plan_prompts(self, plan: StepPlan, prompts: "list[tuple[Sequence, int]]", budget: int, *, newcomers_of: Turn | None) -> int:
        """Chunks of prompts in progress. Waiting ones that are about to be admitted count in the sharing, so their part is left for them.
        Returns the tokens spent."""
        wishes = [(sequence, tokens) for sequence, tokens in prompts if sequence.row >= 0]
        if not wishes or budget <= 0:
            return 0
        if newcomers_of is not None:
            wishes += self._admission.newcomers(newcomers_of)
        wishes.sort(key=lambda wish: wish[0].order)
        counts = share_prefill([(priority_of(sequence), tokens) for sequence, tokens in wishes], budget)
        spent = 0
        for (sequence, _), count in zip(wishes, counts, strict=True):
            if sequence.row >= 0 and count:
                spent += self._plan_chunk(plan, sequence, count)
        return spent

    def _plan_chunk(self, plan: StepPlan, sequence: Sequence, budget: int) -> int:
        count = min(budget, sequence.remaining)
        start = sequence.computed
        sequence.computed += count
        self.residency.register(sequence)
        complete = sequence.remaining == 0
        if complete:
            self._roster.prefilling.discard(sequence)
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
        parted = siblings[: self._roster.free_rows]
        for sibling in parted:
            self.residency.join(sibling, leader)
            sibling.cached_tokens, sibling.first_scheduled = leader.cached_tokens, leader.first_scheduled
            self._roster.open(plan, sibling)
        for sibling in siblings[len(parted) :]:
            self._roster.wait(sibling)
        return parted

    # ------------------------------------------------------------ after the step

    def settle(self, plan: StepPlan, sampled: Sampled, now: float) -> list[SequenceUpdate]:
        """Of the oldest step in flight."""
        return self._settling.settle(plan, sampled, now)

    def withdraw(self, failed: StepPlan, later: list[StepPlan], detail: str) -> None:
        """`failed` cannot be computed, and `later` are the parts of the same step that come after it."""
        self._settling.withdraw(failed, later, detail)

    # ------------------------------------------------------------ what is told

    @property
    def running(self) -> list[Sequence]:
        return self._roster.running

    @property
    def waiting(self) -> list[Sequence]:
        return self._roster.waiting

    @property
    def has_work(self) -> bool:
        return self._roster.has_work

    @property
    def num_waiting(self) -> int:
        return self._roster.num_waiting

    @property
    def queued_prefill_tokens(self) -> int:
        return sum(s.remaining for s in self.waiting) + sum(s.remaining for s in self._roster.prefilling)

    def kv_use(self) -> KvUse:
        return self.residency.use(self.running)

    def check(self) -> None:
        """Asserts that sequences, rows and blocks agree."""
        self.residency.check(self.running, self.waiting)
        self._roster.check()
        if not self._roster.everyone():
            assert self.blocks.free_blocks == self.blocks.count, "blocks are held while nothing runs"
