"""Discovery in a cluster: InferenceModels and the EndpointSlices of their workers, listed and watched in one namespace.

    list ──► objects ──► watch for ≤ 25 s ──► list …          one Reflection per kind; a lost event is healed by the next list
                │
                └──► one FleetSnapshot from both kinds, when both were read once and something a router acts on has changed

Owns the last good objects: an API server that is away, or answers nonsense, changes nothing. Knows no HTTP (api.py) and no fleet.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from random import Random
from typing import Any, Generic, Protocol, TypeVar

from pagoda_router.discovery.api import ApiFault
from pagoda_router.discovery.model_object import ModelObject
from pagoda_router.discovery.snapshot import Endpoint, FleetSnapshot, SeenEndpoint, read_endpoints, read_models

log = logging.getLogger(__name__)
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds. Tests shorten them."""

    relist_s: int = 25
    """A watch's length; with a list's time in between it stays under 30 s from one whole list to the next."""
    first_backoff_s: float = 0.2
    last_backoff_s: float = 5.0
    settle_s: float = 0.05
    """Between two snapshots: a burst of events is one."""


class Api(Protocol):
    async def list(self, path: str, query: Mapping[str, str]) -> dict[str, Any]: ...

    def watch(self, path: str, query: Mapping[str, str], timeout_s: int) -> AsyncGenerator[dict[str, Any]]: ...


class Reflection:
    """The objects of one kind, as of the last thing the API server said of them."""

    def __init__(self, api: Api, path: str, query: Mapping[str, str], on_change: Callable[[], None], timing: Timing) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        """By name."""
        self.listed = False
        """A whole list was read at least once."""
        self._api = api
        self._path = path
        self._query = query
        self._on_change = on_change
        self._timing = timing
        self._rng = Random()
        self._complaint = ""

    async def run(self) -> None:
        backoff_s = self._timing.first_backoff_s
        while True:
            try:
                version = await self._list()
                self._complain("")
                backoff_s = self._timing.first_backoff_s
                await self._watch(version)
                continue
            except ApiFault as fault:
                self._complain(str(fault))
            except Exception:  # the loop's outermost line: a bug costs this round, not the discovery
                log.exception("discovery: internal error while watching %s", self._path)
            await asyncio.sleep(backoff_s * self._rng.uniform(0.5, 1.0))
            backoff_s = min(2 * backoff_s, self._timing.last_backoff_s)

    async def _list(self) -> str:
        document = await self._api.list(self._path, self._query)
        items, version = document.get("items"), (document.get("metadata") or {}).get("resourceVersion")
        if not isinstance(items, list) or not isinstance(version, str):
            raise ApiFault(f"{self._path} answered something that is no list of objects")
        self.objects = {name: _kept(self.objects.get(name), item) for name, item in ((_name(item), item) for item in items)}
        self.listed = True
        self._on_change()
        return version

    async def _watch(self, version: str) -> None:
        """Returns when it is time for a list: the watch's time is over, or it broke off, or the server lost track of it (410)."""
        began_s = asyncio.get_running_loop().time()
        async with aclosing(self._api.watch(self._path, {**self._query, "resourceVersion": version}, self._timing.relist_s)) as events:
            async for event in events:
                kind, item = event.get("type"), event["object"]
                if kind in ("ADDED", "MODIFIED"):
                    self.objects[_name(item)] = item
                elif kind == "DELETED":
                    self.objects.pop(_name(item), None)
                elif kind == "BOOKMARK":
                    continue
                elif item.get("code") == 410:
                    break
                else:
                    raise ApiFault(f"the watch of {self._path} failed: {item.get('message') or kind}")
                self._on_change()
        if asyncio.get_running_loop().time() - began_s < self._timing.first_backoff_s:
            # A watch that ends at once, again and again, must not become a storm of lists.
            await asyncio.sleep(self._timing.first_backoff_s * self._rng.uniform(0.5, 1.0))

    def _complain(self, complaint: str) -> None:
        """Once per cause: an API server that is away for an hour is two lines."""
        if complaint and complaint != self._complaint:
            log.warning("discovery: %s; what is known stays in force", complaint)
        elif self._complaint and not complaint:
            log.info("discovery: %s is read again", self._path)
        self._complaint = complaint


