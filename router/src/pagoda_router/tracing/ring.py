"""The traces of the last requests, newest first, bounded in number. Pure; the tracer appends, http/traces.py asks."""

from collections import deque
from collections.abc import Iterator

from pagoda_router.tracing.record import RequestTrace


class TraceRing:
    def __init__(self, size: int) -> None:
        """`size`: traces; 0 keeps none."""
        self._traces: deque[RequestTrace] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self._traces)

    def append(self, trace: RequestTrace) -> None:
        self._traces.append(trace)

    def find(self, request_id: str) -> RequestTrace | None:
        """The latest of this id: clients may use one twice. Its answer's will do too, and one prompt's of several."""
        known_as = {request_id, request_id.rpartition("-")[0]} - {""}
        return next(
            (trace for trace in reversed(self._traces) if trace.outcome.request_id == request_id or trace.answer_id in known_as), None
        )

    def select(
        self, *, model: str | None = None, status: int | None = None, least_duration_s: float = 0.0, limit: int = 100
    ) -> Iterator[RequestTrace]:
        for trace in reversed(self._traces):
            if limit <= 0:
                return
            outcome = trace.outcome
            if model not in (None, outcome.model) or status not in (None, outcome.status) or outcome.duration_s < least_duration_s:
                continue
            limit -= 1
            yield trace
