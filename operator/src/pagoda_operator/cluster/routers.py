"""Asks every ready or ending router for its fleet, about once a second each; keeps the last report of those that answer.

One task per router, so that a silent one delays nobody; it is asked less and less, down to every ten seconds. loop.py says which routers
there are and hears of every answer.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import httpx

from pagoda_operator.cluster.metrics import Metrics
from pagoda_operator.observed import RouterReport
from pagoda_operator.pods import INTERNAL_PORT
from pagoda_operator.router_reports import report_of

log = logging.getLogger(__name__)

TIMEOUT = httpx.Timeout(2.0, connect=1.0)
AT_ONCE = 32
LONGEST_PAUSE_S = 10.0
FORGET_AFTER_S = 5.0
"""A report this old says nothing any more: its router counts as silent."""


@dataclass(frozen=True, slots=True, order=True)
class Router:
    """One router pod."""

    namespace: str
    name: str
    ip: str


class RouterPolls:
    def __init__(
        self,
        metrics: Metrics,
        *,
        token: Callable[[str], str],
        answered: Callable[[Router, RouterReport | None, RouterReport | None], None],
        poll_s: float,
        port: int = INTERNAL_PORT,
    ) -> None:
        """`answered` hears the report before and the report now; None: silent."""
        self._metrics = metrics
        self._token = token
        self._answered = answered
        self._poll_s = poll_s
        self._port = port
        self._tasks: dict[Router, asyncio.Task[None]] = {}
        self._ready: dict[str, list[str]] = {}
        """By namespace: names of those that clients are led to."""
        self._reports: dict[Router, tuple[RouterReport, float]] = {}
        self._places = asyncio.Semaphore(AT_ONCE)
        # trust_env=False: a proxy variable must not carry the cluster's inner traffic away
        self._client = httpx.AsyncClient(timeout=TIMEOUT, trust_env=False, limits=httpx.Limits(max_keepalive_connections=256))

    def watch(self, namespace: str, ready: Iterable[Router], ending: Iterable[Router] = ()) -> None:
        """The routers of this namespace are these from now on. Those that end are asked too: requests may wait in them for a worker."""
        clients = set(ready)
        wanted = clients | set(ending)
        self._ready[namespace] = [router.name for router in clients]
        if not wanted:
            del self._ready[namespace]
        for router in [each for each in self._tasks if each.namespace == namespace and each not in wanted]:
            self._tasks.pop(router).cancel()
            self._reports.pop(router, None)
        for router in wanted - self._tasks.keys():
            self._tasks[router] = asyncio.create_task(self._ask_for_ever(router), name=f"poll {router.namespace}/{router.name}")

    def reports(self, namespace: str) -> dict[tuple[str, str], RouterReport]:
        """By (namespace, router pod): of those that answered lately."""
        now = time.monotonic()
        return {
            (router.namespace, router.name): report
            for router, (report, at) in self._reports.items()
            if router.namespace == namespace and now - at < FORGET_AFTER_S + self._poll_s
        }

    def ready(self, namespace: str) -> list[str]:
        return self._ready.get(namespace, [])

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self._client.aclose()

    async def _ask_for_ever(self, router: Router) -> None:
        failures = 0
        while True:
            before = self._reports.get(router, (None, 0.0))[0]
            report = await self._ask(router)
            if report is not None:
                self._reports[router] = (report, time.monotonic())
                failures = 0
            else:
                failures += 1
            if report is not None or failures == 1:
                self._answered(router, before, report)
            pause = min(LONGEST_PAUSE_S, self._poll_s * 2 ** min(failures, 10)) if failures else self._poll_s
            await asyncio.sleep(pause * (0.9 + random.random() / 5))

    async def _ask(self, router: Router) -> RouterReport | None:
        host = f"[{router.ip}]" if ":" in router.ip else router.ip
        headers = {"Authorization": f"Bearer {self._token(router.namespace)}"}
        outcome = "silent"
        try:
            async with self._places:
                response = await self._client.get(f"http://{host}:{self._port}/internal/v1/fleet", headers=headers)
            outcome = "refused"
            if response.status_code == 200:
                report = report_of(response.json())
                outcome = "answered"
                return report
            log.debug("router %s/%s answered %s", router.namespace, router.name, response.status_code)
        except httpx.HTTPError as error:
            log.debug("router %s/%s does not answer: %s", router.namespace, router.name, error)
        except (ValueError, TypeError, KeyError) as error:
            log.warning("router %s/%s answered what is no fleet: %r", router.namespace, router.name, error)
        finally:
            self._metrics.router_polls.labels(outcome).inc()
        return None
