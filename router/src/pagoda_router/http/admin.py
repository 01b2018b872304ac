"""GET /admin/v1/fleet, lanes, queue, decisions, traces and trace on the public port: what the console reads, for holders of an admin key.

The same pure answers as on the internal port, which stays closed to browsers; nothing here changes anything. app.py checks the caller's
key before it passes a request on.
"""

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import msgspec

from pagoda_router.dispatch.dispatcher import FleetDispatcher
from pagoda_router.errors import MethodNotAllowed
from pagoda_router.fleet import Fleet
from pagoda_router.http.asgi import JSON_TYPE, ASGIApp, Receive, Scope, Send, answer
from pagoda_router.http.internal import error_document, fleet_report
from pagoda_router.http.placement import PlacementAdmin
from pagoda_router.http.queue import queue_report
from pagoda_router.http.traces import TraceAdmin
from pagoda_router.tracing.ring import TraceRing

ADMIN = "/admin/v1"
Answer = Callable[[bytes], tuple[int, dict[str, Any]]]
"""Query string → status and document."""


def admin_routes(fleet: Fleet, dispatcher: FleetDispatcher, ring: TraceRing, clock: Callable[[], float]) -> dict[str, ASGIApp]:
    """By path. To be guarded by whoever serves them. `clock`: the dispatcher's and the tracer's."""
    traces = TraceAdmin(ring, clock)
    placement = PlacementAdmin(fleet, dispatcher.chooser, dispatcher.decisions, clock)
    answers: dict[str, Answer] = {
        "fleet": lambda query: (200, fleet_report(fleet, dispatcher)),
        "queue": lambda query: (200, queue_report(fleet, dispatcher)),
        "lanes": lambda query: (200, placement.lanes()),
        "decisions": placement.decisions,
        "traces": traces.latest,
        "trace": lambda query: _one(traces, query),
    }
    return {f"{ADMIN}/{name}": _reading(found) for name, found in answers.items()}


def _one(traces: TraceAdmin, query: bytes) -> tuple[int, dict[str, Any]]:
    """The id stands in the query: clients choose their own, and a path takes not every one of them."""
    ids = parse_qs(query.decode("latin-1")).get("id", [])
    if len(ids) != 1:
        return 400, error_document(f"{ADMIN}/trace takes one id: ?id=REQUEST", "bad_filter")
    return traces.one(ids[0])


def _reading(of: Answer) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "GET":
            raise MethodNotAllowed(f"{scope['path']} takes GET, not {scope['method'][:20]}", allow="GET")
        status, document = of(scope.get("query_string", b""))
        await answer(send, status, [JSON_TYPE, (b"cache-control", b"no-store")], msgspec.json.encode(document))

    return app
