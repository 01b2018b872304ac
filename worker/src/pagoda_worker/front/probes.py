"""GET /health, /ready and /metrics as a raw ASGI app. Knows only the three questions it asks.

Served by uvicorn in the front's event loop.
"""

import json
from collections.abc import Awaitable, Callable
from typing import Any

from pagoda_worker.readiness import Readiness

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Answer = tuple[int, bytes, bytes]
"""Status, content type, body."""
JSON = b"application/json"
PROMETHEUS = b"text/plain; version=0.0.4; charset=utf-8"


class Probes:
    """`health` answers None or why tokens do not move; `ready` whether new requests are welcome; `metrics` the Prometheus text. `asleep`
    only changes the word of a healthy worker."""

    def __init__(
        self,
        *,
        health: Callable[[], str | None],
        ready: Callable[[], Readiness],
        metrics: Callable[[], Awaitable[bytes]],
        asleep: Callable[[], bool] = lambda: False,
    ) -> None:
        async def answer_health() -> Answer:
            return _health(health(), "sleeping" if asleep() else "ok")

        async def answer_ready() -> Answer:
            return _ready(ready())

        async def answer_metrics() -> Answer:
            return 200, PROMETHEUS, await metrics()

        self._routes: dict[str, Callable[[], Awaitable[Answer]]] = {
            "/health": answer_health,
            "/ready": answer_ready,
            "/metrics": answer_metrics,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        status, content_type, body = await self._answer(scope["method"], scope["path"])
        headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _answer(self, method: str, path: str) -> Answer:
        route = self._routes.get(path)
        if route is None:
            return _json(404, {"error": f"there is no {path}; there are {', '.join(self._routes)}"})
        if method not in ("GET", "HEAD"):
            return _json(405, {"error": f"{path} answers GET only"})
        return await route()


def _health(trouble: str | None, well: str) -> Answer:
    return _json(200, {"status": well}) if trouble is None else _json(503, {"status": "unhealthy", "reason": trouble})


def _ready(readiness: Readiness) -> Answer:
    return _json(readiness.status, readiness.body())


def _json(status: int, content: dict[str, Any]) -> Answer:
    return status, JSON, json.dumps(content, ensure_ascii=False).encode()
