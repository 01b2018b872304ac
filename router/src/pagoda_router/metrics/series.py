"""prometheus_client's metrics, with children found in a dictionary and zeros not added: a request touches twenty of them.

It validates labels anew at each `labels(…)`, some 3 µs. Knows no names; requests.py makes them.
"""

from typing import Any, Self

import prometheus_client


class _Remembering:
    def __init__(self, *args: Any, **settings: Any) -> None:
        self._known: dict[tuple[object, ...], Any] = {}
        super().__init__(*args, **settings)

    def labels(self, *values: object, **named: object) -> Self:
        """Raises ValueError when they are not the metric's."""
        if named:
            return super().labels(*values, **named)  # type: ignore[misc, no-any-return]
        child = self._known.get(values)
        if child is None:
            child = self._known[values] = super().labels(*values)  # type: ignore[misc]
        return child  # type: ignore[no-any-return]


class Counter(_Remembering, prometheus_client.Counter):
    def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
        if amount:
            super().inc(amount, exemplar)


class Gauge(_Remembering, prometheus_client.Gauge):
    pass


class Histogram(_Remembering, prometheus_client.Histogram):
    pass
