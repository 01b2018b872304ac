"""Which workers the router says it can route to. A worker counts as ready only when it says so itself and the router agrees, so that
"ready" means that a request is answered now, and a rollout never ends an old worker before the router has the new one.

Owns the last report of the router's internal API. Called by executor.py.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx

from pagoda_operator.local.probe import TIMEOUT_S

ASK_WHILE_WAITING_S = 0.1
ASK_OTHERWISE_S = 1.0


@dataclass(frozen=True, slots=True)
class RouterAddress:
    host: str
    port: int
    token: str


@dataclass(frozen=True, slots=True)
class Worker:
    name: str
    grpc_port: int


class Acknowledgement:
    def __init__(
        self, router: Callable[[], RouterAddress | None], ready_workers: Callable[[], Sequence[Worker]], changed: Callable[[], None]
    ) -> None:
        self._router = router
        self._ready_workers = ready_workers
        self._changed = changed
        self._routable: frozenset[Worker] | None = None
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
            if routable != self._routable:
                self._routable = routable
                self._changed()
            waiting = any(not self.holds(worker) for worker in self._ready_workers()) or routable is None
            await asyncio.sleep(ASK_WHILE_WAITING_S if waiting else ASK_OTHERWISE_S)

    async def _ask(self, router: RouterAddress | None) -> frozenset[Worker] | None:
        if router is None:
            return None
        host = f"[{router.host}]" if ":" in router.host else router.host
        try:
            response = await self._client.get(
                f"http://{host}:{router.port}/internal/v1/fleet", headers={"Authorization": f"Bearer {router.token}"}
            )
            workers = response.json()["workers"] if response.status_code == 200 else []
            return frozenset(Worker(each["name"], int(each["address"].rpartition(":")[2])) for each in workers if each["routable"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return None
