"""What `pagoda up` gives, given by `kubectl apply`: the unmodified client through the Service, on pods of the restricted profile."""

import json

import openai
import pytest
from conftest import SYSTEM, Installation, leader, operator_pods, ready_routers
from kube import eventually, run

pytestmark = pytest.mark.usefixtures("addresses")


def test_the_quickstart_answers_through_the_service(installation: Installation) -> None:
    assert "73" in installation.sum(a=27, b=46)


def test_streams_arrive_in_pieces_and_end_with_a_reason(installation: Installation) -> None:
    with installation.client() as client:
        question = [{"role": "user", "content": "Sort these numbers: 31, 7, 88, 19"}]
        chunks = list(client.chat.completions.create(model="tiny", messages=question, temperature=0, stream=True))  # type: ignore[arg-type]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "7, 19, 31, 88" in text
    assert len(chunks) > 3
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_models_are_listed_and_an_unknown_one_is_a_404_that_names_them(installation: Installation) -> None:
    with installation.client() as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        with pytest.raises(openai.NotFoundError, match="tiny"):
            client.chat.completions.create(model="no-such", messages=[{"role": "user", "content": "?"}])


def test_without_the_key_nothing_is_answered(installation: Installation) -> None:
    with openai.OpenAI(base_url=installation.url, api_key="wrong", max_retries=0) as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_two_operators_run_and_one_holds_the_lease(installation: Installation) -> None:
    pods = eventually(lambda: len(operator_pods()) == 2 and operator_pods(), within_s=60, of="two operators are ready")
    assert any(leader().startswith(pod["metadata"]["name"]) for pod in pods), leader()


def test_kubectl_get_shows_ready_replicas_and_endpoint(installation: Installation) -> None:
    table = installation.models.kubectl("get", "im")
    assert "READY" in table
    row = next(line for line in table.splitlines() if line.startswith("tiny"))
    assert "True" in row
    assert "builtin://tiny" in row
    assert "pagoda-router.models.svc" in row


def test_status_tells_the_timeline_and_the_measured_capacity(installation: Installation) -> None:
    status = installation.models.get("inferencemodel", "tiny")["status"]
    assert {"scheduled", "image", "engine", "routed"} <= set(status["timeline"])
    assert status["timeline"]["scheduled"] <= status["timeline"]["engine"] <= status["timeline"]["routed"]
    assert status["capacity"]["kvTokens"] > 0
    assert status["capacity"]["decodeTokensPerS"] > 0
    assert {c["type"]: c["status"] for c in status["conditions"]} == {
        "Accepted": "True",
        "ModelAvailable": "True",
        "WorkersReady": "True",
        "Routed": "True",
        "Ready": "True",
        "Progressing": "False",
    }


def test_two_router_replicas_give_the_same_answers(installation: Installation) -> None:
    models = installation.models
    answers = []
    for pod in eventually(lambda: len(ready_routers(models)) == 2 and ready_routers(models), within_s=60, of="two routers are ready"):
        with openai.OpenAI(base_url=f"http://{pod['status']['podIP']}:8000/v1", api_key=installation.api_key, max_retries=0) as client:
            listed = [model.id for model in client.models.list()]
            answer = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "What is 12 + 30?"}], temperature=0)
            answers.append((listed, answer.choices[0].message.content))
    assert answers[0] == answers[1]
    assert "42" in str(answers[0])


def test_an_idle_operator_writes_nothing(installation: Installation) -> None:
    models = installation.models
    eventually(lambda: models.is_settled("tiny"), within_s=60, of="everything settled")

    def written() -> set[tuple[str, ...]]:
        """Object, manager, subresource and moment of every write that we made."""
        kinds = "deployments,services,networkpolicies,poddisruptionbudgets,serviceaccounts,roles,rolebindings,inferencemodels"
        items = json.loads(models.kubectl("get", kinds, "--show-managed-fields", "-o", "json"))["items"]
        return {
            (f"{item['kind']}/{item['metadata']['name']}", entry["manager"], entry.get("subresource", ""), entry["time"])
            for item in items
            for entry in item["metadata"].get("managedFields", ())  # the controller-manager's own accounts have none
            if entry["manager"].startswith("pagoda-")
        }

    def pods() -> dict[str, str]:
        return {pod["metadata"]["name"]: pod["metadata"]["resourceVersion"] for pod in models.all("pods")}

    before, pods_before = written(), pods()
    assert {manager for _, manager, _, _ in before} >= {"pagoda-operator"}
    beat = run("kubectl", "-n", SYSTEM.name, "get", "im", "pagoda-canary", "-o", "jsonpath={.status.beat}")
    eventually(
        lambda: run("kubectl", "-n", SYSTEM.name, "get", "im", "pagoda-canary", "-o", "jsonpath={.status.beat}") != beat,
        within_s=30,
        of="the canary beats, so the operator has worked meanwhile",
    )
    news = written() - before
    if pods() != pods_before:  # such as a probe that the kubelet missed on a busy machine: that is told, and nothing else is done
        news = {each for each in news if each[2] != "status"}
    assert news == set()


def test_nothing_of_ours_has_a_finalizer(installation: Installation) -> None:
    kinds = "inferencemodels,deployments,services,networkpolicies,poddisruptionbudgets,serviceaccounts,pods"
    items = json.loads(installation.models.kubectl("get", kinds, "-o", "json"))["items"]
    assert [item["metadata"]["name"] for item in items if item["metadata"].get("finalizers")] == []


def test_helm_reports_a_healthy_release(installation: Installation) -> None:
    status = json.loads(run("helm", "status", "pagoda", "--namespace", SYSTEM.name, "-o", "json"))
    assert status["info"]["status"] == "deployed"
