"""The probes and the internal listener: /internal/v1/fleet for the operator's autoscaler, /admin, /health, /ready, /metrics.

Reads fleet and dispatcher, changes nothing itself. `__main__` mounts `routes()` on both listeners and serves `internal_app` on the internal
port.
"""

import hmac
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from pagoda_router.backends.base import WorkerLink
from pagoda_router.dispatch.dispatcher import FleetDispatcher
from pagoda_router.fleet import Fleet
from pagoda_router.http.asgi import ASGIApp, Receive, Scope, Send
from pagoda_router.placement.policy import WorkerView


class Probes:
    """What this process says about itself."""

    def __init__(self, fleet: Fleet, is_loaded: Callable[[], bool]) -> None:
        self._fleet = fleet
        self._is_loaded = is_loaded
        self.draining = False

    def readiness(self) -> tuple[int, dict[str, Any]]:
        """Ready once the fleet is known: a router whose models have no worker still answers honestly for them."""
        models = {entry.served_name: {"ready": entry.ready, "reason": entry.reason} for entry in self._fleet.entries()}
        if self.draining:
            return 503, {"ready": False, "reason": "the router drains", "models": models}
        if not self._is_loaded():
            return 503, {"ready": False, "reason": "the models and workers have not been read yet", "models": models}
        return 200, {"ready": True, "models": models}


def fleet_report(fleet: Fleet, dispatcher: FleetDispatcher) -> dict[str, Any]:
    """What the operator scales by. A model's waiting requests are those of this router only; the operator adds routers up."""
    models = {}
    workers = []
    now_s = dispatcher.now_s()
    for model in fleet.models():
        links = fleet.links(model.name)
        waiting, queued_tokens = dispatcher.queue(model.name)
        demand = dispatcher.demand(model.name)
        routable = Counter(link.endpoint.template for link in links if link.routable)
        models[model.name] = {
            "routable": dict(routable),
            "inFlight": sum(link.in_flight for link in links),
            "queuedTokens": queued_tokens,
            "waiting": waiting,
            "waitingByVariant": dispatcher.waiting_by_variant(model.name),
            "idleS": round(demand.idle_s(now_s), 3),
            "ttftS": demand.ttft_s(now_s),
            "arrivals": demand.arrivals,
        }
        workers += _workers(links, dispatcher)
    return {"models": models, "workers": workers}


def _workers(links: Sequence[WorkerLink], dispatcher: FleetDispatcher) -> list[dict[str, Any]]:
    report = []
    for link in links:
        view = link.view()
        report.append(
            {
                "name": link.endpoint.name,
                "model": link.endpoint.model,
                "variant": link.endpoint.variant,
                "template": link.endpoint.template,
                "address": link.endpoint.target,
                "backend": link.endpoint.backend,
                "routable": view.routable,
                "reason": view.reason,
                "sleeps": view.sleeps,
                "draining": not link.accepting,
                "shunned": dispatcher.chooser.cause(link.worker),
                "inFlight": link.in_flight,
                "running": view.running,
                "waiting": view.waiting,
                "maxRunning": view.max_running,
                "queuedPrefillTokens": view.queued_prefill_tokens,
                "kvCapacityTokens": view.capacity_tokens,
                "kvAvailableTokens": view.available_tokens,
                "kvReservedTokens": view.reserved_tokens,
                "kvUsedTokens": view.used_tokens,
                "prefillTokensPerS": view.prefill_tokens_per_s,
                "decodeTokensPerS": round(_decode_rate(view), 3),
            }
        )
    return report


def _decode_rate(view: WorkerView) -> float:
    """Of all its sequences together: what its self-test reached, or what it does now if that is more. 0: not known."""
    now = max(1, view.running) * 1000 / view.decode_step_ms if view.decode_step_ms else 0.0
    return max(view.decode_tokens_per_s, now)


# ---------------------------------------------------------------- HTTP


def routes(probes: Probes, registry: CollectorRegistry) -> dict[str, ASGIApp]:
    async def health(scope: Scope, receive: Receive, send: Send) -> None:
        await _answer(send, 200, {"status": "ok"})

    async def ready(scope: Scope, receive: Receive, send: Send) -> None:
        await _answer(send, *probes.readiness())

    async def metrics(scope: Scope, receive: Receive, send: Send) -> None:
        await _send(send, 200, CONTENT_TYPE_LATEST.encode(), generate_latest(registry))

    return {"/health": health, "/ready": ready, "/metrics": metrics}


Admin = Callable[[str, bytes], tuple[int, dict[str, Any]] | None]
"""Path (below /admin or /internal/v1) and query string → status and document; None: no such path."""
Action = Callable[[str, bytes], Awaitable[tuple[int, dict[str, Any]] | None]]
"""The same for POST."""


def first_of(*parts: Admin) -> Admin:
    """The answer of the first that has one."""
    return lambda path, query: next((found for part in parts if (found := part(path, query)) is not None), None)


async def no_action(path: str, query: bytes) -> None:
    return None


def internal_app(
    open_routes: Mapping[str, ASGIApp],
    report: Callable[[], dict[str, Any]],
    token: str | None,
    *,
    is_loopback: bool,
    admin: Admin = lambda path, query: None,
    action: Action = no_action,
    actions: Collection[str] = (),
) -> ASGIApp:
    """`actions`: the paths of `action`. Without a token the fleet report and /admin are open on loopback and closed beyond it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        path: str = scope["path"]
        if path in open_routes:
            await open_routes[path](scope, receive, send)
        elif not path.startswith(("/admin/", "/internal/v1/")):
            await _answer(send, 404, not_found(path))
        elif scope["method"] not in (methods := ("POST",) if path in actions else ("GET", "HEAD")):
            await _answer(send, 405, error_document(f"{path} takes {methods[0]}", "method_not_allowed"))
        elif token is None and not is_loopback:
            await _answer(send, 403, error_document("the internal API is closed: set PAGODA_INTERNAL_TOKEN", "forbidden"))
        elif token is not None and not _bears(scope, token):
            await _answer(send, 401, error_document("send the internal token as a bearer token", "invalid_api_key"))
        elif path in actions:
            await _answer(send, *(await action(path, scope.get("query_string", b"")) or (404, not_found(path))))
        elif path != "/internal/v1/fleet":
            await _answer(send, *(admin(path, scope.get("query_string", b"")) or (404, not_found(path))))
        else:
            await _answer(send, 200, report())

    return app


def _bears(scope: Scope, token: str) -> bool:
    sent = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    return hmac.compare_digest(sent, b"Bearer " + token.encode())


def not_found(path: str) -> dict[str, Any]:
    return error_document(f"there is no {path[:200]} here", "not_found")


def error_document(message: str, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}


async def _answer(send: Send, status: int, document: dict[str, Any]) -> None:
    await _send(send, status, b"application/json", msgspec.json.encode(document))


async def _send(send: Send, status: int, content_type: bytes, body: bytes) -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode()), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
