"""One small picture a measured stage: its telling figure beside those of the others. Imported only when drawn: matplotlib takes a second.

The bytes follow from the result alone, so that a run with the same figures changes no file.
"""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt  # the backend comes first

from pagoda_bench.results import Result, Row
from pagoda_bench.tour.pages import shown
from pagoda_bench.tour.stages import STAGES, Stage, figure, label

_GREY, _BEFORE, _NOW = "#d0d4d8", "#8aa4bd", "#1b6ca8"


def draw(result: Result, folder: Path) -> list[Path]:
    """Raises nothing but OSError. Files `SLUG.svg`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {(row.case, row.metric): row for row in result.rows if row.system == "pagoda"}
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tour", "font.family": "sans-serif", "font.size": 10}):
        return [_draw(stage, rows, folder / f"{stage.slug}.svg") for stage in STAGES if (stage.slug, stage.gain) in rows]


def _draw(stage: Stage, rows: dict[tuple[str, str], Row], path: Path) -> Path:
    bars = [(one, rows[one.slug, stage.gain]) for one in STAGES if (one.slug, stage.gain) in rows]
    chart, axis = plt.subplots(figsize=(7.2, 0.55 + 0.33 * len(bars)), layout="constrained")
    at = STAGES.index(stage)
    for y, (one, row) in enumerate(bars):
        colour = _NOW if one is stage else _BEFORE if at and one is STAGES[at - 1] else _GREY
        scale = 1e3 if row.unit == "s" else 1.0
        low, high = (row.low or row.value), (row.high or row.value)
        reach = [[max(row.value - low, 0) * scale], [max(high - row.value, 0) * scale]]
        axis.barh(y, row.value * scale, color=colour, xerr=reach, error_kw={"ecolor": "#222222", "elinewidth": 0.8, "capsize": 2})
        axis.annotate(shown(row), (max(high, row.value) * scale, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)
    axis.set_yticks(range(len(bars)), [one.title for one, _ in bars])
    axis.invert_yaxis()
    axis.set_xlim(0, axis.get_xlim()[1] * 1.14)
    axis.spines[["top", "right"]].set_visible(False)
    better = "more is better" if figure(stage.gain).more_is_better else "less is better"
    unit = ", ms" if figure(stage.gain).unit == "s" else ""
    axis.set_title(f"{label(stage.gain)}{unit}: {better}", loc="left", fontsize=10)
    chart.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(chart)
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
    return path
