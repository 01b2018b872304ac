"""From what was measured to rows of bench/results/router.json and to router.md. Pure."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from pagoda_bench.results import Result, Row
from pagoda_bench.router_load.measure import Measured
from pagoda_bench.router_load.scenarios import CEILING_FACTOR, DIRECT, LEAST_SCALING, OURS, RELAYING, SOAK, TWICE, Scenario, with_aim

Rounds = Mapping[tuple[str, str], Sequence[Measured]]
"""By case and system, one entry a round; rounds of a case line up between systems."""


def rows(scenarios: Iterable[Scenario], rounds: Rounds) -> list[Row]:
    found: list[Row] = []
    for scenario in scenarios:
        bare = rounds.get((scenario.case, DIRECT), ())
        for (case, system), taken in rounds.items():
            if case == scenario.case:
                found += [with_aim(row) for row in _rows_of(scenario, system, taken, bare)]
    return found


def _rows_of(scenario: Scenario, system: str, taken: Sequence[Measured], bare: Sequence[Measured]) -> list[Row]:
    answered = [one for one in taken if one.requests]
    what = scenario.counts
    made: list[Row] = [_row(scenario, system, "error_share", [one.errors / max(1, one.errors + one.requests) for one in taken], "ratio")]
    if not answered:
        return made

    def add(metric: str, unit: str, value: Callable[[Measured], float]) -> None:
        made.append(_row(scenario, system, metric, [value(one) for one in answered], unit))

    add(f"{what}_per_s", f"{what}/s", lambda one: one.per_s(what))
    add("ttft_p50_s", "s", lambda one: one.ttft_p50_s)
    add("ttft_p99_s", "s", lambda one: one.ttft_p99_s)
    if scenario.tells_pauses:
        add("itl_p50_s", "s", lambda one: one.itl_p50_s)
        add("itl_p99_s", "s", lambda one: one.itl_p99_s)
        add("itl_max_s", "s", lambda one: one.itl_max_s)
    add(f"rig_ceiling_{what}_per_s", f"{what}/s", lambda one: one.ceiling_per_s(what))
    if system == DIRECT:
        return made
    pairs = [(one, base) for one, base in zip(taken, bare, strict=False) if one.requests and base.requests]
    if pairs:
        for rank in ("p50", "p99"):
            name = f"ttft_{rank}_s"
            made.append(_row(scenario, system, f"added_{name}", [getattr(a, name) - getattr(b, name) for a, b in pairs], "s"))
    add(f"cpu_per_1k_{what}_s", "s", lambda one: 1000 * one.router_cpu_s / one.count(what))
    add("router_rss_mib", "MiB", lambda one: one.rss_bytes[-1] / 2**20)
    if scenario.case == SOAK.case:
        add("rss_growth_ratio", "ratio", lambda one: one.rss_bytes[-1] / one.rss_bytes[0])
    return made


def _row(scenario: Scenario, system: str, metric: str, values: Sequence[float], unit: str) -> Row:
    return Row(
        case=scenario.case,
        system=system,
        metric=metric,
        value=statistics.median(values),
        unit=unit,
        low=min(values) if len(values) > 1 else None,
        high=max(values) if len(values) > 1 else None,
    )


def scaling_rows(scenarios: Iterable[Scenario], rounds: Rounds) -> list[Row]:
    """What two processes could do beside one, each on a core of its own, by the CPU that a request takes of them: below two is what they
    lose to each other. Where the rig needs a core too, rates cannot tell."""
    found: list[Row] = []
    for scenario in scenarios:
        what = scenario.counts
        taken = [[each for each in rounds.get((scenario.case, name), ()) if each.count(what)] for name in (OURS, TWICE)]
        one, two = ([each.router_cpu_s / each.count(what) for each in own] for own in taken)
        ratios = [2 * a / b for a, b in zip(one, two, strict=False)]
        if ratios:
            row = _row(scenario, TWICE, "scaling_by_cpu", ratios, "ratio")
            found.append(replace(row, aim=f"≥ {LEAST_SCALING:g}", met=row.value >= LEAST_SCALING))
    return found


def cautions(scenarios: Iterable[Scenario], found: Sequence[Row]) -> list[str]:
    """Where the rig was too slow for the figure, or requests failed."""
    value = {row.key: row.value for row in found}
    lines: list[str] = []
    for scenario in scenarios:
        for system in dict.fromkeys(row.system for row in found if row.case == scenario.case and row.system != DIRECT):
            what = scenario.counts
            rate = value.get((scenario.case, system, f"{what}_per_s"))
            ceiling = value.get((scenario.case, system, f"rig_ceiling_{what}_per_s"))
            if rate is not None and ceiling is not None and ceiling < CEILING_FACTOR * rate:
                lines.append(
                    f"{scenario.case}, {system}: the rig could do {ceiling:,.0f} {what}/s, less than {CEILING_FACTOR:g} times the figure: "
                    "it bounds it"
                )
            if errors := value.get((scenario.case, system, "error_share")):
                lines.append(f"{scenario.case}, {system}: {100 * errors:.3g} % of the requests failed")
    return lines


COLUMNS = (
    ("rate /s", ("requests_per_s", "tokens_per_s"), 1.0, ",.0f"),
    ("TTFT p50 ms", ("ttft_p50_s",), 1e3, ".2f"),
    ("added p50 ms", ("added_ttft_p50_s",), 1e3, ".2f"),
    ("added p99 ms", ("added_ttft_p99_s",), 1e3, ".2f"),
    ("pause p99 ms", ("itl_p99_s",), 1e3, ".1f"),
    ("pause max ms", ("itl_max_s",), 1e3, ".1f"),
    ("CPU ms per 1k", ("cpu_per_1k_requests_s", "cpu_per_1k_tokens_s"), 1e3, ".1f"),
    ("RSS MiB", ("router_rss_mib",), 1.0, ".0f"),
    ("rig's ceiling /s", ("rig_ceiling_requests_per_s", "rig_ceiling_tokens_per_s"), 1.0, ",.0f"),
    ("failed", ("error_share",), 100.0, ".3g"),
)


def markdown(result: Result, unavailable: Mapping[str, str]) -> str:
    hardware = result.hardware
    lines = ["# What a router costs", ""]
    lines += [f"`{result.command}` · {hardware['cpu']}, {hardware['cores']} cores, commit {result.commit}, {result.date}", ""]
    lines += ["| case | router | metric | aim | measured | low to high | met |", "|---|---|---|---:|---:|---:|---|"]
    lines += [
        f"| {row.case} | {row.system} | {row.metric} | {row.aim} | {row.value:.4g} | {_range(row)} | {'yes' if row.met else '**no**'} |"
        for row in result.rows
        if row.aim
    ]
    by_case: defaultdict[str, defaultdict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in result.rows:
        by_case[row.case][row.system][row.metric] = row.value
    for case, systems in by_case.items():
        lines += ["", f"## {case}", "", f"| system | {' | '.join(title for title, *_ in COLUMNS)} |", "|---|" + "---:|" * len(COLUMNS)]
        for system, metrics in systems.items():
            cells = [_cell(metrics, names, factor, form) for _, names, factor, form in COLUMNS]
            lines.append(f"| {f'**{system}**' if system in (OURS, RELAYING) else system} | {' | '.join(cells)} |")
    lines += ["", *(f"- {note}" for note in result.notes), *(f"- {name}: not measured: {why}" for name, why in unavailable.items())]
    return "\n".join(lines) + "\n"


def _cell(metrics: Mapping[str, float], names: Sequence[str], factor: float, form: str) -> str:
    found = next((metrics[name] for name in names if name in metrics), None)
    return "" if found is None else format(found * factor, form)


def _range(row: Row) -> str:
    return "" if row.low is None or row.high is None else f"{row.low:.4g} to {row.high:.4g}"
