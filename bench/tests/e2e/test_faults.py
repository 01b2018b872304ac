"""Things that die, and things that people delete: what a client notices, and how fast all is as it was."""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import httpx
import openai
import pytest
from conftest import ROOT, SYSTEM, Installation, kill_nine, leader, operator_pods, ready_routers, ready_workers, the_operator_has_looked
from foreign import needs_devcluster
from kube import Namespace, Object, eventually, names, run
from openai.types import Completion
from traffic import steady_traffic

pytestmark = pytest.mark.usefixtures("addresses")

OUTAGE_S = 12.0
"""Of the API server. Longer than the Lease lasts, and the operator that held it has ended: it does some 6 s after it last renewed it."""


def test_a_killed_worker_costs_only_its_own_streams_and_comes_back(installation: Installation) -> None:
    models = installation.models
    with steady_traffic(installation.url, installation.api_key, "tiny") as traffic:
        eventually(lambda: traffic.count("before") >= 4, within_s=60, of="traffic flows")
        (pod,) = ready_workers(models, "tiny")
        traffic.mark("killed")
        models.delete("pod", pod["metadata"]["name"], wait=False, grace_period=0, force="true")
        eventually(
            lambda: (fresh := ready_workers(models, "tiny")) and pod["metadata"]["name"] not in names(fresh),
            within_s=120,
            of="another worker is ready",
        )
        traffic.mark("after")
        eventually(lambda: traffic.count("after") >= 4, within_s=60, of="traffic flows again")
    late = [outcome for outcome in traffic.outcomes if outcome.phase == "after" and outcome.trouble]
    assert late == []
    assert len(traffic.bad()) <= traffic.streams, traffic.report()


def test_a_deleted_worker_gets_no_new_requests_and_finishes_its_streams(installation: Installation) -> None:
    models = installation.models
    eventually(lambda: models.is_settled("tiny"), within_s=120, of="settled")
    (old,) = ready_workers(models, "tiny")
    with installation.client() as client, ThreadPoolExecutor(3) as asking:
        streams = [iter(_long_stream(client)) for _ in range(4)]
        for stream in streams:
            next(stream)
        models.delete("pod", old["metadata"]["name"], wait=False)
        eventually(lambda: _is_draining(old), within_s=30, of="the old worker drains", every_s=0.05)
        late = [asking.submit(installation.ask, "tiny", a, 46) for a in (27, 28, 29)]
        endings = [[chunk.choices[0].finish_reason for chunk in stream][-1] for stream in streams]
        answers = [each.result() for each in late]
    assert endings == ["length"] * len(streams)
    assert [str(73 + i) in str(answer.choices[0].message.content) for i, answer in enumerate(answers)] == [True] * len(answers)
    (new,) = eventually(lambda: ready_workers(models, "tiny"), within_s=120, of="another worker is ready")
    asked_for = sum(answer.usage.prompt_tokens for answer in answers if answer.usage)
    assert _started_prompt_tokens(new) == asked_for, "all that came while the old worker drained began on the new one"


def test_children_deleted_or_edited_by_hand_are_repaired(installation: Installation) -> None:
    models = installation.models
    models.delete("service", "tiny-default")
    models.delete("poddisruptionbudget", "pagoda-router")
    models.delete("networkpolicy", "pagoda-default-deny")
    models.kubectl(
        "patch", "service", "pagoda-router", "--type=json", "-p", '[{"op": "replace", "path": "/spec/ports/0/port", "value": 8123}]'
    )
    models.kubectl("label", "deployment", "tiny-default", "app.kubernetes.io/part-of=somebody", "--overwrite")

    def repaired() -> bool:
        ports = {port["port"] for port in models.get("service", "pagoda-router")["spec"]["ports"]}
        label = models.get("deployment", "tiny-default")["metadata"]["labels"]["app.kubernetes.io/part-of"]
        models.get("service", "tiny-default"), models.get("pdb", "pagoda-router"), models.get("networkpolicy", "pagoda-default-deny")
        return 8000 in ports and label == "pagoda"

    eventually(repaired, within_s=20, of="what was deleted is back and what was edited is as planned")
    eventually(lambda: _answered(installation), within_s=30, of="requests are answered")


