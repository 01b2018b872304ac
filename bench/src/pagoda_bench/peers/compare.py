"""From rounds to rows: medians, spreads and round-by-round ratios. Pure; called by the runner and the gate.

A ratio is taken within a round, where the machine was as busy for one side as for the other, and then summarised over rounds.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix

from pagoda_bench.results import Row

OURS = "pagoda"

STUDENT_T = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228, 15: 2.131, 20: 2.086, 30: 2.042}
"""Two-sided 95 % quantiles by degrees of freedom. Between two entries the smaller one's is used: the wider interval."""


@dataclass(frozen=True, slots=True)
class Spread:
    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Measured:
    """One system in one case. All sequences of figures are by round, the same rounds for every system."""

    case: str
    system: str
    tokens_per_s: tuple[float, ...]
    ttft_s: tuple[float, ...] = ()
    """Of every request of every round; empty where the system shows no single tokens."""
    same_text: float | None = None
    """Share of the reference's greedy text, from its start, that this system wrote too. None: it is the reference."""


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def speedup(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Ours over theirs, round by round; above 1 ours is faster."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank: a value that was really measured."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def same_text(reference: Sequence[str], texts: Sequence[str]) -> float:
    """Mean over requests of the shared leading part. Two right engines differ where two tokens are nearly as likely, and everything after that."""
    shares = [len(commonprefix([a, b])) / max(len(a), len(b), 1) if a or b else 1.0 for a, b in zip(reference, texts, strict=True)]
    return statistics.fmean(shares)


def rows(measured: Sequence[Measured]) -> list[Row]:
    """`speedup` is Pagoda's output tokens/s over the system's; its low and high are over rounds, as those of the tokens/s are."""
    ours: Mapping[str, Measured] = {one.case: one for one in measured if one.system == OURS}
    found: list[Row] = []
    for one in measured:
        speed = spread(one.tokens_per_s)
        key = {"case": one.case, "system": one.system}
        found.append(Row(**key, metric="output_tokens_per_s", value=speed.median, unit="tokens/s", low=speed.low, high=speed.high))
        if one.system != OURS and one.case in ours:
            ratio = speedup(ours[one.case].tokens_per_s, one.tokens_per_s)
            found.append(Row(**key, metric="pagoda_speedup", value=ratio.median, unit="ratio", low=ratio.low, high=ratio.high))
        for name, share in (("ttft_p50_s", 0.5), ("ttft_p95_s", 0.95)):
            if one.ttft_s:
                found.append(Row(**key, metric=name, value=percentile(one.ttft_s, share), unit="s", low=min(one.ttft_s), high=max(one.ttft_s)))
        if one.same_text is not None:
            found.append(Row(**key, metric="same_text_ratio", value=one.same_text, unit="ratio"))
    return found


@dataclass(frozen=True, slots=True)
class Change:
    """New over old, as the rounds tell it: the geometric mean of the rounds' ratios and its 95 % interval."""

    ratio: float
    low: float
    high: float

    @property
    def fell(self) -> bool:
        """The whole interval is below 1: more than the noise of this run explains."""
        return self.high < 1.0


def change(new: Sequence[float], old: Sequence[float]) -> Change:
    """A higher figure is better. Raises ValueError for fewer than three rounds: they have no noise to speak of."""
    logs = [math.log(a / b) for a, b in zip(new, old, strict=True)]
    if len(logs) < 3:
        raise ValueError("at least three rounds are needed to tell a change from noise")
    freedom = len(logs) - 1
    quantile = STUDENT_T[max(known for known in STUDENT_T if known <= freedom)]
    middle, reach = statistics.fmean(logs), quantile * statistics.stdev(logs) / math.sqrt(len(logs))
    return Change(math.exp(middle), math.exp(middle - reach), math.exp(middle + reach))
