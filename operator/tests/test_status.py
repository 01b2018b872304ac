from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cases import NOW, SETTINGS, TINY, inference_model, router, settled, worker, world
from hypothesis import given
from hypothesis import strategies as st

from pagoda_operator.conditions import Reason
from pagoda_operator.observed import Observed, PodView
from pagoda_operator.plan import plan
from pagoda_operator.status import GRAVITY, NEXT_STEP, REASON_OF_POD, model_status, reason_of

CHAT = inference_model()
BASE = settled([CHAT])


def status_of(observed: Observed, document: dict[str, Any] = CHAT, *others: dict[str, Any]) -> dict[str, Any]:
    return model_status(document, plan([document, *others], observed, SETTINGS), observed)


def condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    (found,) = (one for one in status["conditions"] if one["type"] == kind)
    return dict(found)


def with_pods(*pods: PodView, base: Observed = BASE) -> Observed:
    return replace(base, pods=pods)


def test_a_model_that_answers_is_ready_and_settled() -> None:
    status = status_of(with_pods(router(BASE), worker(BASE)))
    assert status["ready"] == "True"
    assert (status["replicas"], status["readyReplicas"], status["servedNames"]) == (1, 1, ["chat"])
    assert status["endpoint"] == "http://127.0.0.1:8000/v1"
    assert [(one["type"], one["status"], one["reason"]) for one in status["conditions"]] == [
        ("Accepted", "True", "Accepted"),
        ("Ready", "True", "Ready"),
        ("Progressing", "False", "Settled"),
    ]
    assert "progress" not in status


NOT_READY: list[tuple[dict[str, Any], Reason, str]] = [
    ({"reason": "Loading", "progress": 0.42}, Reason.LOADING, "chat-default-0 is loading the model, 42% done"),
    ({"phase": "Pending"}, Reason.LOADING, "chat-default-0 is starting"),
    ({"message": "the engine was killed; starting again"}, Reason.LOADING, "is not ready yet: the engine was killed; starting again"),
    (
        {"phase": "Failed", "reason": "CrashLoopBackOff", "restarts": 3, "message": "PAGODA_ENGINE is not JSON."},
        Reason.WORKER_CRASH_LOOPING,
        "chat-default-0 ended and was restarted 3 times: PAGODA_ENGINE is not JSON: read its log",
    ),
    ({"phase": "Failed", "reason": "Error", "restarts": 1}, Reason.WORKER_CRASH_LOOPING, "ended and was restarted once: read its log"),
    ({"phase": "Failed"}, Reason.WORKER_CRASH_LOOPING, "chat-default-0 ended: read its log"),
    ({"phase": "Failed", "reason": "SomethingNew", "message": "new"}, Reason.WORKER_CRASH_LOOPING, "ended: new: read its log"),
    (
        {"reason": "ModelNotFound", "message": "/models/x has no config.json"},
        Reason.MODEL_NOT_FOUND,
        "did not find the model: /models/x has no config.json: correct spec.model.source",
    ),
    ({"phase": "Failed", "reason": "OOMKilled"}, Reason.OUT_OF_MEMORY, "ran out of memory: raise spec.resources.memory"),
    ({"reason": "OutOfMemory"}, Reason.OUT_OF_MEMORY, "or lower spec.engine.maxModelLen"),
    (
        {"reason": "Stalled", "message": "no token for 20 s"},
        Reason.WORKER_STALLED,
        "does not move: no token for 20 s: it restarts by itself",
    ),
    ({"phase": "Pending", "reason": "ImagePullBackOff"}, Reason.IMAGE_NOT_PULLED, "cannot be pulled: check the image's name"),
    (
        {"phase": "Pending", "reason": "Unschedulable", "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."},
        Reason.UNSCHEDULABLE,
        "no node has room for chat-default-0: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu: lower spec.resources",
    ),
]


@pytest.mark.parametrize(("changes", "reason", "words"), NOT_READY, ids=lambda value: str(value) if isinstance(value, Reason) else None)
def test_status_names_the_cause_and_the_next_step(changes: dict[str, Any], reason: Reason, words: str) -> None:
    status = status_of(with_pods(router(BASE), worker(BASE, ready=False, **changes)))
    assert status["ready"] == reason
    assert condition(status, "Ready")["reason"] == reason
    assert words in condition(status, "Ready")["message"]
    assert status["readyReplicas"] == 0


def test_every_reason_of_a_pod_has_its_gravity_and_all_but_loading_a_next_step() -> None:
    assert set(REASON_OF_POD.values()) == set(GRAVITY)
    assert set(NEXT_STEP) == set(GRAVITY) - {Reason.LOADING}


def test_progress_of_loading_is_shown_until_a_worker_is_ready() -> None:
    loading = worker(BASE, ready=False, reason="Loading", progress=0.5)
    assert status_of(with_pods(loading))["progress"] == "50%"
    assert "progress" not in status_of(with_pods(loading, worker(BASE, number=1)))


