"""One list and watch of one resource, kept alive for ever: filtered by the server, in pages, resumed, re-listed.

    list (pages) → watch from its version, with bookmarks → stream ends → watch on
                 ↑ 410, or every ten minutes or so ←──────────────────────┘

Owns no objects: they go to a Store. A lost event is repaired by the next list at the latest.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pagoda_operator.cluster.client import Api
from pagoda_operator.cluster.errors import ClusterError, Gone, NotFound, Refused, Silence
from pagoda_operator.cluster.resources import Resource
from pagoda_operator.cluster.store import Change, Store
from pagoda_operator.cluster.trim import Trim
from pagoda_operator.observed.world import ObjectRef

log = logging.getLogger(__name__)

PAGE = 250
RELIST_S = 600.0
WATCH_S = 290
"""Asked of the server, less a random part so that streams do not all end at once."""
SHORTEST_WATCH_S = 1.0
"""A server that ends streams faster than this is not asked again at once."""
BACKOFF_S = 0.25
LONGEST_BACKOFF_S = 10.0


@dataclass(slots=True)
class Informer:
    api: Api
    resource: Resource
    namespace: str | None
    """None: all namespaces, or a resource without one."""
    selector: str
    trim: Trim
    store: Store
    changed: Callable[[Change], None]
    optional: bool = False
    """Without the right to read it (or where there is no such resource) the operator goes on without, and says so once."""
    relist_s: float = RELIST_S
    synced: asyncio.Event = field(default_factory=asyncio.Event)
    heard_at: float = field(default_factory=time.monotonic)
    """Last list, event, bookmark or opening of a watch."""
    missing: bool = False

    async def run(self) -> None:
        failures = 0
        while True:
            try:
                version = await self._list()
                failures = 0
                await self._watch_until_relist(version)
            except Gone:
                log.info("%s: the watch's version is too old, listing again", self.name)
                await self._back_off(0)
            except (Refused, NotFound) as error:
                if self.optional:
                    log.info("%s: going on without them: %s", self.name, error.message)
                    self.missing = True
                    self.synced.set()
                    return
                failures += 1
                log.warning("%s cannot be listed: %s", self.name, error)
                await self._back_off(failures)
            except ClusterError as error:
                failures += 1
                log.warning("%s: %s; listing again", self.name, error)
                await self._back_off(failures)

    @property
    def name(self) -> str:
        return f"{self.resource.plural}{f' of {self.namespace}' if self.namespace else ''}"

    @property
    def silent_s(self) -> float:
        return 0.0 if self.missing else time.monotonic() - self.heard_at

    async def _list(self) -> str:
        query = {"limit": str(PAGE), **self._filter()}
        present: set[ObjectRef] = set()
        while True:
            page = await self.api.get(self.resource.path(self.namespace), query)
            for item in page["items"]:
                present.add(self._take(item))
            self.heard_at = time.monotonic()
            version = page["metadata"]["resourceVersion"]
            if not (token := page["metadata"].get("continue")):
                break
            query["continue"] = token
            await asyncio.sleep(0)  # renewals of the Lease and probes go between pages
        for change in self.store.keep_only(self.resource.kind, self.namespace, present, int(version)):
            self.changed(change)
        self.synced.set()
        return str(version)

    async def _watch_until_relist(self, version: str) -> None:
        until = time.monotonic() + self.relist_s * (0.75 + random.random() / 2)
        failures = 0
        while (left := until - time.monotonic()) > 0:
            seconds = max(1, int(min(left + 1, WATCH_S * (0.7 + 0.3 * random.random()))))
            query = {
                "watch": "true",
                "allowWatchBookmarks": "true",
                "resourceVersion": version,
                "timeoutSeconds": str(seconds),
                **self._filter(),
            }
            began = time.monotonic()
            try:
                async for event in self.api.watch(self.resource.path(self.namespace), query, opened=self._opened):
                    self.heard_at, failures = time.monotonic(), 0
                    version = self._hear(event)
            except Silence as silence:
                log.debug("%s: %s; watching again", self.name, silence)
            except Gone:
                raise
            except ClusterError as error:
                failures += 1
                if failures > 3:
                    raise
                log.info("%s: %s; watching again", self.name, error)
                await self._back_off(failures)
            if time.monotonic() - began < SHORTEST_WATCH_S:
                await self._back_off(0)

    def _opened(self) -> None:
        self.heard_at = time.monotonic()

    def _hear(self, event: Mapping[str, Any]) -> str:
        item = event["object"]
        version = str(item["metadata"]["resourceVersion"])
        if event["type"] == "DELETED":
            if change := self.store.remove(self._ref(item), int(version)):
                self.changed(change)
        elif event["type"] != "BOOKMARK":
            self._take(item)
        return version

    def _take(self, item: Mapping[str, Any]) -> ObjectRef:
        ref = self._ref(item)
        # items of a list carry neither kind nor apiVersion
        whole = {"apiVersion": self.resource.api_version, "kind": self.resource.kind, **item}
        if change := self.store.put(ref, self.trim(whole)):
            self.changed(change)
        return ref

    def _ref(self, item: Mapping[str, Any]) -> ObjectRef:
        return ObjectRef(self.resource.kind, item["metadata"].get("namespace", ""), item["metadata"]["name"])

    def _filter(self) -> dict[str, str]:
        return {"labelSelector": self.selector} if self.selector else {}

    async def _back_off(self, failures: int) -> None:
        await asyncio.sleep(min(LONGEST_BACKOFF_S, BACKOFF_S * 2**failures) * (0.5 + random.random() / 2))
