"""The readiness gate: the decision as a table, and on a real API server with routers that answer over HTTP."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from aiohttp import web
from plane import Cluster, eventually
from running import MASTER_KEY, operator
from test_objects import model

from pagoda_operator.cluster.gate import TAKEN_BACK_AFTER_S, gate_of
from pagoda_operator.observed.pods import ROUTED_CONDITION
from pagoda_operator.observed.world import RouterReport, WorkerReport
from pagoda_operator.render.pods import INTERNAL_PORT
from pagoda_operator.render.tokens import token

GATE = {"conditionType": ROUTED_CONDITION}


def pod(routed: bool | None = None, *, gated: bool = True) -> dict[str, Any]:
    conditions = [] if routed is None else [{"type": ROUTED_CONDITION, "status": str(routed)}]
    spec = {"readinessGates": [GATE]} if gated else {}
    return {"metadata": {"name": "w"}, "spec": spec, "status": {"conditions": conditions}}


def report(**routable: bool) -> RouterReport:
    return RouterReport(workers={name: WorkerReport(routable=flag) for name, flag in routable.items()}, models={})


YES, NO, SILENT = report(w=True), report(w=False), None
LONG = TAKEN_BACK_AFTER_S

CASES: list[tuple[str, dict[str, Any], dict[str, RouterReport | None], float, bool | None]] = [
    ("the only router counts it", pod(), {"a": YES}, 0, True),
    ("all routers count it", pod(), {"a": YES, "b": YES}, 0, True),
    ("one router does not count it yet", pod(), {"a": YES, "b": NO}, 0, None),
    ("one router does not know it yet", pod(), {"a": YES, "b": report()}, 0, None),
    ("a new router has not answered yet", pod(), {"a": YES, "b": SILENT}, 0, None),
    ("no router answers", pod(), {"a": SILENT}, LONG, None),
    ("there is no router", pod(), {}, LONG, None),
    ("it is routed and counted", pod(True), {"a": YES}, LONG, None),
    ("it is routed and not counted for a moment", pod(True), {"a": YES, "b": NO}, LONG - 0.1, None),
    ("it is routed and not counted for long", pod(True), {"a": YES, "b": NO}, LONG, False),
    ("it is routed and unknown for long", pod(True), {"a": report()}, LONG, False),
    ("it is routed and no router answers for long", pod(True), {"a": SILENT}, LONG, None),
    ("it was taken back and counts again", pod(False), {"a": YES}, 0, True),
    ("it was taken back and stays so", pod(False), {"a": NO}, LONG, None),
    ("it has no gate", pod(gated=False), {"a": YES}, 0, None),
]


@pytest.mark.parametrize(("case", "worker", "routers", "since", "verdict"), CASES, ids=[case[0] for case in CASES])
def test_the_gate(
    case: str, worker: Mapping[str, Any], routers: Mapping[str, RouterReport | None], since: float, verdict: bool | None
) -> None:
    answers = {name: given for name, given in routers.items() if given is not None}
    assert gate_of(worker, list(routers), answers, since) is verdict


class Router:
    """Answers /internal/v1/fleet at the address and port that the operator will ask."""

    def __init__(self, namespace: str) -> None:
        self.workers: list[dict[str, Any]] = []
        self.models: dict[str, Any] = {}
        self.asked = 0
        self._token = token(MASTER_KEY, "internal", namespace)

    async def answer(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {self._token}":
            return web.Response(status=401)
        self.asked += 1
        return web.json_response({"workers": self.workers, "models": self.models})


@contextlib.asynccontextmanager
async def router_at(ip: str, namespace: str) -> AsyncIterator[Router]:
    router = Router(namespace)
    application = web.Application()
    application.router.add_get("/internal/v1/fleet", router.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, ip, INTERNAL_PORT).start()
    try:
        yield router
    finally:
        await runner.cleanup()


async def make_pod(cluster: Cluster, namespace: str, deployment: str, number: int, ip: str, *, ready: bool) -> str:
    """As a Deployment's controller, a scheduler and a kubelet would."""
    template = (await cluster.get("Deployment", namespace, deployment))["spec"]["template"]
    name = f"{deployment}-{number}"
    metadata = {"name": name, "namespace": namespace, "labels": template["metadata"]["labels"]}
    await cluster.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
    conditions = [{"type": kind, "status": "True"} for kind in (("ContainersReady", "Ready") if ready else ("ContainersReady",))]
    status = {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": conditions}
    await cluster.patch("Pod", namespace, name, {"status": status}, subresource="status")
    return name


async def gate(cluster: Cluster, namespace: str, name: str) -> str | None:
    conditions = (await cluster.get("Pod", namespace, name))["status"]["conditions"]
    return next((each["status"] for each in conditions if each["type"] == ROUTED_CONDITION), None)


async def test_a_worker_is_routed_when_every_answering_router_counts_it(cluster: Cluster, namespace: str) -> None:
    await cluster.apply(model(namespace))
    async with (
        operator(cluster, namespace) as running,
        router_at("127.0.0.71", namespace) as one,
        router_at("127.0.0.72", namespace) as two,
    ):
        await running.told(cluster, namespace, "chat")
        await make_pod(cluster, namespace, "pagoda-router", 0, "127.0.0.71", ready=True)
        await make_pod(cluster, namespace, "pagoda-router", 1, "127.0.0.72", ready=True)
        await make_pod(cluster, namespace, "pagoda-router", 2, "127.0.0.73", ready=True)  # nobody answers there
        worker = await make_pod(cluster, namespace, "chat-default", 0, "127.0.0.81", ready=False)
        one.workers = [{"name": worker, "routable": True}]
        await eventually(lambda: more_than(one, 2))
        await eventually(lambda: more_than(two, 2))
        assert await gate(cluster, namespace, worker) is None
        two.workers = [{"name": worker, "routable": True}]
        await eventually(lambda: is_true(cluster, namespace, worker))
        told = (await eventually(lambda: routed_replicas(cluster, namespace)))["status"]
        assert told["ready"] == "True", told
        assert await cluster.list("Pod", namespace)

        written = running.api.writes
        two.workers = []
        asked = two.asked
        await eventually(lambda: more_than(two, asked + 3))
        assert await gate(cluster, namespace, worker) == "True"
        assert [each for each in running.api.written[written:] if "/pods/" in each] == []


async def test_a_worker_that_goes_to_sleep_and_wakes_is_told_of(cluster: Cluster, namespace: str) -> None:
    await cluster.apply(model(namespace))
    async with operator(cluster, namespace) as running, router_at("127.0.0.91", namespace) as one:
        await running.told(cluster, namespace, "chat")
        await make_pod(cluster, namespace, "pagoda-router", 0, "127.0.0.91", ready=True)
        worker = await make_pod(cluster, namespace, "chat-default", 0, "127.0.0.92", ready=True)
        one.workers = [{"name": worker, "routable": True, "sleeps": False}]
        await eventually(lambda: is_true(cluster, namespace, worker))

        async def progress(wanted: str | None) -> bool:
            status = (await cluster.model(namespace, "chat"))["status"]
            return bool(status["ready"] == "True" and status.get("progress") == wanted)

        await eventually(lambda: progress(None))
        one.workers = [{"name": worker, "routable": True, "sleeps": True}]
        await eventually(lambda: progress("asleep"))
        one.workers = [{"name": worker, "routable": True, "sleeps": False}]
        await eventually(lambda: progress(None))


async def test_a_foreign_token_gets_no_report(cluster: Cluster, namespace: str) -> None:
    await cluster.apply(model(namespace))
    async with operator(cluster, namespace) as running, router_at("127.0.0.74", "another") as other:
        await running.told(cluster, namespace, "chat")
        await make_pod(cluster, namespace, "pagoda-router", 0, "127.0.0.74", ready=True)

        async def refused() -> bool:
            return 'router_polls_total{outcome="refused"}' in metrics_of(running)

        await eventually(refused)
        assert other.asked == 0


async def more_than(router: Router, count: int) -> bool:
    return router.asked > count


async def is_true(cluster: Cluster, namespace: str, name: str) -> bool:
    return await gate(cluster, namespace, name) == "True"


async def routed_replicas(cluster: Cluster, namespace: str) -> dict[str, Any] | None:
    found = await cluster.model(namespace, "chat")
    return found if found["status"].get("routedReplicas") == 1 else None


def metrics_of(running: Any) -> str:
    from prometheus_client import generate_latest

    return generate_latest(running.metrics.registry).decode()


async def test_status_follows_a_pod(cluster: Cluster, namespace: str) -> None:
    await cluster.apply(model(namespace))
    async with operator(cluster, namespace) as running:
        await running.told(cluster, namespace, "chat")
        name = await make_pod(cluster, namespace, "chat-default", 0, "127.0.0.82", ready=False)
        waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image: code = NotFound"}}
        broken = {"name": "worker", "image": "x", "imageID": "", "ready": False, "restartCount": 0, "state": waiting}
        conditions = [{"type": "ContainersReady", "status": "False"}]
        patch = {"status": {"phase": "Pending", "conditions": conditions, "containerStatuses": [broken]}}
        await cluster.patch("Pod", namespace, name, patch, subresource="status")

        async def told() -> bool:
            ready = (await cluster.model(namespace, "chat"))["status"]["ready"]
            return "Image" in ready

        await eventually(told)
        assert "cannot be pulled" in (await cluster.model(namespace, "chat"))["status"]["unavailable"]


async def test_an_image_that_no_registry_has_is_no_less_so_while_an_old_kubelet_waits(cluster: Cluster, namespace: str) -> None:
    await cluster.apply(model(namespace))
    async with operator(cluster, namespace) as running:
        await running.told(cluster, namespace, "chat")
        name = await make_pod(cluster, namespace, "chat-default", 0, "127.0.0.93", ready=False)

        async def pull(reason: str, message: str) -> None:
            waiting = {"waiting": {"reason": reason, "message": message}}
            broken = {"name": "worker", "image": "x", "imageID": "", "ready": False, "restartCount": 0, "state": waiting}
            conditions = [{"type": "ContainersReady", "status": "False"}]
            patch = {"status": {"phase": "Pending", "conditions": conditions, "containerStatuses": [broken]}}
            await cluster.patch("Pod", namespace, name, patch, subresource="status")

        async def unavailable(words: str) -> bool:
            return words in (await cluster.model(namespace, "chat"))["status"].get("unavailable", "")

        await pull("ErrImagePull", "code = NotFound")
        await eventually(lambda: unavailable("cannot be pulled: code = NotFound"))
        await pull("ImagePullBackOff", 'Back-off pulling image "x"')
        await eventually(lambda: unavailable('Back-off pulling image "x": ErrImagePull: code = NotFound'))


async def test_a_new_router_that_no_node_has_room_for_is_told_while_the_old_one_serves(cluster: Cluster, namespace: str) -> None:
    await cluster.apply(model(namespace))
    async with operator(cluster, namespace) as running, router_at("127.0.0.77", namespace) as old:
        await running.told(cluster, namespace, "chat")
        old.workers = [{"name": await make_pod(cluster, namespace, "chat-default", 0, "127.0.0.83", ready=True), "routable": True}]
        await make_pod(cluster, namespace, "pagoda-router", 0, "127.0.0.77", ready=True)
        await eventually(lambda: rollout_is(cluster, namespace, "Settled"))
        deployment = await cluster.get("Deployment", namespace, "pagoda-router")
        template = deployment["spec"]["template"]
        metadata = {"name": "pagoda-router-1", "namespace": namespace, "labels": template["metadata"]["labels"]}
        await cluster.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
        unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available"}
        await cluster.patch("Pod", namespace, "pagoda-router-1", {"status": {"conditions": [unscheduled]}}, subresource="status")
        told = await eventually(lambda: rollout_is(cluster, namespace, "RouterNotReady"))
        words = next(each["message"] for each in told["conditions"] if each["type"] == "Progressing")
        assert words == "the router pagoda-router-1 is not ready: 0/1 nodes are available: make room on a node; others serve"
        assert told["ready"] == "True"


async def rollout_is(cluster: Cluster, namespace: str, reason: str) -> dict[str, Any] | None:
    status: dict[str, Any] = (await cluster.model(namespace, "chat"))["status"]
    return status if status["rollout"] == reason else None
