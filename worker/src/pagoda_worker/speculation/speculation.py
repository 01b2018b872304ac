"""Who drafts in a step, and how many tokens. Called by the engine before a step is planned and after it is settled.

Owns the proposer and what was learned of its guesses and of the time of steps. Knows neither budgets nor blocks (the scheduler may take
fewer) nor tensors. While guessing gains nothing it costs nothing: nobody is asked, rows run ahead again where the device allows it, and
now and then a few rows try whether that has changed.
"""

import time
from collections.abc import Callable
from weakref import WeakKeyDictionary

from pagoda_worker.scheduling.plan import StepPlan
from pagoda_worker.scheduling.sequence import Sequence
from pagoda_worker.scheduling.verification import DraftCounts, Guesswork
from pagoda_worker.speculation.pace import LEAST_GAIN, Chance, Quote, drafts_worth, quote
from pagoda_worker.speculation.proposer import Proposer
from pagoda_worker.speculation.remote import RemoteProposer
from pagoda_worker.speculation.seen import Seen

QUOTED_FOR = 8
"""Steps that one quote serves, at most: the first ones serve fewer, while there is little to judge by."""
TRIAL = 4
"""Rows of a trial while speculation is off, or an eighth of all; and tokens of each, where nobody says how sure they are."""
TRIAL_STEPS = 3
FIRST_PAUSE, LONGEST_PAUSE = 16, 1024
FIRST_PAUSE_OF_ROW, PAUSE_OF_ROW = 2, 16
"""Steps without speculation between two trials, by the rows that it is for; twice as many after each that failed. What few rows do is
another thing with the next request; many rows change slowly, and the more there are the less a guess gains and the more a trial costs."""
SURE_STEPS = 16
"""With guesses that gained, before a pause is short again."""
PLAIN_EVERY = 32
"""Steps with guesses that gain less than `PLAIN_GAIN`, before one without shows what those take now."""
PLAIN_GAIN = 1.3
ANEW = 2
"""Steps in which rows that did not guess before are met."""
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
        self._possible = possible
        self._adapting = adapting
        self._clock = clock
        self._chances: WeakKeyDictionary[Sequence, Chance] = WeakKeyDictionary()
        self._usual = Chance()
        self._seen = Seen(with_model=with_model)
        self._propose_s = 0.0
        self._offer, self._offer_rows, self._offer_left, self._quotes = Quote(tokens, 0.0), 0, 0, 0
        self._tried = self._trial = self._is_open = False
        """The last: somebody was asked in this step."""
        self._open_steps = 0
        """In a row, on trial or not."""
        self._pause, self._paused, self._paused_rows, self._since_plain = FIRST_PAUSE, 0, 0, 0
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
        self._propose_s, was_trial, self._is_open = 0.0, self._trial, False
        if not running or (self._adapting and not self._open(running)):
            self._open_steps = self._open_steps if self._offer_left else 0
            return
        self._open_steps = self._open_steps + 1 if was_trial == self._trial else 1
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
            self._is_open = True
            self._propose_s = self._clock() - began
            self._seen.asked(asked, found, self._propose_s, anew=self._anew)

    @property
    def _anew(self) -> bool:
        return self._open_steps <= (1 if self._trial else ANEW)

    def _most(self, sequence: Sequence) -> int:
        wanted = sequence.request.max_draft_tokens
        most = self._tokens if wanted is None else min(wanted, self._tokens)
        if not most or not sequence.decodes_alone or not self._adapting:
            return most if sequence.decodes_alone else 0
        if self._seen.says_chances:  # it ends each guess itself: a trial that held it to fewer would tell of less than it can do
            return most if self._trial else min(most, self._offer.rounds)
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
        rows = len(running)
        if self._paused and 2 * rows > self._paused_rows:
            self._paused -= 1
            self._trial = self._paused < TRIAL_STEPS
            return self._trial
        self._paused = 0
        if not self._seen.payoff.knows(rows):
            return self._remote is not None  # first steps without drafts show what they take; those that came cost nothing to make
        if not self._tried:
            self._tried = self._trial = True
            self._paused, self._paused_rows = TRIAL_STEPS - 1, rows
            return True
        if self._offer_left > 0 and 0.75 * self._offer_rows <= rows <= 1.25 * self._offer_rows:
            self._offer_left -= 1
            return self._now_and_then_not()
        self._offer, self._offer_rows, self._offer_left = self._quote(running), rows, min(self._quotes, QUOTED_FOR)
        self._quotes += 1
        if self._offer.rounds and self._seen.payoff.corrected(rows, self._offer.gain) >= LEAST_GAIN:
            gain, steps = self._seen.payoff.measured(rows)
            if steps > SURE_STEPS and gain >= LEAST_GAIN:
                self._pause = FIRST_PAUSE
            return True
        longest = min(max(PAUSE_OF_ROW * rows, FIRST_PAUSE), LONGEST_PAUSE)
        self._paused = min(max(self._pause, FIRST_PAUSE_OF_ROW * rows), longest)
        self._pause, self._paused_rows = min(2 * self._paused, longest), rows
        self._offer_left = self._quotes = 0  # what opens anew is judged early anew
        self._seen.payoff.doubt(rows)
        for sequence in running:
            sequence.waits_for_token = sequence.constrained
        return False

    def _now_and_then_not(self) -> bool:
        self._since_plain += 1
        if self._since_plain <= PLAIN_EVERY or self._offer.gain > PLAIN_GAIN:
            return True
        self._since_plain = 0
        return False

    def _quote(self, running: list[Sequence]) -> Quote:
        rows, usual = len(running), self._usual_chance
        if self._seen.says_chances:
            return self._seen.quote(rows, self._tokens)
        return quote(
            [self._chance(sequence).given(usual) for sequence in running],
            tokens=self._tokens,
            proposing=self._seen.proposing,
            step_s=self._seen.step_times.seconds,
            round_s=self._seen.round_times.seconds(rows),
            overhead_s=self._seen.overhead_s(rows),
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
        if self._is_open and self._adapting:
            plan.guesswork = Guesswork(
                forecast=self._offer.gain,
                on_trial=self._trial,
                anew=self._anew,
                least_chance=self._seen.least_chance,
                proposing_s=self._propose_s,
            )

    # ------------------------------------------------------------ after it

    def learn(self, plan: StepPlan, accepted: list[int]) -> None:
        for verification, count in zip(plan.verifications, accepted, strict=True):
            drafts = len(verification.drafts)
            self._proposer.judged(verification, count)
            self._chance(verification.sequence).note(drafts, count)
            self._usual.note(drafts, count)
            self.drafts += drafts > 0
            self.draft_tokens += drafts
            for place in range(count):
                self.accepted_by_place[place] += 1
        if plan.verifications:
            self._seen.judged(plan, sum(accepted))

    def timed(self, plan: StepPlan, seconds: float, *, prompts_s: float, token_s: float) -> None:
        """Of the whole step, settled, and of its prompts. `token_s`: what a token takes where nothing else is known; 0: not known yet."""
        if not plan.empty and self._adapting:
            self._seen.timed(plan, seconds, prompts_s=prompts_s, token_s=token_s)

    def told(self) -> DraftCounts:
        return DraftCounts(self.drafts, self.draft_tokens, tuple(self.accepted_by_place))
