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
from pagoda_operator.observed.routers import report_of
from pagoda_operator.observed.world import RouterReport
from pagoda_operator.render.pods import INTERNAL_PORT

log = logging.getLogger(__name__)

TIMEOUT = httpx.Timeout(2.0, connect=1.0)
AT_ONCE = 32
LONGEST_PAUSE_S = 10.0
FORGET_AFTER_S = 5.0
"""A report this old says nothing any more: its router counts as silent."""
PATIENCE_POLLS, LEAST_PATIENCE_S = 10, 2.0
"""So many pauses between polls a router that clients are led to is waited for, from its first sight or its last answer on."""


@dataclass(frozen=True, slots=True, order=True)
class Router:
    """One router pod."""

    namespace: str
    name: str
    ip: str


@dataclass(slots=True)
class _Poll:
    """What is known of one router."""

    heard_s: float
    """When it answered last; before that, since when it is asked."""
    report: RouterReport | None = None
    """Its last."""
    task: asyncio.Task[None] | None = None


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
        self._polls: dict[str, dict[Router, _Poll]] = {}
        """By namespace: what is asked of one costs the same however many there are."""
        self._ready: dict[str, set[str]] = {}
        """By namespace: names of those that clients are led to."""
        self._places = asyncio.Semaphore(AT_ONCE)
        # trust_env=False: a proxy variable must not carry the cluster's inner traffic away
        self._client = httpx.AsyncClient(timeout=TIMEOUT, trust_env=False, limits=httpx.Limits(max_keepalive_connections=256))

    def watch(self, namespace: str, ready: Iterable[Router], ending: Iterable[Router] = ()) -> None:
        """The routers of this namespace are these from now on. Those that end are asked too: requests may wait in them for a worker."""
        clients = set(ready)
        wanted = clients | set(ending)
        polls = self._polls.setdefault(namespace, {})
        self._ready[namespace] = {router.name for router in clients}
        for router in polls.keys() - wanted:
            if (task := polls.pop(router).task) is not None:
                task.cancel()
        for router in wanted - polls.keys():
            polls[router] = poll = _Poll(time.monotonic())
            poll.task = asyncio.create_task(self._ask_for_ever(router, poll), name=f"poll {router.namespace}/{router.name}")
        if not wanted:
            del self._ready[namespace], self._polls[namespace]

    def reports(self, namespace: str) -> dict[tuple[str, str], RouterReport]:
        """By (namespace, router pod): of those that answered lately."""
        since_s = time.monotonic() - FORGET_AFTER_S - self._poll_s
        polls = self._polls.get(namespace, {})
        return {
            (namespace, router.name): poll.report for router, poll in polls.items() if poll.report is not None and poll.heard_s > since_s
        }

    def counted(self, namespace: str) -> list[str]:
        """Names of those that clients are led to and whose word is needed. One that never answers is at last left out: it must not hold
        up every rollout of its namespace."""
        since_s = time.monotonic() - max(LEAST_PATIENCE_S, PATIENCE_POLLS * self._poll_s)
        ready = self._ready.get(namespace, ())
        return [router.name for router, poll in self._polls.get(namespace, {}).items() if router.name in ready and poll.heard_s > since_s]

    async def close(self) -> None:
        tasks = [poll.task for polls in self._polls.values() for poll in polls.values() if poll.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()

    async def _ask_for_ever(self, router: Router, poll: _Poll) -> None:
        failures = 0
        while True:
            before = poll.report
            try:
                report = await self._ask(router)
            except Exception:
                # the outermost line of this poll: a router whose answer nobody foresaw counts as silent, and is asked again
                log.exception("router %s/%s could not be asked", router.namespace, router.name)
                report = None
            if report is not None:
                poll.heard_s, poll.report = time.monotonic(), report
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
        except ValueError as error:
            log.warning("router %s/%s answered what is no fleet: %s", router.namespace, router.name, error)
        finally:
            self._metrics.router_polls.labels(outcome).inc()
        return None