class KubernetesDiscovery:
    def __init__(self, api: Api, namespace: str, on_snapshot: Callable[[FleetSnapshot], None], *, timing: Timing | None = None) -> None:
        self._timing = timing or Timing()
        self._on_snapshot = on_snapshot
        self._changed = asyncio.Event()
        models = f"/apis/pagoda.dev/v1alpha1/namespaces/{namespace}/inferencemodels"
        slices = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        workers = {"labelSelector": "app.kubernetes.io/component=worker"}
        self._models = Reflection(api, models, {}, self._changed.set, self._timing)
        self._slices = Reflection(api, slices, workers, self._changed.set, self._timing)
        self._reader = Reader()
        self._last: FleetSnapshot | None = None
        self._problems: tuple[str, ...] = ()

    @property
    def loaded(self) -> bool:
        """A whole snapshot was handed on at least once."""
        return self._last is not None

    async def run(self) -> None:
        parts = [self._models.run(), self._slices.run(), self._publish()]
        tasks = [asyncio.create_task(part, name="discovery") for part in parts]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _publish(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                self._hand_on()
            except Exception:  # the loop's outermost line: a bug costs this snapshot, not the watch
                log.exception("discovery: internal error while reading objects")
            await asyncio.sleep(self._timing.settle_s)

    def _hand_on(self) -> None:
        if not (self._models.listed and self._slices.listed):
            return
        snapshot = self._reader.read(self._models.objects, self._slices.objects)
        if snapshot.problems != self._problems:
            self._problems = snapshot.problems
            if snapshot.problems:
                log.warning("discovery: %s", "; ".join(snapshot.problems))
        if snapshot != self._last:
            self._on_snapshot(snapshot)
            self._last = snapshot


class Reader:
    """Objects of both kinds, by name, into what a router acts on. Remembers what it made of each object: a change costs what it touches.

    Every published endpoint counts, serving or not: `serving` waits for the readiness gate, and the gate for the routers.
    """

    def __init__(self) -> None:
        self._models: dict[str, _Read[tuple[ModelObject, ...]]] = {}
        self._slices: dict[str, _Read[list[SeenEndpoint]]] = {}
        self.hosts: dict[str, str] = {}
        """Which address of each pod is in use."""

    def read(self, models: Mapping[str, Any], slices: Mapping[str, Any]) -> FleetSnapshot:
        self._models = _read_changed(models, self._models, read_models, "InferenceModel")
        self._slices = _read_changed(slices, self._slices, read_endpoints, "EndpointSlice")
        by_pod: dict[str, list[SeenEndpoint]] = {}
        for part in self._slices.values():
            for seen in part.found:
                by_pod.setdefault(seen.pod, []).append(seen)
        endpoints: dict[Endpoint, bool] = {}
        chosen: dict[str, str] = {}
        for pod, entries in by_pod.items():
            # A pod shows up once per address family, and for moments in two slices of one: it is one worker, gone as soon as one entry
            # says so. An address in use stays in use: a second session of the same router would end the requests of the first.
            best = min(entries, key=lambda seen: (seen.endpoint.host != self.hosts.get(pod), seen.family != "IPv4", seen.endpoint.host))
            endpoints[best.endpoint] = not any(seen.terminating for seen in entries)
            chosen[pod] = best.endpoint.host
        self.hosts = chosen
        return FleetSnapshot(
            models=tuple(model for part in self._models.values() for model in part.found),
            endpoints=endpoints,
            awaited=frozenset(endpoint.model for endpoint, accepting in endpoints.items() if accepting),
            problems=tuple(problem for kind in (self._models, self._slices) for part in kind.values() for problem in part.problems),
        )


@dataclass(frozen=True, slots=True)
class _Read(Generic[Found]):
    item: Any
    found: Found
    problems: list[str]


def _read_changed(
    objects: Mapping[str, Any], before: Mapping[str, _Read[Found]], read: Callable[[list[Any], list[str], str], Found], kind: str
) -> dict[str, _Read[Found]]:
    """In the order of names. An object that changed is a new dict."""
    result: dict[str, _Read[Found]] = {}
    for name in sorted(objects):
        item, known = objects[name], before.get(name)
        if known is None or known.item is not item:
            problems: list[str] = []
            known = _Read(item, read([item], problems, f"{kind} {name}"), problems)
        result[name] = known
    return result


def _kept(known: dict[str, Any] | None, item: dict[str, Any]) -> dict[str, Any]:
    """The one that was read before, if it is the same."""
    version = item["metadata"].get("resourceVersion")
    return known if known is not None and version is not None and known["metadata"].get("resourceVersion") == version else item


def _name(item: Any) -> str:
    try:
        name = item["metadata"]["name"]
    except (TypeError, KeyError):
        name = None
    if not isinstance(name, str):
        raise ApiFault("the API server sent an object without a name")
    return name
