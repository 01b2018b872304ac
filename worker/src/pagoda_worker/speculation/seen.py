"""What steps took and what became of their guesses, as far as the next decision needs it. Owned by Speculation, which decides.

Pure but for the averages that it keeps; is told every time and knows no clock.
"""

from pagoda_worker.scheduling.plan import StepPlan
from pagoda_worker.speculation.pace import SMOOTHING, Guessing, Quote, StepTimes, quote_sure
from pagoda_worker.speculation.payoff import OUTLIER, Payoff

DRAFT_SHARE = 0.25
"""Of the time of a token in the model, what one may take in the draft model, until that was measured."""
MOST_PROMPT = 0.7
"""Of a step's time; what decoding took in a step with more would be a guess."""
TRUST = 8.0
"""Guesses' worth of trust in what the draft model says of its own."""
CHANCE_FADING = 0.98


class Average:
    """Of what came lately; the first is taken as it is."""

    __slots__ = ("_known", "mean")

    def __init__(self) -> None:
        self._known, self.mean = False, 0.0

    def note(self, value: float) -> None:
        if self._known and self.mean:
            value = min(value, OUTLIER * self.mean)
        self.mean += (SMOOTHING if self._known else 1.0) * (value - self.mean)
        self._known = True


class Seen:
    def __init__(self, *, with_model: bool) -> None:
        self._with_model = with_model
        self.step_times, self.round_times = StepTimes(), StepTimes()
        """By places that decode, and by rows that guess; without prompts."""
        self.payoff = Payoff()
        self.proposing = 1.0
        """Share of asked rows for which there was a guess."""
        self.least_chance = 0.0
        self._ask_s, self._reading_s = Average(), Average()
        """Of one row that is asked; of a step of a draft model that reads what it has not."""
        self._guessing: Guessing | None = None
        self._guessed_anew = False
        self._promised = self._kept = 0.0
        self._accepted = 0

    # ------------------------------------------------------------ what is told

    def asked(self, rows: int, found: int, seconds: float, *, anew: bool) -> None:
        self.proposing += SMOOTHING * (found / rows - self.proposing)
        if not anew:
            self._ask_s.note(seconds / rows)

    def judged(self, plan: StepPlan, accepted: int) -> None:
        """`accepted`: of all drafts of the step."""
        self._accepted = accepted
        rows, promised = len(plan.verifications), plan.guesswork.promised
        anew, known = plan.guesswork.anew, self._guessing is not None and not self._guessed_anew
        if promised is None or (anew and known):
            return
        self._promised, self._kept = CHANCE_FADING * self._promised + promised, CHANCE_FADING * self._kept + accepted
        verified = sum(len(each.drafts) for each in plan.verifications)
        guess_s = plan.guesswork.guessing_s / (rows + verified)
        new = Guessing(verified / rows, accepted / rows, guess_s)
        old = self._guessing if self._guessing is not None and known else new
        self._guessing = Guessing(*(before + SMOOTHING * (now - before) for before, now in zip(_values(old), _values(new), strict=True)))
        self._guessed_anew = anew

    def timed(self, plan: StepPlan, seconds: float, *, prompts_s: float, token_s: float) -> None:
        rows, accepted, work = len(plan.decodes) + len(plan.verifications), self._accepted, plan.guesswork
        self._accepted = 0
        self.round_times.token_s, self.step_times.token_s = DRAFT_SHARE * token_s, token_s
        if not rows:
            return
        guesses = work.forecast > 0
        if prompts_s > MOST_PROMPT * seconds:
            return
        decode_s = seconds - prompts_s
        alone_s = max(decode_s - work.reading_s - work.guessing_s - work.proposing_s, 1e-9)
        self.step_times.note(plan.decode_tokens, alone_s, sure=1 - prompts_s / seconds)
        if not work.on_trial and not work.anew:
            self.payoff.note(rows, rows + accepted, decode_s, forecast=work.forecast if guesses else None)
        if plan.verifications and self._with_model and not work.anew:
            self._reading_s.note(work.reading_s)
            if rounds := max(len(each.drafts) for each in plan.verifications):
                self.round_times.note(len(plan.verifications), work.guessing_s / rounds)

    # ------------------------------------------------------------ what follows

    @property
    def says_chances(self) -> bool:
        """The draft model says how sure it is of each guess."""
        return self._guessing is not None

    def overhead_s(self, rows: int) -> float:
        """Of a step with guesses, beside what a draft model takes for them."""
        return self._ask_s.mean * rows + self._reading_s.mean

    def quote(self, rows: int, tokens: int) -> Quote:
        """Where chances are said."""
        assert self._guessing is not None
        share = (self._kept + TRUST) / (self._promised + TRUST)
        offer, self.least_chance = quote_sure(
            self._guessing, rows=rows, tokens=tokens, share=share, step_s=self.step_times.seconds, overhead_s=self.overhead_s(rows)
        )
        return offer


def _values(each: Guessing) -> tuple[float, float, float]:
    return each.verified, each.accepted, each.guess_s
