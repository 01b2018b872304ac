"""The active operator: puts its parts together and runs them until one of them ends. Called by __main__ once the Lease is held."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from pagoda_operator.cluster.apply import Writer
from pagoda_operator.cluster.canary import Canary
from pagoda_operator.cluster.client import Api
from pagoda_operator.cluster.errors import LeaseLost, NotFound, Refused
from pagoda_operator.cluster.events import Teller
from pagoda_operator.cluster.health import Health
from pagoda_operator.cluster.hearing import Hearing
from pagoda_operator.cluster.informer import RELIST_S
from pagoda_operator.cluster.loop import Loop
from pagoda_operator.cluster.metrics import Metrics
from pagoda_operator.cluster.models import Models
from pagoda_operator.cluster.observe import Observer
from pagoda_operator.cluster.progress import WorkerPolls
from pagoda_operator.cluster.resources import BY_KIND, Resource
from pagoda_operator.cluster.routers import Router, RouterPolls
from pagoda_operator.cluster.store import Change
from pagoda_operator.cluster.world import World
from pagoda_operator.observed.world import ObjectRef, RouterReport
from pagoda_operator.render.kinds import MONITORING
from pagoda_operator.render.tokens import token
from pagoda_operator.settings import OperatorSettings

log = logging.getLogger(__name__)

Feed = Callable[[Callable[[str | None, Mapping[str, Any]], None]], Awaitable[None]]
"""Runs for ever and tells each event of an InferenceModel: its type and the object."""


async def known_monitoring(api: Api, namespaces: Sequence[str]) -> frozenset[str]:
    """The Prometheus operator's kinds that the cluster knows, and that this operator may use."""
    found = [kind for kind in MONITORING if await _may_make(api, BY_KIND[kind], namespaces)]
    return frozenset(found)


async def _may_make(api: Api, resource: Resource, namespaces: Sequence[str]) -> bool:
    """Asks for the group first: that is allowed to all, and where the group is missing nothing is left in audit logs that looks like a
    breach."""
    try:
        await api.get(f"/apis/{resource.api_version}")
        await api.get(resource.path(namespaces[0] if namespaces else None), {"limit": "1"})
    except (NotFound, Refused):
        return False
    return True


class Operator:
    def __init__(
        self, api: Api, settings: OperatorSettings, metrics: Metrics, *, monitoring: frozenset[str], relist_s: float = RELIST_S
    ) -> None:
        self.synced = asyncio.Event()
        """Everything was listed once; reconciling has begun."""
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._metrics = metrics
        self.models = Models(self._mark, settings.namespaces)
        self.world = World(
            api,
            self.models,
            namespaces=settings.namespaces,
            heard_child=self._heard_child,
            heard_pod=self._heard_pod,
            heard_node=self._heard_node,
            monitoring=monitoring,
            relist_s=relist_s,
        )
        master_key = settings.master_key
        self._routers = RouterPolls(
            metrics, token=lambda namespace: token(master_key, "internal", namespace), answered=self._heard_router, poll_s=settings.poll_s
        )
        self._workers = WorkerPolls(changed=self._heard_worker, poll_s=settings.poll_s)
        self._writer = Writer(api, self.world.children, self.world.pods)
        self._teller = Teller(api, instance=settings.pod_name)
        self.loop = Loop(
            world=self.world,
            models=self.models,
            observer=Observer(self.world, self._routers, self._workers),
            writer=self._writer,
            teller=self._teller,
            settings=settings.for_manifests(monitoring),
            metrics=metrics,
            lost=self._lose,
            sample_s=0.9 * settings.poll_s,
        )
        self._hearing = Hearing(self.loop, self.world, self._writer, self._routers, self._workers, sampled=self.loop.sample)
        self._canary = Canary(api, settings.canary) if settings.canary else None

    async def run(self, feed: Feed) -> None:
        """Until cancelled. Raises LeaseLost, and whatever ends a part that should go on for ever."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.world.run(self.synced), name="informers")
                group.create_task(self._watch_lease(), name="lease watch")
                await self.synced.wait()
                log.info("listed %d objects and %d pods; reconciling", len(self.world.children), len(self.world.pods))
                group.create_task(self._fed(feed), name="feed")
                group.create_task(self.loop.run(), name="loop")
                group.create_task(self._workers.run(), name="worker polls")
                group.create_task(self._teller.run(), name="events")
                if self._canary is not None:
                    group.create_task(self._canary.run(), name="canary")
        finally:
            await self._routers.close()

    def add_to(self, health: Health) -> None:
        health.checks.append(self.world.stale)
        if self._canary is not None:
            health.checks.append(self._canary.trouble)
        health.before_scrape.append(self._refresh_metrics)

    def hear(self, kind: str | None, document: Mapping[str, Any]) -> None:
        """An event of an InferenceModel; kopf's are told here."""
        if self._canary is not None:
            self._canary.handled(document)
        self.models.hear(kind, document)

    async def _fed(self, feed: Feed) -> None:
        await feed(self.hear)
        raise RuntimeError("the watch of InferenceModels ended")

    async def _watch_lease(self) -> None:
        await self._lost

    def _lose(self, error: LeaseLost) -> None:
        if not self._lost.done():
            self._lost.set_exception(error)

    # Parts refer to each other in a ring: events → loop → writer → events. These break it.

    def _mark(self, namespace: str, model: str | None) -> None:
        self.loop.mark(namespace, model)

    def _heard_child(self, change: Change) -> None:
        self._hearing.child(change)

    def _heard_pod(self, change: Change) -> None:
        self._hearing.pod(change)

    def _heard_node(self, change: Change) -> None:
        self._hearing.node(change)

    def _heard_router(self, router: Router, before: RouterReport | None, after: RouterReport | None) -> None:
        self._hearing.router(router, before, after)

    def _heard_worker(self, ref: ObjectRef) -> None:
        self._hearing.worker(ref)

    def _refresh_metrics(self) -> None:
        metrics = self._metrics
        metrics.queue_depth.set(self.loop.queue.depth)
        metrics.queue_age.set(self.loop.queue.oldest_s)
        for resource, age in self.world.watch_ages().items():
            metrics.watch_age.labels(resource).set(age)
        metrics.conditions.clear()
        for conditions in self.loop.conditions.values():
            for condition in conditions:
                metrics.conditions.labels(*condition).inc()