def test_no_worker_at_all_is_told_with_how_many_are_wanted() -> None:
    document = inference_model(spec={"model": {"source": TINY}, "scaling": {"min": 3}})
    status = status_of(settled([document]), document)
    assert status["ready"] == "NoWorkers"
    assert condition(status, "Ready")["message"] == "none of 3 workers has started yet"
    assert status["replicas"] == 0


def test_workers_without_a_router_are_not_ready() -> None:
    status = status_of(with_pods(worker(BASE)))
    assert (status["ready"], status["readyReplicas"]) == ("RouterNotReady", 1)
    status = status_of(with_pods(worker(BASE), router(BASE, ready=False, message="the port 8000 is taken")))
    assert "pagoda-router-0 is not: the port 8000 is taken" in condition(status, "Ready")["message"]


def test_without_an_endpoint_nothing_is_ready() -> None:
    status = status_of(replace(with_pods(router(BASE), worker(BASE)), endpoint=None))
    assert status["ready"] == "RouterNotReady"
    assert "endpoint" not in status


def test_a_router_of_another_namespace_does_not_count() -> None:
    assert status_of(with_pods(worker(BASE), router(BASE, namespace="other")))["ready"] == "RouterNotReady"


def test_workers_of_other_models_and_namespaces_do_not_count() -> None:
    other = inference_model("other")
    base = settled([CHAT, other])
    status = status_of(with_pods(router(base), worker(base, "other"), worker(base, namespace="far"), base=base), CHAT, other)
    assert (status["ready"], status["replicas"]) == ("NoWorkers", 0)


def test_a_worker_told_to_stop_is_no_replica() -> None:
    status = status_of(with_pods(router(BASE), worker(BASE, terminating=True)))
    assert (status["ready"], status["replicas"]) == ("NoWorkers", 0)


def test_one_ready_worker_answers_while_another_crashes_and_the_trouble_is_told() -> None:
    document = inference_model(spec={"model": {"source": TINY}, "scaling": {"min": 2}})
    base = settled([document])
    crashing = worker(base, number=1, ready=False, phase="Failed", reason="CrashLoopBackOff", restarts=9)
    status = status_of(with_pods(router(base), worker(base), crashing, base=base), document)
    assert (status["ready"], status["readyReplicas"], status["replicas"]) == ("True", 1, 2)
    assert condition(status, "Ready")["message"].startswith("1 of 2 workers ready")
    progressing = condition(status, "Progressing")
    assert (progressing["status"], progressing["reason"]) == ("False", "WorkerCrashLooping")
    assert "chat-default-1 ended and was restarted 9 times" in progressing["message"]


def test_the_gravest_of_several_troubles_is_told() -> None:
    pods = [
        worker(BASE, number=0, ready=False, reason="Loading"),
        worker(BASE, number=1, ready=False, reason="OOMKilled", phase="Failed"),
        worker(BASE, number=2, ready=False, reason="CrashLoopBackOff", phase="Failed"),
    ]
    status = status_of(with_pods(*pods))
    assert status["ready"] == "OutOfMemory"
    assert "chat-default-1" in condition(status, "Ready")["message"]


def test_a_rollout_stays_ready_and_is_in_progress_until_the_old_worker_left() -> None:
    old, new = worker(BASE, template="0123456789"), worker(BASE, number=1, ready=False, reason="Loading")
    status = status_of(with_pods(router(BASE), old, new))
    assert status["ready"] == "True"
    assert (condition(status, "Progressing")["status"], condition(status, "Progressing")["reason"]) == ("True", "RollingOut")
    status = status_of(with_pods(router(BASE), old, replace(new, ready=True)))
    assert condition(status, "Progressing")["reason"] == "RollingOut"
    status = status_of(with_pods(router(BASE), replace(old, terminating=True), replace(new, ready=True)))
    assert (condition(status, "Progressing")["status"], condition(status, "Progressing")["reason"]) == ("False", "Settled")


def test_a_rollout_that_is_stuck_says_why_while_the_old_worker_serves() -> None:
    old = worker(BASE, template="0123456789")
    new = worker(BASE, number=1, ready=False, phase="Failed", reason="CrashLoopBackOff", message="no such file", restarts=2)
    status = status_of(with_pods(router(BASE), old, new))
    assert status["ready"] == "True"
    assert (condition(status, "Progressing")["status"], condition(status, "Progressing")["reason"]) == ("False", "WorkerCrashLooping")
    assert "no such file" in condition(status, "Progressing")["message"]


