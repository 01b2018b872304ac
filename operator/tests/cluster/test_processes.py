"""Real operator processes: one is active, the next takes over in time, probes tell the truth, kopf's watch reaches the objects."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from plane import Cluster, eventually
from rights import OWN_NAMESPACE
from running import Process
from test_objects import model

ENDS_WITHIN_S = 60.0
"""No measure: a process on a busy machine takes its time to start."""
LEASE_S = 4.0
"""Short: how a Lease changes hands does not depend on its length, and how long that takes is the Lease's length and little more."""


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for process in started:
        process.kill()


def start(processes: list[Process], folder: Path, cluster: Cluster, name: str, **variables: str) -> Process:
    process = Process(folder, cluster.plane, cluster.account_token, name, **variables)
    processes.append(process)
    return process


async def holder(cluster: Cluster, lease: str) -> str:
    found = await cluster.find("Lease", OWN_NAMESPACE, lease)
    return (found or {}).get("spec", {}).get("holderIdentity", "") or ""


async def probe(process: Process, path: str = "/health", *, metrics: bool = False) -> httpx.Response:
    port = (await process.ports())[metrics]
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.get(f"http://127.0.0.1:{port}{path}")


async def test_of_two_one_is_active_and_a_kill_is_survived(
    cluster: Cluster, namespace: str, processes: list[Process], tmp_path: Path
) -> None:
    names = {"PAGODA_NAMESPACES": namespace, "PAGODA_LEASE_NAME": namespace, "PAGODA_LEASE_DURATION_S": f"{LEASE_S:g}"}
    first = start(processes, tmp_path, cluster, "first", **names)
    await first.says("reconciling")
    second = start(processes, tmp_path, cluster, "second", **names)
    await second.says("first holds the Lease")
    assert (await probe(second)).status_code == 200
    assert "pagoda_operator_leader 0.0" in (await probe(second, "/metrics", metrics=True)).text
    assert "pagoda_operator_leader 1.0" in (await probe(first, "/metrics", metrics=True)).text

    await cluster.apply(model(namespace))
    await eventually(lambda: cluster.find("Deployment", namespace, "chat-default"))
    first.kill()
    await cluster.delete("Deployment", namespace, "chat-default")
    await eventually(lambda: cluster.find("Deployment", namespace, "chat-default"))
    assert await holder(cluster, namespace) == "second"


async def test_a_term_signal_gives_the_lease_back_at_once(
    cluster: Cluster, namespace: str, processes: list[Process], tmp_path: Path
) -> None:
    names = {"PAGODA_NAMESPACES": namespace, "PAGODA_LEASE_NAME": namespace, "PAGODA_LEASE_DURATION_S": "60"}
    first = start(processes, tmp_path, cluster, "first", **names)
    await first.says("watching InferenceModels")
    first.process.terminate()
    assert await asyncio.to_thread(first.process.wait, ENDS_WITHIN_S) == 0
    assert await holder(cluster, namespace) == ""
    second = start(processes, tmp_path, cluster, "second", **names)
    await second.says("reconciling", within_s=40)  # of the 60 that its Lease had left


async def test_a_lost_lease_ends_the_process(cluster: Cluster, namespace: str, processes: list[Process], tmp_path: Path) -> None:
    first = start(processes, tmp_path, cluster, "first", PAGODA_NAMESPACES=namespace, PAGODA_LEASE_NAME=namespace)
    await first.says("reconciling")
    await cluster.patch("Lease", OWN_NAMESPACE, namespace, {"spec": {"holderIdentity": "usurper"}})
    assert await asyncio.to_thread(first.process.wait, ENDS_WITHIN_S) == 1
    assert "usurper" in await first.says("ending")


async def test_the_canary_beats_and_the_watch_shows_it(cluster: Cluster, namespace: str, processes: list[Process], tmp_path: Path) -> None:
    canary = model(namespace, "pagoda-canary")
    canary["metadata"]["labels"] = {"pagoda.dev/canary": "true"}
    await cluster.apply(canary)
    names = {"PAGODA_NAMESPACES": namespace, "PAGODA_LEASE_NAME": namespace, "PAGODA_CANARY": f"{namespace}/pagoda-canary"}
    process = start(processes, tmp_path, cluster, "first", **names)

    async def beat() -> object:
        return ((await cluster.model(namespace, "pagoda-canary")).get("status") or {}).get("beat")

    first = await eventually(beat)

    async def beats_on() -> bool:
        return await beat() != first

    await eventually(beats_on)
    assert (await probe(process)).status_code == 200
    assert await cluster.made(namespace) == {}
    calls = (await probe(process, "/metrics", metrics=True)).text
    assert re.search(r'api_calls_total\{code="200",resource="inferencemodels/status",verb="PATCH"\} [1-9]', calls)


async def test_an_unknown_setting_stops_it_with_one_line(cluster: Cluster, processes: list[Process], tmp_path: Path) -> None:
    process = start(processes, tmp_path, cluster, "first", PAGODA_NAMESPACE="a")
    assert await asyncio.to_thread(process.process.wait, ENDS_WITHIN_S) == 1
    assert process.log.splitlines() == ["pagoda-operator: the operator knows no setting PAGODA_NAMESPACE: did you mean PAGODA_NAMESPACES?"]
