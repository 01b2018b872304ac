"""Counters, gauges and histograms as plain numbers, turned into prometheus_client's families when somebody asks for the page.

A request touches twenty of them, and the library's own take a lock and check their labels each time. Everything here runs in the event
loop's thread, the page too. Knows no names; requests.py makes them.
"""

from bisect import bisect_left
from collections.abc import Iterator
from math import inf

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Value:
    """One series of a counter or gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Of a counter never negative."""
        self.value += amount

    def dec(self) -> None:
        self.value -= 1.0

    def set(self, value: float) -> None:
        self.value = value


class Distribution:
    """One series of a histogram."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * len(bounds)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1  # a bound belongs to its bucket; the last one is infinite
        self.sum += value


class _Family(Collector):
    def __init__(self, name: str, text: str, labels: tuple[str, ...], registry: CollectorRegistry) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        registry.register(self)

    def _key(self, values: tuple[str, ...]) -> tuple[str, ...]:
        assert len(values) == len(self._labels), f"{self._name} has the labels {self._labels}, not {values}"
        return values


class _Values(_Family):
    def __init__(self, name: str, text: str, labels: tuple[str, ...], registry: CollectorRegistry) -> None:
        self._children: dict[tuple[str, ...], Value] = {} if labels else {(): Value()}
        super().__init__(name, text, labels, registry)

    def labels(self, *values: str) -> Value:
        """The series of these labels; without labels the only one. From its first use on it is told."""
        child = self._children.get(values)
        if child is None:
            child = self._children[self._key(values)] = Value()
        return child


class Counter(_Values):
    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for values, child in self._children.items():
            family.add_metric(values, child.value)
        yield family


class Gauge(_Values):
    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(self._name, self._text, labels=self._labels)
        for values, child in self._children.items():
            family.add_metric(values, child.value)
        yield family


class Histogram(_Family):
    def __init__(self, name: str, text: str, labels: tuple[str, ...], registry: CollectorRegistry, *, buckets: tuple[float, ...]) -> None:
        """`buckets`: upper bounds, rising, without the infinite one."""
        self._bounds = (*buckets, inf)
        self._children: dict[tuple[str, ...], Distribution] = {}
        super().__init__(name, text, labels, registry)

    def labels(self, *values: str) -> Distribution:
        child = self._children.get(values)
        if child is None:
            child = self._children[self._key(values)] = Distribution(self._bounds)
        return child

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for values, child in self._children.items():
            so_far, buckets = 0, []
            for bound, count in zip(self._bounds, child.counts, strict=True):
                so_far += count
                buckets.append((floatToGoString(bound), float(so_far)))  # type: ignore[no-untyped-call]
            family.add_metric(values, buckets, child.sum)
        yield family
