"""When a status says that no worker comes until somebody changes something: routers refuse requests at once then."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from cases import SETTINGS, TINY, inference_model, router, settled, worker, world
from hypothesis import given
from hypothesis import strategies as st

from pagoda_operator.conditions import Reason
from pagoda_operator.observed.world import ObjectRef, Observed, PodView
from pagoda_operator.plan.plan import plan
from pagoda_operator.status.finality import is_final
from pagoda_operator.status.model_status import model_status
from pagoda_operator.status.troubles import REASON_OF_POD, reason_of

CHAT = inference_model()
BASE = settled([CHAT])
NOT_FOUND = (
    'Back-off pulling image "x:1": ErrImagePull: rpc error: code = NotFound desc = failed to resolve reference "x:1": x:1: not found'
)
PULL = 'failed to pull and unpack image "x:1": failed to resolve reference "x:1"'
REFUSED_BY = f"{PULL}: pulling from host r.example failed with status code [manifests 1]"
NO_TOKEN = f"{PULL}: failed to authorize: failed to fetch anonymous token: unexpected status: 401 Unauthorized"
DENIED = f"{PULL}: pull access denied, repository does not exist or may require authorization: server message: insufficient_scope"

PODS: dict[str, tuple[dict[str, Any], bool]] = {
    "model not found": ({"reason": "ModelNotFound"}, True),
    "gated": ({"reason": "Unauthorized"}, True),
    "no room on the volume": ({"reason": "DiskFull"}, True),
    "a missing secret": ({"reason": "CreateContainerConfigError", "message": 'secret "hub" not found'}, True),
    "too little memory": ({"reason": "OutOfMemory"}, True),
    "ended for memory after it has served": ({"reason": "OOMKilled", "has_served": True}, False),
    "an image name that is none": ({"reason": "InvalidImageName"}, True),
    "an image that no node may pull": ({"reason": "ErrImageNeverPull"}, True),
    "an image that is not there": ({"reason": "ErrImagePull", "message": f"{PULL}: x:1: not found"}, True),
    "the same, between two tries": ({"reason": "ImagePullBackOff", "message": NOT_FOUND}, True),
    "the same, by an old kubelet": ({"reason": "ImagePullBackOff", "message": 'Back-off pulling image "x:1"'}, False),
    "an image that nobody signed": ({"reason": "ImagePullBackOff", "message": 'Back-off "x:1": SignatureValidationFailed: no'}, True),
    "an image of CRI-O": ({"reason": "ErrImagePull", "message": "reading manifest 1 in docker.io/x: manifest unknown"}, True),
    "an image that wants a login": ({"reason": "ErrImagePull", "message": DENIED}, True),
    "a login that is refused": ({"reason": "ErrImagePull", "message": f"{REFUSED_BY}: 403 Forbidden"}, True),
    "a login that no token is given for": ({"reason": "ErrImagePull", "message": NO_TOKEN}, True),
    "a registry that listens no more": ({"reason": "ErrImagePull", "message": f"{PULL}: failed to do request: connection refused"}, False),
    "a registry without an address": ({"reason": "ErrImagePull", "message": f"{PULL}: dial tcp: lookup r.example: no such host"}, False),
    "a registry that is down": ({"reason": "ErrImagePull", "message": f"{REFUSED_BY}: 503 Service Unavailable"}, False),
    "a registry that has enough of us": ({"reason": "ErrImagePull", "message": f"{REFUSED_BY}: 429 Too Many Requests"}, False),
    "a registry that is away": ({"reason": "RegistryUnavailable"}, False),
    "no node yet": ({"reason": "Unschedulable", "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu"}, False),
    "no claim of that name": ({"reason": "Unschedulable", "message": '0/1 nodes: persistentvolumeclaim "weights" not found'}, True),
    "a claim that waits for its volume": (
        {"reason": "Unschedulable", "message": "unbound immediate PersistentVolumeClaims"},
        False,
    ),
    "crashed twice": ({"reason": "CrashLoopBackOff", "failures": 2}, False),
    "crashed three times": ({"reason": "CrashLoopBackOff", "failures": 3}, True),
    "its engine crashed three times": ({"reason": "EngineCrash", "failures": 3}, True),
    "refused its settings once": ({"reason": "Error", "phase": "Failed", "failures": 1, "incurable": True}, False),
    "refused its settings twice": ({"reason": "Error", "phase": "Failed", "failures": 2, "incurable": True}, True),
    "tries again after three crashes": ({"reason": "Loading", "failures": 3}, False),
    "crashes, but has served": ({"reason": "CrashLoopBackOff", "failures": 9, "has_served": True}, False),
    "the hub is away": ({"reason": "FetchFailed", "failures": 9}, False),
    "evicted": ({"reason": "Evicted", "phase": "Failed"}, False),
    "its node fell silent": ({"reason": "NodeLost"}, False),
    "does not move": ({"reason": "Stalled"}, False),
}


def status_of(observed: Observed, document: dict[str, Any] = CHAT) -> dict[str, Any]:
    return model_status(document, plan([document], observed, SETTINGS), observed)


def with_pods(*pods: PodView, base: Observed = BASE) -> Observed:
    return replace(base, pods=pods)


@pytest.mark.parametrize(("changes", "final"), PODS.values(), ids=PODS)
def test_what_another_try_cannot_heal_is_told_and_what_may_pass_is_waited_for(changes: dict[str, Any], final: bool) -> None:
    pod = worker(BASE, ready=False, **changes)
    status = status_of(with_pods(router(BASE), pod))
    assert is_final(pod) == final
    if not final:
        assert "unavailable" not in status
        assert "unavailable" not in status["variants"][0]
        return
    told = next(each for each in status["conditions"] if each["reason"] == status["ready"])
    assert status["unavailable"] == status["variants"][0]["unavailable"] == f"{told['reason']}: {told['message']}"


GONE = {"ready": False, "reason": "ModelNotFound"}
LOADS = {"ready": False, "reason": "Loading"}


def test_one_worker_that_may_come_is_enough_to_wait() -> None:
    assert "unavailable" in status_of(with_pods(worker(BASE, **GONE), worker(BASE, number=1, **GONE)))
    assert "unavailable" not in status_of(with_pods(worker(BASE, **GONE), worker(BASE, number=1, **LOADS)))
    assert "unavailable" not in status_of(with_pods(worker(BASE, **GONE), worker(BASE, number=1)))


def test_what_fails_beside_a_worker_of_the_changed_spec_is_of_the_past() -> None:
    old = worker(BASE, template="0123456789", **GONE)
    assert "unavailable" not in status_of(with_pods(old, worker(BASE, number=1, **LOADS)))
    assert "unavailable" not in status_of(with_pods(old)), "its successor has not begun"


def test_a_spec_that_is_not_carried_out_yet_is_not_judged_by_its_pods() -> None:
    changed = inference_model(spec={"model": {"source": TINY}, "engine": {"maxRunning": 2}})
    assert "unavailable" not in status_of(with_pods(worker(BASE, **GONE)), changed)


def variants_of(weights: Mapping[str, int]) -> tuple[dict[str, Any], Observed]:
    document = inference_model(
        spec={"model": {"source": TINY}, "variants": [{"name": name, "weight": weight} for name, weight in weights.items()]}
    )
    return document, settled([document])


def pod_of(observed: Observed, variant: str, **changes: Any) -> PodView:
    labels = observed.objects[ObjectRef("Deployment", "default", f"chat-{variant}")]["spec"]["template"]["metadata"]["labels"]
    return PodView(name=f"chat-{variant}-0", labels=labels, phase="Running", **changes)


def test_requests_wait_while_one_variant_that_takes_them_may_come() -> None:
    document, base = variants_of({"a": 50, "b": 50, "c": 0})
    a, b = pod_of(base, "a", reason="ModelNotFound"), pod_of(base, "b", reason="Loading")
    status = status_of(with_pods(a, b, base=base), document)
    assert "unavailable" not in status
    assert ["unavailable" in each for each in status["variants"]] == [True, False, False]
    status = status_of(with_pods(a, replace(b, reason="ModelNotFound"), base=base), document)
    assert status["unavailable"].startswith("ModelNotFound: chat-a-0")
    assert ["unavailable" in each for each in status["variants"]] == [True, True, False], "c sleeps: who asks for it wakes it"


def test_a_spec_that_is_refused_brings_no_worker_but_those_that_it_had_may_come_back() -> None:
    broken = inference_model(spec={"model": {"source": TINY}, "engine": {"maxRunning": 0}})
    assert status_of(BASE, broken)["unavailable"].startswith("SpecInvalid: spec.engine.maxRunning")
    assert "unavailable" not in status_of(with_pods(worker(BASE, **LOADS)), broken)
    assert "unavailable" not in status_of(with_pods(worker(BASE)), broken)


REFUSED = {
    "a policy": ("admission webhook denied the request: no GPUs on Fridays", True),
    "a quota, which others may leave": ("exceeded quota: gpus, requested: 1, used: 4, limited: 4", False),
}


@pytest.mark.parametrize(("told", "final"), REFUSED.values(), ids=REFUSED)
def test_workers_that_the_api_server_refuses_come_never_unless_it_is_for_a_quota(told: str, final: bool) -> None:
    ref = ObjectRef("Deployment", "default", "chat-default")
    failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": told}
    live = {**BASE.objects[ref], "status": {"conditions": [failure]}}
    assert ("unavailable" in status_of(replace(BASE, objects={**BASE.objects, ref: live}))) == final
    blocked = world(*(each for each in BASE.objects.values() if each is not BASE.objects[ref]))
    assert ("unavailable" in status_of(replace(blocked, blocked={ref: told}))) == final


@given(st.sampled_from(sorted(REASON_OF_POD)), st.integers(0, 9), st.booleans(), st.text())
def test_what_loads_or_passes_by_itself_is_never_final(reason: str, failures: int, incurable: bool, message: str) -> None:
    pod = PodView(name="x", labels={}, reason=reason, failures=failures, incurable=incurable, message=message, has_served=True)
    if reason_of(pod) in {Reason.LOADING, Reason.WEIGHTS_DOWNLOAD, Reason.STALLED, Reason.NODE_LOST, Reason.EVICTED, Reason.ENGINE_CRASH}:
        assert not is_final(pod)
