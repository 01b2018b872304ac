"""To zero when nobody asks, back when somebody does, and by somebody else's autoscaler where that is wanted."""

import json
from dataclasses import replace

import httpx
import pytest
from conftest import UNBOUND, Installation, quickstart, ready_routers, ready_workers
from kube import Object, eventually

pytestmark = pytest.mark.usefixtures("addresses")


def asleep(installation: Installation, name: str) -> bool:
    models = installation.models
    return not models.pods("worker", name) and models.get("inferencemodel", name)["status"]["ready"] == "Asleep"


def test_an_idle_model_sleeps_and_a_request_wakes_it(installation: Installation) -> None:
    models = installation.models
    scaling = {"min": 0, "max": 1, "idleSeconds": 2, "stableSeconds": 2}
    models.apply(quickstart(name="sleepy", spec={"scaling": scaling, "resources": UNBOUND}))
    eventually(lambda: asleep(installation, "sleepy"), within_s=120, of="the idle model sleeps at zero")
    with installation.client() as client:
        assert "sleepy" in [model.id for model in client.models.list()]

    lines = []
    body = {"model": "sleepy", "messages": [{"role": "user", "content": "What is 20 + 22?"}], "temperature": 0, "stream": True}
    headers = {"Authorization": f"Bearer {installation.api_key}"}
    with httpx.stream("POST", f"{installation.url}/chat/completions", json=body, headers=headers, timeout=120) as response:
        assert response.status_code == 200
        lines = [line for line in response.iter_lines() if line]
    comments = [line for line in lines if line.startswith(":")]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert comments, "a stream that waits is kept alive by comments"
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
    assert "42" in text
    assert lines[-1] == "data: [DONE]"
    decisions = models.get("inferencemodel", "sleepy")["status"]["scaling"]["decisions"]
    assert [(d["from"], d["to"]) for d in decisions][-1] == (0, 1) or (0, 1) in [(d["from"], d["to"]) for d in decisions]
    assert all(d["reason"] for d in decisions)
    assert len(decisions) <= 5


def test_a_request_that_waits_in_a_router_that_is_deleted_is_answered(installation: Installation) -> None:
    models = installation.models
    eventually(lambda: asleep(installation, "sleepy"), within_s=120, of="the idle model sleeps again")
    router = ready_routers(models)[0]
    body = {"model": "sleepy", "messages": [{"role": "user", "content": "What is 20 + 22?"}], "temperature": 0, "stream": True}
    headers = {"Authorization": f"Bearer {installation.api_key}"}
    url = f"http://{router['status']['podIP']}:8000/v1/chat/completions"
    with httpx.stream("POST", url, json=body, headers=headers, timeout=120) as response:
        lines = response.iter_lines()
        assert next(line for line in lines if line).startswith(":"), "it waits"
        models.delete("pod", router["metadata"]["name"], wait=False)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]", rest[-3:]


def test_every_router_lists_a_sleeping_model_also_straight_after_a_restart(installation: Installation) -> None:
    models = installation.models
    eventually(lambda: asleep(installation, "sleepy"), within_s=120, of="the idle model sleeps again")
    old = {pod["metadata"]["uid"] for pod in models.pods("router")}
    models.kubectl("delete", "pods", "--selector", "app.kubernetes.io/component=router", "--wait=true")

    def new_routers() -> list[Object]:
        return [pod for pod in ready_routers(models) if pod["metadata"]["uid"] not in old]

    for router in eventually(lambda: len(new_routers()) == 2 and new_routers(), within_s=90, of="two new routers are ready"):
        beside = replace(installation, url=f"http://{router['status']['podIP']}:8000/v1")
        with beside.client() as client:
            assert "sleepy" in [model.id for model in client.models.list()]
    assert asleep(installation, "sleepy"), "listing wakes nobody"
    assert "42" in beside.sum("sleepy", 20, 22)
    models.delete("inferencemodel", "sleepy")


def test_replicas_belong_to_the_scale_subresource_in_external_mode(installation: Installation) -> None:
    models = installation.models
    scaling = {"mode": "external", "replicas": 1, "min": 1, "max": 3}
    models.apply(quickstart(name="outside", spec={"scaling": scaling, "resources": UNBOUND}))
    eventually(lambda: len(ready_workers(models, "outside")) == 1, within_s=120, of="one worker")
    models.kubectl("scale", "inferencemodel", "outside", "--replicas=2")
    eventually(lambda: len(ready_workers(models, "outside")) == 2, within_s=120, of="two workers, as the scale subresource says")
    shown = json.loads(models.kubectl("get", "--raw", f"/apis/pagoda.dev/v1alpha1/namespaces/{models.name}/inferencemodels/outside/scale"))
    assert shown["spec"]["replicas"] == 2
    eventually(
        lambda: (
            json.loads(models.kubectl("get", "--raw", f"/apis/pagoda.dev/v1alpha1/namespaces/{models.name}/inferencemodels/outside/scale"))[
                "status"
            ]["replicas"]
            == 2
        ),
        within_s=20,
        of="the scale subresource shows both",
    )
    models.delete("inferencemodel", "outside")
    eventually(lambda: not models.all("deployments", "pagoda.dev/model=outside"), within_s=30, of="its children are gone")
