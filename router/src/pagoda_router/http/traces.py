"""GET /admin/traces and /admin/traces/{request id}: what the ring holds, for whoever may see the internal port or has an admin key.

Pure answers to a path and a query; internal.py checks the token and speaks HTTP, admin.py does it on the public port.
"""

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, unquote

from pagoda_router.http.internal import error_document
from pagoda_router.tracing.document import document, summary
from pagoda_router.tracing.record import RequestTrace
from pagoda_router.tracing.ring import TraceRing

TRACES = "/admin/traces"
USUAL_LIMIT, MOST = 100, 1000
FILTERS = ("model", "status", "min_ms", "limit")


class TraceAdmin:
    def __init__(self, ring: TraceRing, clock: Callable[[], float]) -> None:
        self._ring = ring
        self._clock = clock

    def __call__(self, path: str, query: bytes) -> tuple[int, dict[str, Any]] | None:
        if path == TRACES:
            return self.latest(query)
        if path.startswith(TRACES + "/"):
            return self.one(unquote(path.removeprefix(TRACES + "/")))
        return None

    def one(self, request_id: str) -> tuple[int, dict[str, Any]]:
        trace = self._ring.find(request_id)
        if trace is None:
            return 404, error_document(
                f"no trace of request {request_id[:128]!r}: the last {len(self._ring)} finished requests are kept", "not_found"
            )
        return 200, document(trace, self._end_s(trace))

    def latest(self, query: bytes) -> tuple[int, dict[str, Any]]:
        given = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
        unknown = given.keys() - set(FILTERS)
        if unknown:
            return 400, error_document(f"traces know no {min(unknown)[:40]!r}: they take {', '.join(FILTERS)}", "unknown_filter")
        try:
            status = int(given["status"]) if "status" in given else None
            least_s = float(given.get("min_ms", 0)) / 1000
            limit = min(MOST, max(0, int(given.get("limit", USUAL_LIMIT))))
        except ValueError:
            return 400, error_document("status and limit are whole numbers, min_ms is a number of milliseconds", "bad_filter")
        found = self._ring.select(model=given.get("model"), status=status, least_duration_s=least_s, limit=limit)
        return 200, {"traces": [summary(trace, self._end_s(trace)) for trace in found]}

    def _end_s(self, trace: RequestTrace) -> float:
        return self._clock() if trace.ended_s is None else trace.ended_s
