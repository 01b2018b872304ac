"""Where the Prometheus operator's definitions are, the operator makes its objects; and what it tells of itself is what `ops/` has recorded.

The definitions here are stand-ins with the real group, kinds and scope that take any content: the content is checked with promtool.
"""

import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from plane import REPOSITORY, Cluster, established, eventually
from prometheus_client import CollectorRegistry, generate_latest
from running import operator
from test_gate import make_pod, router_at
from test_objects import model
from test_scaler import demand

from pagoda_operator.cluster.health import Health
from pagoda_operator.cluster.operator import known_monitoring
from pagoda_operator.render.kinds import KINDS, MONITORING

PROMISE = {"slo": {"ttft": "500ms"}}
EXPOSITION = REPOSITORY / "ops/expositions/operator.prom"
ORIGIN = "# Recorded from the operator on a real API server: RECORD_EXPOSITIONS=1 pytest operator/tests/cluster/test_monitoring.py\n"


def definition(kind: str) -> dict[str, Any]:
    plural, group = KINDS[kind].plural, "monitoring.coreos.com"
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{group}",
            # a group of Kubernetes' own community: the API server wants to know who said so
            "annotations": {"api-approved.kubernetes.io": "unapproved, a test"},
        },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}],
        },
    }


@pytest.fixture
async def monitored(cluster: Cluster) -> AsyncIterator[Cluster]:
    definitions = [definition(kind) for kind in MONITORING]
    await cluster.apply(*definitions)
    for each in definitions:
        await eventually(lambda name=each["metadata"]["name"]: established(cluster, name))
    yield cluster
    for each in definitions:
        await cluster.delete("CustomResourceDefinition", None, each["metadata"]["name"])


async def rules_of(cluster: Cluster, namespace: str) -> dict[str, Any]:
    found = await cluster.api.get(f"/apis/monitoring.coreos.com/v1/namespaces/{namespace}/prometheusrules")
    return {each["metadata"]["name"]: each for each in found["items"]}


async def test_without_the_definitions_no_kind_is_known(cluster: Cluster, namespace: str) -> None:
    assert await known_monitoring(cluster.api, [namespace]) == frozenset()


async def test_rules_come_and_go_with_the_promise(monitored: Cluster, namespace: str) -> None:
    monitoring = await known_monitoring(monitored.api, [namespace])
    assert monitoring == frozenset(MONITORING)
    await monitored.apply(model(namespace, **PROMISE))
    async with operator(monitored, namespace, monitoring=monitoring) as running:
        await running.told(monitored, namespace, "chat")
        (rule,) = (await rules_of(monitored, namespace)).values()
        assert rule["metadata"]["name"] == "chat-slo"
        assert rule["metadata"]["ownerReferences"][0]["name"] == "chat"
        assert f'namespace="{namespace}"' in rule["spec"]["groups"][0]["rules"][0]["expr"]
        writes = running.api.writes
        running.operator.loop.mark(namespace, "chat")
        await running.settled()
        assert running.api.writes == writes, running.api.written[writes:]
        await monitored.patch("InferenceModel", namespace, "chat", {"spec": {"slo": None}})
        await running.told(monitored, namespace, "chat")
        assert await rules_of(monitored, namespace) == {}
        await monitored.delete("InferenceModel", namespace, "chat")
        await eventually(lambda: _no_monitors(monitored, namespace))


async def _no_monitors(cluster: Cluster, namespace: str) -> bool:
    found = await cluster.api.get(f"/apis/monitoring.coreos.com/v1/namespaces/{namespace}/servicemonitors")
    return not found["items"]


async def test_what_the_operator_tells_of_itself_is_what_is_recorded(cluster: Cluster, namespace: str) -> None:
    health = Health()
    await cluster.apply(model(namespace), model(namespace, "other", scaling={"min": 0, "max": 2}))
    async with operator(cluster, namespace) as running, router_at("127.0.0.79", namespace) as router:
        running.metrics.leader.set(1)
        running.operator.add_to(health)
        await running.told(cluster, namespace, "chat")
        await running.told(cluster, namespace, "other")
        router.models = {"chat": demand(), "other": demand(waiting=1)}
        await make_pod(cluster, namespace, "pagoda-router", 0, "127.0.0.79", ready=True)
        await eventually(lambda: _counted(running.metrics.registry, "pagoda_operator_scalings_total", direction="up"))
        await running.settled()
        for refresh in health.before_scrape:
            refresh()
        told = without_moments(generate_latest(running.metrics.registry).decode())
    if os.environ.get("RECORD_EXPOSITIONS"):
        EXPOSITION.write_text(ORIGIN + told)
    assert families(told) == families(Path(EXPOSITION).read_text()), "record it anew with RECORD_EXPOSITIONS=1"


async def _counted(registry: CollectorRegistry, name: str, **labels: str) -> bool:
    return bool(registry.get_sample_value(name, labels))


def without_moments(exposition: str) -> str:
    """When each series began is of no use to boards, and a third of the text."""
    return "".join(line for line in exposition.splitlines(keepends=True) if "_created" not in line)


def families(exposition: str) -> set[str]:
    return set(re.findall(r"^# TYPE .*$", exposition, re.MULTILINE))
