"""Pictures of the result file `sim`: policies beside each other, and the first token's wait against load. Imported only when drawn.

The bytes follow from the result alone, so that a run with the same figures changes no file.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt  # the backend comes first
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pagoda_bench.results import Result, Row
from pagoda_bench.sim.report import WORKLOADS

COLOURS = {
    "predicted": "#1b6ca8",
    "prefix": "#4fa3a5",
    "length": "#8aa4bd",
    "gpu-aware": "#b8a65a",
    "least-loaded": "#9a9fa5",
    "round-robin": "#d0d4d8",
}
LOAD = "mixed load="


def draw(result: Result, folder: Path) -> list[Path]:
    """Raises nothing but OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sim", "font.family": "sans-serif", "font.size": 10}):
        return [
            _bars(
                result.rows, "ttft_p95_s", "95th percentile of the first token's wait, s (logarithmic): less is better", folder, log=True
            ),
            _bars(result.rows, "hit_ratio", "prompt tokens found in a cache: more is better", folder, log=False),
            _loads(result.rows, folder),
        ]


def _bars(rows: Sequence[Row], metric: str, title: str, folder: Path, *, log: bool) -> Path:
    values = {(row.case, row.system): row for row in rows if row.metric == metric}
    cases = [case for case in WORKLOADS if any(values.get((case, policy)) and values[case, policy].value > 1e-4 for policy in COLOURS)]
    chart, axis = plt.subplots(figsize=(7.6, 3.2), layout="constrained")
    width = 0.8 / len(COLOURS)
    for at, (policy, colour) in enumerate(COLOURS.items()):
        found = [(place, values[case, policy]) for place, case in enumerate(cases) if (case, policy) in values]
        axis.bar(
            [place + (at + 0.5) * width - 0.4 for place, _ in found], [row.value for _, row in found], width, color=colour, label=policy
        )
    if log:
        axis.set_yscale("log")
    axis.set_xticks(range(len(cases)), cases)
    axis.legend(ncols=3, frameon=False, fontsize=8)
    return _save(chart, axis, title, folder / f"{metric.removesuffix('_s').replace('_', '-')}.svg")


def _loads(rows: Sequence[Row], folder: Path) -> Path:
    chart, axis = plt.subplots(figsize=(7.6, 3.0), layout="constrained")
    for policy, colour in COLOURS.items():
        points = [
            (float(row.case.removeprefix(LOAD)), row.value)
            for row in rows
            if row.case.startswith(LOAD) and row.system == policy and row.metric == "ttft_p95_s"
        ]
        if points:
            axis.plot(*zip(*sorted(points), strict=True), color=colour, marker="o", markersize=3, label=policy)
    axis.set_yscale("log")
    axis.set_xlabel("load, part of the fleet's capacity")
    axis.legend(frameon=False, fontsize=8)
    return _save(chart, axis, "mixed lengths: 95th percentile of the first token's wait, s", folder / "load.svg")


def _save(chart: Figure, axis: Axes, title: str, path: Path) -> Path:
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(title, loc="left", fontsize=10)
    chart.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(chart)
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
    return path
