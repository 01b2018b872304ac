"""Percentiles, and how sure one may be of them: bootstrap intervals. Pure; called by measure.py and compare.py.

Percentiles interpolate linearly between order statistics (numpy's default, type 7 of Hyndman and Fan). Intervals are the middle 95 % of the
statistic over resamples with replacement (Efron's percentile bootstrap), from a fixed seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Statistic = Callable[[Array], float]

STATISTICS: dict[str, Statistic] = {
    "mean": lambda values: float(np.mean(values)),
    "p50": lambda values: float(np.percentile(values, 50)),
    "p90": lambda values: float(np.percentile(values, 90)),
    "p95": lambda values: float(np.percentile(values, 95)),
    "p99": lambda values: float(np.percentile(values, 99)),
}
_RESAMPLES = 300
_WORK = 20_000_000
"""Values drawn per interval at most; more data needs fewer resamples."""
_FEWEST = 30


@dataclass(frozen=True, slots=True)
class Estimate:
    value: float
    low: float
    high: float


def resamples(values: Sequence[float], statistic: Statistic, *, seed: int = 0) -> Array:
    """The statistic of many samples drawn from `values`, which must not be empty."""
    data = np.asarray(values, dtype=np.float64)
    source = np.random.default_rng(seed)
    return np.array([statistic(data[source.integers(0, len(data), len(data))]) for _ in range(_rounds(len(data)))])


def clustered_resamples(groups: Sequence[Sequence[float]], statistic: Statistic, *, seed: int = 0) -> Array:
    """Draws whole groups: gaps of one stream resemble each other, so they are no independent observations."""
    data = [np.asarray(group, dtype=np.float64) for group in groups if len(group)]
    source = np.random.default_rng(seed)
    draws = (source.integers(0, len(data), len(data)) for _ in range(_rounds(sum(map(len, data)))))
    return np.array([statistic(np.concatenate([data[i] for i in draw])) for draw in draws])


def _rounds(size: int) -> int:
    return max(_FEWEST, min(_RESAMPLES, _WORK // size))


def interval(drawn: Array) -> tuple[float, float]:
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)


def estimate(values: Sequence[float], name: str) -> Estimate:
    """`name` of STATISTICS, `values` not empty."""
    statistic = STATISTICS[name]
    return Estimate(statistic(np.asarray(values, dtype=np.float64)), *interval(resamples(values, statistic)))


def clustered_estimate(groups: Sequence[Sequence[float]], name: str) -> Estimate:
    """Of all values of all groups, at least one of which is not empty."""
    statistic = STATISTICS[name]
    pooled = np.concatenate([np.asarray(group, dtype=np.float64) for group in groups])
    return Estimate(statistic(pooled), *interval(clustered_resamples(groups, statistic)))


@dataclass(frozen=True, slots=True)
class Spread:
    """Something that happened evenly from `start_s` to `end_s`; both the same: at once."""

    start_s: float
    end_s: float
    weight: float


def rate_per_s(events: Sequence[Spread], start_s: float, length_s: float, *, slices: int = 10) -> Estimate:
    """Weight per second within the window, of every event the part that lies in it; the interval is over equal slices of the window."""
    edges = np.linspace(start_s, start_s + length_s, slices + 1)
    begins, ends, weights = np.array([(e.start_s, e.end_s, e.weight) for e in events], dtype=np.float64).reshape(-1, 3).T
    at_once = ends <= begins
    per_slice = np.histogram(begins[at_once], bins=edges, weights=weights[at_once])[0].astype(np.float64)
    begins, ends, weights = begins[~at_once], ends[~at_once], weights[~at_once]
    for i in range(slices):
        overlap = np.clip(np.minimum(ends, edges[i + 1]) - np.maximum(begins, edges[i]), 0.0, None)
        per_slice[i] += float(np.sum(weights * overlap / (ends - begins)))
    rates = per_slice / (length_s / slices)
    return Estimate(float(rates.mean()), *interval(resamples(list(rates), STATISTICS["mean"])))
