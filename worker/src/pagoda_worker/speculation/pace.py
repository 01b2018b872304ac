"""How many tokens are worth guessing: the gain that their chances promise, against the time that steps of that size were seen to take.

A step of B rows that verifies m drafts yields B tokens and the sum of the drafts' chances of being accepted, in the time of B + m tokens.
Drafts are taken in the order of their chances while tokens per second rise; the chance of the last one taken is the price that a draft
must be worth. Pure, but for the tables that learn; owned by Speculation. Knows neither sequences nor proposers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SMOOTHING = 0.1
"""Weight of the newest measurement."""
OUTLIER = 3.0
"""A step may count as so many times what was expected at most: something else had the machine."""
LEAST_GAIN = 1.04
"""In tokens per second, for speculation to be on: below it the measurements are not sure enough."""
TRUST = 4.0
"""Guesses' worth of what all requests showed that stands beside what one request showed."""
FORGETTING = 0.9


class StepTimes:
    """Seconds by size, learned from steps of any size; between known sizes as on a line."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[float, float]] = {}
        """Half powers of 2 → (size, seconds), both averages."""
        self._line: tuple[list[float], list[float]] = ([], [])
        self.token_s = 0.0
        """What one token more takes, where nothing else is known."""

    def note(self, size: int, seconds: float) -> None:
        key = round(2 * math.log2(size))
        mean_size, mean = self._known.get(key, (float(size), seconds))
        seconds = min(seconds, OUTLIER * mean)
        self._known[key] = mean_size + SMOOTHING * (size - mean_size), mean + SMOOTHING * (seconds - mean)
        sizes, times = zip(*sorted(self._known.values()), strict=True)
        # More cannot take less: noise must not make drafts look free.
        self._line = list(sizes), np.maximum.accumulate(times).tolist()

    def knows(self, size: int) -> bool:
        """It saw a step of this size, or of a smaller one."""
        return bool(self._known) and min(self._known) <= round(2 * math.log2(size))

    @property
    def empty(self) -> bool:
        return not self._known

    def seconds(self, size: float) -> float:
        """Beyond the largest known size as between the two largest, or as one token more takes."""
        sizes, times = self._line
        if not sizes:
            return 0.0
        if size <= sizes[-1]:
            return float(np.interp(size, sizes, times))
        slope = self.token_s if len(sizes) == 1 else (times[-1] - times[-2]) / max(sizes[-1] - sizes[-2], 1e-9)
        return times[-1] + slope * (size - sizes[-1])


class Chance:
    """That the next draft of a request is accepted, by what became of the drafts before: each counts less than the one after it."""

    __slots__ = ("accepted", "judged", "rest")

    def __init__(self) -> None:
        self.accepted = self.judged = 0.0
        self.rest = 0
        """Steps until its drafts are tried again."""

    def note(self, drafts: int, accepted: int) -> None:
        self.accepted = FORGETTING * self.accepted + accepted
        self.judged = FORGETTING * self.judged + accepted + (accepted < drafts)

    def given(self, usual: float) -> float:
        """`usual`: of all requests."""
        return (self.accepted + TRUST * usual) / (self.judged + TRUST)


@dataclass(frozen=True, slots=True)
class Quote:
    """What a step may guess. `rounds`: tokens of one row at most; 0: guessing gains nothing. `price`: the chance that a draft must have."""

    rounds: int
    price: float
    gain: float = 1.0
    """Expected tokens per second, over those without drafts."""


def quote(
    chances: Sequence[float],
    *,
    tokens: int,
    proposing: float,
    step_s: Callable[[float], float],
    round_s: float = 0.0,
    overhead_s: float = 0.0,
) -> Quote:
    """`chances` of the first draft of each row that decodes; each next one needs those before it. `proposing`: share of rows for which
    there are drafts at all. `round_s`: of the draft model for one token of every row. `overhead_s`: of guessing without a model."""
    rows = len(chances)
    alone_s = step_s(rows)
    best = Quote(0, 1.0)
    grid = np.array(chances)[:, None] ** np.arange(1, tokens + 1)
    for rounds in range(1, tokens + 1) if round_s else (tokens,):
        worth = np.sort(grid[:, :rounds], axis=None)[::-1]
        yielded = rows + proposing * np.cumsum(worth)
        sizes = (rows + proposing * np.arange(1, len(worth) + 1)).astype(np.float64)
        took = np.array([step_s(size) for size in sizes]) if len(sizes) <= 16 else _sampled(step_s, sizes)
        gains = yielded / (took + rounds * round_s + overhead_s) * alone_s / rows
        at = int(gains.argmax())
        if gains[at] > max(best.gain, LEAST_GAIN):
            best = Quote(rounds, float(worth[at]), float(gains[at]))
    return best


def _sampled(step_s: Callable[[float], float], sizes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The function is made of a few straight lines: sixteen of its values say what hundreds would."""
    some = np.linspace(sizes[0], sizes[-1], 16)
    return np.interp(sizes, some, [step_s(size) for size in some])


def drafts_worth(chance: float, offer: Quote) -> int:
    """How many drafts of a row are worth their price."""
    if chance < offer.price or not offer.rounds:
        return 0
    if chance >= 1 or offer.price <= 0:
        return offer.rounds
    return min(offer.rounds, int(math.log(max(offer.price, 1e-9)) / math.log(chance) + 1e-9))
