"""One picture: the gain over the round trip, a curve for each step time. Imported only when it is drawn: matplotlib takes a second."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt  # the backend comes first
from matplotlib.axes import Axes

from pagoda_bench.across_workers.document import Point

COLOURS = ("#1b6ca8", "#3a9d5d", "#e39b20", "#c0392b")


def draw(points: Sequence[Point], path: Path, *, draft_step_ms: float) -> Path:
    """Of one answer at a time where there is such, else of all."""
    points = [point for point in points if point.streams == 1] or points
    temperatures = list(dict.fromkeys(point.temperature for point in points))
    figure, axes = plt.subplots(
        1, len(temperatures), figsize=(5.5 * len(temperatures), 4.6), layout="constrained", squeeze=False, sharey=True
    )
    for axis, temperature in zip(axes[0], temperatures, strict=True):
        _draw_one(axis, [point for point in points if point.temperature == temperature])
    axes[0, 0].set_ylabel("output tokens/s, times that without drafts", fontsize=9)
    figure.suptitle(f"Drafts from another worker, whose steps take {draft_step_ms:g} ms", fontsize=12)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _draw_one(axis: Axes, points: Sequence[Point]) -> None:
    for number, step_ms in enumerate(dict.fromkeys(point.step_ms for point in points)):
        curve = [point for point in points if point.step_ms == step_ms]
        at, gains = [point.round_trip_ms for point in curve], [point.gain for point in curve]
        spread = [[p.gain - p.low for p in curve], [p.high - p.gain for p in curve]]
        colour = COLOURS[number % len(COLOURS)]
        axis.errorbar(at, gains, yerr=spread, color=colour, marker="o", markersize=4, capsize=2, label=f"a step of {step_ms:g} ms")
    verified = [point.accepted_ratio for point in points if point.accepted_ratio]
    kind = f"temperature {points[0].temperature:g}" if points[0].temperature else "greedy"
    shares = f"{min(verified):.0%} to {max(verified):.0%}" if verified else "none"
    axis.set_title(f"{kind}: of verified drafts {shares} accepted", loc="left", fontsize=10)
    axis.axhline(1.0, color="#888888", linestyle=":")
    axis.axhline(1.3, color="#888888", linestyle="--", linewidth=0.8)
    axis.set_xlabel("round trip between router and each worker, ms", fontsize=9)
    axis.legend(fontsize=9)
    axis.grid(alpha=0.25)
