from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cases import NOW, SETTINGS, TINY, inference_model, router, settled, worker, world
from hypothesis import given
from hypothesis import strategies as st

from pagoda_operator.conditions import Reason
from pagoda_operator.observed.world import Capacity, ObjectRef, Observed, PodView, RouterReport, WorkerReport
from pagoda_operator.plan.plan import plan
from pagoda_operator.status.model_status import model_status
from pagoda_operator.status.troubles import GRAVITY, NEXT_STEP, REASON_OF_POD, reason_of

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
        ("ModelAvailable", "True", "Available"),
        ("WorkersReady", "True", "WorkersReady"),
        ("Routed", "True", "Routed"),
        ("Ready", "True", "Ready"),
        ("Progressing", "False", "Settled"),
    ]
    assert "progress" not in status


SLEEPING: list[tuple[list[dict[str, bool]], str | None, str]] = [
    # what each router says of the two workers, progress, end of Ready's message
    ([{"chat-default-0": True, "chat-default-1": True}], "asleep", "/v1, 2 asleep"),
    ([{"chat-default-0": True, "chat-default-1": False}], None, "/v1, 1 asleep: the next request wakes it"),
    ([{"chat-default-0": True, "chat-default-1": True}, {"chat-default-0": False, "chat-default-1": False}], None, "/v1"),
    ([{"chat-default-0": True}], None, "/v1, 1 asleep: the next request wakes it"),
    ([], None, "/v1"),
]


@pytest.mark.parametrize(("told", "progress", "words"), SLEEPING)
def test_workers_that_sleep_are_ready_and_told_of(told: list[dict[str, bool]], progress: str | None, words: str) -> None:
    pods = with_pods(router(BASE), worker(BASE), worker(BASE, number=1))
    reports = {
        ("default", f"router-{i}"): RouterReport(
            workers={name: WorkerReport(routable=True, sleeps=sleeps) for name, sleeps in workers.items()}, models={}
        )
        for i, workers in enumerate(told)
    }
    elsewhere = RouterReport(workers={"chat-default-1": WorkerReport(routable=True, sleeps=True)}, models={})
    status = status_of(replace(pods, reports={**reports, ("other", "router-0"): elsewhere}))
    assert (status["ready"], status.get("progress")) == ("True", progress)
    assert condition(status, "Ready")["message"].endswith(words)


