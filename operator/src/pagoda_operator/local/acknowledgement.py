"""Which workers the router says it can route to. A worker counts as ready only when it says so itself and the router agrees, so that
"ready" means that a request is answered now, and a rollout never ends an old worker before the router has the new one.

Owns the last report of the router's internal API, from which workers are scaled too. Called by executor.py.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from pagoda_operator.local.probe import TIMEOUT_S
from pagoda_operator.observed.routers import report_of
from pagoda_operator.observed.world import RouterReport

ASK_WHILE_WAITING_S = 0.1
ASK_OTHERWISE_S = 1.0


@dataclass(frozen=True, slots=True)
class RouterAddress:
    host: str
    port: int
    token: str

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Worker:
    name: str
    port: int
    """That routers speak to."""


class Acknowledgement:
    def __init__(
        self, router: Callable[[], RouterAddress | None], ready_workers: Callable[[], Sequence[Worker]], changed: Callable[[], None]
    ) -> None:
        self._router = router
        self._ready_workers = ready_workers
        self._changed = changed
        self.report: RouterReport | None = None
        """None: no router answers."""
        self._routable: frozenset[Worker] | None = None
        self._news: tuple[object, ...] = (None, False, frozenset())
        """What is acted on of the last report."""
        self._client = httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False)
        self._task: asyncio.Task[None] | None = None

    def holds(self, worker: Worker) -> bool:
        """While no router tells, workers are taken at their own word; what is wrong then is the router, and its own pod says so."""
        return self._routable is None or worker in self._routable

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="acknowledgement")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._client.aclose()

    async def _run(self) -> None:
        while True:
            routable = await self._ask(self._router())
            # whoever waits for a model that sleeps does not wait for the next tick too
            waits = self.report is not None and any(model.waiting for model in self.report.models.values())
            asleep = frozenset(name for name, worker in self.report.workers.items() if worker.sleeps) if self.report else frozenset()
            if (news := (routable, waits, asleep)) != self._news:
                self._routable, self._news = routable, news
                self._changed()
            waiting = any(not self.holds(worker) for worker in self._ready_workers()) or routable is None
            await asyncio.sleep(ASK_WHILE_WAITING_S if waiting else ASK_OTHERWISE_S)

    async def _ask(self, router: RouterAddress | None) -> frozenset[Worker] | None:
        told = await self._fleet(router) if router is not None else None
        if told is None:
            self.report = None
            return None
        self.report, routable = told
        return routable

    async def _fleet(self, router: RouterAddress) -> tuple[RouterReport, frozenset[Worker]] | None:
        try:
            response = await self._client.get(f"{router.url}/internal/v1/fleet", headers={"Authorization": f"Bearer {router.token}"})
            body = response.json() if response.status_code == 200 else {"models": {}, "workers": []}
            workers = frozenset(Worker(each["name"], _port(each)) for each in body["workers"] if each["routable"])
            return report_of(body), workers
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return None


def _port(worker: Mapping[str, Any]) -> int:
    return int(worker["address"].rpartition(":")[2])
