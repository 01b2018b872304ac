"""What a step that is over, or could not be computed, does to its sequences: tokens are appended, sequences end, updates are told.

Owns nothing between steps; called by the scheduler, in the order in which steps were planned. Knows neither budgets nor tensors.
"""

from dataclasses import replace

from pagoda_worker.request import Finish, FinishReason, SequenceUpdate, TokenLogprobs
from pagoda_worker.scheduling.plan import StepPlan
from pagoda_worker.scheduling.residency import Residency
from pagoda_worker.scheduling.roster import Roster
from pagoda_worker.scheduling.sampled import Sampled
from pagoda_worker.scheduling.scheduler_limits import SchedulerLimits, Totals
from pagoda_worker.scheduling.sequence import Sequence
from pagoda_worker.scheduling.verification import Verification


class Settling:
    def __init__(self, roster: Roster, residency: Residency, limits: SchedulerLimits, totals: Totals) -> None:
        self._roster = roster
        self._residency = residency
        self._blocks = residency.blocks
        self._limits = limits
        self._totals = totals

    def settle(self, plan: StepPlan, sampled: Sampled, now: float) -> list[SequenceUpdate]:
        """Sequences that ended since the step was planned are passed over."""
        updates = self._roster.take_endings()
        samplers = plan.sampling()
        assert len(samplers) == len(sampled.token_ids)
        batch, told = plan.sequences, sampled.told
        alone = len(samplers) - sum(each.places for each in plan.verifications)
        for position, (sequence, token) in enumerate(zip(samplers[:alone], sampled.token_ids, strict=False)):
            sequence.pending -= 1
            if sequence.ended:
                if position in sampled.broken:
                    self._residency.distrust(sequence)
                continue
            sequence.note_step(batch)
            if told and position in told:
                updates.append(self._settle_told(sequence, token, position, sampled, now))
            else:
                updates.append(self._append(sequence, token, None, now))
        for each in plan.verifications:
            if update := self._settle_verified(each, alone, sampled, told, now, batch):
                updates.append(update)
            alone += each.places
        for index, chunk in enumerate(plan.chunks):
            if not chunk.sequences and not chunk.sequence.ended:
                chunk.sequence.note_step(batch)
                if index in sampled.embeddings:
                    updates.append(self._embedded(chunk.sequence, sampled.embeddings[index], now))
                elif not chunk.sequence.announced:
                    updates.append(chunk.sequence.update([], None, None))
        if not self._limits.policy.kv_cache:
            self._forget_all()
        return updates

    def _settle_verified(
        self, verification: Verification, first: int, sampled: Sampled, told: set[int], now: float, batch: int
    ) -> SequenceUpdate | None:
        """One update of all that counts of its places, which stand at `first` and after. Keys and values of accepted drafts stay; those of
        the others are written over by the tokens that took their place."""
        sequence, positions = verification.sequence, range(first, first + verification.places)
        sequence.pending -= verification.places
        sequence.verifying = False
        unsound = not sampled.broken.isdisjoint(positions)
        if sequence.ended:
            if unsound:
                self._residency.distrust(sequence)
            return None
        sequence.note_step(batch)
        counted = [position for position in positions if position not in sampled.passed_over]
        sequence.drafts, sequence.waits_for_token = [], sequence.constrained
        sequence.note_drafts(len(verification.drafts), len(counted) - 1)
        if not unsound:
            sequence.written_to = 0
        if told and not told.isdisjoint(positions):
            return self._settle_told_places(sequence, first, counted, sampled, now)
        return self._append_all(sequence, [sampled.token_ids[position] for position in counted], now)

    def _settle_told_places(self, sequence: Sequence, first: int, counted: list[int], sampled: Sampled, now: float) -> SequenceUpdate:
        whole = SequenceUpdate(sequence.request_id, sequence.index, [])
        for position in counted:
            if position > first and sequence.row >= 0:
                sequence.computed += 1
            update = self._settle_told(sequence, sampled.token_ids[position], position, sampled, now)
            whole = merged(whole, update)
            if whole.finish is not None:
                break
        return whole

    def _append_all(self, sequence: Sequence, tokens: list[int], now: float) -> SequenceUpdate:
        """What a verification made, up to where the sequence ends: as `_append` for each, in one."""
        end = next((i for i, token in enumerate(tokens, start=1) if token in sequence.enders), None)
        del tokens[min(end or len(tokens), sequence.limit - len(sequence.tokens)) :]
        if sequence.row >= 0:
            sequence.computed += len(tokens) - 1
        sequence.tokens += tokens
        if not sequence.first_token:
            sequence.first_token, sequence.prompt_told = now, True
        sequence.last_token = now
        self._totals.generation_tokens += len(tokens)
        if end == len(tokens):
            return sequence.update(tokens[:-1], None, self._roster.end(sequence, FinishReason.STOP, stop_token_id=tokens[-1]))
        ends = len(sequence.tokens) >= sequence.limit
        return sequence.update(tokens, None, self._roster.end(sequence, FinishReason.LENGTH) if ends else None)

    def _settle_told(self, sequence: Sequence, token: int, position: int, sampled: Sampled, now: float) -> SequenceUpdate:
        """There is more to it than its token."""
        if position in sampled.broken:
            return sequence.update([], None, self._end_broken(sequence))
        if position in sampled.stuck:
            return sequence.update([], None, self._roster.end(sequence, FinishReason.ENGINE_ERROR, detail=sampled.stuck[position]))
        update = self._append(sequence, token, sampled.logprobs.get(position), now, complete=position in sampled.complete)
        if position in sampled.prompt_logprobs:
            update = replace(update, prompt_logprobs=sampled.prompt_logprobs[position])
        return update

    def _append(
        self, sequence: Sequence, token: int, logprobs: TokenLogprobs | None, now: float, *, complete: bool = False
    ) -> SequenceUpdate:
        """`complete`: its grammar takes nothing more; the token counts, and the end reads as if eos had come."""
        sequence.tokens.append(token)
        self._totals.generation_tokens += 1
        if not sequence.first_token:
            sequence.first_token, sequence.prompt_told = now, True
        sequence.last_token = now
        if token in sequence.enders:
            return sequence.update([], None, self._roster.end(sequence, FinishReason.STOP, stop_token_id=token))
        finish = None
        if complete:
            finish = self._roster.end(sequence, FinishReason.STOP, stop_token_id=next(iter(self._limits.eos_token_ids), None))
        elif len(sequence.tokens) >= sequence.limit:
            finish = self._roster.end(sequence, FinishReason.LENGTH)
        elif sequence.row >= 0 and sequence.pending:  # else planning knew all of its tokens
            self._residency.register(sequence)
        return sequence.update([token], None if logprobs is None else [logprobs], finish)

    def _embedded(self, sequence: Sequence, embedding: list[float], now: float) -> SequenceUpdate:
        """`embedding` empty: not finite."""
        if not embedding:
            return sequence.update([], None, self._end_broken(sequence))
        sequence.first_token = sequence.last_token = now
        sequence.entered_length = -1  # as finite as a token's logits
        return replace(sequence.update([], None, self._roster.end(sequence, FinishReason.STOP)), embedding=embedding)

    def _end_broken(self, sequence: Sequence) -> Finish:
        """Non-finite logits: nobody may share what this sequence computed, and what nobody holds any more is zeroed."""
        self._residency.distrust(sequence)
        detail = "the model produced numbers that are not finite for this request; a lower temperature or another dtype may help"
        return self._roster.end(sequence, FinishReason.ENGINE_ERROR, detail=detail)

    def _forget_all(self) -> None:
        """Without a KV cache everyone begins again in the next step, with its tokens and nothing else."""
        for sequence in list(self._roster.running):
            self._roster.leave_running(sequence)
            self._roster.wait(sequence)

    def withdraw(self, failed: StepPlan, later: list[StepPlan], detail: str) -> None:
        """`failed` cannot be computed: its sequences end. Blocks are registered at planning, so whoever in `later` was to share what it
        would have written leaves those plans and computes it anew."""
        size = self._blocks.block_size
        spans = [(s, s.computed - 1, 1) for s in failed.decodes] + [(c.sequence, c.start, c.count) for c in failed.chunks]
        spans += [(v.sequence, v.start, v.places) for v in failed.verifications]
        lost = {block for s, start, count in spans for block in s.blocks[start // size : -(-(start + count) // size)]}
        self._blocks.discredit(list(lost))
        self._take_back(failed)
        for member in {*failed.sampling(), *(chunk.sequence for chunk in failed.chunks)}:
            self._roster.end_early(member, FinishReason.ENGINE_ERROR, detail)
        for plan in later:
            self._leave_out(plan, lost)

    def _leave_out(self, plan: StepPlan, lost: set[int]) -> None:
        """Whoever holds a lost block computes anew."""
        decodes = [s for s in plan.decodes if lost.intersection(s.blocks)]
        chunks = [c for c in plan.chunks if lost.intersection(c.sequence.blocks)]
        verifications = [v for v in plan.verifications if lost.intersection(v.sequence.blocks)]
        plan.decodes = [s for s in plan.decodes if s not in decodes]
        plan.chunks = [c for c in plan.chunks if c not in chunks]
        plan.verifications = [v for v in plan.verifications if v not in verifications]
        dropped = StepPlan(decodes=decodes, verifications=verifications, chunks=chunks)
        self._take_back(dropped)
        for member in {*dropped.sampling(), *(chunk.sequence for chunk in chunks)}:
            self._blocks.discredit([block for block in member.blocks if self._blocks.references(block) == 1])
            self._roster.leave_running(member)  # never to the host: its blocks do not hold what was planned
            self._roster.wait_again(member)

    @staticmethod
    def _take_back(plan: StepPlan) -> None:
        """Its tokens will not come."""
        for sampler in plan.sampling():
            sampler.pending -= 1
        for each in plan.verifications:
            each.sequence.verifying = False


def merged(first: SequenceUpdate, then: SequenceUpdate) -> SequenceUpdate:
    """What one step did for one sequence, of two updates about it."""
    logprobs = [*(first.logprobs or []), *(then.logprobs or [])] or None
    return replace(then, token_ids=[*first.token_ids, *then.token_ids], logprobs=logprobs, started=first.started or then.started)
