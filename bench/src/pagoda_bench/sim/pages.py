"""The measured parts of docs/routing.md: tables between markers, made from the result files alone, so that a test can hold them against it.

Pure but for `write_page`. The prose around the markers is written by hand. Called by study.py and by rank_order.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pagoda_bench.marked import replaced
from pagoda_bench.results import FOLDER, Result, Row
from pagoda_bench.sim.report import OURS, WORKLOADS, aims_table

PAGE = FOLDER.parents[1] / "docs" / "routing.md"
RANK_ORDER = "rank-order"
COMMANDS = {"sim": "pagoda bench sim", RANK_ORDER: "python -m pagoda_bench.rank_order"}
"""By benchmark."""
POLICIES = (OURS, "prefix", "length", "gpu-aware", "least-loaded", "round-robin")


def write_page(result: Result, page: Path = PAGE) -> None:
    """Raises ResultFormatError for a page without markers."""
    page.write_text(with_tables(page.read_text(), result))


def with_tables(text: str, result: Result) -> str:
    name = result.benchmark
    begin, end = f"<!-- {name}: written by `{COMMANDS[name]}`, not by hand -->", f"<!-- {name}: end -->"
    lines = _ranks(result) if name == RANK_ORDER else _policies(result)
    where = f"`{result.command}`, commit {result.commit}, {result.date}."
    return replaced(text, begin, end, "\n".join([*lines, "", where]), "routing.md")


def _policies(result: Result) -> Iterator[str]:
    yield aims_table(result.rows)
    for metric, title in (("ttft_p95_s", "p95 of the first token's wait, s"), ("hit_ratio", "prompt tokens found in a cache")):
        yield from ["", f"{title}:", ""]
        yield from _by_policy(result, metric, WORKLOADS)
    others = list(dict.fromkeys(row.case for row in result.rows if "=" in row.case))
    yield from ["", "Single runs with another load, fleet, profile or with a fault; p95 of the first token's wait, s:", ""]
    yield from _by_policy(result, "ttft_p95_s", others)


def _by_policy(result: Result, metric: str, cases: Sequence[str]) -> Iterator[str]:
    found = {row.key: row for row in result.rows}
    yield f"| workload | {' | '.join(f'`{policy}`' for policy in POLICIES)} |"
    yield "|---|" + "---:|" * len(POLICIES)
    for case in cases:
        cells = [found.get((case, policy, metric)) for policy in POLICIES]
        if any(cells):
            yield f"| {case} | {' | '.join('' if row is None else f'{row.value:.3g}' for row in cells)} |"


def _ranks(result: Result) -> Iterator[str]:
    found = {row.key: row for row in result.rows}
    yield "| case | policy | requests | failed | p95 simulated, s | p95 real, s |"
    yield "|---|---|---:|---:|---:|---:|"
    for case, policy in dict.fromkeys((row.case, row.system) for row in result.rows if row.system in POLICIES):
        counts = [f"{found[case, policy, metric].value:.0f}" for metric in ("requests", "failed")]
        waits = [found.get((case, policy, metric)) for metric in ("simulated_ttft_p95_s", "ttft_p95_s")]
        yield f"| {case} | `{policy}` | {' | '.join([*counts, *map(_with_spread, waits)])} |"
    yield ""
    for case in dict.fromkeys(row.case for row in result.rows):
        yield f"- {case}: {_order(found, case)}"


def _with_spread(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{row.value:.3g}" + ("" if row.low is None or row.high is None else f" ({row.low:.3g} to {row.high:.3g})")


def _order(found: Mapping[tuple[str, str, str], Row], case: str) -> str:
    told_apart, tied = (_count(found, case, metric) for metric in ("pairs_told_apart", "pairs_tied"))
    ratio = found.get((case, "all", "pairs_in_order_ratio"))
    in_order = 0 if ratio is None else round(ratio.value * (told_apart - tied))
    words = f"of {told_apart} pairs that the simulator tells apart, {in_order} are in its order"
    return words + (f", {tied} within the spread of the real ones" if tied else "")


def _count(found: Mapping[tuple[str, str, str], Row], case: str, metric: str) -> int:
    row = found.get((case, "all", metric))
    return 0 if row is None else int(row.value)
