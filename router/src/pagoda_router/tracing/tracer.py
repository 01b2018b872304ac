"""Begins a trace for each request and puts the finished ones where they are read: the ring, and the exporter when there is one.

The hot path's whole share of tracing outside the stamps themselves; app.py calls it twice per request.
"""

from collections.abc import Callable
from typing import Protocol

from pagoda_router.http.surface import RequestOutcome
from pagoda_router.tracing.context import trace_context
from pagoda_router.tracing.record import RequestTrace
from pagoda_router.tracing.ring import TraceRing


class TraceSink(Protocol):
    def offer(self, trace: RequestTrace) -> None:
        """Must neither wait nor raise."""
        ...


class Tracer:
    def __init__(self, ring: TraceRing, exporter: TraceSink | None, *, clock: Callable[[], float], calendar: Callable[[], float]) -> None:
        """`clock`: monotonic seconds, the one that the dispatcher and, on this host, workers stamp by; `calendar`: Unix seconds."""
        self.clock = clock
        self._ring = ring
        self._exporter = exporter
        self._calendar = calendar

    def begin(self, outcome: RequestOutcome, traceparent: bytes | None, tracestate: bytes | None) -> RequestTrace:
        return RequestTrace(
            context=trace_context(traceparent, tracestate, sample=self._exporter is not None),
            outcome=outcome,
            received_s=self.clock(),
            received_unix_s=self._calendar(),
        )

    def finish(self, trace: RequestTrace) -> None:
        """Requests for no known model are not kept: anybody could push everything else out with them."""
        if trace.outcome.model is None:
            return
        self._ring.append(trace)
        if self._exporter is not None and trace.context.sampled:
            self._exporter.offer(trace)
