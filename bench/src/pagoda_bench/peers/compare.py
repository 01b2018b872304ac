"""From rounds to rows: medians, spreads and round-by-round ratios. Pure; called by the runner and the gate.

A ratio is taken within a round, where the machine was as busy for one side as for the other, and then summarised over rounds.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pagoda_bench.results import Row

OURS = "pagoda"

AIMS = {("0.45b c=1", "vllm"): 1.5, ("0.45b c=8", "vllm"): 2.0, ("0.45b c=32", "vllm"): 2.0, ("tiny c=64", "vllm"): 4.0}
"""Pagoda's output tokens/s over the system's."""

BETWEEN_METRIC = "speedup_over_"
BETWEEN = (("pagoda-int8", "vllm"), ("pagoda-int8", "vllm-int8"), ("pagoda-int4", "pagoda-int8"))
"""Further ratios of output tokens/s: the first system's over the second's."""
AIMS_BETWEEN = {
    ("0.45b c=1", "pagoda-int8", "vllm"): 2.5,
    ("0.45b c=32", "pagoda-int8", "vllm"): 3.0,
    ("0.45b c=1", "pagoda-int4", "pagoda-int8"): 1.15,
}

STUDENT_T = {2: 9.925, 3: 5.841, 4: 4.604, 5: 4.032, 6: 3.707, 7: 3.499, 8: 3.355, 9: 3.250, 10: 3.169, 15: 2.947, 20: 2.845, 30: 2.750}
"""Two-sided 99 % quantiles by degrees of freedom: eight figures give a false alarm in one run of 25. Between two entries the smaller
one's is used, the wider interval."""


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
    """Mean over requests of the shared leading part. Right engines differ where two tokens are nearly as likely, and ever after that."""
    return statistics.fmean(_shared_share(a, b) for a, b in zip(reference, texts, strict=True))


def _shared_share(a: str, b: str) -> float:
    if a == b:
        return 1.0
    different = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(different, min(len(a), len(b))) / max(len(a), len(b))


def rows(measured: Sequence[Measured]) -> list[Row]:
    """`speedup` is Pagoda's output tokens/s over the system's; its low and high are over rounds, as those of the tokens/s are."""
    ours = {one.case: one for one in measured if one.system == OURS}
    return [row for one in measured for row in _rows_of(one, ours.get(one.case))] + list(_between(measured))


def _between(measured: Sequence[Measured]) -> Iterator[Row]:
    found = {(one.case, one.system): one for one in measured}
    for case in dict.fromkeys(one.case for one in measured):
        for system, other in BETWEEN:
            one, beside = found.get((case, system)), found.get((case, other))
            if one is None or beside is None:
                continue
            ratio = speedup(one.tokens_per_s, beside.tokens_per_s)
            metric, aim = f"{BETWEEN_METRIC}{other}", AIMS_BETWEEN.get((case, system, other))
            told = Row(case=case, system=system, metric=metric, value=ratio.median, unit="ratio", low=ratio.low, high=ratio.high)
            yield told if aim is None else replace(told, aim=f">= {aim:g}", met=ratio.median >= aim)


def _rows_of(one: Measured, ours: Measured | None) -> Iterator[Row]:
    def row(metric: str, unit: str, value: float, low: float | None = None, high: float | None = None) -> Row:
        return Row(case=one.case, system=one.system, metric=metric, value=value, unit=unit, low=low, high=high)

    speed = spread(one.tokens_per_s)
    yield row("output_tokens_per_s", "tokens/s", speed.median, speed.low, speed.high)
    if ours is not None and one.system != OURS:
        ratio = speedup(ours.tokens_per_s, one.tokens_per_s)
        told = row("pagoda_speedup", "ratio", ratio.median, ratio.low, ratio.high)
        aim = AIMS.get((one.case, one.system))
        yield told if aim is None else replace(told, aim=f">= {aim:g}", met=ratio.median >= aim)
    if one.ttft_s:
        for metric, share in (("ttft_p50_s", 0.5), ("ttft_p95_s", 0.95)):
            yield row(metric, "s", percentile(one.ttft_s, share), min(one.ttft_s), max(one.ttft_s))
    if one.same_text is not None:
        yield row("same_text_ratio", "ratio", one.same_text)


@dataclass(frozen=True, slots=True)
class Change:
    """New over old, as the rounds tell it: the geometric mean of the rounds' ratios and its 99 % interval."""

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
