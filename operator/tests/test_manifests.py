import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from cases import SETTINGS, TINY, inference_model
from hypothesis import given
from hypothesis import strategies as st

from pagoda_operator.manifests import Settings, model_objects, namespace_objects
from pagoda_operator.observed import LABEL_COMPONENT, LABEL_MANAGED_BY, LABEL_MODEL, LABEL_TEMPLATE, LABEL_VARIANT, MANAGED_BY
from pagoda_operator.spec import parse

ROUTER_VARIABLES = {
    "PAGODA_BIND_HOST",
    "PAGODA_HTTP_PORT",
    "PAGODA_INTERNAL_PORT",
    "PAGODA_INTERNAL_TOKEN",
    "PAGODA_SESSION_TOKEN",
    "PAGODA_FLEET_FILE",
    "PAGODA_CACHE_DIR",
    "PAGODA_API_KEY",
    "PAGODA_MAX_BODY_BYTES",
    "PAGODA_MAX_QUEUE_TOKENS",
    "PAGODA_QUEUE_TIMEOUT_S",
    "PAGODA_DRAIN_S",
    "PAGODA_POD_NAME",
}
WORKER_VARIABLES = {
    "PAGODA_MODEL_NAME",
    "PAGODA_MODEL_SOURCE",
    "PAGODA_ENGINE",
    "PAGODA_DEVICE",
    "PAGODA_BIND_HOST",
    "PAGODA_GRPC_PORT",
    "PAGODA_HTTP_PORT",
    "PAGODA_SESSION_TOKEN",
    "PAGODA_CPUS",
    "PAGODA_MEMORY_BYTES",
    "PAGODA_DRAIN_S",
    "PAGODA_STALL_S",
    "PAGODA_POD_NAME",
}
"""What the processes accept; any other PAGODA_* name stops them."""


def objects(spec: dict[str, Any] | None = None, settings: Settings = SETTINGS) -> list[dict[str, Any]]:
    return [*namespace_objects("default", settings), *model_objects(parse(inference_model("chat", spec)), settings)]


def of_kind(kind: str, name: str, spec: dict[str, Any] | None = None, settings: Settings = SETTINGS) -> dict[str, Any]:
    (found,) = (one for one in objects(spec, settings) if one["kind"] == kind and one["metadata"]["name"] == name)
    return found


def template(name: str, spec: dict[str, Any] | None = None, settings: Settings = SETTINGS) -> dict[str, Any]:
    found: dict[str, Any] = of_kind("Deployment", name, spec, settings)["spec"]["template"]
    return found


def container(name: str, spec: dict[str, Any] | None = None, settings: Settings = SETTINGS) -> dict[str, Any]:
    (found,) = template(name, spec, settings)["spec"]["containers"]
    return dict(found)


def environment(name: str, spec: dict[str, Any] | None = None) -> dict[str, Any]:
    entries = container(name, spec)["env"]
    found = {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in entries}
    assert len(found) == len(entries)
    return found


DEPLOYMENTS = ("pagoda-router", "chat-default")


