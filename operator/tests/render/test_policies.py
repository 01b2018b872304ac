"""Who may talk to whom. What a cluster makes of these policies is evaluated in bench; here stands what each of them says."""

from dataclasses import replace
from typing import Any

import pytest
from cases import SETTINGS, TINY, inference_model

from pagoda_operator.labels import LABEL_COMPONENT, LABEL_MANAGED_BY, LABEL_MODEL, MANAGED_BY
from pagoda_operator.manifest.spec import parse
from pagoda_operator.render.installation import SecretPort, Settings
from pagoda_operator.render.objects import model_objects, namespace_objects

ROUTER = {LABEL_MANAGED_BY: MANAGED_BY, LABEL_COMPONENT: "router"}
WORKER = {LABEL_MANAGED_BY: MANAGED_BY, LABEL_COMPONENT: "worker"}
ANYWHERE = [{"namespaceSelector": {}}]
TINY_MODEL = {"source": TINY}
HUB = {"source": "hf://org/name"}


def tcp(*ports: int) -> list[dict[str, Any]]:
    return [{"port": port, "protocol": "TCP"} for port in ports]


def only(namespace: str) -> list[dict[str, Any]]:
    return [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}]


def policies(model: dict[str, Any] = TINY_MODEL, settings: Settings = SETTINGS) -> dict[str, dict[str, Any]]:
    objects = [*namespace_objects("default", settings), *model_objects(parse(inference_model("chat", {"model": model})), settings)]
    return {one["metadata"]["name"]: one["spec"] for one in objects if one["kind"] == "NetworkPolicy"}


def pods() -> list[dict[str, str]]:
    objects = [*namespace_objects("default", SETTINGS), *model_objects(parse(inference_model("chat", {"model": HUB})), SETTINGS)]
    return [one["spec"]["template"]["metadata"]["labels"] for one in objects if one["kind"] == "Deployment"]


def test_nothing_flows_by_default() -> None:
    deny = policies()["pagoda-default-deny"]
    selector = deny.pop("podSelector")["matchLabels"]
    assert deny == {"policyTypes": ["Ingress", "Egress"], "ingress": [], "egress": []}
    assert all(selector.items() <= labels.items() for labels in pods())


