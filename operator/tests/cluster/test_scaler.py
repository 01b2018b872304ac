"""Replicas on a real API server: demand that routers report, a fixed number, the scale subresource; one writer."""

from typing import Any

from plane import Cluster, eventually
from running import operator
from test_gate import make_pod, router_at
from test_objects import model

WAYS = ("up", "down")


def demand(**changes: Any) -> dict[str, Any]:
    return {"routable": {}, "inFlight": 0, "queuedTokens": 0, "waiting": 0, "idleS": 0.0, "ttftS": None, "arrivals": 0} | changes


async def replicas(cluster: Cluster, namespace: str) -> int:
    return int((await cluster.get("Deployment", namespace, "chat-default"))["spec"]["replicas"])


async def test_a_waiting_request_wakes_a_model_from_zero(cluster: Cluster, namespace: str) -> None:
    await cluster.apply(model(namespace, scaling={"min": 0, "max": 2}))
    async with operator(cluster, namespace) as running, router_at("127.0.0.75", namespace) as router:
        await running.told(cluster, namespace, "chat")
        assert await replicas(cluster, namespace) == 0
        router.models = {"chat": demand()}
        await make_pod(cluster, namespace, "pagoda-router", 0, "127.0.0.75", ready=True)
        asked = router.asked
        await eventually(lambda: more_than(router, asked + 2))
        assert await replicas(cluster, namespace) == 0
        router.models = {"chat": demand(waiting=1)}
        await eventually(lambda: has(cluster, namespace, 1))
        await running.settled()
        counted = {way: running.metrics.registry.get_sample_value("pagoda_operator_scalings_total", {"direction": way}) for way in WAYS}
        assert counted == {"up": 1, "down": 0}
        scaled = (await cluster.get("Deployment", namespace, "chat-default"))["metadata"]["managedFields"]
        owners = [entry["manager"] for entry in scaled if "f:replicas" in entry.get("fieldsV1", {}).get("f:spec", {})]
        assert owners == ["pagoda-scaler"]

        await cluster.apply(model(namespace, scaling={"min": 0, "max": 2}, engine={"maxRunning": 3}))
        await running.told(cluster, namespace, "chat")
        assert await replicas(cluster, namespace) == 1


async def test_a_request_that_waits_in_a_router_that_ends_wakes_the_model_too(cluster: Cluster, namespace: str) -> None:
    await cluster.apply(model(namespace, scaling={"min": 0, "max": 2}))
    async with operator(cluster, namespace) as running, router_at("127.0.0.76", namespace) as router:
        await running.told(cluster, namespace, "chat")
        router.models = {"chat": demand()}
        name = await make_pod(cluster, namespace, "pagoda-router", 0, "127.0.0.76", ready=True)
        await eventually(lambda: more_than(router, 2))
        # Held by a finalizer, as a kubelet would hold it until its last stream has ended.
        await cluster.patch("Pod", namespace, name, {"metadata": {"finalizers": ["tests.pagoda.dev/kubelet"]}})
        await cluster.delete("Pod", namespace, name)
        router.models = {"chat": demand(waiting=1)}
        await eventually(lambda: has(cluster, namespace, 1))
        await cluster.patch("Pod", namespace, name, {"metadata": {"finalizers": None}})


async def test_a_hand_that_scales_a_fixed_deployment_is_corrected(cluster: Cluster, namespace: str) -> None:
    await cluster.apply(model(namespace, scaling={"min": 2}))
    async with operator(cluster, namespace) as running:
        await running.told(cluster, namespace, "chat")
        await cluster.patch("Deployment", namespace, "chat-default", {"spec": {"replicas": 7}}, manager="kubectl")
        await eventually(lambda: has(cluster, namespace, 2))


async def test_external_mode_follows_the_scale_subresource(cluster: Cluster, namespace: str) -> None:
    await cluster.apply(model(namespace, scaling={"min": 0, "max": 9, "mode": "external", "replicas": 1}))
    async with operator(cluster, namespace) as running:
        await running.told(cluster, namespace, "chat")
        await cluster.patch("InferenceModel", namespace, "chat", {"spec": {"replicas": 4}}, subresource="scale", manager="hpa")
        await eventually(lambda: has(cluster, namespace, 4))


async def has(cluster: Cluster, namespace: str, wanted: int) -> bool:
    return await replicas(cluster, namespace) == wanted


async def more_than(router: Any, count: int) -> bool:
    return bool(router.asked > count)
