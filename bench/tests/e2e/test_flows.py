"""Least privilege on the network: every connection that all tests before this one caused is named by a policy, and little else is."""

import json

import pytest
from conftest import Installation
from flows import Recorder
from kube import run

from pagoda_bench.network_policies import Flow, Outside, Peer, Pod

OURS = ("pagoda-operator", "pagoda")
"""app.kubernetes.io/managed-by of routers and workers; app.kubernetes.io/name of the operator."""


@pytest.fixture(scope="module")
def namespaces() -> dict[str, dict[str, str]]:
    items = json.loads(run("kubectl", "get", "namespaces", "-o", "json"))["items"]
    return {item["metadata"]["name"]: item["metadata"].get("labels", {}) for item in items}


@pytest.fixture
def seen(recorded: Recorder | None) -> Recorder:
    if recorded is None:
        pytest.skip("the kernel's table of connections cannot be read from here")
    recorded.look()
    return recorded


def component(peer: Peer) -> str:
    """operator, router, worker; "" for what is not ours."""
    if not isinstance(peer, Pod):
        return ""
    is_ours = peer.labels.get("app.kubernetes.io/managed-by") in OURS or peer.labels.get("app.kubernetes.io/name") in OURS
    return peer.labels.get("app.kubernetes.io/component", "") if is_ours else ""


def model_of(peer: Peer) -> str | None:
    return peer.labels.get("pagoda.dev/model") if isinstance(peer, Pod) else None


def test_every_connection_that_was_seen_is_allowed(
    installation: Installation, seen: Recorder, namespaces: dict[str, dict[str, str]]
) -> None:
    connections = [flows for flows in seen.flows() if any(component(flow.source) or component(flow.target) for flow in flows)]
    verdicts = {" or ".join(map(str, flows)): [seen.verdict(flow, namespaces) for flow in flows] for flows in connections}
    assert {flow: found[0].reason for flow, found in verdicts.items() if not any(verdict.allowed for verdict in found)} == {}


def test_the_connections_that_must_be_were_seen(installation: Installation, seen: Recorder) -> None:
    """Else the record is broken, and the test above says nothing."""
    connections = seen.flows()
    kinds = {(component(flow.source), component(flow.target), flow.port) for flows in connections for flow in flows}
    assert {("router", "worker", 9000), ("operator", "router", 8001), ("operator", "worker", 9001)} <= kinds
    assert {"operator", "router"} <= {source for source, target, port in kinds if not target and port in (443, 6443)}
    called = [flows for flows in connections if all(model_of(flow.source) == "tiny" for flow in flows)]
    assert called == [], "a worker whose model is in its image calls nobody"


def test_what_nobody_needs_is_forbidden(installation: Installation, seen: Recorder, namespaces: dict[str, dict[str, str]]) -> None:
    seen.look()
    running = {component(pod): pod for pod in seen.everybody() if component(pod)}
    operator, router = running["operator"], running["router"]
    worker = next(pod for pod in seen.everybody() if model_of(pod) == "tiny")  # fetches nothing
    stranger = Pod(namespace="kube-system", name="stranger", labels={"app": "stranger"}, address="10.66.200.1")
    neighbour = Pod(namespace=installation.models.name, name="neighbour", labels={"app": "neighbour"}, address="10.66.200.2")
    other_worker = Pod(namespace=worker.namespace, name="other", labels=worker.labels, address="10.66.200.3", ports=worker.ports)
    internet, api_server = Outside(address="203.0.113.7"), Outside(address="10.55.0.1")
    forbidden = [
        *(Flow(source=source, target=worker, port=9000) for source in (stranger, neighbour, operator, other_worker, internet)),
        *(Flow(source=source, target=router, port=8001) for source in (stranger, neighbour, worker, internet)),
        *(Flow(source=source, target=operator, port=8080) for source in (router, worker, neighbour)),
        Flow(source=worker, target=api_server, port=6443),
        Flow(source=worker, target=internet, port=443),
        Flow(source=worker, target=router, port=8000),
        Flow(source=router, target=internet, port=80),
        Flow(source=router, target=stranger, port=9000),
    ]
    wrongly = {str(flow): verdict.reason for flow in forbidden if (verdict := seen.verdict(flow, namespaces)).allowed}
    assert wrongly == {}
    client = Flow(source=neighbour, target=router, port=8000)
    assert seen.verdict(client, namespaces).allowed, "clients must reach the API"
