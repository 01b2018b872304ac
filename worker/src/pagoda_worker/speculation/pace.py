"""How many tokens are worth guessing: the gain that their chances promise, against the time that steps of that size were seen to take.

A step of B rows that verifies m drafts yields B tokens and the sum of the drafts' chances of being accepted, in the time of B + m tokens.
Drafts are taken in the order of their chances while tokens per second rise; the chance of the last one taken is the price that a draft
must be worth. Pure, but for the tables that learn; owned by Speculation. Knows neither sequences nor proposers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pagoda_worker.speculation.payoff import OUTLIER, size_class

SMOOTHING = 0.1
"""Weight of the newest measurement."""
LONG_KNOWN = 2 / SMOOTHING
"""Steps that such an average stands for, at most."""
LEAST_GAIN = 1.04
"""In tokens per second, for speculation to be on: below it the measurements are not sure enough."""
LENIENCE = 0.95
"""Chances that are nearly equal are not told apart."""
TRUST = 4.0
"""Guesses' worth of what all requests showed that stands beside what one request showed."""
FORGETTING = 0.9
SUREST_WORTH, LEAST_SURE = 0.02, 0.9
"""Chances below the first are never worth a place, those above the second always are."""


class StepTimes:
    """Seconds by size, learned from steps of any size; between known sizes as on a line."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}
        """By `size_class`."""
        self._line: _Line | None = _Line([])
        """None: to be made of what is known."""
        self.token_s = 0.0
        """What one token more takes, where nothing else is known."""

    def note(self, size: int, seconds: float, *, sure: float = 1.0) -> None:
        """`sure`: how much of it was measured, from 0 to 1; the rest is what a guess at the rest of the step left."""
        key = size_class(size)
        known = self._known.get(key)
        if known is None:
            self._known[key] = _Known(size, seconds, sure)
        else:
            seconds, weight = min(seconds, OUTLIER * known.seconds), sure * SMOOTHING
            to_size, to_s = known.size + weight * (size - known.size), known.seconds + weight * (seconds - known.seconds)
            self._known[key] = _Known(to_size, to_s, min(known.steps + sure, LONG_KNOWN))
        self._line = None

    def seconds(self, size: float) -> float:
        """Beyond the largest known size as between the two largest that differ, or as one token more takes."""
        if self._line is None:
            self._line = _Line(sorted(self._known.values()))
        return self._line.seconds(size, self.token_s)


class _Known(NamedTuple):
    """Averages of steps of about one size."""

    size: float
    seconds: float
    steps: float
    """That it stands for."""


class _Line:
    """More cannot take less: noise must not make drafts look free. Neighbours that say so are pooled, each with the steps that it stands
    for (pool adjacent violators, Ayer et al., 1955): else one slow step of a size that comes once, as while a batch fills up, would stand
    for all larger ones."""

    __slots__ = ("_pools", "_sizes", "_times")

    def __init__(self, known: Sequence[_Known]) -> None:
        """known: ascending."""
        pools: list[tuple[_Known, int]] = []
        for one in known:
            pool, members = one, 1
            while pools and pools[-1][0].seconds >= pool.seconds:
                before, more = pools.pop()
                steps = before.steps + pool.steps
                size, seconds = ((b * before.steps + p * pool.steps) / steps for b, p in zip(before[:2], pool[:2], strict=True))
                pool, members = _Known(size, seconds, steps), members + more
            pools.append((pool, members))
        self._sizes = [one.size for one in known]
        self._times = [pool.seconds for pool, members in pools for _ in range(members)]
        self._pools = [pool for pool, _ in pools]

    def seconds(self, size: float, token_s: float) -> float:
        if not self._sizes:
            return 0.0
        if size <= self._sizes[-1]:
            return float(np.interp(size, self._sizes, self._times))
        slope = token_s
        if len(self._pools) > 1:
            before, last = self._pools[-2:]
            slope = (last.seconds - before.seconds) / (last.size - before.size)
        return self._times[-1] + slope * (size - self._sizes[-1])


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
            best = Quote(rounds, LENIENCE * float(worth[at]), float(gains[at]))
    return best


@dataclass(frozen=True, slots=True)
class Guessing:
    """What a draft model that says how sure it is did with one row in one step, on the average."""

    verified: float
    """Guesses that were sure enough."""
    accepted: float
    guess_s: float
    """Of one guess of one row, of those that are sure enough and of those that end the row's."""


def quote_sure(
    seen: Guessing, *, rows: int, tokens: int, share: float, step_s: Callable[[float], float], overhead_s: float = 0.0
) -> tuple[Quote, float]:
    """Where each guess comes with its chance: everybody may guess `tokens`, and what is verified is worth its place by its chance. `share`:
    of what the model promises, what comes true. Returns the chance that it must promise, too."""
    size = rows * (1 + seen.verified)
    place_s = max(step_s(size + rows) - step_s(size), 0.0) / rows
    took_s = step_s(size) + rows * (1 + seen.verified) * seen.guess_s + overhead_s
    yielded, alone_s = rows * (1 + seen.accepted), step_s(rows)
    gain = yielded / took_s * alone_s / rows if took_s else 1.0
    best = max(yielded / took_s, rows / alone_s) if took_s and alone_s else 0.0
    least = min(max((place_s + seen.guess_s) * best / max(share, 0.1), SUREST_WORTH), LEAST_SURE)
    return Quote(tokens if gain > LEAST_GAIN else 0, least, gain), least


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
