"""Operators under test: in this process, with faults at the client's edge, or as real processes."""

import asyncio
import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
from plane import Cluster, Plane, eventually
from rights import OWN_NAMESPACE

from pagoda_operator.cluster.client import Api
from pagoda_operator.cluster.errors import ClusterError, LeaseLost
from pagoda_operator.cluster.metrics import Metrics
from pagoda_operator.cluster.operator import Operator
from pagoda_operator.cluster.resources import MODELS
from pagoda_operator.settings import OperatorSettings

MASTER_KEY = b"a key for tests, not a secret"

Hear = Callable[[str | None, Mapping[str, Any]], None]


def settings(**changes: Any) -> OperatorSettings:
    own: dict[str, Any] = {"version": "1.2.3", "master_key": MASTER_KEY, "pod_namespace": OWN_NAMESPACE, "pod_name": "operator-under-test"}
    return OperatorSettings(**(own | {"poll_s": 0.05} | changes))


class FaultyApi(Api):
    """Counts writes, and dies at one of them: before it is sent, or after it was carried out and before its answer is read."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.writes = 0
        self.written: list[str] = []
        self.reads: list[str] = []
        self.die_before: int | None = None
        self.die_after: int | None = None

    async def call(self, method: str, path: str, **named: Any) -> dict[str, Any]:
        if method == "GET":
            self.reads.append(path)
            return await super().call(method, path, **named)
        if path.endswith("/events"):
            return await super().call(method, path, **named)
        self.writes += 1
        self.written.append(f"{method} {path}")
        if self.die_before is not None and self.writes > self.die_before:
            raise LeaseLost("killed before a write")
        answer = await super().call(method, path, **named)
        if self.die_after is not None and self.writes > self.die_after:
            raise LeaseLost("killed after a write")
        return answer


class Sockets:
    """Those that one client opened, so that its end can be waited for.

    aiohttp ends a connection whose handshake was cancelled in later turns of the loop, and tells nobody when. A socket that is
    collected before that is a warning in whichever test runs then.
    """

    def __init__(self) -> None:
        self._opened: list[socket.socket] = []

    def connector(self, ca_file: str) -> aiohttp.TCPConnector:
        return aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=ca_file), socket_factory=self._open)

    async def closed(self) -> None:
        async def all_are() -> bool:
            return all(one.fileno() == -1 for one in self._opened)

        await eventually(all_are, every_s=0.005)

    def _open(self, address: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, *_ = address
        opened = socket.socket(family, kind, protocol)
        self._opened.append(opened)
        return opened


class Running:
    """One life of an operator in this process."""

    def __init__(self, operator: Operator, api: FaultyApi, metrics: Metrics, task: asyncio.Task[None]) -> None:
        self.operator = operator
        self.api = api
        self.metrics = metrics
        self.task = task

    async def settled(self) -> None:
        """Nothing waits and nothing is in work; what was there at the start was looked at."""
        await self.operator.synced.wait()

        async def idle() -> bool:
            if self.task.done():
                await self.task
            return self.operator.loop.queue.idle

        await eventually(idle, every_s=0.005)

    async def told(self, cluster: Cluster, namespace: str, name: str) -> dict[str, Any]:
        """The model once its status is of its present generation and nothing is in work."""

        async def up_to_date() -> dict[str, Any] | None:
            if self.task.done():
                await self.task
            model = await cluster.model(namespace, name)
            fresh = (model.get("status") or {}).get("observedGeneration") == model["metadata"]["generation"]
            return model if fresh and self.operator.loop.queue.idle else None

        return await eventually(up_to_date)  # type: ignore[no-any-return]


@contextlib.asynccontextmanager
async def operator(
    cluster: Cluster,
    namespace: str | None,
    *,
    die_before: int | None = None,
    die_after: int | None = None,
    drop: Callable[[Mapping[str, Any]], bool] | None = None,
    **changes: Any,
) -> AsyncIterator[Running]:
    """Alive inside the block, under the rights of the operator's account. `drop`: watch events that are lost on the way."""
    metrics = Metrics()
    sockets, configuration = Sockets(), cluster.plane.configuration(cluster.account_token)
    configuration.client_session_kwargs = {"trust_env": False, "connector": sockets.connector(configuration.ssl_ca_cert)}
    api = FaultyApi(configuration, metrics)
    api.die_before, api.die_after = die_before, die_after
    if drop is not None:
        whole_watch = api.watch

        async def leaky(*arguments: Any, **named: Any) -> AsyncIterator[dict[str, Any]]:
            async for event in whole_watch(*arguments, **named):
                if not drop(event):
                    yield event

        api.watch = leaky  # type: ignore[method-assign]
    relist_s, monitoring = changes.pop("relist_s", 600.0), changes.pop("monitoring", frozenset())
    own = settings(**({"namespaces": (namespace,)} if namespace else {}), **changes)
    made = Operator(api, own, metrics, monitoring=monitoring, relist_s=relist_s)
    task = asyncio.create_task(made.run(lambda hear: watch_models(api, namespace, hear)))
    try:
        yield Running(made, api, metrics, task)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, ExceptionGroup, BaseExceptionGroup):
            await task
        await api.close()
        await sockets.closed()


async def watch_models(api: Api, namespace: str | None, hear: Hear) -> None:
    """In place of kopf, whose operator() takes over a whole event loop: the same events. Processes under test run kopf itself."""
    while True:
        try:
            found = await api.get(MODELS.path(namespace))
            for item in found["items"]:
                hear(None, {"apiVersion": MODELS.api_version, "kind": MODELS.kind, **item})
            query = {"watch": "true", "resourceVersion": found["metadata"]["resourceVersion"], "timeoutSeconds": "300"}
            async for event in api.watch(MODELS.path(namespace), query):
                hear(event["type"], event["object"])
        except ClusterError:
            await asyncio.sleep(0.1)


class Process:
    """`python -m pagoda_operator`, with free ports."""

    def __init__(self, folder: Path, plane: Plane, token: str, name: str, **variables: str) -> None:
        kubeconfig = folder / f"{name}.kubeconfig"
        kubeconfig.write_text(_kubeconfig(plane, token))
        self.log_file = folder / f"{name}.log"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PAGODA_")}
        environment |= {
            "KUBECONFIG": str(kubeconfig),
            "PAGODA_VERSION": "1.2.3",
            "PAGODA_MASTER_KEY": MASTER_KEY.decode(),
            "PAGODA_POD_NAMESPACE": OWN_NAMESPACE,
            "PAGODA_POD_NAME": name,
            "PAGODA_HEALTH_PORT": "0",
            "PAGODA_METRICS_PORT": "0",
            **variables,
        }
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "pagoda_operator"], env=environment, stdout=log, stderr=log)

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    async def says(self, words: str, *, within_s: float = 20.0) -> str:
        async def said() -> str:
            return next((line for line in self.log.splitlines() if words in line), "")

        return await eventually(said, within_s=within_s)  # type: ignore[no-any-return]

    async def ports(self) -> tuple[int, int]:
        line = await self.says("/health on port")
        words = line.replace(",", "").split()
        return int(words[words.index("/health") + 3]), int(words[words.index("/metrics") + 3])

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def _kubeconfig(plane: Plane, token: str) -> str:
    cluster = {"server": plane.facts["url"], "certificate-authority": plane.facts["ca"]}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    return json.dumps(document)
