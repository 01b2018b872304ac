"""From what happens to what must be looked at: events of children, pods and nodes, answers of routers and workers.

Between World, the polls and the loop; decides nothing but which keys and gates a change concerns.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from pagoda_operator.cluster.apply import Writer
from pagoda_operator.cluster.errors import ClusterError, LeaseLost
from pagoda_operator.cluster.gate import counted_by_all, gate_of, has_gate, is_routed
from pagoda_operator.cluster.loop import Loop
from pagoda_operator.cluster.progress import WorkerPolls
from pagoda_operator.cluster.routers import Router, RouterPolls
from pagoda_operator.cluster.store import Change
from pagoda_operator.cluster.world import World, component, is_ready
from pagoda_operator.conditions import rfc3339
from pagoda_operator.observed.world import ObjectRef, RouterReport

log = logging.getLogger(__name__)


class Hearing:
    def __init__(
        self,
        loop: Loop,
        world: World,
        writer: Writer,
        routers: RouterPolls,
        workers: WorkerPolls,
        *,
        sampled: Callable[[str], None] = lambda namespace: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`sampled`: a router of this namespace answered."""
        self._loop = loop
        self._world = world
        self._writer = writer
        self._routers = routers
        self._workers = workers
        self._sampled = sampled
        self._clock = clock
        self._unsettled: defaultdict[str, set[ObjectRef]] = defaultdict(set)
        """By namespace: gated pods that are not routed, or that a router has stopped counting."""
        self._uncounted: dict[ObjectRef, float] = {}
        """Routed pods, since when a router does not count them."""
        self._writing: dict[ObjectRef, asyncio.Task[None]] = {}

    def child(self, change: Change) -> None:
        self._loop.mark(change.ref.namespace, change.owner)

    def pod(self, change: Change) -> None:
        namespace = change.ref.namespace
        self._loop.mark(namespace, change.owner)
        if component(change.after or change.before or {"metadata": {}}) == "router":
            self._router_pod(change)
        elif change.after is None:
            self._forget(change)
        else:
            self._workers.see(change.ref, change.after)
            if has_gate(change.after):
                self._unsettled[namespace].add(change.ref)
                self._review(namespace, [change.ref])
            if _misses_secret(change.after):
                self._loop.remake_secrets(namespace)

    def node(self, change: Change) -> None:
        for ref, pod in self._world.pods.everything():
            if pod["spec"].get("nodeName") == change.ref.name:
                self._loop.mark(ref.namespace, str((pod["metadata"].get("labels") or {}).get("pagoda.dev/model", "")))

    def worker(self, ref: ObjectRef) -> None:
        """It told something new of its progress."""
        pod = self._world.pods.get(ref)
        if pod is not None:
            self._loop.mark(ref.namespace, Change(ref, None, pod).owner)

    def router(self, router: Router, before: RouterReport | None, after: RouterReport | None) -> None:
        """It answered, or fell silent."""
        namespace = router.namespace
        if before is None or after is None:
            self._loop.mark_models(namespace)
            concerned: Collection[ObjectRef] = self._unsettled[namespace]
            if before is None:
                concerned = self._gated(namespace)
        else:
            changed = _changed_workers(before, after)
            concerned = {ObjectRef("Pod", namespace, name) for name in changed} | self._unsettled[namespace]
            for name in changed:
                self.worker(ObjectRef("Pod", namespace, name))
        self._review(namespace, concerned)
        if after is not None:
            self._sampled(namespace)

    def _router_pod(self, change: Change) -> None:
        namespace = change.ref.namespace
        reachable = [pod for pod in self._world.routers(namespace) if pod["status"].get("podIP")]
        ready = [_router(pod) for pod in reachable if is_ready(pod)]
        ending = [_router(pod) for pod in reachable if "deletionTimestamp" in pod["metadata"]]
        self._routers.watch(namespace, ready, ending)
        if change.before is None or change.after is None or _health(change.before) != _health(change.after):
            self._loop.mark_models(namespace)
            self._review(namespace, self._unsettled[namespace])

    def _forget(self, change: Change) -> None:
        assert change.before is not None
        self._workers.forget(change.before["metadata"]["uid"])
        self._unsettled[change.ref.namespace].discard(change.ref)
        self._uncounted.pop(change.ref, None)

    def _gated(self, namespace: str) -> set[ObjectRef]:
        return {ref for ref, pod in self._world.pods.everything() if ref.namespace == namespace and has_gate(pod)}

    def _review(self, namespace: str, refs: Collection[ObjectRef]) -> None:
        routers = self._routers.counted(namespace)
        reports = {name: report for (_, name), report in self._routers.reports(namespace).items() if name in routers}
        for ref in list(refs):
            pod = self._world.pods.get(ref)
            if pod is None or not has_gate(pod) or "deletionTimestamp" in pod["metadata"]:
                self._unsettled[namespace].discard(ref)
                self._uncounted.pop(ref, None)
            elif not reports:
                self._uncounted.pop(ref, None)  # nobody answers: what was seen before is no longer going on
            elif ref not in self._writing:
                self._review_pod(ref, pod, routers, reports)

    def _review_pod(self, ref: ObjectRef, pod: Mapping[str, Any], routers: Collection[str], reports: Mapping[str, RouterReport]) -> None:
        unsettled = self._unsettled[ref.namespace]
        if counted_by_all(pod, reports.values()):
            self._uncounted.pop(ref, None)
            if is_routed(pod):
                unsettled.discard(ref)
        else:
            unsettled.add(ref)
            if is_routed(pod):
                self._uncounted.setdefault(ref, self._clock())
        since = self._clock() - self._uncounted.get(ref, self._clock())
        verdict = gate_of(pod, routers, reports, since)
        if verdict is not None:
            self._writing[ref] = asyncio.create_task(self._write_gate(ref, pod, verdict))

    async def _write_gate(self, ref: ObjectRef, pod: Mapping[str, Any], routed: bool) -> None:
        try:
            written = await self._writer.gate(pod, routed, rfc3339(datetime.now(UTC)))
        except (ClusterError, LeaseLost) as error:
            log.warning("the gate of %s was not set: %s; the next report tries again", ref, error)
            return
        finally:
            self._writing.pop(ref, None)
        if written is not None and (change := self._world.pods.put(ref, written)):
            self.pod(change)


def _router(pod: Mapping[str, Any]) -> Router:
    metadata = pod["metadata"]
    return Router(metadata["namespace"], metadata["name"], pod["status"]["podIP"])


def _changed_workers(before: RouterReport, after: RouterReport) -> set[str]:
    flags = [{name: (worker.routable, worker.sleeps) for name, worker in report.workers.items()} for report in (before, after)]
    return {name for name, _ in flags[0].items() ^ flags[1].items()}


def _health(pod: Mapping[str, Any]) -> object:
    statuses = pod["status"].get("containerStatuses") or ()
    waiting = [(each.get("state") or {}).get("waiting", {}).get("reason") for each in statuses]
    scheduled = [each["status"] for each in pod["status"].get("conditions") or () if each["type"] == "PodScheduled"]
    return is_ready(pod), pod["status"].get("podIP"), pod["status"].get("phase"), waiting, scheduled, "deletionTimestamp" in pod["metadata"]


def _misses_secret(pod: Mapping[str, Any]) -> bool:
    statuses = (pod["status"].get("initContainerStatuses") or []) + (pod["status"].get("containerStatuses") or [])
    return any((each.get("state") or {}).get("waiting", {}).get("reason") == "CreateContainerConfigError" for each in statuses)
