"""One round of the loop with an executor that only remembers."""

from dataclasses import replace
from typing import Any

from cases import SETTINGS, carried_out, inference_model, router, worker, world

from pagoda_operator.observed.world import ObjectRef, Observed
from pagoda_operator.plan.plan import Plan
from pagoda_operator.reconcile import reconcile
from pagoda_operator.scaling.history import ScalingHistory


class Remembering:
    def __init__(self, observed: Observed) -> None:
        self.observed = observed
        self.applied: list[Plan] = []

    async def observe(self) -> Observed:
        return self.observed

    async def apply(self, wanted: Plan) -> None:
        self.applied.append(wanted)
        self.observed = carried_out(self.observed, wanted)


async def test_a_round_applies_what_is_missing_and_the_next_finds_nothing_to_do() -> None:
    executor = Remembering(world())
    first = await reconcile([inference_model("chat")], executor, SETTINGS)
    second = await reconcile([inference_model("chat")], executor, SETTINGS)
    assert len(executor.applied) == 1
    assert first.plan.reasons
    assert second.plan.empty


async def test_status_tells_of_the_world_after_the_rounds_changes() -> None:
    executor = Remembering(world())
    before = await reconcile([inference_model("chat")], executor, SETTINGS)
    assert before.documents[0]["status"]["ready"] == "NoWorkers"
    executor.observed = replace(executor.observed, pods=[router(executor.observed), worker(executor.observed)])
    after = await reconcile(before.documents, executor, SETTINGS)
    assert after.documents[0]["status"]["ready"] == "True"
    changed: dict[str, Any] = inference_model("chat", {"model": {"source": "builtin://tiny"}, "engine": {"maxRunning": 3}})
    rolling = await reconcile([changed], executor, SETTINGS)
    conditions = {each["type"]: each for each in rolling.documents[0]["status"]["conditions"]}
    assert conditions["Progressing"]["reason"] == "RollingOut"


async def test_the_given_documents_are_not_changed() -> None:
    document = inference_model("chat")
    await reconcile([document], Remembering(world()), SETTINGS)
    assert "status" not in document


class Refusing(Remembering):
    """An API server that lets nobody scale."""

    async def scale(self, ref: ObjectRef, replicas: int) -> bool:
        self.asked = [*getattr(self, "asked", []), (ref, replicas)]
        return False


async def test_a_refused_change_of_replicas_is_no_decision() -> None:
    executor, history = Refusing(world()), ScalingHistory()
    await reconcile([inference_model("chat")], executor, SETTINGS)
    edited = ObjectRef("Deployment", "default", "chat-default")
    executor.observed = replace(executor.observed, objects=dict(executor.observed.objects) | {edited: scaled_to(executor, edited, 7)})
    result = await reconcile([inference_model("chat")], executor, SETTINGS, history, 0.0)
    assert executor.asked == [(edited, 1)]
    assert result.documents[0]["status"]["scaling"]["decisions"] == []


async def test_a_deployment_of_somebody_else_is_not_scaled() -> None:
    executor, taken = Refusing(world()), ObjectRef("Deployment", "default", "chat-default")
    await reconcile([inference_model("chat")], executor, SETTINGS)
    foreign = scaled_to(executor, taken, 7)
    foreign["metadata"] = {**foreign["metadata"], "labels": {}}
    executor.observed = replace(executor.observed, objects=dict(executor.observed.objects) | {taken: foreign})
    await reconcile([inference_model("chat")], executor, SETTINGS, ScalingHistory(), 0.0)
    assert not hasattr(executor, "asked")


def scaled_to(executor: Remembering, ref: ObjectRef, replicas: int) -> dict[str, Any]:
    live = executor.observed.objects[ref]
    return {**live, "spec": {**live["spec"], "replicas": replicas}}
