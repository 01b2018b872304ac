"""The result file `sim` of many runs: means over seeds, policies beside each other, aims met or not. Pure.

Knows what was promised; run.py knows how to run. Called by the command.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from pagoda_bench.results import Result, Row
from pagoda_bench.sim.run import Outcome

BASELINE = "least-loaded"
OURS = "predicted"
UNITS = {
    "_s": "s",
    "_per_s": "requests/s",
    "_ratio": "1",
    "_index": "1",
}


@dataclass(frozen=True, slots=True)
class Aim:
    case: str
    system: str
    metric: str
    limit: float
    at_most: bool

    @property
    def text(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.limit:g}"

    def is_met(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit


VERSUS = f"{OURS} / {BASELINE}"
WORKLOADS = ("mixed", "shared-prefix", "agents", "burst", "flood", "trace-conversation")
NO_WORSE = 1.05
AIMS = (
    Aim("mixed", VERSUS, "ttft_p95_ratio", 0.6, at_most=True),
    Aim("shared-prefix", VERSUS, "ttft_p95_ratio", 0.3, at_most=True),
    Aim("shared-prefix", OURS, "hit_of_oracle_ratio", 0.9, at_most=False),
    Aim("flood", OURS, "victim_share_ratio", 0.9, at_most=False),
    *(
        Aim(case, VERSUS, "ttft_p95_ratio", NO_WORSE, at_most=True)
        for case in WORKLOADS
        if case not in ("mixed", "shared-prefix")  # those have a stricter one
    ),
    *(Aim(case, VERSUS, "tpot_p95_ratio", NO_WORSE, at_most=True) for case in WORKLOADS),
    *(Aim(case, VERSUS, "goodput_ratio", 2 - NO_WORSE, at_most=False) for case in WORKLOADS),
)
COMPARED = {"ttft_p95_s": "ttft_p95_ratio", "tpot_p95_s": "tpot_p95_ratio", "goodput_requests_per_s": "goodput_ratio"}


def rows_of(case: str, outcomes: Sequence[Outcome]) -> list[Row]:
    """Of one case's runs: for each policy the mean over its seeds with the extremes, then ours against the baseline, seed by seed."""
    by_policy: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_policy[outcome.job.policy.value].append(outcome)
    rows = [
        _row(case, policy, metric, [outcome.figures[metric] for outcome in runs if metric in outcome.figures])
        for policy, runs in by_policy.items()
        for metric in runs[0].figures
    ]
    baseline = {outcome.job.seed: outcome.figures for outcome in by_policy.get(BASELINE, ())}
    for metric, ratio in COMPARED.items():
        ratios = [
            outcome.figures[metric] / baseline[outcome.job.seed][metric]
            for outcome in by_policy.get(OURS, ())
            if metric in outcome.figures and baseline.get(outcome.job.seed, {}).get(metric)
        ]
        if ratios:
            rows.append(_row(case, VERSUS, ratio, ratios))
    return rows


def _row(case: str, system: str, metric: str, values: Sequence[float]) -> Row:
    value = fmean(values)
    aim = next((aim for aim in AIMS if (aim.case, aim.system, aim.metric) == (case, system, metric)), None)
    several = len(values) > 1
    return Row(
        case=case,
        system=system,
        metric=metric,
        value=value,
        unit=unit_of(metric),
        low=min(values) if several else None,
        high=max(values) if several else None,
        aim=None if aim is None else aim.text,
        met=None if aim is None else aim.is_met(value),
    )


def unit_of(metric: str) -> str:
    return next((UNITS[ending] for ending in ("_per_s", "_ratio", "_index", "_s") if metric.endswith(ending)), "1")


def table(rows: Iterable[Row], metrics: Sequence[str]) -> str:
    """Markdown: a line for each case and system that has any of the metrics."""
    cells: dict[tuple[str, str], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if row.metric in metrics:
            cells[row.case, row.system][row.metric] = row
    lines = [f"| workload | policy | {' | '.join(metrics)} |", f"|---|---|{'---|' * len(metrics)}"]
    for (case, system), found in cells.items():
        lines.append(f"| {case} | {system} | {' | '.join(_shown(found.get(metric)) for metric in metrics)} |")
    return "\n".join(lines)


def aims_table(rows: Iterable[Row]) -> str:
    lines = ["| workload | what | aim | found, mean of seeds (extremes) | |", "|---|---|---|---|---|"]
    for row in rows:
        if row.aim is not None:
            extremes = "" if row.low is None or row.high is None else f" ({row.low:.3g} to {row.high:.3g})"
            met = "met" if row.met else "**not met**"
            lines.append(f"| {row.case} | {row.metric} of {row.system} | {row.aim} | {row.value:.3g}{extremes} | {met} |")
    return "\n".join(lines)


SHOWN = (
    "ttft_p50_s",
    "ttft_p95_s",
    "ttft_p99_s",
    "tpot_p50_s",
    "tpot_p95_s",
    "goodput_requests_per_s",
    "hit_ratio",
    "jain_index",
    "shed_ratio",
)
FLOODED = ("victim_share_ratio", "victim_ttft_p95_s", "victim_shed_ratio")


def document(result: Result) -> str:
    """The tables of a result file, in Markdown."""
    rows = [row for row in result.rows if row.system != VERSUS]
    notes = "\n".join(f"- {note}" for note in result.notes)
    return f"""# Routing policies on simulated fleets

`{result.command}`, commit {result.commit}, {result.date}. What the words mean: [docs/bench.md](../../docs/bench.md#simulated-fleets).

{notes}

## Aims

{aims_table(result.rows)}

## All policies

{table(rows, SHOWN)}

## Who is flooded

{table(rows, FLOODED)}
"""


def _shown(row: Row | None) -> str:
    return "" if row is None else f"{row.value:.3g}"
