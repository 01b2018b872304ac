"""Every pod's voice: routers that report their namespace's workers as routable, and workers that are ready. Run as a process of its own.

    python -m pagoda_bench.operator_scale.fleet FACTS.json

Listens on all addresses of the namespace; who was asked is told by the address that the question came to. Reports have the size that real
ones have: one entry per worker, from each of two routers, every second.
"""

import asyncio
import json
import ssl
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

OURS = "app.kubernetes.io/managed-by=pagoda-operator"
READY = json.dumps(
    {
        "ready": True,
        "capacity": {"kvTokens": 400_000, "maxModelLen": 8192, "prefillTokensPerS": 9000, "decodeTokensPerS": 900, "loadS": 4.0},
    }
).encode()


class Pods:
    """What the API server says of pods, as far as routers would know it."""

    def __init__(self) -> None:
        self._pods: dict[tuple[str, str], dict[str, Any]] = {}
        self._routers: dict[str, str] = {}
        """Address → namespace."""
        self._workers: defaultdict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
        self._reports: dict[str, bytes] = {}

    def hear(self, kind: str, pod: dict[str, Any]) -> None:
        metadata, status = pod["metadata"], pod.get("status", {})
        namespace, name, labels = metadata["namespace"], metadata["name"], metadata.get("labels", {})
        here = kind != "DELETED" and status.get("phase") == "Running" and "deletionTimestamp" not in metadata
        if labels.get("app.kubernetes.io/component") == "router":
            if here:
                self._routers[status["podIP"]] = namespace
            return
        before = name in self._workers[namespace]
        if before == here:
            return
        self._reports.pop(namespace, None)
        if here:
            self._workers[namespace][name] = _worker(name, labels, status["podIP"])
        else:
            self._workers[namespace].pop(name)

    def report(self, address: str) -> bytes | None:
        namespace = self._routers.get(address)
        if namespace is None:
            return None
        if namespace not in self._reports:
            workers = list(self._workers[namespace].values())
            models = {worker["model"]: _QUIET for worker in workers}
            self._reports[namespace] = json.dumps({"models": models, "workers": workers}).encode()
        return self._reports[namespace]


_QUIET = {
    "routable": {},
    "inFlight": 1,
    "queuedTokens": 0,
    "waiting": 0,
    "idleS": 0.0,
    "ttftS": {"p50": 0.1, "p95": 0.2, "count": 60},
    "arrivals": 60,
}


def _worker(name: str, labels: dict[str, str], address: str) -> dict[str, Any]:
    return {
        "name": name,
        "model": labels.get("pagoda.dev/model", ""),
        "variant": labels.get("pagoda.dev/variant", ""),
        "template": labels.get("pagoda.dev/template", ""),
        "address": f"{address}:9000",
        "routable": True,
        "reason": "",
        "inFlight": 1,
        "running": 1,
        "waiting": 0,
        "queuedPrefillTokens": 0,
        "kvCapacityTokens": 400_000,
        "kvAvailableTokens": 380_000,
        "prefillTokensPerS": 9000,
        "decodeTokensPerS": 900,
    }


async def follow(facts: dict[str, Any], pods: Pods) -> None:
    context = ssl.create_default_context(cafile=facts["ca"])
    headers = {"Authorization": f"Bearer {facts['token']}", "User-Agent": "pagoda-bench-fleet"}
    async with httpx.AsyncClient(base_url=facts["url"], verify=context, headers=headers, timeout=None, trust_env=False) as client:  # noqa: S113
        query = {
            "labelSelector": OURS,
            "watch": "1",
            "sendInitialEvents": "true",
            "resourceVersionMatch": "NotOlderThan",
            "allowWatchBookmarks": "1",
        }
        while True:
            async with client.stream("GET", "/api/v1/pods", params=query) as response:
                async for line in response.aiter_lines():
                    event = json.loads(line)
                    if event["type"] in ("ADDED", "MODIFIED", "DELETED"):
                        pods.hear(event["type"], event["object"])


async def serve(port: int, answer: Callable[[str], bytes | None]) -> None:
    """HTTP/1.1 with kept connections, for GETs without a body."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = writer.get_extra_info("sockname")[0]
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                body = answer(address)
                status = b"200 OK" if body is not None else b"404 Not Found"
                body = body or b"{}"
                writer.write(b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(connected, "0.0.0.0", port)  # noqa: S104  the namespace has no way out
    await server.serve_forever()


async def main(facts: dict[str, Any]) -> None:
    pods = Pods()
    async with asyncio.TaskGroup() as group:
        group.create_task(follow(facts, pods))
        group.create_task(serve(8001, pods.report))
        group.create_task(serve(9001, lambda address: READY))


if __name__ == "__main__":
    asyncio.run(main(json.loads(Path(sys.argv[1]).read_text())))