def test_a_foreign_object_is_left_alone_and_named(installation: Installation) -> None:
    models = installation.models
    foreign = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "taken-default"}, "spec": {"ports": [{"port": 1}]}}
    models.apply(foreign)
    before = models.get("service", "taken-default")["metadata"]["resourceVersion"]
    models.apply({**_bare("taken")})

    def told() -> str:
        condition = models.condition("taken", "Accepted")
        return str(condition["message"]) if condition["reason"] == "ForeignObject" else ""

    assert "taken-default" in eventually(told, within_s=20, of="the condition names the object")
    models.delete("inferencemodel", "taken")
    eventually(lambda: not models.all("deployments", "pagoda.dev/model=taken"), within_s=30, of="its children are gone")
    the_operator_has_looked(models)
    assert models.get("service", "taken-default")["metadata"]["resourceVersion"] == before
    models.delete("service", "taken-default")


@needs_devcluster
def test_when_the_active_operator_is_killed_one_works_again_within_15_seconds(installation: Installation) -> None:
    models = installation.models
    pods = eventually(lambda: len(operator_pods()) == 2 and operator_pods(), within_s=90, of="two operators are ready")
    dying = next(pod for pod in pods if leader().startswith(pod["metadata"]["name"]))
    began = time.monotonic()
    kill_nine(dying["metadata"]["name"])
    models.delete("networkpolicy", "pagoda-default-deny")
    # Whichever is first: the other replica takes the Lease, or the killed container is back and finds its own.
    eventually(lambda: models.get("networkpolicy", "pagoda-default-deny"), within_s=15, of="what is deleted is repaired", every_s=0.1)
    print(f"repaired {time.monotonic() - began:.1f} s after kill -9")


def test_when_the_active_operator_leaves_the_other_takes_the_lease(installation: Installation) -> None:
    pods = eventually(lambda: len(operator_pods()) == 2 and operator_pods(), within_s=90, of="two operators are ready")
    old = leader()
    leaving = next(pod for pod in pods if old.startswith(pod["metadata"]["name"]))
    SYSTEM.delete("pod", leaving["metadata"]["name"], wait=False)
    eventually(lambda: leader() not in ("", old), within_s=15, of="another operator holds the Lease", every_s=0.1)


def test_an_operator_that_dies_touches_no_healthy_pod(installation: Installation) -> None:
    models = installation.models
    eventually(lambda: models.is_settled("tiny"), within_s=120, of="settled")
    before = models.pod_uids()
    pods = eventually(lambda: len(operator_pods()) == 2 and operator_pods(), within_s=90, of="two operators are ready")
    killed = [pod["metadata"]["name"] for pod in pods]
    for pod in killed:
        SYSTEM.delete("pod", pod, wait=False, grace_period=0, force="true")
    # Asked by pod: by the time the last is deleted, a new one may hold the Lease already.
    eventually(lambda: leader() and not leader().startswith(tuple(killed)), within_s=60, of="a new operator holds the Lease")
    assert "73" in installation.sum()
    models.kubectl("patch", "inferencemodel", "tiny", "--subresource=status", "--type=merge", "-p", '{"status": null}')
    eventually(lambda: models.is_settled("tiny"), within_s=60, of="the wiped status is written anew")
    assert models.pod_uids() == before


def test_kubectl_replace_touches_no_pod(installation: Installation) -> None:
    models = installation.models
    before = models.pod_uids()
    document = models.get("inferencemodel", "tiny")
    bare = {
        "apiVersion": document["apiVersion"],
        "kind": document["kind"],
        "metadata": {"name": "tiny", "namespace": models.name},
        "spec": document["spec"],
    }
    models.kubectl("replace", "-f", "-", stdin=json.dumps(bare))
    the_operator_has_looked(models)
    eventually(lambda: models.is_settled("tiny"), within_s=30, of="settled again")
    assert models.pod_uids() == before


