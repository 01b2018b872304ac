"""Who drafts in a step, and how many tokens. Called by the engine before a step is planned and after it is settled.

Owns the proposer and what was learned of its guesses and of the time of steps. Knows neither budgets nor blocks (the scheduler may take
fewer) nor tensors. While guessing gains nothing it costs nothing: nobody is asked, rows run ahead again where the device allows it, and
now and then a few rows try whether that has changed.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from weakref import WeakKeyDictionary

from pagoda_worker.request import EngineState
from pagoda_worker.scheduling.plan import Sequence, StepPlan
from pagoda_worker.speculation.pace import SMOOTHING, Chance, Quote, StepTimes, drafts_worth, quote
from pagoda_worker.speculation.proposer import Proposer
from pagoda_worker.speculation.remote import RemoteProposer

QUOTED_FOR = 8
"""Steps that one quote serves, at most: the first ones serve fewer, while there is little to judge by."""
DRAFT_SHARE = 0.25
"""Of the time of a token in the model, what one may take in the draft model, until that was measured."""
TRIAL = 4
"""Rows of a trial while speculation is off, or an eighth of all; and tokens of each."""
FIRST_PAUSE, LONGEST_PAUSE = 16, 512
"""Steps without speculation between two trials; twice as many after each that failed."""
ROW_REST = 16
"""Steps until a row whose drafts were not worth it tries again."""
FIRST_CHANCE = 0.7


class Speculation:
    def __init__(
        self,
        proposer: Proposer,
        *,
        tokens: int,
        possible: Callable[[Sequence, list[int]], list[int]],
        with_model: bool = False,
        adapting: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`tokens`: of one guess, at most. `possible` cuts what a sequence's constraint will not take. `with_model`: guesses
        are made within the step. Not `adapting`: guess always."""
        self._proposer = proposer
        self._remote = proposer if isinstance(proposer, RemoteProposer) else None
        """Whose guesses arrive: who has none need not be asked, nor wait until its newest token is known."""
        self._tokens = tokens
        self._with_model = with_model
        self._possible = possible
        self._adapting = adapting
        self._clock = clock
        self._chances: WeakKeyDictionary[Sequence, Chance] = WeakKeyDictionary()
        self._usual = Chance()
        self._proposing = 1.0
        """Share of asked rows for which there was a guess."""
        self._step_times, self._round_times = StepTimes(), StepTimes()
        self._propose_s = self._overhead_s = 0.0
        self._prompt_tokens = 0.0
        """Of a step, beside those that decode."""
        self._offer, self._offer_rows, self._offer_left, self._quotes = Quote(tokens, 0.0), 0, 0, 0
        self._pause, self._paused, self._trial = FIRST_PAUSE, 0, False
        self.drafts = 0
        """Guesses verified so far; their tokens, and those accepted at each place:"""
        self.draft_tokens = 0
        self.accepted_by_place = [0] * tokens

    def take(self, sequence: Sequence, position: int, token_ids: list[int]) -> None:
        """Guesses that were made elsewhere. Nobody's where guesses are made here."""
        if self._remote is not None:
            self._remote.take(sequence, position, token_ids)

    # ------------------------------------------------------------ before a step

    def propose(self, running: list[Sequence]) -> None:
        """For everyone whose next step decodes, whose tokens are all known, and whose drafts are worth their price."""
        self._propose_s = 0.0
        if not running or (self._adapting and not self._open(running)):
            return
        began = self._clock()
        asked = found = 0
        for sequence in running[-max(TRIAL, len(running) // 8) :] if self._trial else running:
            most = 0 if self._remote is not None and not self._remote.holds(sequence) else self._most(sequence)
            sequence.waits_for_token = sequence.constrained or most > 0
            if most and not sequence.pending and sequence.remaining == 1:
                drafts = self._proposer.propose(sequence, min(most, sequence.limit - sequence.length - 1))
                if sequence.constrained and drafts:
                    drafts = self._possible(sequence, drafts)
                sequence.offer(drafts)
                asked, found = asked + 1, found + bool(drafts)
        if asked:
            self._proposing += SMOOTHING * (found / asked - self._proposing)
            self._propose_s = self._clock() - began

    def _most(self, sequence: Sequence) -> int:
        wanted = sequence.request.max_draft_tokens
        most = self._tokens if wanted is None else min(wanted, self._tokens)
        if not most or not sequence.decodes_alone or not self._adapting:
            return most if sequence.decodes_alone else 0
        if self._trial:
            return min(most, TRIAL)
        chance = self._chance(sequence)
        if chance.rest:
            chance.rest -= 1
            return 0 if chance.rest else 1
        worth = drafts_worth(chance.given(self._usual_chance), self._offer)
        if not worth and not chance.judged:
            return 1  # nothing is known of it yet
        if not worth:
            chance.rest = ROW_REST
        return min(most, worth)

    def _open(self, running: list[Sequence]) -> bool:
        """Whether anybody guesses in this step."""
        self._trial = False
        if self._paused:
            self._paused -= 1
            self._trial = self._paused < 2  # two steps in a row
            return self._trial
        rows = len(running)
        if not self._step_times.knows(rows + round(self._prompt_tokens)):
            return False  # first a step without drafts shows what it takes
        if self._with_model and self._round_times.empty:
            self._trial = True
            return True
        if self._offer_left > 0 and 0.75 * self._offer_rows <= rows <= 1.25 * self._offer_rows:
            self._offer_left -= 1
            return True
        self._offer, self._offer_rows, self._offer_left = self._quote(running), rows, min(self._quotes, QUOTED_FOR)
        self._quotes += 1
        if self._offer.rounds:
            self._pause = FIRST_PAUSE
            return True
        self._paused, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        for sequence in running:
            sequence.waits_for_token = sequence.constrained
        return False

    def _quote(self, running: list[Sequence]) -> Quote:
        usual = self._usual_chance
        return quote(
            [self._chance(sequence).given(usual) for sequence in running],
            tokens=self._tokens,
            proposing=self._proposing,
            step_s=lambda size: self._step_times.seconds(size + self._prompt_tokens),
            round_s=self._round_times.seconds(len(running)),
            overhead_s=self._overhead_s,
        )

    @property
    def _usual_chance(self) -> float:
        return self._usual.given(FIRST_CHANCE)

    def _chance(self, sequence: Sequence) -> Chance:
        chance = self._chances.get(sequence)
        if chance is None:
            chance = self._chances[sequence] = Chance()
        return chance

    def planned(self, plan: StepPlan) -> None:
        self._proposer.planned(plan)

    # ------------------------------------------------------------ after it

    def learn(self, plan: StepPlan, accepted: list[int]) -> None:
        for verification, count in zip(plan.verifications, accepted, strict=True):
            drafts = len(verification.drafts)
            self._proposer.judged(verification, count)
            self._chance(verification.sequence).note(drafts, count)
            self._usual.note(drafts, count)
            self.drafts += 1
            self.draft_tokens += drafts
            for place in range(count):
                self.accepted_by_place[place] += 1

    def timed(self, plan: StepPlan, seconds: float, *, token_s: float) -> None:
        """Of the whole step. `token_s`: what a token of a prompt takes; 0: not known yet."""
        if plan.empty or not self._adapting:
            return
        self._prompt_tokens += SMOOTHING * (plan.prefill_tokens - self._prompt_tokens)
        self._step_times.token_s, self._round_times.token_s = token_s, DRAFT_SHARE * token_s
        self._step_times.note(plan.tokens, max(seconds - plan.reading_s - plan.guessing_s - self._propose_s, 1e-9))
        if rounds := max((len(each.drafts) for each in plan.verifications), default=0):
            overhead_s = plan.reading_s if self._with_model else self._propose_s
            self._overhead_s += SMOOTHING * (overhead_s - self._overhead_s)
            if self._with_model:
                self._round_times.note(len(plan.verifications), plan.guessing_s / rounds)

    def told(self, state: EngineState) -> EngineState:
        return replace(
            state,
            drafts_total=self.drafts,
            draft_tokens_total=self.draft_tokens,
            accepted_draft_tokens=tuple(self.accepted_by_place),
        )