def the_operator(namespaces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Its pods, and no others of its namespace."""
    labels = {"app.kubernetes.io/name": "pagoda-operator", "app.kubernetes.io/component": "operator"}
    return [{**each, "podSelector": {"matchLabels": labels}} for each in namespaces]


INGRESS: list[tuple[str, dict[str, str], list[dict[str, Any]]]] = [
    ("pagoda-clients-to-router", ROUTER, [{"ports": tcp(8000)}]),
    ("pagoda-operator-to-router", ROUTER, [{"from": the_operator(only("pagoda-system")), "ports": tcp(8001)}]),
    ("pagoda-router-to-worker", WORKER, [{"from": [{"podSelector": {"matchLabels": ROUTER}}], "ports": tcp(9000)}]),
    ("pagoda-operator-to-worker", WORKER, [{"from": the_operator(only("pagoda-system")), "ports": tcp(9001)}]),
    ("pagoda-metrics-of-worker", WORKER, [{"from": only("monitoring"), "ports": tcp(9001)}]),
]
DNS = {"to": ANYWHERE, "ports": [{"port": port, "protocol": protocol} for port in (53, 5353) for protocol in ("UDP", "TCP")]}
EGRESS: list[tuple[str, dict[str, str], list[dict[str, Any]]]] = [
    ("pagoda-router-egress-to-worker", ROUTER, [{"to": [{"podSelector": {"matchLabels": WORKER}}], "ports": tcp(9000)}]),
    ("pagoda-router-egress-to-api-server", ROUTER, [{"to": [{"ipBlock": {"cidr": "10.0.0.1/32"}}], "ports": tcp(443, 6443)}]),
    ("pagoda-router-egress-to-dns", ROUTER, [DNS]),
]
CLUSTER = replace(SETTINGS, operator_namespace="pagoda-system", metrics_namespaces=("monitoring",), api_server_cidrs=("10.0.0.1/32",))


def test_these_are_all_the_flows_into_our_pods() -> None:
    found = [
        (name, one["podSelector"]["matchLabels"], one["ingress"]) for name, one in policies(HUB, CLUSTER).items() if one.get("ingress")
    ]
    assert sorted(found, key=str) == sorted(INGRESS, key=str)


def test_these_are_all_the_flows_out_of_pods_that_fetch_nothing() -> None:
    found = [
        (name, one["podSelector"]["matchLabels"], one["egress"]) for name, one in policies(settings=CLUSTER).items() if one.get("egress")
    ]
    assert sorted(found, key=str) == sorted(EGRESS, key=str)


def test_without_the_names_of_other_namespaces_ports_are_open_to_all_of_them_and_the_api_server_may_be_anywhere() -> None:
    found = policies()
    for name in ("pagoda-operator-to-router", "pagoda-operator-to-worker"):
        assert [rule["from"] for rule in found[name]["ingress"]] == [the_operator(ANYWHERE)]
    assert [rule["from"] for rule in found["pagoda-metrics-of-worker"]["ingress"]] == [ANYWHERE]
    assert found["pagoda-router-egress-to-api-server"]["egress"] == [{"ports": tcp(443, 6443)}]


COLLECTORS = [
    ("http://collector.monitoring:4318", tcp(4318)),
    ("https://collector.example", tcp(443)),
    ("http://collector.example/otlp", tcp(80)),
]


@pytest.mark.parametrize(("endpoint", "ports"), COLLECTORS)
def test_routers_reach_the_collector_of_traces_where_one_is_named(endpoint: str, ports: list[dict[str, Any]]) -> None:
    name = "pagoda-router-egress-to-collector"
    policy = policies(settings=replace(CLUSTER, otlp_endpoint=endpoint))[name]
    assert (policy["podSelector"]["matchLabels"], policy["egress"]) == (ROUTER, [{"ports": ports}])
    assert name not in policies(settings=CLUSTER)


@pytest.mark.parametrize(("field", "port"), [("database", 5433), ("redis", 6379)])
def test_routers_reach_the_servers_that_an_installation_names_by_their_ports(field: str, port: int) -> None:
    name = f"pagoda-router-egress-to-{field}"
    policy = policies(settings=replace(CLUSTER, **{field: SecretPort("secret", port)}))[name]
    assert (policy["podSelector"]["matchLabels"], policy["egress"]) == (ROUTER, [{"ports": tcp(port)}])
    assert name not in policies(settings=CLUSTER)


@pytest.mark.parametrize(
    ("model", "ports"),
    [
        (HUB, tcp(443, 80)),
        ({"source": "s3://bucket/name", "endpoint": "http://minio.storage:9000"}, tcp(443, 80, 9000)),
        ({"source": "hf://org/name", "endpoint": "https://hub.example/mirror"}, tcp(443, 80)),
        ({"source": "hf://org/name", "endpoint": "https://hub.example:443"}, tcp(443, 80)),
    ],
    ids=str,
)
def test_only_workers_whose_weights_are_fetched_reach_the_outside(model: dict[str, Any], ports: list[dict[str, Any]]) -> None:
    fetch = policies(model)["chat-fetch-egress"]
    assert fetch["podSelector"]["matchLabels"] == {**WORKER, LABEL_MODEL: "chat"}
    assert fetch["egress"] == [{"ports": ports}, DNS]


@pytest.mark.parametrize("source", [TINY, "pvc://models/chat", "file:///models/chat"])
def test_other_workers_reach_nothing(source: str) -> None:
    selectors = [one["podSelector"]["matchLabels"] for one in policies({"source": source}).values() if one.get("egress")]
    workers = [labels for labels in pods() if WORKER.items() <= labels.items()]
    assert not [selector for selector in selectors for labels in workers if selector.items() <= labels.items()]