@needs_devcluster
def test_without_the_api_server_requests_are_answered_and_nothing_moves(installation: Installation) -> None:
    models = installation.models
    before = models.pod_uids()
    _devcluster("stop", "apiserver")
    try:
        ends = time.monotonic() + OUTAGE_S
        answered = 0
        while time.monotonic() < ends:
            assert "73" in installation.sum()
            answered += 1
    finally:
        _devcluster("start", "apiserver")
        # They may wait a minute before they ask again. Until then no pod is made or started, and Services lead to pods that are gone.
        restarted = datetime.now(UTC).replace(microsecond=0)
        with ThreadPoolExecutor() as restarting:
            list(restarting.map(_restart, ("controller-manager", "scheduler", "kubelet", "kube-proxy")))
    assert answered > 1, "each was answered rightly, and there was more than one"
    # A kubelet that starts takes every pod for not ready until it has asked.
    eventually(
        lambda: all(_is_ready_since(pod, restarted) for pod in models.all("pods")), within_s=60, of="the kubelet knows every pod again"
    )
    eventually(lambda: _answered(installation), within_s=30, of="requests are answered by the Service")
    models.delete("networkpolicy", "pagoda-default-deny")
    eventually(lambda: models.get("networkpolicy", "pagoda-default-deny"), within_s=60, of="the operator works again")
    assert models.pod_uids() == before


@needs_devcluster
def test_a_killed_router_costs_no_request_but_those_that_still_lead_to_it(installation: Installation) -> None:
    models = installation.models
    killed, survivor = eventually(lambda: len(ready_routers(models)) == 2 and ready_routers(models), within_s=60, of="two routers")
    beside = replace(installation, url=f"http://{survivor['status']['podIP']}:8000/v1")
    models.delete("pod", killed["metadata"]["name"], wait=False, grace_period=0, force="true")
    for _ in range(3):
        assert "73" in beside.sum(), "whoever reaches the other router notices nothing"

    def led_away() -> bool:
        _answered(installation)  # may be a connection error as long as the node's rules lead to the killed one
        return f"--to-destination {killed['status']['podIP']}:" not in run("iptables-save", "-t", "nat")

    eventually(led_away, within_s=60, of="kube-proxy has heard that the endpoint is gone")
    for _ in range(10):
        assert "73" in installation.sum()
    eventually(
        lambda: len(both := names(ready_routers(models))) == 2 and _routers_behind_service(models) == both,
        within_s=60,
        of="the Service leads to both routers",
    )
    eventually(lambda: models.is_settled("tiny"), within_s=90, of="settled again")


def _long_stream(client: openai.OpenAI) -> openai.Stream[Completion]:
    return client.completions.create(model="tiny", prompt="copy: a b c d", max_tokens=900, stream=True, extra_body={"ignore_eos": True})


def _devcluster(action: str, component: str) -> None:
    run("python3", str(ROOT / "ops/devcluster"), action, component)


def _restart(component: str) -> None:
    _devcluster("stop", component)
    _devcluster("start", component)


def _is_draining(worker: Object) -> bool:
    """From then on it begins no request."""
    answer = httpx.get(f"http://{worker['status']['podIP']}:9001/ready", timeout=10)
    return bool(answer.json().get("reason") == "Draining")


def _started_prompt_tokens(worker: Object) -> int:
    text = httpx.get(f"http://{worker['status']['podIP']}:9001/metrics", timeout=10).text
    found = re.search(r"^vllm:prompt_tokens_total\{.*\} (\S+)$", text, re.MULTILINE)
    assert found, text
    return int(float(found[1]))


def _answered(installation: Installation) -> bool:
    """False while kube-proxy has not caught up."""
    try:
        return "73" in installation.sum()
    except openai.APIConnectionError:
        return False


def _is_ready_since(pod: Object, moment: datetime) -> bool:
    """It became ready at that moment or later."""
    conditions = [c for c in pod["status"]["conditions"] if (c["type"], c["status"]) == ("Ready", "True")]
    return any(datetime.fromisoformat(condition["lastTransitionTime"]) >= moment for condition in conditions)


def _routers_behind_service(models: Namespace) -> set[str]:
    (piece,) = models.all("endpointslices", "kubernetes.io/service-name=pagoda-router")
    return {endpoint["targetRef"]["name"] for endpoint in piece["endpoints"] if endpoint["conditions"]["ready"]}


def _bare(name: str) -> dict[str, object]:
    return {
        "apiVersion": "pagoda.dev/v1alpha1",
        "kind": "InferenceModel",
        "metadata": {"name": name},
        "spec": {"model": {"source": "builtin://tiny"}, "resources": {"memory": "2Gi"}},
    }
