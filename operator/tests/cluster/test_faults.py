"""The operator dies, the API server goes away, events get lost, statuses are wiped: it always comes to the same objects."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from plane import Cluster, eventually
from running import Running, operator
from test_objects import model

FIRST = {"scaling": {"min": 2, "max": 2}}
SECOND = {
    "scaling": {"min": 3, "max": 3},
    "engine": {"maxRunning": 5},
    "variants": [{"name": "a", "weight": 1}, {"name": "b", "weight": 1}],
}


async def clean_run(cluster: Cluster, namespace: str, *specs: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """The objects, and how many writes it took without any fault."""
    writes = 0
    for spec in specs:
        await cluster.apply(model(namespace, **spec))
    async with operator(cluster, namespace) as running:
        await running.told(cluster, namespace, "chat")
        writes = running.api.writes
    return await cluster.made(namespace), writes


async def die(cluster: Cluster, namespace: str, **when: int) -> None:
    """Or finish: two looks that became one save a write, and then there is no n-th one to die at."""
    async with operator(cluster, namespace, **when) as running:
        with contextlib.suppress(ExceptionGroup):
            await running.told(cluster, namespace, "chat")


async def die_each(cluster: Cluster, namespaces: Sequence[str]) -> None:
    """In the n-th namespace an operator dies after n writes; a few at a time. By turns before the next one is sent, and before it reads the
    answer to the last one: the cluster is the same then, and what the operator knew dies with it."""
    places = asyncio.Semaphore(6)

    async def one(number: int, namespace: str) -> None:
        async with places:
            await die(cluster, namespace, **({"die_after": number - 1} if number % 2 else {"die_before": number}))

    await asyncio.gather(*(one(number, namespace) for number, namespace in enumerate(namespaces)))


async def recover(cluster: Cluster, *namespaces: str) -> Running:
    async with operator(cluster, namespaces[0] if len(namespaces) == 1 else None) as running:
        for namespace in namespaces:
            await running.told(cluster, namespace, "chat")
        await running.settled()
        return running


async def test_killed_between_any_two_writes_of_a_creation(cluster: Cluster, fresh: AsyncIterator[str]) -> None:
    wanted, writes = await clean_run(cluster, await anext(fresh), FIRST)
    assert writes > 10
    namespaces = [await anext(fresh) for _ in range(writes)]
    for namespace in namespaces:
        await cluster.apply(model(namespace, **FIRST))
    await die_each(cluster, namespaces)
    await recover(cluster, *namespaces)
    for number, namespace in enumerate(namespaces):
        assert await cluster.made(namespace) == wanted, f"after {number} writes"


async def test_killed_between_any_two_writes_of_a_change(cluster: Cluster, fresh: AsyncIterator[str]) -> None:
    """And what did not change is not touched on the way."""
    first = await anext(fresh)
    await clean_run(cluster, first, FIRST)
    wanted, writes = await clean_run(cluster, first, SECOND)
    namespaces = [await anext(fresh) for _ in range(writes)]
    for namespace in namespaces:
        await cluster.apply(model(namespace, **FIRST))
    await recover(cluster, *namespaces)
    routers = [await generation(cluster, namespace, "pagoda-router") for namespace in namespaces]
    for namespace in namespaces:
        await cluster.apply(model(namespace, **SECOND))
    await die_each(cluster, namespaces)
    await recover(cluster, *namespaces)
    for number, namespace in enumerate(namespaces):
        assert await cluster.made(namespace) == wanted, f"after {number} writes"
        assert await generation(cluster, namespace, "pagoda-router") == routers[number]


async def test_a_restart_touches_nothing(cluster: Cluster, namespace: str) -> None:
    await cluster.apply(model(namespace))
    await recover(cluster, namespace)
    again = await recover(cluster, namespace)
    assert [each for each in again.api.written if not each.endswith("/secrets")] == []


async def test_wiped_statuses_are_written_again_and_nothing_else(cluster: Cluster, namespace: str) -> None:
    await cluster.apply(model(namespace))
    await recover(cluster, namespace)
    before = await cluster.made(namespace)
    document = await cluster.model(namespace, "chat")
    status = document.pop("status")
    path = f"/apis/pagoda.dev/v1alpha1/namespaces/{namespace}/inferencemodels/chat/status"
    await cluster.api.call("PUT", path, body=document)
    assert "status" not in await cluster.model(namespace, "chat")
    again = await recover(cluster, namespace)
    written = [each for each in again.api.written if not each.endswith("/secrets")]
    assert written == [f"PATCH {path}"]
    told = (await cluster.model(namespace, "chat"))["status"]
    assert {**told, "conditions": reasons(told)} == {**status, "conditions": reasons(status)}
    assert await cluster.made(namespace) == before


async def test_a_replaced_model_without_its_annotations_changes_no_pod(cluster: Cluster, namespace: str) -> None:
    await cluster.apply(model(namespace))
    await recover(cluster, namespace)
    before = await generation(cluster, namespace, "chat-default")
    live = await cluster.model(namespace, "chat")
    replaced = model(namespace)
    replaced["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"]
    await cluster.replace(replaced)
    await recover(cluster, namespace)
    assert await generation(cluster, namespace, "chat-default") == before


async def test_replicas_that_the_scaler_wrote_survive_an_update(cluster: Cluster, namespace: str) -> None:
    await cluster.apply(model(namespace, scaling={"min": 1, "max": 5}))
    await recover(cluster, namespace)
    scaled = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "chat-default", "namespace": namespace}}
    await cluster.apply({**scaled, "spec": {"replicas": 4}}, manager="pagoda-scaler")
    await cluster.apply(model(namespace, scaling={"min": 1, "max": 5}, engine={"maxRunning": 3}))
    await recover(cluster, namespace)
    live = await cluster.get("Deployment", namespace, "chat-default")
    assert live["spec"]["replicas"] == 4
    assert live["metadata"]["generation"] > 2


async def test_the_first_update_of_a_deployment_does_not_reset_its_replicas(cluster: Cluster, namespace: str) -> None:
    """The number comes from the document that created it; server-side apply would drop it with its last owner."""
    await cluster.apply(model(namespace, scaling={"min": 3, "max": 5}))
    await recover(cluster, namespace)
    before = await cluster.get("Deployment", namespace, "chat-default")
    await cluster.apply(model(namespace, scaling={"min": 3, "max": 5}, engine={"maxRunning": 3}))
    await recover(cluster, namespace)
    query = {"watch": "true", "resourceVersion": before["metadata"]["resourceVersion"], "timeoutSeconds": "1"}
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    seen = [event["object"] async for event in cluster.api.watch(path, query)]
    replicas = [each["spec"]["replicas"] for each in seen if each["metadata"]["name"] == "chat-default"]
    assert replicas
    assert set(replicas) == {3}


async def test_lost_watch_events_are_made_up_for_by_the_next_list(cluster: Cluster, namespace: str) -> None:
    def drop(event: Mapping[str, Any]) -> bool:
        return event["type"] in ("DELETED", "MODIFIED", "ADDED")

    await cluster.apply(model(namespace))
    async with operator(cluster, namespace, drop=drop, relist_s=0.5) as running:
        await running.told(cluster, namespace, "chat")
        await cluster.delete("Service", namespace, "chat-default")
        await eventually(lambda: cluster.find("Service", namespace, "chat-default"))
        await cluster.apply(model(namespace, engine={"maxRunning": 3}))
        await running.told(cluster, namespace, "chat")
        await cluster.delete("InferenceModel", namespace, "chat")

        async def gone() -> bool:
            return await cluster.find("Deployment", namespace, "pagoda-router") is None

        await eventually(gone)


async def test_an_outage_of_the_api_server_is_waited_for(cluster: Cluster, namespace: str) -> None:
    await cluster.apply(model(namespace))
    async with operator(cluster, namespace) as running:
        await running.told(cluster, namespace, "chat")
        before = await cluster.made(namespace)
        await asyncio.to_thread(cluster.plane.stop)
        running.operator.loop.remake_secrets(namespace)  # something to write while nobody answers
        await asyncio.to_thread(cluster.plane.start)
        await cluster.delete("Service", namespace, "chat-default")
        await eventually(lambda: cluster.find("Service", namespace, "chat-default"), within_s=40)
        await running.settled()
        assert await cluster.made(namespace) == before


async def generation(cluster: Cluster, namespace: str, name: str) -> int:
    return int((await cluster.get("Deployment", namespace, name))["metadata"]["generation"])


def reasons(status: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return [(each["type"], each["status"], each["reason"]) for each in status["conditions"]]
