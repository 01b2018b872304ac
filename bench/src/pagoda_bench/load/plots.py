"""Two pictures of a run: latency against load, throughput against load. Imported only when they are drawn: matplotlib takes a second."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt  # the backend comes first
from matplotlib.ticker import ScalarFormatter

from pagoda_bench.load.run import LevelResult, Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANELS = (("ttft", "TTFT, ms"), ("tpot", "TPOT, ms"), ("itl", "ITL, ms"), ("e2e", "E2E, ms"))
_LINES = (("p50", "#1b6ca8", "o"), ("p90", "#3a9d5d", "s"), ("p95", "#e39b20", "^"), ("p99", "#c0392b", "D"))
_AXES = {
    "closed": "concurrent users (closed loop)",
    "poisson": "requests/s offered (open loop, Poisson)",
    "trace": "speed of the trace (open loop)",
}


def draw(measured: Measured, folder: Path, stem: str, title: str) -> list[Path]:
    """One pair of files for each kind of load with at least two levels: `STEM-closed-latency.png`, `STEM-closed-throughput.png`, …"""
    paths: list[Path] = []
    for kind in _AXES:
        levels = sorted((level for level in measured.levels if level.level.kind == kind), key=lambda level: level.level.amount)
        if len(levels) < 2:
            continue
        latency, throughput = (folder / f"{stem}-{kind}-{what}.png" for what in ("latency", "throughput"))
        _draw_latency(levels, kind, latency, title)
        _draw_throughput(levels, kind, throughput, title, has_slo=measured.settings.slo is not None)
        paths += [latency, throughput]
    return paths


def _draw_latency(levels: Sequence[LevelResult], kind: str, path: Path, title: str) -> None:
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for axis, (metric, label) in zip(axes.flat, _PANELS, strict=True):
        for statistic, colour, marker in _LINES:
            points = [
                (level.level.amount, level.figures.latencies[metric][statistic])
                for level in levels
                if level.figures is not None and metric in level.figures.latencies
            ]
            if not points:
                continue
            loads = [load for load, _ in points]
            axis.plot(loads, [e.value * 1e3 for _, e in points], color=colour, marker=marker, markersize=5, label=statistic)
            if statistic in ("p50", "p99"):
                axis.fill_between(loads, [e.low * 1e3 for _, e in points], [e.high * 1e3 for _, e in points], color=colour, alpha=0.12)
        axis.set_title(label, loc="left", fontsize=11)
        axis.set_ylim(0, axis.get_ylim()[1] * 1.08)
        _load_axis(axis, [level.level.amount for level in levels], kind)
    axes[0, 0].legend(title="bands: 95 %", fontsize=9, title_fontsize=8)
    figure.suptitle(f"Latency against load · {title}", fontsize=12)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_throughput(levels: Sequence[LevelResult], kind: str, path: Path, title: str, *, has_slo: bool) -> None:
    figure, (tokens, requests) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    _draw_rate(tokens, levels, "output_tokens_per_s", "#1b6ca8", "o", "output")
    tokens.set_title("output tokens/s", loc="left", fontsize=11)
    _draw_rate(requests, levels, "requests_per_s", "#1b6ca8", "o", "ended well")
    if has_slo:
        _draw_rate(requests, levels, "goodput_requests_per_s", "#3a9d5d", "s", "kept the SLO")
    amounts = [level.level.amount for level in levels]
    if kind == "poisson":
        requests.plot(amounts, amounts, color="#888888", linestyle=":", label="offered")
    requests.set_title("requests/s", loc="left", fontsize=11)
    requests.legend(fontsize=9)
    for axis in (tokens, requests):
        axis.set_ylim(0, axis.get_ylim()[1] * 1.08)
        _load_axis(axis, amounts, kind)
    figure.suptitle(f"Throughput against load · {title}", fontsize=12)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_rate(axis: "Axes", levels: Sequence[LevelResult], metric: str, colour: str, marker: str, label: str) -> None:
    points = [(level.level.amount, level.figures.rates[metric]) for level in levels if level.figures and metric in level.figures.rates]
    loads, values = [load for load, _ in points], [estimate.value for _, estimate in points]
    axis.plot(loads, values, color=colour, marker=marker, markersize=5, label=label)
    axis.fill_between(loads, [e.low for _, e in points], [e.high for _, e in points], color=colour, alpha=0.12)


def _load_axis(axis: "Axes", amounts: Sequence[float], kind: str) -> None:
    if min(amounts) > 0 and max(amounts) / min(amounts) >= 8:
        axis.set_xscale("log", base=2)
    axis.set_xticks(amounts)
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.minorticks_off()
    axis.set_xlabel(_AXES[kind], fontsize=9)
    axis.grid(alpha=0.25)
