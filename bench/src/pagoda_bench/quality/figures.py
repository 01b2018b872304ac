"""What was measured as rows of the result format, with what each format was promised to keep. Pure.

Called by run.py; table.py and plots.py read the rows again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

from pagoda_bench.quality.drift import Drift
from pagoda_bench.quality.measure import ALL, JUDGED, Measured
from pagoda_bench.results import Row

PARTS = {JUDGED: "", ALL: "all places, "}


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a format, against the first candidate; None: nothing was promised. All are the largest that is allowed."""

    perplexity_ratio: float | None = None
    """On the judged places, by every path."""
    exact_match_lost: float | None = None
    """Points of the mean over all kinds of question, where any were asked."""
    linear_ratio: float | None = None
    kv_ratio: float | None = None


def rows(measured: Sequence[Measured], limits: Mapping[str, Limits], *, name: str) -> list[Row]:
    """name: of the model, which opens every case. limits: by label."""
    first, found = measured[0], list[Row]()
    for one in measured:
        promised = limits.get(one.candidate.label, Limits())
        for (path, part), drift in one.drifts.items():
            allowed = promised.perplexity_ratio if part == JUDGED else None
            found += _drift_rows(f"{name} {PARTS[part]}{path}", one.candidate.label, drift, allowed)
        found += _exact_rows(name, one, first, promised)
        found += _byte_rows(f"{name} memory", one, first, promised)
    return found


def _drift_rows(case: str, system: str, drift: Drift, allowed: float | None) -> Iterator[Row]:
    def row(metric: str, value: float, unit: str) -> Row:
        return Row(case=case, system=system, metric=metric, value=value, unit=unit)

    yield row("places", drift.places, "tokens")
    yield row("perplexity", drift.perplexity, "1")
    yield _bounded(
        Row(
            case=case,
            system=system,
            metric="perplexity_ratio",
            value=drift.perplexity_ratio,
            unit="ratio",
            low=drift.ratio_low,
            high=drift.ratio_high,
        ),
        allowed,
    )
    for statistic in ("mean", "p50", "p99", "max"):
        yield row(f"kl_{statistic}_nats", getattr(drift, f"kl_{statistic}"), "nats")
    yield row("top1_agreement_ratio", drift.top1_agreement, "1")


def _exact_rows(name: str, one: Measured, first: Measured, promised: Limits) -> Iterator[Row]:
    """Of every kind of question, and their mean."""
    for kind, percent in one.exact.items():
        yield Row(case=f"{name} {kind}", system=one.candidate.label, metric="exact_match_percent", value=percent, unit="percent")
    if one.exact:
        case, mean = f"{name} questions", fmean(one.exact.values())
        yield Row(case=case, system=one.candidate.label, metric="exact_match_percent", value=mean, unit="percent")
        lost = fmean(first.exact.values()) - mean
        row = Row(case=case, system=one.candidate.label, metric="exact_match_lost_points", value=lost, unit="points")
        yield _bounded(row, promised.exact_match_lost)


def _byte_rows(case: str, one: Measured, first: Measured, promised: Limits) -> Iterator[Row]:
    allowed = {"linear_bytes": promised.linear_ratio, "kv_bytes_per_token": promised.kv_ratio}
    for metric in ("linear_bytes", "model_bytes", "kv_bytes_per_token"):
        value, reference = float(getattr(one.facts, metric)), float(getattr(first.facts, metric))
        yield Row(case=case, system=one.candidate.label, metric=metric, value=value, unit="bytes")
        ratio = Row(case=case, system=one.candidate.label, metric=f"{metric}_ratio", value=value / reference, unit="ratio")
        yield _bounded(ratio, allowed.get(metric))


def _bounded(row: Row, allowed: float | None) -> Row:
    if allowed is None:
        return row
    # NOTE: `not >` would call a NaN good.
    return replace(row, aim=f"≤ {allowed:g}", met=row.value <= allowed)


def speed_rows(speeds: Mapping[str, Mapping[int, Sequence[float]]], *, name: str) -> Iterator[Row]:
    """Medians of the rounds, low and high their extremes; the speedup over the first label is of each round, where both ran one after the
    other."""
    reference = next(iter(speeds.values()), {})
    for label, by_streams in speeds.items():
        for streams, values in by_streams.items():
            yield _spread(f"{name} n={streams}", label, "output_tokens_per_s", "tokens/s", values)
            ratios = [value / other for value, other in zip(values, reference.get(streams, ()), strict=False)]
            if ratios:
                yield _spread(f"{name} n={streams}", label, "speedup", "ratio", ratios)


def _spread(case: str, system: str, metric: str, unit: str, values: Sequence[float]) -> Row:
    return Row(case=case, system=system, metric=metric, value=median(values), unit=unit, low=min(values), high=max(values))


def missed(found: Sequence[Row]) -> list[Row]:
    return [row for row in found if row.met is False]


def in_words(row: Row) -> str:
    return f"{row.case}, {row.system}: {row.metric} {row.value:.5g}, aimed at {row.aim}"
