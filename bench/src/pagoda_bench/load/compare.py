"""Compares two results figure by figure: ratio, its 95 % interval, and whether there is a difference beyond noise.

Latencies are compared by bootstrap over the requests where both results still have their CSV beside them; everything else by the low and
high of the rows. Pure but for reading files; called by command.py.
"""

import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pagoda_bench.errors import ResultFormatError
from pagoda_bench.load.lateness import P99_BOUND_S
from pagoda_bench.load.statistic import STATISTICS, interval, resamples
from pagoda_bench.results import Result, Row, read

_RAW = ("ttft", "tpot", "e2e")
"""Metrics with one value a request in the CSV."""
_NOT_COMPARED = ("generator_late", "send_late", "requests_counted", "errors")


@dataclass(frozen=True, slots=True)
class Ratio:
    """A over B."""

    value: float
    low: float | None
    high: float | None
    """None: a figure was measured once, and nothing is known of its noise."""

    @property
    def verdict(self) -> str:
        if self.low is None or self.high is None:
            return "one value each: noise unknown"
        if self.low <= 1 <= self.high:
            return "no difference beyond noise"
        return f"A is {'higher' if self.value > 1 else 'lower'} by {abs(self.value - 1):.1%}"


@dataclass(frozen=True, slots=True)
class Line:
    case: str
    metric: str
    systems: tuple[str, str]
    values: tuple[float, float]
    unit: str
    ratio: Ratio
    by_requests: bool
    """The interval is from single requests, not from the rows."""


RawValues = Mapping[tuple[str, str], Sequence[float]]
"""(case, ttft | tpot | e2e) → one value a request."""


def compare_files(a: Path, b: Path) -> tuple[list[Line], list[str]]:
    """Lines, and what the reader must know. Raises ResultFormatError, also when the two have no figure in common."""
    results = read(a), read(b)
    lines = list(compare(*results, read_raw(a.with_suffix(".csv")), read_raw(b.with_suffix(".csv"))))
    if not lines:
        raise ResultFormatError(f"{a} and {b} have no case and metric in common, or several systems for one")
    return lines, cautions(*results)


def compare(a: Result, b: Result, raw_a: RawValues, raw_b: RawValues) -> Iterator[Line]:
    """Pairs rows of the same case and metric. Where both results have the same systems, each is compared with itself; a result of one
    system is compared with a result of another one."""
    for row_a, row_b in _pairs(a.rows, b.rows):
        name, _, statistic = row_a.metric.removesuffix("_s").rpartition("_")
        key = row_a.case, name
        by_requests = name in _RAW and statistic in STATISTICS and key in raw_a and key in raw_b
        ratio = ratio_of_samples(raw_a[key], raw_b[key], statistic) if by_requests else ratio_of_rows(row_a, row_b)
        yield Line(row_a.case, row_a.metric, (row_a.system, row_b.system), (row_a.value, row_b.value), row_a.unit, ratio, by_requests)


def _pairs(rows_a: Sequence[Row], rows_b: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
    one_each = len({row.system for row in rows_a}) == 1 and len({row.system for row in rows_b}) == 1

    def key(row: Row) -> tuple[str, ...]:
        return (row.case, row.metric) if one_each else row.key

    others = {key(row): row for row in rows_b}
    for row in rows_a:
        other = others.get(key(row))
        if other is not None and not row.metric.startswith(_NOT_COMPARED) and row.value > 0 and other.value > 0:
            yield row, other


def ratio_of_samples(a: Sequence[float], b: Sequence[float], statistic: str) -> Ratio:
    """Resamples both sides independently."""
    compute = STATISTICS[statistic]
    drawn_a, drawn_b = resamples(a, compute, seed=1), resamples(b, compute, seed=2)
    size = min(len(drawn_a), len(drawn_b))
    return Ratio(compute(np.asarray(a)) / compute(np.asarray(b)), *interval(drawn_a[:size] / drawn_b[:size]))


def ratio_of_rows(a: Row, b: Row) -> Ratio:
    """Half-widths of the two intervals add in squares on the logarithmic scale, as those of independent measurements do."""
    value = a.value / b.value
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return Ratio(value, None, None)
    down = math.hypot(_log_distance(a.value, a.low), _log_distance(b.high, b.value))
    up = math.hypot(_log_distance(a.high, a.value), _log_distance(b.value, b.low))
    return Ratio(value, value * math.exp(-down), value * math.exp(up))


def _log_distance(upper: float, lower: float) -> float:
    return math.log(upper / lower) if lower > 0 else math.inf


def read_raw(path: Path) -> dict[tuple[str, str], list[float]]:
    """Counted requests without an error; empty when there is no such file. Raises ResultFormatError."""
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        try:
            for line in csv.DictReader(file):
                if line["counted"] != "1" or line["error"]:
                    continue
                for name in _RAW:
                    if line[f"{name}_s"]:
                        values[line["case"], name].append(float(line[f"{name}_s"]))
        except (KeyError, ValueError) as error:
            raise ResultFormatError(f"{path} is no file of requests: {error!s}") from error
    return dict(values)


def cautions(a: Result, b: Result) -> list[str]:
    said: list[str] = []
    for name in ("cpu", "cores"):
        here, there = a.hardware.get(name), b.hardware.get(name)
        if here != there:
            said.append(f"different hardware: {name} {here} and {there}")
    if a.commit != b.commit:
        said.append(f"A is commit {a.commit}, B is commit {b.commit}")
    for name, result in (("A", a), ("B", b)):
        late_s = max((row.value for row in result.rows if row.metric == "generator_late_p99_s"), default=0.0)
        if late_s > P99_BOUND_S:
            said.append(f"{name} was measured on a busy machine (its generator was up to {late_s * 1e3:.0f} ms late, p99)")
    said.append("an interval knows the noise within each run, not what changed between them: alternate A and B, and use --rounds")
    return said


def table(lines: Iterable[Line]) -> str:
    """Markdown."""
    rows = ["| case | metric | A | B | A ÷ B | 95 % interval | |", "|---|---|---:|---:|---:|---:|---|"]
    for line in lines:
        ratio = line.ratio
        span = "–" if ratio.low is None or ratio.high is None else f"{ratio.low:.3f} to {ratio.high:.3f}"
        scale = 1e3 if line.unit == "s" else 1.0
        unit = "ms" if line.unit == "s" else line.unit
        a, b = (f"{value * scale:.4g} {unit}" for value in line.values)
        rows.append(f"| {line.case} | {line.metric} | {a} | {b} | {ratio.value:.3f} | {span} | {ratio.verdict} |")
    return "\n".join(rows)
