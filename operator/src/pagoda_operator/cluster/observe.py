"""From what the informers and polls know to an `Observed` of one namespace's shared part, or of one model. Reads memory only."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pagoda_operator.cluster.progress import WorkerPolls
from pagoda_operator.cluster.routers import RouterPolls
from pagoda_operator.cluster.world import World
from pagoda_operator.observed.pods import pod_view
from pagoda_operator.observed.world import ObjectRef, Observed, PodView
from pagoda_operator.render.objects import API_PORT, ROUTER_NAME

Objects = Mapping[ObjectRef, Mapping[str, Any]]


class Observer:
    def __init__(self, world: World, routers: RouterPolls, workers: WorkerPolls) -> None:
        self._world = world
        self._routers = routers
        self._workers = workers

    def look(self, namespace: str, model: str, looked_up: Objects, blocked: Mapping[ObjectRef, str]) -> Observed:
        """Model "": what the namespace shares. `looked_up`: objects of wanted names that informers do not show, being foreign."""
        now = datetime.now(UTC)
        pods = self._world.pods_of(namespace, model) + (self._world.routers(namespace) if model else [])
        return Observed(
            objects={**looked_up, **self._world.children.of(namespace, model)},
            pods=[self._view(pod, now) for pod in pods],
            endpoint=self._endpoint(namespace),
            now=now,
            reports=self._routers.reports(namespace),
            blocked=blocked,
        )

    def _view(self, pod: Mapping[str, Any], now: datetime) -> PodView:
        node = self._world.node(pod["spec"].get("nodeName"))
        return pod_view(pod, node, self._workers.answer(pod["metadata"]["uid"]), now)

    def _endpoint(self, namespace: str) -> str | None:
        service = ObjectRef("Service", namespace, ROUTER_NAME)
        return f"http://{ROUTER_NAME}.{namespace}.svc:{API_PORT}/v1" if self._world.children.get(service) is not None else None
