"""All that the operator knows of the cluster, and the informers that keep it known. Says which keys each change concerns.

Owned by __main__; observe.py and loop.py read it. Knows neither plans nor writes.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pagoda_operator.cluster import trim
from pagoda_operator.cluster.client import Api
from pagoda_operator.cluster.errors import ClusterError
from pagoda_operator.cluster.informer import PAGE, RELIST_S, Informer
from pagoda_operator.cluster.models import Models
from pagoda_operator.cluster.pulls import with_words_of_last_try
from pagoda_operator.cluster.resources import CHILDREN, MODELS, NODES, PODS
from pagoda_operator.cluster.store import Change, Store
from pagoda_operator.labels import LABEL_COMPONENT, LABEL_MANAGED_BY, MANAGED_BY
from pagoda_operator.observed.world import ObjectRef
from pagoda_operator.plan.plan import LABEL_CANARY
from pagoda_operator.render.kinds import MONITORING

log = logging.getLogger(__name__)

OURS = f"{LABEL_MANAGED_BY}={MANAGED_BY}"
STALE_AFTER_S = 240.0
"""A watch of which neither event, bookmark nor a new opening was heard for this long is stale: silence is cut at 90 s."""

Hear = Callable[[Change], None]


class World:
    def __init__(
        self,
        api: Api,
        models: Models,
        *,
        namespaces: Sequence[str],
        heard_child: Hear,
        heard_pod: Hear,
        heard_node: Hear,
        monitoring: frozenset[str] = frozenset(),
        relist_s: float = RELIST_S,
    ) -> None:
        self.api = api
        self.models = models
        self.children = Store()
        self.pods = Store(with_words_of_last_try)
        self.nodes = Store()
        self._relist_s = relist_s
        self._scopes = scopes = _scopes(namespaces)
        kinds = [kind for kind in CHILDREN if kind.kind not in MONITORING or kind.kind in monitoring]
        self.informers = [
            Informer(api, kind, scope, OURS, trim.child, self.children, heard_child, relist_s=relist_s)
            for kind in kinds
            for scope in scopes
        ]
        self.informers += [Informer(api, PODS, scope, OURS, trim.pod, self.pods, heard_pod, relist_s=relist_s) for scope in scopes]
        self._node_informer = Informer(api, NODES, None, "", trim.node, self.nodes, heard_node, optional=True, relist_s=relist_s)
        self.informers.append(self._node_informer)

    async def run(self, synced: asyncio.Event) -> None:
        """For ever; sets `synced` once everything was listed."""
        async with asyncio.TaskGroup() as group:
            for informer in self.informers:
                group.create_task(informer.run(), name=f"informer {informer.name}")
            await self._list_models()
            for informer in self.informers:
                await informer.synced.wait()
            synced.set()
            while True:
                await asyncio.sleep(self._relist_s * (0.75 + random.random() / 2))
                await self._list_models()

    def stale(self) -> str | None:
        silent = [informer for informer in self.informers if informer.silent_s > STALE_AFTER_S]
        return f"nothing was heard of {silent[0].name} for {silent[0].silent_s:.0f} s" if silent else None

    def watch_ages(self) -> dict[str, float]:
        ages: dict[str, float] = {}
        for informer in self.informers:
            ages[informer.resource.plural] = max(ages.get(informer.resource.plural, 0.0), informer.silent_s)
        return ages

    def node(self, name: str | None) -> Mapping[str, Any] | None:
        """None: nodes are not known here; empty: there is none of that name any more."""
        if name is None or self._node_informer.missing or not self._node_informer.synced.is_set():
            return None
        return self.nodes.get(ObjectRef("Node", "", name)) or {}

    def pods_of(self, namespace: str, model: str) -> list[Mapping[str, Any]]:
        """Model "": what a namespace shares, its routers."""
        return list(self.pods.of(namespace, model).values())

    def routers(self, namespace: str) -> list[Mapping[str, Any]]:
        return [pod for pod in self.pods_of(namespace, "") if component(pod) == "router"]

    async def has_models(self, namespace: str) -> bool:
        """A fresh look, for decisions that would hurt on stale knowledge."""
        page = await self.api.get(MODELS.path(namespace), {"limit": "1", "labelSelector": f"{LABEL_CANARY}!=true"})
        return bool(page["items"])

    async def _list_models(self) -> None:
        started = time.monotonic()
        for scope in self._scopes:
            while True:
                try:
                    await self._list_models_of(scope)
                    break
                except ClusterError as error:
                    log.warning("InferenceModels cannot be listed: %s", error)
                    await asyncio.sleep(1.0 + random.random())
        log.debug("listed InferenceModels in %.2f s", time.monotonic() - started)

    async def _list_models_of(self, scope: str | None) -> None:
        query = {"limit": str(PAGE)}
        present: set[tuple[str, str]] = set()
        while True:
            page = await self.api.get(MODELS.path(scope), query)
            for item in page["items"]:
                present.add((item["metadata"]["namespace"], item["metadata"]["name"]))
                self.models.put({"apiVersion": MODELS.api_version, "kind": MODELS.kind, **item})
            if not (token := page["metadata"].get("continue")):
                break
            query["continue"] = token
        self.models.keep_only(scope, present, int(page["metadata"]["resourceVersion"]))


def _scopes(namespaces: Sequence[str]) -> list[str | None]:
    """One list and watch each; None: of the whole cluster."""
    return list(namespaces) if namespaces else [None]


def component(pod: Mapping[str, Any]) -> str:
    return str((pod["metadata"].get("labels") or {}).get(LABEL_COMPONENT, ""))


def is_ready(pod: Mapping[str, Any]) -> bool:
    conditions: Iterable[Mapping[str, Any]] = pod["status"].get("conditions") or ()
    return "deletionTimestamp" not in pod["metadata"] and any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
