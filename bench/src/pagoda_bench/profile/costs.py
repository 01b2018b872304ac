"""The largest costs of something that takes time, and what it would gain without each: the form in which a profile is told. Pure."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pagoda_bench.results import Row

LARGEST = 3


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds, median and range over the repeats; the share is of the sum of all medians."""

    name: str
    median_s: float
    low_s: float
    high_s: float
    share: float

    @property
    def bound(self) -> float:
        """How many times as fast the whole would be if this cost nothing and all else stayed: no more than that can be won here."""
        return 1 / (1 - self.share) if self.share < 1 else float("inf")


def costs_of(seconds: Mapping[str, Sequence[float]]) -> list[Cost]:
    """Largest first."""
    medians = {name: statistics.median(repeats) for name, repeats in seconds.items()}
    total = sum(medians.values()) or 1.0
    found = [Cost(name, medians[name], min(repeats), max(repeats), medians[name] / total) for name, repeats in seconds.items()]
    return sorted(found, key=lambda cost: -cost.median_s)


@dataclass(frozen=True, slots=True)
class Profiled:
    """One case: what the whole takes without any profiler, and its parts as a profiler saw them."""

    case: str
    what: str
    """That takes `whole_s`: `step`, `request`."""
    whole_s: Sequence[float]
    costs: Sequence[Cost]

    def lines(self) -> list[str]:
        median = statistics.median(self.whole_s)
        head = f"{self.case}: a {self.what} takes {ms(median)} ({ms(min(self.whole_s))} to {ms(max(self.whole_s))})"
        return [head] + [
            f"  {i}. {cost.name:32} {ms(cost.median_s)}  {100 * cost.share:4.0f} %, without it at most {cost.bound:.2f} times as fast"
            for i, cost in enumerate(self.costs[:LARGEST], 1)
        ]

    def rows(self) -> list[Row]:
        median = statistics.median(self.whole_s)
        whole = Row(
            case=self.case,
            system="pagoda",
            metric=f"{self.what}_s",
            value=median,
            unit="s",
            low=min(self.whole_s),
            high=max(self.whole_s),
        )
        parts = [
            Row(
                case=self.case,
                system="pagoda",
                metric=f"{self.what}_{slug(cost.name)}_s",
                value=cost.median_s,
                unit="s",
                low=cost.low_s,
                high=cost.high_s,
            )
            for cost in self.costs
        ]
        return [whole, *parts]


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:8.3f} ms"


def slug(name: str) -> str:
    return "_".join("".join(letter if letter.isalnum() else " " for letter in name.lower()).split())
