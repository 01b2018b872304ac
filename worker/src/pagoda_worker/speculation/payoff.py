"""What guessing really gained, by how many sequences decode: tokens per second of steps with guesses over those of steps without.

A forecast (pace.py) adds up what it knows of a step and of guesses; what it does not know shows here, and corrects the next forecast. Both
kinds of steps read prompts too, more where answers end sooner, so what those take (scheduling/prefill_cost.py) is left out. Pure tables,
owned by Speculation.
"""

import math
from functools import lru_cache

FADING = 0.98
"""Of each step's weight with the next one of its kind: some fifty steps count."""
ENOUGH = 8.0
"""Steps without guesses that tell what they take."""
TRUST = 8.0
"""Steps' worth of the forecast beside what was measured."""
OUTLIER = 3.0
"""A step counts as so many times the usual one at most: something else had the machine."""


class Pace:
    """Tokens and seconds of steps of one kind, each step counting less than the one after it."""

    __slots__ = ("forecasts", "seconds", "steps", "tokens")

    def __init__(self) -> None:
        self.steps = self.tokens = self.seconds = self.forecasts = 0.0

    def note(self, tokens: float, seconds: float, forecast: float = 1.0) -> None:
        if self.steps:
            seconds = min(seconds, OUTLIER * self.seconds / self.steps)
        self.steps = FADING * self.steps + 1
        self.tokens = FADING * self.tokens + tokens
        self.seconds = FADING * self.seconds + seconds
        self.forecasts = FADING * self.forecasts + forecast

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


class Payoff:
    def __init__(self) -> None:
        self._plain: dict[int, Pace] = {}
        self._guessing: dict[int, Pace] = {}

    def note(self, rows: int, tokens: float, seconds: float, *, forecast: float | None) -> None:
        """`tokens`: that `rows` sequences got. `forecast`: the gain expected of the step's guesses; None: it had none."""
        kind = self._plain if forecast is None else self._guessing
        size = size_class(rows)
        if (pace := kind.get(size)) is None:
            pace = kind[size] = Pace()
        pace.note(tokens, seconds, 1.0 if forecast is None else forecast)

    def knows(self, rows: int) -> bool:
        """What steps of about as many rows take without guesses."""
        near = (self._plain.get(size_class(rows) + other) for other in (-1, 0, 1))
        return any(pace is not None and pace.steps > ENOUGH - 1 for pace in near)

    def measured(self, rows: int) -> tuple[float, float]:
        """Gain, and steps with guesses that it comes from."""
        plain, guessing = self._plain.get(size_class(rows)), self._guessing.get(size_class(rows))
        if plain is None or guessing is None or not plain.tokens_per_s:
            return 1.0, 0.0
        return guessing.tokens_per_s / plain.tokens_per_s, guessing.steps

    def corrected(self, rows: int, forecast: float) -> float:
        """The gain to expect, by how far earlier forecasts for so many rows were off."""
        gain, steps = self.measured(rows)
        if not steps:
            return forecast
        usual = self._guessing[size_class(rows)].forecasts / steps
        return forecast * float((gain / usual) ** (steps / (steps + TRUST)))

    def doubt(self, rows: int) -> None:
        """What was measured is older than it looks: guesses and machine may have changed."""
        if pace := self._guessing.get(size_class(rows)):
            for name in Pace.__slots__:
                setattr(pace, name, 0.7 * getattr(pace, name))


@lru_cache(maxsize=4096)
def size_class(size: int) -> int:
    """Half powers of two."""
    return round(2 * math.log2(size))
