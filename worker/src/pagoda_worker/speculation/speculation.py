"""Who drafts in a step, and how many tokens. Called by the engine before a step is planned and after it is settled.

Owns the proposer and what was learned of its guesses. Knows neither budgets nor blocks (the scheduler may take fewer) nor tensors.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

from pagoda_worker.config import EngineConfig
from pagoda_worker.request import EngineState
from pagoda_worker.scheduling.plan import Sequence, StepPlan
from pagoda_worker.speculation.draft_model import DraftModelProposer
from pagoda_worker.speculation.ngram import NgramProposer
from pagoda_worker.speculation.proposer import Proposer


class Speculation:
    def __init__(self, proposer: Proposer, *, tokens: int, possible: Callable[[Sequence, list[int]], list[int]]) -> None:
        """`tokens`: of one guess, at most. `possible` cuts what a sequence's constraint will not take."""
        self._proposer = proposer
        self._tokens = tokens
        self._possible = possible
        self.drafts = 0
        """Guesses verified so far; their tokens, and those accepted at each place:"""
        self.draft_tokens = 0
        self.accepted_by_place = [0] * tokens

    def propose(self, running: Iterable[Sequence]) -> None:
        """For everyone whose next step decodes and whose tokens are all known."""
        for sequence in running:
            wanted = sequence.request.max_draft_tokens
            most = self._tokens if wanted is None else min(wanted, self._tokens)
            if not most or not sequence.decodes_alone:
                continue
            sequence.waits_for_token = True
            if sequence.pending or sequence.remaining != 1:
                continue
            drafts = self._proposer.propose(sequence, min(most, sequence.limit - sequence.length - 1))
            if sequence.constrained and drafts:
                drafts = self._possible(sequence, drafts)
            sequence.offer(drafts)

    def planned(self, plan: StepPlan) -> None:
        self._proposer.planned(plan)

    def learn(self, plan: StepPlan, accepted: list[int]) -> None:
        for verification, count in zip(plan.verifications, accepted, strict=True):
            self._proposer.judged(verification, count)
            self.drafts += 1
            self.draft_tokens += len(verification.drafts)
            for place in range(count):
                self.accepted_by_place[place] += 1

    def told(self, state: EngineState) -> EngineState:
        return replace(
            state,
            drafts_total=self.drafts,
            draft_tokens_total=self.draft_tokens,
            accepted_draft_tokens=tuple(self.accepted_by_place),
        )


def proposer_of(config: EngineConfig, *, catch_up: int, max_draft_len: int) -> Proposer | None:
    """`catch_up`: tokens that a draft model may read beside a step. None: no speculation."""
    match config.speculative:
        case "ngram":
            return NgramProposer()
        case "draft":
            return DraftModelProposer(block_size=config.block_size, budget=catch_up, max_len=max_draft_len)
        case _:
            return None
