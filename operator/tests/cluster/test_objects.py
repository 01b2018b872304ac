"""From a manifest to objects on a real API server: made, kept, repaired, removed; nothing foreign touched."""

from typing import Any

import pytest
from plane import Cluster, eventually
from running import operator

ROUTER = "pagoda-router"


def model(namespace: str, name: str = "chat", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "pagoda.dev/v1alpha1",
        "kind": "InferenceModel",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"model": {"source": "builtin://tiny"}, **spec},
    }


async def test_a_manifest_becomes_objects_and_a_status(cluster: Cluster, namespace: str) -> None:
    await cluster.apply(model(namespace))
    async with operator(cluster, namespace) as running:
        told = await running.told(cluster, namespace, "chat")
    made = await cluster.made(namespace)
    assert {"Deployment/chat-default", "Service/chat-default", "Deployment/pagoda-router", "Secret/pagoda-api-key"} <= made.keys()
    assert made["Deployment/chat-default"]["metadata"]["owners"] == ["InferenceModel/chat"]
    assert told["status"]["endpoint"] == f"http://pagoda-router.{namespace}.svc:8000/v1"
    assert "finalizers" not in told["metadata"]


async def test_a_settled_world_costs_no_call(cluster: Cluster, namespace: str) -> None:
    await cluster.apply(model(namespace))
    async with operator(cluster, namespace) as running:
        await running.told(cluster, namespace, "chat")
        writes, reads = running.api.writes, len(running.api.reads)
        running.operator.loop.mark(namespace, "chat")
        running.operator.loop.mark(namespace, None)
        await running.settled()
        assert (running.api.writes, len(running.api.reads)) == (writes, reads), running.api.reads[reads:] + running.api.written[writes:]


async def test_a_change_reads_and_writes_only_its_own_object(cluster: Cluster, namespace: str) -> None:
    await cluster.apply(model(namespace, "one"), model(namespace, "two"))
    async with operator(cluster, namespace) as running:
        await running.told(cluster, namespace, "one")
        await running.told(cluster, namespace, "two")
        writes, reads = running.api.writes, len(running.api.reads)
        await cluster.apply(model(namespace, "one", engine={"maxRunning": 7}))
        await running.told(cluster, namespace, "one")
        assert len(running.api.reads) == reads
        written = running.api.written[writes:]
        assert all("/one" in each for each in written), written
        assert len(written) <= 3, written  # the scaler takes the replicas over, the template, the status


@pytest.mark.parametrize(
    ("kind", "name"),
    [("Deployment", "chat-default"), ("Service", "chat-default"), ("NetworkPolicy", "pagoda-default-deny"), ("Role", ROUTER)],
)
async def test_a_deleted_child_comes_back(cluster: Cluster, namespace: str, kind: str, name: str) -> None:
    await cluster.apply(model(namespace))
    async with operator(cluster, namespace) as running:
        await running.told(cluster, namespace, "chat")
        before = (await cluster.get(kind, namespace, name))["metadata"]["uid"]
        await cluster.delete(kind, namespace, name)

        async def another() -> bool:
            found = await cluster.find(kind, namespace, name)
            return found is not None and found["metadata"]["uid"] != before

        await eventually(another)


async def test_an_edited_child_is_repaired_and_additions_are_left(cluster: Cluster, namespace: str) -> None:
    await cluster.apply(model(namespace))
    async with operator(cluster, namespace) as running:
        await running.told(cluster, namespace, "chat")
        before = await cluster.made(namespace)
        edit = {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 1}}}, "metadata": {"annotations": {"note": "mine"}}}
        await cluster.patch("Deployment", namespace, "chat-default", edit)

        async def repaired() -> bool:
            live = await cluster.get("Deployment", namespace, "chat-default")
            return live["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] != 1

        await eventually(repaired)
        assert (await cluster.get("Deployment", namespace, "chat-default"))["metadata"]["annotations"]["note"] == "mine"
        await cluster.patch("Deployment", namespace, "chat-default", {"metadata": {"annotations": {"note": None}}})
        await running.settled()
        assert await cluster.made(namespace) == before


async def test_an_edit_that_would_make_our_apply_invalid_is_undone(cluster: Cluster, namespace: str) -> None:
    await cluster.apply(model(namespace))
    async with operator(cluster, namespace) as running:
        await running.told(cluster, namespace, "chat")
        service = await cluster.get("Service", namespace, ROUTER)
        ports = [port | {"port": 8123} if port["name"] == "http" else port for port in service["spec"]["ports"]]
        await cluster.patch("Service", namespace, ROUTER, {"spec": {"ports": ports}})

        async def repaired() -> bool:
            live = await cluster.get("Service", namespace, ROUTER)
            return {port["port"] for port in live["spec"]["ports"]} == {8000, 8001}

        await eventually(repaired)


async def test_a_copy_that_carries_our_labels_is_left_alone(cluster: Cluster, namespace: str) -> None:
    """As `kubectl expose deployment pagoda-router --name=public` makes one, and a copy of a model's Service."""
    await cluster.apply(model(namespace))
    async with operator(cluster, namespace) as running:
        await running.told(cluster, namespace, "chat")
        for original, copy in ((ROUTER, "public"), ("chat-default", "mine")):
            service = await cluster.get("Service", namespace, original)
            metadata = {"name": copy, "namespace": namespace, "labels": service["metadata"]["labels"]}
            spec = {"ports": [{"port": 80}], "selector": service["spec"]["selector"]}
            await cluster.create({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
        await cluster.apply(model(namespace, engine={"maxRunning": 7}))
        await running.told(cluster, namespace, "chat")
        await cluster.delete("InferenceModel", namespace, "chat")

        async def gone() -> bool:
            return await cluster.find("Service", namespace, ROUTER) is None

        await eventually(gone)
        for copy in ("public", "mine"):
            assert await cluster.find("Service", namespace, copy) is not None


async def test_a_foreign_object_is_not_touched_and_the_condition_says_so(cluster: Cluster, namespace: str) -> None:
    foreign = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "chat-default", "namespace": namespace},
        "spec": {"ports": [{"port": 80}]},
    }
    await cluster.apply(foreign, manager="somebody")
    before = await cluster.get("Service", namespace, "chat-default")
    await cluster.apply(model(namespace))
    async with operator(cluster, namespace) as running:
        await running.operator.synced.wait()
        await eventually(lambda: reason_is(cluster, namespace, "Accepted", "ForeignObject"))
        assert await cluster.get("Service", namespace, "chat-default") == before
        assert "Deployment/chat-default" in await cluster.made(namespace)


async def test_a_field_that_another_applier_declares_is_left_to_it(cluster: Cluster, namespace: str) -> None:
    await cluster.apply(model(namespace))
    async with operator(cluster, namespace) as running:
        await running.told(cluster, namespace, "chat")
        theirs = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "chat-default", "namespace": namespace},
            "spec": {"revisionHistoryLimit": 9},
        }
        await cluster.apply(theirs, manager="another-operator")
        await eventually(lambda: reason_is(cluster, namespace, "Accepted", "FieldConflict"))
        assert (await cluster.get("Deployment", namespace, "chat-default"))["spec"]["revisionHistoryLimit"] == 9


