"""One picture: what each format saves against what it costs. Imported only when it is drawn: matplotlib takes a second."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt  # the backend comes first
from matplotlib.axes import Axes

from pagoda_bench.quality.table import Figures
from pagoda_bench.results import Row

_FLOOR = 1e-7
"""KL of models that are all but equal; a logarithm has no zero."""


def draw(rows: Sequence[Row], path: Path, title: str) -> Path:
    """Left: mean and p99 KL against the memory of weights; right: speedup by streams where speed was measured."""
    found = Figures(rows)
    figure, axes = plt.subplots(
        1, 2 if found.speed_cases else 1, figsize=(12 if found.speed_cases else 7, 5), layout="constrained", squeeze=False
    )
    _draw_drift(axes[0, 0], found)
    if found.speed_cases:
        _draw_speed(axes[0, 1], found)
    figure.suptitle(f"Formats: what they save and what they cost · {title}", fontsize=12)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _draw_drift(axis: Axes, found: Figures) -> None:
    labels = found.labels[1:]
    positions = range(len(labels))
    for metric, offset, colour, name in (("kl_mean_nats", -0.2, "#1b6ca8", "mean"), ("kl_p99_nats", 0.2, "#c0392b", "p99")):
        values = [max(found.worst(label, metric, all_places=True) or 0.0, _FLOOR) for label in labels]
        axis.barh([position + offset for position in positions], values, height=0.38, color=colour, label=f"KL, {name}")
    memory = [found.value(f"{found.name} memory", label, "model_bytes_ratio") for label in labels]
    axis.set_yticks(
        list(positions),
        [label if ratio is None else f"{label}\n{ratio:.2f}× of the weights" for label, ratio in zip(labels, memory, strict=True)],
    )
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlabel(f"nats a token from {found.labels[0]}, over the whole vocabulary", fontsize=9)
    axis.set_title("drift", loc="left", fontsize=11)
    axis.legend(fontsize=9)
    axis.grid(alpha=0.25, axis="x")


def _draw_speed(axis: Axes, found: Figures) -> None:
    labels = [label for label in found.labels if found.row(found.speed_cases[0], label, "speedup")]
    height = 0.8 / len(found.speed_cases)
    for number, case in enumerate(found.speed_cases):
        rows = [found.row(case, label, "speedup") for label in labels]
        offsets = [position - 0.4 + height * (number + 0.5) for position in range(len(labels))]
        values = [row.value if row else 0.0 for row in rows]
        spread = [
            [row.value - (row.low or row.value) if row else 0.0 for row in rows],
            [(row.high or row.value) - row.value if row else 0.0 for row in rows],
        ]
        axis.barh(offsets, values, height=height * 0.95, xerr=spread, color=("#1b6ca8", "#3a9d5d", "#e39b20")[number % 3], label=case)
    axis.axvline(1, color="#888888", linestyle=":")
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    axis.set_xlabel(f"output tokens/s, times that of {found.labels[0]}", fontsize=9)
    axis.set_title("speed", loc="left", fontsize=11)
    axis.legend(fontsize=9)
    axis.grid(alpha=0.25, axis="x")