def test_an_invalid_edit_is_told_while_the_old_workers_serve() -> None:
    broken = inference_model(spec={"model": {"source": TINY}, "engine": {"dtype": "int8", "maxRunning": 0}})
    status = status_of(with_pods(router(BASE), worker(BASE)), broken)
    assert status["ready"] == "InvalidSpec"
    assert condition(status, "Ready")["status"] == "True"
    assert 'spec.engine.dtype: "int8" was given: write auto, bf16, fp16 or fp32' in condition(status, "Accepted")["message"]
    assert "spec.engine.maxRunning" in condition(status, "Accepted")["message"]


def test_an_invalid_first_version_has_no_worker_and_says_so() -> None:
    broken = inference_model(spec={"model": {}})
    status = status_of(world(endpoint=None), broken)
    assert status["ready"] == "InvalidSpec"
    assert {one["status"] for one in status["conditions"]} == {"False"}


def test_a_name_taken_by_an_older_model_is_told() -> None:
    spec = {"model": {"source": TINY}, "servedNames": ["chat"]}
    young, old = inference_model("young", spec, age_s=1), inference_model("old", spec, age_s=100)
    base = settled([young, old])
    observed = with_pods(router(base), worker(base, "young"), worker(base, "old"), base=base)
    status = status_of(observed, young, old)
    assert (status["ready"], status["servedNames"]) == ("NameTaken", [])
    assert condition(status, "Ready")["reason"] == "NameTaken"
    assert "chat (by old)" in condition(status, "Accepted")["message"]
    assert status_of(observed, old, young)["ready"] == "True"


def test_a_model_that_lost_one_of_two_names_answers_to_the_other() -> None:
    young = inference_model("young", {"model": {"source": TINY}, "servedNames": ["old", "fast"]}, age_s=1)
    old = inference_model("old", age_s=100)
    base = settled([young, old])
    status = status_of(with_pods(router(base), worker(base, "young"), base=base), young, old)
    assert (status["ready"], status["servedNames"]) == ("NameTaken", ["fast"])
    assert condition(status, "Ready")["status"] == "True"


def test_transition_times_move_only_when_a_condition_flips() -> None:
    loading = with_pods(router(BASE), worker(BASE, ready=False, reason="Loading", progress=0.1))
    first = CHAT | {"status": status_of(loading)}
    later = with_pods(router(BASE), worker(BASE, ready=False, reason="Loading", progress=0.9))
    second = CHAT | {"status": status_of(replace(later, now=NOW + timedelta(seconds=10)), first)}
    ready = replace(with_pods(router(BASE), worker(BASE)), now=NOW + timedelta(seconds=20))
    third = CHAT | {"status": status_of(ready, second)}

    def times(kind: str) -> list[str]:
        return [condition(document["status"], kind)["lastTransitionTime"][-3:-1] for document in (first, second, third)]

    assert times("Ready") == ["00", "00", "20"]
    assert times("Accepted") == ["00", "00", "00"]
    assert condition(first["status"], "Ready")["message"] != condition(second["status"], "Ready")["message"]


def test_the_generation_that_was_looked_at_is_told() -> None:
    document = inference_model()
    document["metadata"]["generation"] = 7
    status = status_of(with_pods(router(BASE), worker(BASE)), document)
    assert status["observedGeneration"] == 7
    assert {one["observedGeneration"] for one in status["conditions"]} == {7}


PODS = st.builds(
    lambda number, **changes: worker(BASE, number=number, **changes),
    st.integers(0, 3),
    ready=st.booleans(),
    terminating=st.booleans(),
    phase=st.sampled_from(["Pending", "Running", "Succeeded", "Failed"]),
    reason=st.sampled_from(["", "SomethingNew", *REASON_OF_POD]),
    message=st.text(max_size=5),
    restarts=st.integers(0, 3),
    progress=st.none() | st.floats(0, 1),
    template=st.sampled_from([None, "0123456789"]),
)
DOCUMENTS = st.sampled_from([CHAT, inference_model(spec={}), inference_model(spec={"model": {"source": TINY}, "scaling": {"min": 2}})])


@given(DOCUMENTS, st.lists(PODS, max_size=4), st.booleans())
def test_whatever_the_pods_do_the_status_is_whole_and_its_summary_true(document: dict[str, Any], pods: list[PodView], routed: bool) -> None:
    observed = with_pods(*pods, *([router(BASE)] if routed else []))
    status = status_of(observed, document)
    assert [one["type"] for one in status["conditions"]] == ["Accepted", "Ready", "Progressing"]
    for one in status["conditions"]:
        assert one["reason"] in set(Reason)
        assert one["message"]
    false = [one["reason"] for one in status["conditions"][:2] if one["status"] == "False"]
    assert status["ready"] == (false[0] if false else "True")
    serves = routed and any(pod.ready and not pod.terminating for pod in pods)
    assert (condition(status, "Ready")["status"] == "True") == serves
    assert all(reason_of(pod) in GRAVITY for pod in pods if not pod.ready)
