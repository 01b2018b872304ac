"""Histograms that take one value many times at once, and the bounds of ours. Knows no metric's meaning; kept by metrics.py.

For a metric that vLLM has, they hold every bound of vLLM's (its v1/metrics/buckets.py), so that boards with a fixed `le` find it, and finer
ones below: a step of a small model takes 1 ms, a whole request 10.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

TOKEN_LATENCY_BOUNDS_S = (
    *(0.0005, 0.001, 0.0015, 0.002, 0.0025, 0.003, 0.004, 0.005, 0.006, 0.0075, 0.01, 0.0125, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05),
    *(0.06, 0.075, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
FIRST_TOKEN_BOUNDS_S = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5),
    *(0.75, 1.0, 1.5, 2.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
REQUEST_LATENCY_BOUNDS_S = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
REQUEST_TOKENS_BOUNDS = (*(digit * 10**power for power in range(6) for digit in (1, 2, 5)), 10**6)
"""vLLM's end at the model's length, which is not known here before an engine is loaded."""
STEP_TOKENS_BOUNDS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
N_BOUNDS = (1, 2, 5, 10, 20)
STEP_DURATION_BOUNDS_S = (
    *(0.0005, *(each / 1000 for each in range(1, 21))),
    *(0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
STEP_SEQUENCES_BOUNDS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024)


@dataclass(frozen=True, slots=True)
class Layout:
    name: str
    help_text: str
    bounds: Sequence[float]


class Histogram(Collector):
    """Written by the library once; after that only its numbers change. A picker asks every 50 ms, and 450 lines through the library's
    objects took the event loop 2 ms each time."""

    def __init__(self, layout: Layout, labels: Mapping[str, str]) -> None:
        self._layout = layout
        self._labels = labels
        self._bounds = tuple(layout.bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        registry = CollectorRegistry()
        registry.register(self)
        lines = generate_latest(registry).decode().splitlines()
        self._head = [line for line in lines if line.startswith("#")]
        self._starts = [line.rsplit(" ", 1)[0] for line in lines if not line.startswith("#")]

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def lines(self) -> list[str]:
        """Of the exposition, in the library's order: buckets, count, sum."""
        cumulative = [*accumulate(self._counts)]
        numbers = [*cumulative, cumulative[-1], self._sum]
        return [*self._head, *(f"{start} {number}" for start, number in zip(self._starts, numbers, strict=True))]

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """For the registry that writes the lines once: all zero."""
        family = HistogramMetricFamily(self._layout.name, self._layout.help_text, labels=list(self._labels))
        les = [*map(floatToGoString, self._bounds), "+Inf"]
        family.add_metric(list(self._labels.values()), buckets=[(le, 0) for le in les], sum_value=0)
        yield family
