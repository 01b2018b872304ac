"""The Markdown table of a peer comparison. Pure; reads nothing but rows."""

from collections.abc import Mapping, Sequence

from pagoda_bench.peers.compare import BETWEEN_METRIC
from pagoda_bench.results import Row

BANDWIDTH = ("read_gb_per_s", "weights_read_of_bandwidth_ratio")
HEAD = (
    "| case | system | output tok/s | low–high | Pagoda ÷ system | low–high | TTFT p50 | p95 | same text |",
    "|---|---|---:|---:|---:|---:|---:|---:|---:|",
)


def render(rows: Sequence[Row], unavailable: Mapping[str, str], *, command: str, hardware_line: str, notes: Sequence[str]) -> str:
    """`unavailable`: system → why it has no figures; each is a line below the table's cases."""
    lines = ["# Pagoda and its peers, in one run", "", f"`{command}` · {hardware_line}", "", *HEAD]
    lines += table_lines(rows)
    lines += [f"| all | {system} | not measured: {reason.replace('|', '/')} | | | | | | |" for system, reason in unavailable.items()]
    lines += ["", *(f"- {row.case}, {row.system}: {row.metric} {row.value:.2f}{_aim(row)}" for row in rows if row.metric in BANDWIDTH)]
    between = [row for row in rows if row.metric.startswith(BETWEEN_METRIC)]
    lines += [f"- {row.case}: {row.system} ÷ {row.metric.removeprefix(BETWEEN_METRIC)} {row.value:.2f}{_aim(row)}" for row in between]
    lines += ["", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def table_lines(rows: Sequence[Row]) -> list[str]:
    keys = list(dict.fromkeys((row.case, row.system) for row in rows if row.metric == "output_tokens_per_s"))
    return [_line(case, system, {row.metric: row for row in rows if (row.case, row.system) == (case, system)}) for case, system in keys]


def _line(case: str, system: str, by_metric: Mapping[str, Row]) -> str:
    speed, ratio = by_metric["output_tokens_per_s"], by_metric.get("pagoda_speedup")
    cells = [case, system, f"{speed.value:.1f}", f"{speed.low:.1f}–{speed.high:.1f}"]
    cells += [f"{ratio.value:.2f}{_aim(ratio)}", f"{ratio.low:.2f}–{ratio.high:.2f}"] if ratio else ["", ""]
    cells += [_milliseconds(by_metric.get("ttft_p50_s")), _milliseconds(by_metric.get("ttft_p95_s"))]
    same = by_metric.get("same_text_ratio")
    cells.append(f"{same.value:.0%}" if same else "")
    return f"| {' | '.join(cells)} |"


def _aim(row: Row) -> str:
    return f" (aim {row.aim}: {'met' if row.met else 'missed'})" if row.aim else ""


def _milliseconds(row: Row | None) -> str:
    return f"{row.value * 1000:.0f} ms" if row else ""
