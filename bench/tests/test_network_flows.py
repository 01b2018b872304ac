"""What the policies that we really make mean, as planned by the operator and by the chart: each flow we need, and none we do not."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from helm import needs_helm, one, plain_environment, render

from pagoda_bench.network_policies import Flow, Outside, Peer, Pod, allows, pod_of

Object = dict[str, Any]

PLANNED = """
import json, sys
from pagoda_operator.render.objects import model_objects, namespace_objects
from pagoda_operator.settings import parse_settings
from pagoda_operator.manifest.spec import parse
asked = json.load(sys.stdin)
settings = parse_settings(asked["environment"]).for_manifests()
objects = namespace_objects("models", settings)
for document in asked["documents"]:
    objects += model_objects(parse(document), settings)
json.dump(objects, sys.stdout)
"""
"""Runs in a process of its own: the operator is never imported here."""

ENVIRONMENT = {
    "PAGODA_VERSION": "1.2.3",
    "PAGODA_MASTER_KEY": "0123456789abcdef",
    "PAGODA_POD_NAME": "pagoda-operator-0",
    "PAGODA_POD_NAMESPACE": "pagoda-system",
    "PAGODA_METRICS_NAMESPACES": "monitoring",
}


def document(name: str, **model: Any) -> Object:
    metadata = {"name": name, "namespace": "models", "uid": f"uid-{name}", "creationTimestamp": "2026-03-01T12:00:00Z"}
    return {"apiVersion": "pagoda.dev/v1alpha1", "kind": "InferenceModel", "metadata": metadata, "spec": {"model": model}}


DOCUMENTS = [
    document("tiny", source="builtin://tiny"),
    document("hub", source="hf://org/name"),
    document("bucket", source="s3://models/chat", endpoint="http://minio.storage:9000"),
]


@cache
def planned(api_server_cidrs: str = "") -> list[Object]:
    environment = {**ENVIRONMENT, "PAGODA_API_SERVER_CIDRS": api_server_cidrs}
    asked = json.dumps({"environment": environment, "documents": DOCUMENTS})
    done = subprocess.run([sys.executable, "-c", PLANNED], input=asked, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    made: list[Object] = json.loads(done.stdout)
    return made


def policies_in(objects: list[Object]) -> list[Object]:
    return [each for each in objects if each["kind"] == "NetworkPolicy"]


OPERATOR_LABELS = {"app.kubernetes.io/name": "pagoda-operator", "app.kubernetes.io/component": "operator"}
OTHERS = {
    "client": Pod(namespace="web", name="client", address="10.1.0.1"),
    "client beside": Pod(namespace="models", name="client", address="10.1.0.9"),
    "prometheus": Pod(namespace="monitoring", name="prometheus", address="10.1.0.2"),
    "stranger": Pod(namespace="web", name="stranger", address="10.1.0.3"),
    "dns": Pod(namespace="kube-system", name="coredns", address="10.1.0.4", ports={"dns": (53, "UDP")}),
    "operator by name": Pod(namespace="web", name="impostor", labels=OPERATOR_LABELS, address="10.1.0.5"),
    "operator's neighbour": Pod(namespace="pagoda-system", name="neighbour", labels={"app": "other"}, address="10.1.0.10"),
    "internet": Outside(address="93.184.216.34"),
    "hub on the internet": Outside(address="18.1.2.3"),
    "load balancer": Outside(address="192.168.0.200"),
    "API server": Outside(address="192.168.0.1"),
    "API server's Service": Outside(address="10.96.0.1"),
    "object store": Pod(namespace="storage", name="minio", address="10.1.0.6"),
    "node": Outside(address="192.168.0.7"),
}
OPERATOR = Pod(namespace="pagoda-system", name="operator", labels=OPERATOR_LABELS, address="10.2.0.1")


def peers(api_server_cidrs: str = "") -> dict[str, Peer]:
    found: dict[str, Peer] = {**OTHERS, "operator": OPERATOR}
    templates = {each["metadata"]["name"]: each["spec"]["template"] for each in planned(api_server_cidrs) if each["kind"] == "Deployment"}
    names = {"pagoda-router": "router", "tiny-default": "worker", "hub-default": "fetching worker", "bucket-default": "bucket worker"}
    assert templates.keys() == names.keys()
    for number, (name, template) in enumerate(sorted(templates.items())):
        found[names[name]] = pod_of(template, namespace="models", name=name, address=f"10.3.0.{number}")
    worker, router = found["worker"], found["router"]
    assert isinstance(worker, Pod)
    assert isinstance(router, Pod)
    found["second worker"] = replace(worker, name="second", address="10.3.1.1")
    found["second router"] = replace(router, name="second", address="10.3.1.2")
    return found


def verdict(source: str, target: str, port: int, protocol: str = "TCP", *, cidrs: str = "") -> tuple[bool, str]:
    who = peers(cidrs)
    found = allows(Flow(source=who[source], target=who[target], port=port, protocol=protocol), policies_in(planned(cidrs)), {})
    return found.allowed, found.reason


NEEDED = [
    ("client", "router", 8000, "TCP"),
    ("client beside", "router", 8000, "TCP"),
    ("load balancer", "router", 8000, "TCP"),
    ("prometheus", "router", 8000, "TCP"),  # a router's metrics are there, behind the API key
    ("operator", "router", 8001, "TCP"),
    ("operator", "worker", 9001, "TCP"),
    ("operator", "fetching worker", 9001, "TCP"),
    ("prometheus", "worker", 9001, "TCP"),
    ("router", "worker", 9000, "TCP"),
    ("router", "fetching worker", 9000, "TCP"),
    ("router", "dns", 53, "UDP"),
    ("router", "dns", 53, "TCP"),
    ("router", "API server", 6443, "TCP"),
    ("router", "API server's Service", 443, "TCP"),
    ("fetching worker", "hub on the internet", 443, "TCP"),
    ("fetching worker", "dns", 53, "UDP"),
    ("bucket worker", "object store", 9000, "TCP"),
    ("bucket worker", "dns", 53, "UDP"),
]
FORBIDDEN = [
    ("client", "worker", 9000, "TCP"),
    ("client beside", "worker", 9000, "TCP"),  # also from the models' own namespace
    ("client", "worker", 9001, "TCP"),
    ("client", "router", 8001, "TCP"),  # the internal port is the operator's
    ("client beside", "router", 8001, "TCP"),
    ("operator by name", "router", 8001, "TCP"),  # a label is nothing: the namespace counts too
    ("operator's neighbour", "router", 8001, "TCP"),
    ("operator's neighbour", "worker", 9001, "TCP"),
    ("stranger", "worker", 9001, "TCP"),
    ("prometheus", "router", 8001, "TCP"),
    ("prometheus", "worker", 9000, "TCP"),
    ("load balancer", "worker", 9000, "TCP"),
    ("operator", "worker", 9000, "TCP"),  # it asks how far loading is, and never for answers
    ("worker", "API server", 6443, "TCP"),
    ("worker", "API server's Service", 443, "TCP"),
    ("worker", "internet", 443, "TCP"),
    ("worker", "dns", 53, "UDP"),  # what may go nowhere needs no names
    ("worker", "second worker", 9000, "TCP"),
    ("worker", "fetching worker", 9001, "TCP"),
    ("worker", "router", 8000, "TCP"),
    ("worker", "router", 8001, "TCP"),
    ("fetching worker", "router", 8000, "TCP"),
    ("fetching worker", "second worker", 9000, "TCP"),
    ("fetching worker", "object store", 9000, "TCP"),  # another model's endpoint
    ("fetching worker", "API server", 6443, "TCP"),
    ("router", "internet", 80, "TCP"),
    ("router", "second router", 8001, "TCP"),
    ("router", "worker", 9001, "TCP"),
    ("router", "object store", 9000, "TCP"),
]


@pytest.mark.parametrize(("source", "target", "port", "protocol"), NEEDED)
def test_each_named_flow_is_allowed(source: str, target: str, port: int, protocol: str) -> None:
    allowed, reason = verdict(source, target, port, protocol)
    assert allowed, reason


@pytest.mark.parametrize(("source", "target", "port", "protocol"), FORBIDDEN)
def test_what_nobody_needs_is_not(source: str, target: str, port: int, protocol: str) -> None:
    allowed, reason = verdict(source, target, port, protocol)
    assert not allowed, reason


@pytest.mark.parametrize("target", ["internet", "API server's Service"])
def test_routers_reach_443_anywhere_until_the_api_servers_addresses_are_given(target: str) -> None:
    assert verdict("router", target, 443)[0]
    assert verdict("router", "API server", 6443, cidrs="192.168.0.1/32")[0]
    assert not verdict("router", target, 443, cidrs="192.168.0.1/32")[0]


def test_the_workers_of_a_namespace_may_not_talk_to_those_of_another() -> None:
    who = peers()
    worker = who["worker"]
    assert isinstance(worker, Pod)
    abroad = replace(worker, namespace="elsewhere", address="10.4.0.1")
    router = who["router"]
    assert isinstance(router, Pod)
    router_abroad = replace(router, namespace="elsewhere", address="10.4.0.2")
    for source in (abroad, router_abroad):
        assert not allows(Flow(source=source, target=worker, port=9000), policies_in(planned()), {}).allowed


OF_THE_OPERATOR = [
    ("operator", "router", 8001, "TCP"),
    ("operator", "worker", 9001, "TCP"),
    ("operator", "dns", 53, "UDP"),
    ("operator", "API server", 6443, "TCP"),
    ("operator", "API server's Service", 443, "TCP"),
    ("prometheus", "operator", 8081, "TCP"),
]
NOT_OF_THE_OPERATOR = [
    ("operator", "internet", 80, "TCP"),
    ("operator", "client", 8001, "TCP"),
    ("operator", "worker", 9000, "TCP"),
    ("operator", "router", 8000, "TCP"),
    ("client", "operator", 8081, "TCP"),
    ("prometheus", "operator", 8080, "TCP"),  # the kubelet's, which comes from the node
    ("worker", "operator", 8080, "TCP"),
    ("router", "operator", 8081, "TCP"),
]


def chart_verdict(source: str, target: str, port: int, protocol: str, values: Mapping[str, Any]) -> tuple[bool, str]:
    release = render({"networkPolicy": dict(values)})
    deployment = one(release, "Deployment")
    who = peers() | {"operator": pod_of(deployment["spec"]["template"], namespace="pagoda-system", name="operator")}
    policies = [*policies_in(planned()), *policies_in(release)]
    found = allows(Flow(source=who[source], target=who[target], port=port, protocol=protocol), policies, {})
    return found.allowed, found.reason


@pytest.mark.parametrize(("source", "target", "port", "protocol"), OF_THE_OPERATOR)
@needs_helm
def test_each_named_flow_of_the_operator_is_allowed(source: str, target: str, port: int, protocol: str) -> None:
    allowed, reason = chart_verdict(source, target, port, protocol, {"metricsNamespaces": ["monitoring"]})
    assert allowed, reason


@pytest.mark.parametrize(("source", "target", "port", "protocol"), NOT_OF_THE_OPERATOR)
@needs_helm
def test_what_nobody_needs_of_the_operator_is_not(source: str, target: str, port: int, protocol: str) -> None:
    allowed, reason = chart_verdict(source, target, port, protocol, {"metricsNamespaces": ["monitoring"]})
    assert not allowed, reason


@needs_helm
def test_the_addresses_of_the_api_server_can_be_given() -> None:
    values = {"apiServerCidrs": ["192.168.0.1/32"]}
    assert chart_verdict("operator", "API server", 6443, "TCP", values)[0]
    assert not chart_verdict("operator", "internet", 443, "TCP", values)[0]


@needs_helm
def test_the_operator_in_a_namespace_with_models_is_not_caught_by_their_default_deny() -> None:
    labels = one(render(), "Deployment")["spec"]["template"]["metadata"]["labels"]
    beside = Pod(namespace="models", name="operator", labels=labels)
    assert allows(Flow(source=beside, target=OTHERS["API server"], port=6443), policies_in(planned()), {}).allowed


@needs_helm
def test_the_planned_policies_are_those_of_the_charts_own_settings() -> None:
    environment = plain_environment(one(render({"networkPolicy": {"metricsNamespaces": ["monitoring"]}}), "Deployment"))
    assert environment["PAGODA_METRICS_NAMESPACES"] == ENVIRONMENT["PAGODA_METRICS_NAMESPACES"]