NOT_READY: list[tuple[dict[str, Any], Reason, str]] = [
    ({"reason": "Loading", "progress": 0.42}, Reason.LOADING, "chat-default-0 is loading the model, 42% done"),
    ({"phase": "Pending"}, Reason.LOADING, "chat-default-0 is starting"),
    ({"message": "the engine was killed; starting again"}, Reason.LOADING, "is not ready yet: the engine was killed; starting again"),
    (
        {"phase": "Failed", "reason": "CrashLoopBackOff", "restarts": 3, "message": "PAGODA_ENGINE is not JSON."},
        Reason.ENGINE_CRASH,
        "chat-default-0 ended and was restarted 3 times: spec.engine is not JSON: read its log",
    ),
    ({"phase": "Failed", "reason": "Error", "restarts": 1}, Reason.ENGINE_CRASH, "ended and was restarted once: read its log"),
    ({"phase": "Failed"}, Reason.ENGINE_CRASH, "chat-default-0 ended: read its log"),
    ({"phase": "Failed", "reason": "SomethingNew", "message": "new"}, Reason.ENGINE_CRASH, "ended: new: read its log"),
    (
        {"reason": "ModelNotFound", "message": "/models/x has no config.json"},
        Reason.MODEL_NOT_FOUND,
        "did not find the model: /models/x has no config.json: correct spec.model.source",
    ),
    (
        {"reason": "ModelNotFound", "message": "PAGODA_ENGINE.speculative.draft builtin://x: no such folder"},
        Reason.MODEL_NOT_FOUND,
        "did not find the draft model: spec.engine.speculative.draft builtin://x: no such folder: correct spec.engine.speculative.draft",
    ),
    (
        {
            "phase": "Failed",
            "reason": "Error",
            "message": "last words: pagoda-worker: PAGODA_ENGINE.maxRunning is 0; PAGODA_ADAPTERS[0]: and PAGODA_ENGINES stays",
            "incurable": True,
        },
        Reason.ENGINE_CRASH,
        "pagoda-worker: spec.engine.maxRunning is 0; spec.adapters[0]: and PAGODA_ENGINES stays: correct the spec, or read its log",
    ),
    (
        {"phase": "Failed", "reason": "Error", "message": "pagoda-worker: tensorParallel is 3; the model has 4 heads"},
        Reason.ENGINE_CRASH,
        "ended: pagoda-worker: spec.engine.tensorParallel is 3; the model has 4 heads: read its log",
    ),
    (
        {"phase": "Failed", "reason": "Error", "message": "pagoda-worker: kvCache.hostTier is 3; pagoda-worker: nobody is 4"},
        Reason.ENGINE_CRASH,
        "ended: pagoda-worker: spec.engine.kvCache.hostTier is 3; pagoda-worker: nobody is 4: read its log",
    ),
    (
        {"reason": "ModelNotFound", "message": "PAGODA_MODEL_SOURCE file:///x: there is no folder /x"},
        Reason.MODEL_NOT_FOUND,
        "did not find the model: spec.model.source file:///x: there is no folder /x: correct spec.model.source",
    ),
    (
        {"reason": "ModelNotFound", "message": "adapter 'sql': r is 128; this worker takes ranks of 1 to 64"},
        Reason.MODEL_NOT_FOUND,
        "cannot load an adapter of the model: adapter 'sql': r is 128; this worker takes ranks of 1 to 64: correct spec.adapters",
    ),
    ({"phase": "Failed", "reason": "OOMKilled"}, Reason.OUT_OF_MEMORY, "ran out of memory: raise spec.resources.memory"),
    ({"reason": "OutOfMemory"}, Reason.OUT_OF_MEMORY, "or lower spec.engine.maxModelLen"),
    (
        {"reason": "Stalled", "message": "no token for 20 s"},
        Reason.STALLED,
        "does not move: no token for 20 s: it restarts by itself",
    ),
    ({"phase": "Pending", "reason": "ImagePullBackOff"}, Reason.IMAGE_PULL, "cannot be pulled: check the image's name"),
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
    assert set(NEXT_STEP) == set(GRAVITY) - {Reason.LOADING, Reason.WEIGHTS_DOWNLOAD}


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
    assert "workers are ready, the router pagoda-router-0 is not ready: the port 8000 is taken" in condition(status, "Ready")["message"]


def test_a_router_that_waits_for_a_secret_says_to_make_it() -> None:
    waits = router(BASE, ready=False, reason="CreateContainerConfigError", message='secret "pagoda-database" not found')
    message = condition(status_of(with_pods(worker(BASE), waits)), "Ready")["message"]
    assert message.endswith('secret "pagoda-database" not found: make what it names, or correct the value that names it')


NO_SECRET = {"reason": "CreateContainerConfigError", "message": 'secret "pagoda-database" not found'}
NEW_ROUTERS: dict[str, tuple[dict[str, Any], str]] = {
    "a missing secret": (NO_SECRET, 'is not ready: secret "pagoda-database" not found: make what it names, or correct the value that'),
    "no image": ({"reason": "ErrImagePull", "message": "x: not found"}, "is not ready: x: not found: check the image's name"),
    "no node": ({"reason": "Unschedulable", "message": "0/1 nodes"}, "is not ready: 0/1 nodes: make room on a node"),
    "crashes": ({"reason": "CrashLoopBackOff", "message": "PAGODA_X is odd"}, "is not ready: PAGODA_X is odd: read its log"),
    "starts": ({"phase": "Pending"}, ""),
    "evicted, and replaced": ({"phase": "Failed", "reason": "Evicted"}, ""),
}


@pytest.mark.parametrize(("changes", "words"), NEW_ROUTERS.values(), ids=NEW_ROUTERS)
def test_a_rollout_of_routers_that_is_stuck_is_told_while_the_old_ones_serve(changes: dict[str, Any], words: str) -> None:
    new = replace(router(BASE, ready=False, **changes), name="pagoda-router-new")
    status = status_of(with_pods(new, router(BASE), worker(BASE)))
    progressing = condition(status, "Progressing")
    assert (status["ready"], progressing["status"]) == ("True", "False")
    assert status["rollout"] == progressing["reason"] == ("RouterNotReady" if words else "Settled")
    assert words in progressing["message"]
    assert progressing["message"].endswith("; others serve") == bool(words)


def test_a_models_own_rollout_is_told_before_the_routers() -> None:
    new = replace(router(BASE, ready=False, **NO_SECRET), name="pagoda-router-new")
    status = status_of(with_pods(new, router(BASE), worker(BASE, template="0123456789"), worker(BASE, number=1)))
    assert status["rollout"] == "RollingOut"


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
    assert (progressing["status"], progressing["reason"]) == ("False", "EngineCrash")
    assert "chat-default-1 ended and was restarted 9 times" in progressing["message"]


def test_the_gravest_of_several_troubles_is_told() -> None:
    chat = inference_model(spec={"model": {"source": TINY}, "scaling": {"min": 3, "max": 3}})
    base = settled([chat])
    pods = [
        worker(base, number=0, ready=False, reason="Loading"),
        worker(base, number=1, ready=False, reason="OOMKilled", phase="Failed"),
        worker(base, number=2, ready=False, reason="CrashLoopBackOff", phase="Failed"),
    ]
    status = status_of(with_pods(*pods, base=base), chat)
    assert status["ready"] == "OutOfMemory"
    assert "chat-default-1" in condition(status, "Ready")["message"]


def test_a_rollout_stays_ready_and_is_in_progress_until_the_old_worker_left() -> None:
    old, new = worker(BASE, template="0123456789"), worker(BASE, number=1, ready=False, reason="Loading")
    status = status_of(with_pods(router(BASE), old, new))
    assert status["ready"] == "True"
    assert (condition(status, "Progressing")["status"], condition(status, "Progressing")["reason"]) == ("True", "RollingOut")
    status = status_of(with_pods(router(BASE), old, replace(new, serving=True)))
    assert condition(status, "Progressing")["reason"] == "RollingOut"
    status = status_of(with_pods(router(BASE), replace(old, terminating=True), replace(new, serving=True)))
    assert (condition(status, "Progressing")["status"], condition(status, "Progressing")["reason"]) == ("False", "Settled")


def test_a_rollout_that_is_stuck_says_why_while_the_old_worker_serves() -> None:
    old = worker(BASE, template="0123456789")
    new = worker(BASE, number=1, ready=False, phase="Failed", reason="CrashLoopBackOff", message="no such file", restarts=2)
    status = status_of(with_pods(router(BASE), old, new))
    assert (status["ready"], status["rollout"]) == ("True", "EngineCrash")
    assert (condition(status, "Progressing")["status"], condition(status, "Progressing")["reason"]) == ("False", "EngineCrash")
    assert "no such file" in condition(status, "Progressing")["message"]


def test_an_invalid_edit_is_told_while_the_old_workers_serve() -> None:
    broken = inference_model(spec={"model": {"source": TINY}, "engine": {"dtype": "int8", "maxRunning": 0}})
    status = status_of(with_pods(router(BASE), worker(BASE)), broken)
    assert status["ready"] == "SpecInvalid"
    assert condition(status, "Ready")["status"] == "True"
    assert 'spec.engine.dtype: "int8" was given: write auto, bf16, fp16 or fp32' in condition(status, "Accepted")["message"]
    assert "spec.engine.maxRunning" in condition(status, "Accepted")["message"]


def test_an_invalid_first_version_has_no_worker_and_says_so() -> None:
    broken = inference_model(spec={"model": {}})
    status = status_of(world(endpoint=None), broken)
    assert status["ready"] == "SpecInvalid"
    assert {one["status"] for one in status["conditions"]} == {"False", "Unknown"}


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


def test_a_model_that_names_another_which_is_not_there_says_so_until_it_comes() -> None:
    asks = inference_model("chat", {"model": {"source": TINY}, "routing": {"fallback": "small"}})
    told = condition(status_of(settled([asks]), asks), "Accepted")
    assert (told["status"], told["message"].partition("; ")[2]) == ("True", "routing.fallback: there is no model small yet")
    small = inference_model("small")
    assert "small" not in condition(status_of(settled([asks, small]), asks, small), "Accepted")["message"]


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
    assert [one["type"] for one in status["conditions"]] == ["Accepted", "ModelAvailable", "WorkersReady", "Routed", "Ready", "Progressing"]
    for one in status["conditions"]:
        assert one["reason"] in set(Reason)
        assert one["message"]
    false = [one["reason"] for one in status["conditions"][:5] if one["status"] == "False"]
    assert status["ready"] == (false[0] if false else "True")
    serves = routed and any(pod.ready and not pod.terminating for pod in pods)
    assert (condition(status, "Ready")["status"] == "True") == serves
    assert all(reason_of(pod) in GRAVITY for pod in pods if not pod.serving)


# ---------------------------------------------------------------- what a cluster adds

UNBOUND = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims"
CLUSTER_CAUSES: list[tuple[dict[str, Any], str, str, str]] = [
    (
        {"reason": "WeightsDownload", "progress": 0.43, "bytes_done": 2_100_000_000, "bytes_total": 4_900_000_000, "phase": "Pending"},
        "WeightsDownload",
        "ModelAvailable",
        "chat-default-0 is fetching the weights, 43% (2.1 of 4.9 GB) done",
    ),
    (
        {"reason": "FetchFailed", "message": "the hub is away"},
        "WeightsDownload",
        "ModelAvailable",
        "could not fetch the weights and tries again: the hub",
    ),
    (
        {"reason": "Unauthorized", "message": "org/name is gated"},
        "Unauthorized",
        "ModelAvailable",
        "may not read the model: org/name is gated: name a Secret",
    ),
    (
        {"reason": "DiskFull", "message": "4 GB needed"},
        "DiskFull",
        "ModelAvailable",
        "has no room for the model: 4 GB needed: give spec.model.cache",
    ),
    ({"reason": "ModelNotFound"}, "ModelNotFound", "ModelAvailable", "correct spec.model.source"),
    (
        {"reason": "OutOfMemory", "message": "set spec.engine.maxModelLen to 2048 at most"},
        "OutOfMemory",
        "WorkersReady",
        "ran out of memory: set spec.engine.maxModelLen to 2048 at most",
    ),
    (
        {"reason": "CreateContainerConfigError", "message": 'secret "hub" not found'},
        "ContainerConfig",
        "WorkersReady",
        'cannot be started: secret "hub" not found: create what is missing',
    ),
    (
        {"reason": "NodeLost", "message": "its node n1 is gone"},
        "NodeLost",
        "WorkersReady",
        "out of reach: its node n1 is gone: another worker starts",
    ),
    (
        {"reason": "Evicted", "phase": "Failed", "message": "low on memory"},
        "Evicted",
        "WorkersReady",
        "was evicted by its node: low on memory",
    ),
    ({"reason": "EngineCrash", "message": "signal SIGSEGV"}, "EngineCrash", "WorkersReady", "ended: signal SIGSEGV: read its log"),
    (
        {"reason": "Unschedulable", "message": 'persistentvolumeclaim "weights" not found'},
        "Unschedulable",
        "WorkersReady",
        "create the claim, or correct its name in spec.model or spec.adapters",
    ),
    (
        {"reason": "Unschedulable", "message": f"the claim weights is Pending: {UNBOUND}"},
        "Unschedulable",
        "WorkersReady",
        f"waits for its volume: the claim weights is Pending: {UNBOUND}: `kubectl describe pvc weights` says what it waits for",
    ),
    (
        {"reason": "Unschedulable", "message": f"one of the claims weights, sql.v2 is Pending: {UNBOUND}"},
        "Unschedulable",
        "WorkersReady",
        "`kubectl describe pvc weights sql.v2` says",
    ),
    (
        {"reason": "Unschedulable", "message": 'persistentvolumeclaim "weights" is being deleted'},
        "Unschedulable",
        "WorkersReady",
        'waits for its volume: persistentvolumeclaim "weights" is being deleted: `kubectl describe pvc weights` says',
    ),
    ({"reason": "Unschedulable", "message": UNBOUND}, "Unschedulable", "WorkersReady", f"{UNBOUND}: `kubectl describe pvc` says"),
]


@pytest.mark.parametrize(
    ("changes", "ready", "kind", "words"), CLUSTER_CAUSES, ids=[f"{case[1]} {case[3][-20:]}" for case in CLUSTER_CAUSES]
)
def test_the_condition_that_a_cause_belongs_to_tells_it(changes: dict[str, Any], ready: str, kind: str, words: str) -> None:
    status = status_of(with_pods(router(BASE), worker(BASE, ready=False, **changes)))
    told = condition(status, kind)
    assert (status["ready"], told["status"], told["reason"]) == (ready, "False", ready)
    assert words in told["message"]
    assert condition(status, "Ready")["reason"] == ready


def test_progress_comes_with_its_bytes() -> None:
    loading = worker(BASE, ready=False, reason="Loading", progress=0.5, bytes_done=50_000_000, bytes_total=100_000_000)
    assert status_of(with_pods(loading))["progress"] == "50% (50.0 of 100.0 MB)"


def deployment_says(kind: str, status: str, reason: str, message: str, base: Observed = BASE) -> Observed:
    ref = ObjectRef("Deployment", "default", "chat-default")
    told = {"type": kind, "status": status, "reason": reason, "message": message}
    return replace(base, objects={**base.objects, ref: {**base.objects[ref], "status": {"conditions": [told]}}})


def test_a_quota_that_refuses_pods_is_told_from_the_deployment() -> None:
    words = 'pods "chat-default-5d-x" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, used: 4, limited: 4'
    base = deployment_says("ReplicaFailure", "True", "FailedCreate", words)
    status = status_of(with_pods(router(BASE), base=base))
    assert status["ready"] == "QuotaExceeded"
    assert "limited: 4: raise the ResourceQuota" in condition(status, "WorkersReady")["message"]
    base = deployment_says("ReplicaFailure", "True", "FailedCreate", 'pods "x" is forbidden: violates PodSecurity "restricted:latest"')
    assert status_of(with_pods(router(BASE), base=base))["ready"] == "ContainerConfig"


TOLD = 'Apply failed with 1 conflict: conflict with "argocd" using apps/v1: .spec.template'
"""As an API server says it."""


def test_a_refused_object_is_told_where_it_belongs() -> None:
    ref = ObjectRef("Deployment", "default", "chat-default")
    quota = replace(
        with_pods(router(BASE)), blocked={ObjectRef("PersistentVolumeClaim", "default", "chat-cache"): "exceeded quota: storage"}
    )
    assert status_of(quota)["ready"] == "QuotaExceeded"
    conflict = replace(with_pods(router(BASE), worker(BASE)), blocked={ref: TOLD})
    status = status_of(conflict)
    assert (status["ready"], condition(status, "Ready")["status"]) == ("FieldConflict", "True")
    assert f"Deployment default/chat-default: {TOLD}" in condition(status, "Accepted")["message"]
    of_the_router = replace(
        with_pods(worker(BASE)), blocked={ObjectRef("Deployment", "default", "pagoda-router"): "admission webhook denied it"}
    )
    assert status_of(of_the_router)["ready"] == "RouterNotReady"
    assert "admission webhook denied it" in condition(status_of(of_the_router), "Routed")["message"]


def test_a_rollout_past_its_deadline_is_stuck() -> None:
    base = deployment_says("Progressing", "False", "ProgressDeadlineExceeded", "ReplicaSet has timed out progressing.")
    new = worker(BASE, number=1, ready=False, reason="Loading")
    status = status_of(with_pods(router(BASE), worker(BASE, template="0123456789"), new, base=base))
    assert (status["ready"], condition(status, "Progressing")["reason"]) == ("True", "Stuck")


def test_a_surge_without_room_names_the_other_strategy() -> None:
    old = worker(BASE, template="0123456789")
    new = worker(BASE, number=1, ready=False, phase="Pending", reason="Unschedulable", message="not enough nvidia.com/gpu: 0/1 nodes")
    told = condition(status_of(with_pods(router(BASE), old, new)), "Progressing")
    assert (told["status"], told["reason"]) == ("False", "Unschedulable")
    assert "set spec.rollout.strategy: replace" in told["message"]
    assert "replace" not in condition(status_of(with_pods(router(BASE), new)), "Progressing")["message"]


SLEEPER = inference_model(spec={"model": {"source": TINY}, "scaling": {"min": 0, "max": 2}})


def test_a_model_without_workers_by_policy_is_asleep_and_says_how_it_wakes() -> None:
    base = settled([SLEEPER])
    status = status_of(with_pods(router(base), base=base), SLEEPER)
    assert (status["ready"], status["scaling"]["desired"]) == ("Asleep", 0)
    assert "the next request wakes it" in condition(status, "Ready")["message"]
    assert condition(status, "Progressing")["reason"] == "Settled"
    outside = inference_model(spec={"model": {"source": TINY}, "scaling": {"mode": "external", "replicas": 0, "min": 0}})
    base = settled([outside])
    status = status_of(with_pods(router(base), base=base), outside)
    assert status["ready"] == "Asleep"
    assert "spec.scaling.replicas" in condition(status, "Ready")["message"]


def test_a_worker_that_serves_before_the_routers_count_it_is_not_routed() -> None:
    status = status_of(with_pods(router(BASE), worker(BASE, routed=False)))
    assert (status["ready"], status["readyReplicas"], status["routedReplicas"]) == ("NotAcknowledged", 1, 0)
    assert condition(status, "WorkersReady")["status"] == "True"


def test_capacity_is_that_of_the_serving_workers_together_and_the_length_the_least() -> None:
    one = worker(BASE, capacity=Capacity(kv_tokens=1000, max_model_len=512, prefill_tokens_per_s=100.04, decode_tokens_per_s=10))
    two = worker(BASE, number=1, capacity=Capacity(kv_tokens=3000, max_model_len=256))
    assert status_of(with_pods(router(BASE), one, two))["capacity"] == {
        "kvTokens": 4000,
        "maxModelLen": 256,
        "prefillTokensPerS": 100.0,
        "decodeTokensPerS": 10,
    }
    assert "capacity" not in status_of(with_pods(replace(one, serving=False)))


def test_a_restarted_operator_keeps_the_capacity_until_all_workers_have_told_theirs_again() -> None:
    one = worker(BASE, capacity=Capacity(kv_tokens=1000, max_model_len=512))
    two = worker(BASE, number=1, capacity=Capacity(kv_tokens=3000, max_model_len=256))
    known = CHAT | {"status": {"capacity": status_of(with_pods(router(BASE), one, two))["capacity"]}}
    for told in ((replace(one, capacity=None), replace(two, capacity=None)), (one, replace(two, capacity=None))):
        assert status_of(with_pods(router(BASE), *told), known)["capacity"]["kvTokens"] == 4000
    assert status_of(with_pods(router(BASE), one), known)["capacity"]["kvTokens"] == 1000
    assert "capacity" not in status_of(with_pods(replace(one, serving=False)), known)


def test_the_timeline_is_of_the_starting_worker_else_of_the_one_routed_last() -> None:
    def moments(*seconds: int) -> dict[str, Any]:
        names = ("created_at", "scheduled_at", "image_at", "weights_at", "engine_at", "routed_at")
        return {name: NOW + timedelta(seconds=second) for name, second in zip(names, seconds, strict=False)}

    first, second = worker(BASE, **moments(0, 1, 2, 3, 4, 5)), worker(BASE, number=1, **moments(10, 11, 12, 13, 14, 15))
    assert status_of(with_pods(second, first))["timeline"]["routed"] == "2026-03-01T12:00:15Z"
    starting = worker(BASE, number=2, ready=False, **moments(20, 21))
    assert status_of(with_pods(first, starting, second))["timeline"] == {
        "created": "2026-03-01T12:00:20Z",
        "scheduled": "2026-03-01T12:00:21Z",
    }


def test_each_variant_has_its_counts_and_their_workers_are_the_models() -> None:
    document = inference_model(
        spec={"model": {"source": TINY}, "variants": [{"name": "default", "weight": 90}, {"name": "canary", "weight": 10}]}
    )
    base = settled([document])
    status = status_of(with_pods(router(base), worker(base), base=base), document)
    assert status["variants"] == [
        {"name": "default", "weight": 90, "desired": 1, "replicas": 1, "ready": 1},
        {"name": "canary", "weight": 10, "desired": 1, "replicas": 0, "ready": 0},
    ]
    assert status["scaling"]["desired"] == 2
    assert "pagoda.dev/model=chat" in status["selector"]


def test_the_last_five_decisions_are_shown_those_of_an_earlier_process_among_them() -> None:
    def decided(second: int) -> dict[str, Any]:
        return {"time": f"2026-03-01T12:00:{second:02d}Z", "from": 1, "to": 2, "reason": "a queue", "variant": "default"}

    before = CHAT | {"status": {"scaling": {"decisions": [decided(second) for second in (4, 3, 2, 1)]}}}
    observed = with_pods(router(BASE), worker(BASE))
    status = model_status(before, plan([CHAT], observed, SETTINGS), observed, [decided(9), decided(8), decided(4)])
    assert [each["time"][-3:-1] for each in status["scaling"]["decisions"]] == ["09", "08", "04", "03", "02"]


def test_a_wiped_status_changes_nothing_but_times() -> None:
    observed = with_pods(router(BASE), worker(BASE, ready=False, reason="Loading"))
    assert status_of(observed) == status_of(observed, CHAT | {"status": {}})


def test_an_evicted_pod_that_was_replaced_is_told_no_more() -> None:
    remains = worker(BASE, number=0, ready=False, phase="Failed", reason="Evicted", message="low on memory")
    alone = status_of(with_pods(router(BASE), remains))
    assert (alone["ready"], alone["replicas"]) == ("Evicted", 1)
    replaced = status_of(with_pods(router(BASE), remains, worker(BASE, number=1)))
    assert (replaced["ready"], replaced["replicas"]) == ("True", 1)
    assert condition(replaced, "Progressing")["reason"] == "Settled"


def test_an_evicted_pod_of_an_older_spec_is_told_no_more() -> None:
    older = worker(BASE, number=0, ready=False, phase="Failed", reason="Evicted")
    older = replace(older, labels={**older.labels, "pagoda.dev/template": "older"})
    status = status_of(with_pods(router(BASE), older, worker(BASE, number=1)))
    assert condition(status, "Progressing")["reason"] == "Settled"
    assert (status["ready"], status["replicas"]) == ("True", 1)


def test_a_model_sleeps_although_an_evicted_pod_lies_about() -> None:
    chat = inference_model(spec={"model": {"source": TINY}, "scaling": {"min": 0, "max": 1}})
    base = settled([chat])
    asleep = ObjectRef("Deployment", "default", "chat-default")
    live = base.objects[asleep]
    base = replace(base, objects=dict(base.objects) | {asleep: {**live, "spec": {**live["spec"], "replicas": 0}}})
    remains = worker(base, number=0, ready=False, phase="Failed", reason="Evicted")
    assert status_of(with_pods(router(base), remains, base=base), chat)["ready"] == "Asleep"
