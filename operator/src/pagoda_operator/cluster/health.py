"""/health, /ready and /metrics over HTTP, and what the first of them means. Started by __main__ before the Lease is tried."""

import logging
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from pagoda_operator.cluster.metrics import Metrics

log = logging.getLogger(__name__)

Check = Callable[[], str | None]
"""None: well. Else one line about what is not."""


@dataclass(slots=True)
class Health:
    """Well unless a check objects. A standby has no checks: it waits."""

    checks: list[Check] = field(default_factory=list)
    before_scrape: list[Callable[[], None]] = field(default_factory=list)
    """Called before each answer to /metrics, to bring gauges up to date."""

    def troubles(self) -> list[str]:
        return [trouble for check in self.checks if (trouble := check()) is not None]


class Servers:
    """Both listeners; closed together."""

    def __init__(self, health: Health, metrics: Metrics) -> None:
        self._health = health
        self._metrics = metrics
        self._runners: list[web.AppRunner] = []

    async def start(self, *, health_port: int, metrics_port: int) -> tuple[int, int]:
        """Returns the ports, which differ from what was asked where 0 was."""
        probes = {"/health": self._answer_health, "/ready": self._answer_ready}
        return await self._listen(probes.items(), health_port), await self._listen([("/metrics", self._answer_metrics)], metrics_port)

    async def close(self) -> None:
        for runner in self._runners:
            await runner.cleanup()

    async def _listen(self, routes: Iterable[tuple[str, Callable[[web.Request], object]]], port: int) -> int:
        application = web.Application()
        for path, answer in routes:
            application.router.add_get(path, answer)  # type: ignore[arg-type]
        runner = web.AppRunner(application, access_log=None, handle_signals=False)
        self._runners.append(runner)
        await runner.setup()
        listening = _listener(port)
        await web.SockSite(runner, listening).start()
        bound: int = listening.getsockname()[1]
        return bound

    async def _answer_health(self, _: web.Request) -> web.Response:
        troubles = self._health.troubles()
        return web.Response(text="\n".join(troubles) or "ok", status=503 if troubles else 200)

    async def _answer_ready(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _answer_metrics(self, _: web.Request) -> web.Response:
        for refresh in self._health.before_scrape:
            refresh()
        return web.Response(body=generate_latest(self._metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _listener(port: int) -> socket.socket:
    """One socket for IPv4 and IPv6 where the machine has both, so that port 0 is one port."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))