async def test_somebody_who_edits_again_and_again_is_not_fought_for_ever(cluster: Cluster, namespace: str) -> None:
    await cluster.apply(model(namespace))
    async with operator(cluster, namespace) as running:
        await running.told(cluster, namespace, "chat")
        for number in range(20):
            await cluster.patch("Deployment", namespace, "chat-default", {"spec": {"revisionHistoryLimit": 30 + number}})
            await running.settled()
            if (await cluster.condition(namespace, "chat", "Accepted"))[1] == "FieldConflict":
                break
        else:
            pytest.fail("it was fought for ever")


async def test_a_quota_that_refuses_becomes_a_condition(cluster: Cluster, namespace: str) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "few", "namespace": namespace},
        "spec": {"hard": {"count/deployments.apps": "0"}},
    }
    await cluster.apply(quota)
    await cluster.patch(
        "ResourceQuota",
        namespace,
        "few",
        {"status": {"hard": {"count/deployments.apps": "0"}, "used": {"count/deployments.apps": "0"}}},
        subresource="status",
    )
    await cluster.apply(model(namespace))
    async with operator(cluster, namespace) as running:
        await running.operator.synced.wait()
        await eventually(lambda: reason_is(cluster, namespace, "WorkersReady", "QuotaExceeded"))


async def test_the_last_model_takes_the_shared_objects_with_it(cluster: Cluster, namespace: str) -> None:
    await cluster.apply(model(namespace))
    async with operator(cluster, namespace) as running:
        await running.told(cluster, namespace, "chat")
        await cluster.delete("InferenceModel", namespace, "chat")

        async def gone() -> bool:
            return not [key for key in await cluster.made(namespace) if "pagoda-" in key and not key.startswith("Secret/")]

        await eventually(gone)  # children and secrets go by their owners; no controller manager runs here


async def test_a_name_goes_to_the_next_claimant_when_its_holder_goes(cluster: Cluster, namespace: str) -> None:
    await cluster.apply(model(namespace, servedNames=["a"]), model(namespace, "other", servedNames=["a"]))
    async with operator(cluster, namespace) as running:
        await running.told(cluster, namespace, "chat")
        await eventually(lambda: reason_is(cluster, namespace, "Accepted", "NameTaken", name="other"))
        await cluster.delete("InferenceModel", namespace, "chat")
        await eventually(lambda: reason_is(cluster, namespace, "Accepted", "Accepted", name="other"))


async def test_a_model_that_names_another_says_so_while_that_one_is_not_there(cluster: Cluster, namespace: str) -> None:
    async def says(missing: bool) -> bool:
        told = (await cluster.model(namespace, "chat")).get("status") or {}
        accepted = [each["message"] for each in told.get("conditions", ()) if each["type"] == "Accepted"]
        return bool(accepted) and ("routing.fallback: there is no model small yet" in accepted[0]) is missing

    await cluster.apply(model(namespace, routing={"fallback": "small"}))
    async with operator(cluster, namespace) as running:
        await eventually(lambda: says(missing=True))
        await cluster.apply(model(namespace, "small"))
        await running.told(cluster, namespace, "small")
        await eventually(lambda: says(missing=False))
        await cluster.delete("InferenceModel", namespace, "small")
        await eventually(lambda: says(missing=True))


async def reason_is(cluster: Cluster, namespace: str, kind: str, reason: str, *, name: str = "chat") -> Any:
    found = await cluster.condition(namespace, name, kind)
    return found if found[1] == reason else None