def test_a_model_becomes_these_objects() -> None:
    assert sorted((one["kind"], one["metadata"]["name"]) for one in objects()) == [
        ("Deployment", "chat-default"),
        ("Deployment", "pagoda-router"),
        ("NetworkPolicy", "pagoda-clients-to-router"),
        ("NetworkPolicy", "pagoda-default-deny"),
        ("NetworkPolicy", "pagoda-metrics-of-worker"),
        ("NetworkPolicy", "pagoda-operator-to-router"),
        ("NetworkPolicy", "pagoda-router-egress"),
        ("NetworkPolicy", "pagoda-router-to-worker"),
        ("PodDisruptionBudget", "chat-default"),
        ("PodDisruptionBudget", "pagoda-router"),
        ("Service", "chat-default"),
        ("Service", "pagoda-router"),
        ("ServiceAccount", "pagoda-router"),
        ("ServiceAccount", "pagoda-worker"),
    ]


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_every_pod_satisfies_the_restricted_profile(name: str) -> None:
    pod = template(name, {"model": {"source": "file:///models/chat"}, "resources": {"gpus": 1}})["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not any(pod.get(field) for field in ("hostNetwork", "hostPID", "hostIPC", "initContainers"))
    assert all(set(volume) == {"name", "emptyDir"} for volume in pod["volumes"])
    for one in pod["containers"]:
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_every_pod_holds_no_api_token_and_gets_no_service_links(name: str) -> None:
    pod = template(name)["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_every_volume_is_mounted_and_every_mount_has_a_volume(name: str) -> None:
    pod = template(name)["spec"]
    assert {mount["name"] for mount in container(name)["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert "/tmp" in {mount["mountPath"] for mount in container(name)["volumeMounts"]}


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_pod_may_drain_longer_than_its_process_needs_and_has_no_hook(name: str) -> None:
    drain_s = 90
    pod = template(name, settings=replace(SETTINGS, drain_s=drain_s))["spec"]
    assert pod["terminationGracePeriodSeconds"] > drain_s
    assert environment_of(pod)["PAGODA_DRAIN_S"] == str(drain_s)
    assert "lifecycle" not in pod["containers"][0]


def environment_of(pod: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_probes_ask_ready_until_it_started_and_then_ready_and_health(name: str) -> None:
    probes = {probe: container(name)[probe]["httpGet"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert [probe["path"] for probe in probes.values()] == ["/ready", "/ready", "/health"]
    ports = {port["name"] for port in container(name)["ports"]}
    assert {probe["port"] for probe in probes.values()} <= ports


@pytest.mark.parametrize(("name", "known"), [("pagoda-router", ROUTER_VARIABLES), ("chat-default", WORKER_VARIABLES)])
def test_the_environment_has_only_names_that_the_process_knows(name: str, known: set[str]) -> None:
    spec = {"model": {"source": TINY}, "resources": {"gpus": 1, "cpu": "8", "memory": "8Gi"}}
    assert environment(name, spec).keys() <= known


def test_the_worker_is_told_its_model_engine_and_bounds() -> None:
    spec = {
        "model": {"source": TINY},
        "engine": {"dtype": "bf16", "maxModelLen": 512, "kvCache": {"blockSize": 32}},
        "resources": {"cpu": "2500m", "memory": "4Gi"},
    }
    values = environment("chat-default", spec)
    assert values["PAGODA_MODEL_NAME"] == "chat"
    assert values["PAGODA_MODEL_SOURCE"] == TINY
    assert values["PAGODA_CPUS"] == "2"
    assert values["PAGODA_MEMORY_BYTES"] == str(4 * 2**30)
    assert values["PAGODA_SESSION_TOKEN"] == {"secretKeyRef": {"name": "pagoda-session", "key": "token"}}
    assert json.loads(values["PAGODA_ENGINE"]) == {
        "dtype": "bf16",
        "attention": "auto",
        "maxModelLen": 512,
        "maxRunning": 256,
        "prefixCaching": True,
        "kvCache": {"blockSize": 32},
    }


def test_a_worker_without_bounds_is_told_none() -> None:
    values = environment("chat-default")
    assert {"PAGODA_CPUS", "PAGODA_MEMORY_BYTES"}.isdisjoint(values)
    assert "maxModelLen" not in json.loads(values["PAGODA_ENGINE"])
    assert container("chat-default")["resources"] == {}


@pytest.mark.parametrize(("gpus", "device", "limit"), [(0, "cpu", {}), (1, "cuda", {"amd.com/gpu": "1"})])
def test_gpus_decide_the_device_and_are_asked_for_by_their_name(gpus: int, device: str, limit: dict[str, str]) -> None:
    spec = {"model": {"source": TINY}, "resources": {"gpus": gpus, "gpuResource": "amd.com/gpu"}}
    assert environment("chat-default", spec)["PAGODA_DEVICE"] == device
    assert container("chat-default", spec)["resources"].get("limits", {}) == limit


def test_the_router_may_run_without_an_api_key_but_not_without_tokens() -> None:
    secrets = {name: value["secretKeyRef"] for name, value in environment("pagoda-router").items() if "secretKeyRef" in value}
    assert {name: ref.get("optional", False) for name, ref in secrets.items()} == {
        "PAGODA_SESSION_TOKEN": False,
        "PAGODA_INTERNAL_TOKEN": False,
        "PAGODA_API_KEY": True,
    }


def test_a_folder_of_the_node_is_mounted_only_where_the_installation_says_so() -> None:
    spec = {"model": {"source": "file:///models/chat"}}
    assert not any("hostPath" in volume for volume in template("chat-default", spec)["spec"]["volumes"])
    pod = template("chat-default", spec, replace(SETTINGS, host_paths=True))["spec"]
    assert {"name": "model", "hostPath": {"path": "/models/chat", "type": "Directory"}} in pod["volumes"]
    assert {"name": "model", "mountPath": "/models/chat", "readOnly": True} in pod["containers"][0]["volumeMounts"]


def test_a_rollout_never_goes_below_the_wanted_workers() -> None:
    spec = of_kind("Deployment", "chat-default", {"model": {"source": TINY}, "scaling": {"min": 3}})["spec"]
    assert spec["replicas"] == 3
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


@pytest.mark.parametrize("kind", ["Deployment", "Service", "PodDisruptionBudget"])
@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_selectors_find_the_pods_and_survive_a_rollout(kind: str, name: str) -> None:
    selector = of_kind(kind, name)["spec"]["selector"]
    selector = selector.get("matchLabels", selector)
    assert selector.items() <= template(name)["metadata"]["labels"].items()
    assert LABEL_TEMPLATE not in selector
    assert "app.kubernetes.io/version" not in selector


def test_every_object_carries_the_common_labels() -> None:
    for one in objects():
        labels = one["metadata"]["labels"]
        assert labels[LABEL_MANAGED_BY] == MANAGED_BY
        parts = {"name", "instance", "component", "part-of", "managed-by", "version"}
        assert {f"app.kubernetes.io/{part}" for part in parts} <= labels.keys()


def test_what_a_model_owns_goes_with_it_and_what_it_shares_does_not() -> None:
    for one in objects():
        owners = one["metadata"].get("ownerReferences", [])
        if one["metadata"]["name"] == "chat-default":
            assert [owner["uid"] for owner in owners] == ["uid-default-chat"]
            assert one["metadata"]["labels"][LABEL_MODEL] == "chat"
            assert one["metadata"]["labels"][LABEL_VARIANT] == "default"
        else:
            assert owners == []


def policies() -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one["spec"] for one in objects() if one["kind"] == "NetworkPolicy"}


def test_nothing_flows_by_default_and_each_flow_has_a_name() -> None:
    deny = policies()["pagoda-default-deny"]
    assert deny == {"podSelector": {"matchLabels": {LABEL_MANAGED_BY: MANAGED_BY}}, "policyTypes": ["Ingress", "Egress"]}
    for name in DEPLOYMENTS:
        assert template(name)["metadata"]["labels"][LABEL_MANAGED_BY] == MANAGED_BY


def test_only_routers_reach_the_workers_sessions() -> None:
    grpc = [
        rule for policy in policies().values() for rule in policy.get("ingress", []) if {"port": 9000, "protocol": "TCP"} in rule["ports"]
    ]
    assert grpc == [
        {
            "from": [{"podSelector": {"matchLabels": {LABEL_MANAGED_BY: MANAGED_BY, LABEL_COMPONENT: "router"}}}],
            "ports": [{"port": 9000, "protocol": "TCP"}],
        }
    ]


def test_a_worker_may_reach_nothing() -> None:
    workers = template("chat-default")["metadata"]["labels"].items()
    egress = [policy for policy in policies().values() if policy["podSelector"]["matchLabels"].items() <= workers and "egress" in policy]
    assert egress == []


CHANGES_OF_THE_TEMPLATE = [
    {"engine": {"dtype": "fp32"}},
    {"engine": {"maxModelLen": 64}},
    {"engine": {"kvCache": {"blockSize": 32}}},
    {"resources": {"cpu": "3"}},
    {"resources": {"memory": "3Gi"}},
    {"resources": {"gpus": 1}},
    {"model": {"source": "builtin://tiny-draft"}},
]
CHANGES_OF_OTHER_THINGS = [{"scaling": {"min": 5}}, {"servedNames": ["other"]}, {"routing": {"maxQueueTokens": 1}}]


@pytest.mark.parametrize("change", CHANGES_OF_THE_TEMPLATE, ids=json.dumps)
def test_a_change_of_the_pod_changes_the_template_hash(change: dict[str, Any]) -> None:
    assert hash_of(template("chat-default", {"model": {"source": TINY}} | change)) != hash_of(template("chat-default"))


@pytest.mark.parametrize("change", CHANGES_OF_OTHER_THINGS, ids=json.dumps)
def test_a_change_beside_the_pod_keeps_the_template_hash(change: dict[str, Any]) -> None:
    assert template("chat-default", {"model": {"source": TINY}} | change) == template("chat-default")


def hash_of(pod_template: dict[str, Any]) -> str:
    return str(pod_template["metadata"]["labels"][LABEL_TEMPLATE])


engines = st.fixed_dictionaries({}, optional={"dtype": st.sampled_from(["auto", "fp32"]), "maxRunning": st.integers(1, 3)})
specs = st.fixed_dictionaries({"model": st.just({"source": TINY})}, optional={"engine": engines, "scaling": st.just({"min": 2})})


@given(specs, specs)
def test_the_template_hash_differs_exactly_when_the_template_does(one: dict[str, Any], other: dict[str, Any]) -> None:
    first, second = template("chat-default", one), template("chat-default", other)
    assert (hash_of(first) == hash_of(second)) == (first["spec"] == second["spec"])


def leaves(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        for value in node.values():
            yield from leaves(value)
    elif isinstance(node, list):
        for value in node:
            yield from leaves(value)
    else:
        yield node


def test_objects_are_plain_data_in_the_api_servers_types() -> None:
    for one in objects({"model": {"source": TINY}, "resources": {"gpus": 1, "cpu": 2, "memory": "4Gi"}}):
        assert json.loads(json.dumps(one)) == one
        assert all(isinstance(leaf, str | int | bool) for leaf in leaves(one))
    assert all(isinstance(entry.get("value", ""), str) for entry in container("chat-default")["env"])
