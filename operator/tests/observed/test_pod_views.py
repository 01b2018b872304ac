"""Pods as a cluster shows them, one per cause; and how far they are."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda_operator.observed.pods import pod_view

NO_GPU = (
    "0/3 nodes are available: 1 node(s) had untolerated taint {node-role.kubernetes.io/control-plane: }, 2 Insufficient nvidia.com/gpu. "
    "preemption: 0/3 nodes are available: 1 Preemption is not helpful for scheduling, 2 No preemption victims found for incoming pod."
)
BACK_OFF = "back-off 40s restarting failed container=worker pod=chat-default-7c9d8b6f5-x2x4z_default(0c1f)"


def at(second: int) -> str:
    return f"2026-03-01T12:00:{second:02d}Z"


def moment(second: int) -> datetime:
    return datetime(2026, 3, 1, 12, 0, second, tzinfo=UTC)


def condition(kind: str, status: str = "True", second: int = 0, **more: str) -> dict[str, Any]:
    return {"type": kind, "status": status, "lastProbeTime": None, "lastTransitionTime": at(second), **more}


def container(name: str = "worker", state: dict[str, Any] | None = None, last: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    image = "registry.example/pagoda/worker:1.2.3"
    return {"name": name, "state": state or {}, "lastState": last or {}, "ready": False, "restartCount": 0, "image": image, **more}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def ended(exit_code: int, reason: str = "Error", message: str = "", second: int = 5) -> dict[str, Any]:
    told = {"exitCode": exit_code, "reason": reason, "message": message, "startedAt": at(second - 1), "finishedAt": at(second)}
    return {"terminated": {**told, "containerID": "containerd://4f"}}


def running(second: int = 5) -> dict[str, Any]:
    return {"running": {"startedAt": at(second)}}


def pod(
    *containers: dict[str, Any], inits: tuple[dict[str, Any], ...] = (), conditions: tuple[dict[str, Any], ...] = (), **status: Any
) -> dict[str, Any]:
    known = {each["type"] for each in conditions}
    others = [
        condition("PodScheduled", second=1),
        condition("Initialized", "False", reason="ContainersNotInitialized"),
        condition("ContainersReady", "False"),
    ]
    spec: dict[str, Any] = {
        "nodeName": "node-1",
        "readinessGates": [{"conditionType": "pagoda.dev/routed"}],
        "containers": [{"name": "worker"}],
    }
    if inits:
        spec["initContainers"] = [{"name": each["name"]} for each in inits]
    found: dict[str, Any] = {
        "phase": "Pending",
        "conditions": [*conditions, *(each for each in others if each["type"] not in known)],
        **status,
    }
    if containers:
        found["containerStatuses"] = list(containers)
    if inits:
        found["initContainerStatuses"] = list(inits)
    labels = {"app.kubernetes.io/component": "worker", "pagoda.dev/model": "chat", "pagoda.dev/variant": "default"}
    name = {"name": "chat-default-7c9d8b6f5-x2x4z", "namespace": "default", "uid": "0c1f", "labels": labels, "creationTimestamp": at(0)}
    return {"metadata": name, "spec": spec, "status": found}


def claiming(scheduled: dict[str, Any], *claims: str) -> dict[str, Any]:
    found = pod(conditions=(scheduled,))
    volumes = [{"persistentVolumeClaim": {"claimName": claim, "readOnly": True}} for claim in claims]
    return {**found, "spec": {**found["spec"], "volumes": [*volumes, {"emptyDir": {}}]}}


UNBOUND = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims"
UNSCHEDULED = condition("PodScheduled", "False", 0, reason="Unschedulable", message=NO_GPU)
LOADING = {"ready": False, "reason": "Loading", "message": "loading weights", "progress": 0.43, "bytesDone": 2_100, "bytesTotal": 4_900}
FETCHING = LOADING | {"reason": "WeightsDownload", "message": "fetching hf://org/name"}
OUR_OOM = "Traceback: see above\npagoda-worker: OutOfMemory: weights take 15.2 of 16 GB: set spec.engine.maxModelLen to 2048 at most\n"
FETCH_NOT_FOUND = "pagoda-fetch: ModelNotFound: the hub has no org/nmae\n"
FETCH_DENIED = "pagoda-fetch: Unauthorized: org/name is gated: name a token in spec.model.tokenSecretRef\n"
FETCH_FULL = "pagoda-fetch: DiskFull: 4.9 GB are needed, 1.2 GB are free in /models\n"
FETCH_BROKE = "pagoda-fetch: WeightsDownload: the hub closed the connection 5 times\n"
FETCHED = container("fetch", ended(0, "Completed", second=9), ready=True)
SILENT = {
    "metadata": {"name": "node-1"},
    "status": {"conditions": [condition("Ready", "Unknown", reason="NodeStatusUnknown", message="Kubelet stopped posting node status.")]},
}
DOWN = {
    "metadata": {"name": "node-1"},
    "status": {"conditions": [condition("Ready", "False", reason="KubeletNotReady", message="container runtime is down")]},
}
NODE = {"metadata": {"name": "node-1"}, "status": {"conditions": [condition("Ready")]}}

CAUSES: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "no gpu": (
        pod(conditions=(UNSCHEDULED,)),
        {},
        "Unschedulable",
        "not enough nvidia.com/gpu: 0/3 nodes are available: 1 node(s) had untolerated",
    ),
    "no claim": (
        pod(
            conditions=(
                UNSCHEDULED | {"message": '0/1 nodes are available: persistentvolumeclaim "weights" not found. preemption: 0/1 nodes …'},
            )
        ),
        {},
        "Unschedulable",
        '0/1 nodes are available: persistentvolumeclaim "weights" not found',
    ),
    "a claim without a volume": (
        claiming(UNSCHEDULED | {"message": f"{UNBOUND}. preemption: 0/1 nodes …"}, "weights", "weights"),
        {},
        "Unschedulable",
        f"the claim weights is Pending: {UNBOUND}",
    ),
    "one claim of two without a volume": (
        claiming(UNSCHEDULED | {"message": UNBOUND}, "weights", "sql"),
        {},
        "Unschedulable",
        f"one of the claims weights, sql is Pending: {UNBOUND}",
    ),
    "no volume of that class": (
        claiming(
            UNSCHEDULED | {"message": "0/1 nodes are available: 1 node(s) didn't find available persistent volumes to bind."}, "weights"
        ),
        {},
        "Unschedulable",
        "the claim weights is Pending: 0/1 nodes are available",
    ),
    "a provisioner that fails": (
        claiming(
            UNSCHEDULED | {"message": 'running PreBind plugin "VolumeBinding": binding volumes: context deadline exceeded'}, "weights"
        ),
        {},
        "Unschedulable",
        "the claim weights is Pending: running PreBind",
    ),
    "a claim, and no room": (
        claiming(UNSCHEDULED, "weights"),
        {},
        "Unschedulable",
        "not enough nvidia.com/gpu: 0/3",
    ),
    "the kubelet refuses it": (
        pod(phase="Failed", reason="OutOfnvidia.com/gpu", message="Pod was rejected: Node didn't have enough resource: nvidia.com/gpu"),
        {},
        "Unschedulable",
        "Node didn't have enough resource: nvidia.com/gpu",
    ),
    "image does not exist": (
        pod(container(state=waiting("ErrImagePull", "failed to resolve reference: not found"))),
        {},
        "ErrImagePull",
        "failed to resolve reference: not found",
    ),
    "image back-off": (
        pod(container(state=waiting("ImagePullBackOff", 'Back-off pulling image "x"'))),
        {},
        "ImagePullBackOff",
        'pulling image "x"',
    ),
    "image name": (
        pod(container(state=waiting("InvalidImageName", "couldn't parse image name"))),
        {},
        "InvalidImageName",
        "couldn't parse",
    ),
    "image of the fetch step": (
        pod(container(state=waiting("PodInitializing")), inits=(container("fetch", waiting("ErrImagePull", "not found")),)),
        {},
        "ErrImagePull",
        "not found",
    ),
    "missing secret": (
        pod(container(state=waiting("CreateContainerConfigError", 'secret "pagoda-session-1a2b3c4d" not found'))),
        {},
        "CreateContainerConfigError",
        'secret "pagoda-session-1a2b3c4d" not found',
    ),
    "missing key, of the fetch step": (
        pod(inits=(container("fetch", waiting("CreateContainerConfigError", "couldn't find key token in Secret default/hub")),)),
        {},
        "CreateContainerConfigError",
        "couldn't find key token in Secret default/hub",
    ),
    "killed at its limit, just now": (
        pod(container(state=ended(137, "OOMKilled"), restartCount=1), phase="Running"),
        {},
        "OOMKilled",
        "memory limit (signal SIGKILL)",
    ),
    "killed at its limit, again and again": (
        pod(container(state=waiting("CrashLoopBackOff", BACK_OFF), last=ended(137, "OOMKilled"), restartCount=4), phase="Running"),
        {},
        "OOMKilled",
        "memory limit",
    ),
    "our own word for too little memory": (
        pod(container(state=waiting("CrashLoopBackOff", BACK_OFF), last=ended(3, message=OUR_OOM)), phase="Running"),
        {},
        "OutOfMemory",
        "weights take 15.2 of 16 GB: set spec.engine.maxModelLen to 2048 at most",
    ),
    "crash loop": (
        pod(
            container(state=waiting("CrashLoopBackOff", BACK_OFF), last=ended(1, message="…\nValueError: no such dtype\n"), restartCount=3),
            phase="Running",
        ),
        {},
        "CrashLoopBackOff",
        "exit status 1, last words: ValueError: no such dtype",
    ),
    "a first crash": (pod(container(state=ended(139)), phase="Running"), {}, "Error", "signal SIGSEGV, without a last word"),
    "cannot start": (
        pod(container(state=waiting("RunContainerError", "exec: python: not found"), last=ended(128, "StartError"))),
        {},
        "RunContainerError",
        "exec: python: not found",
    ),
    "weights being fetched": (
        pod(inits=(container("fetch", running()),)),
        {"probe": FETCHING},
        "WeightsDownload",
        "fetching hf://org/name",
    ),
    "weights being fetched, nothing heard": (pod(inits=(container("fetch", running()),)), {}, "WeightsDownload", "are being fetched"),
    "no such model": (pod(inits=(container("fetch", ended(3, message=FETCH_NOT_FOUND)),)), {}, "ModelNotFound", "the hub has no org/nmae"),
    "no right to it": (
        pod(inits=(container("fetch", waiting("CrashLoopBackOff", BACK_OFF), ended(3, message=FETCH_DENIED)),)),
        {},
        "Unauthorized",
        "org/name is gated: name a token in spec.model.tokenSecretRef",
    ),
    "no room for it": (
        pod(inits=(container("fetch", waiting("CrashLoopBackOff", BACK_OFF), ended(3, message=FETCH_FULL)),)),
        {},
        "DiskFull",
        "4.9 GB are needed, 1.2 GB are free",
    ),
    "a fetch that broke off": (
        pod(inits=(container("fetch", ended(1, message=FETCH_BROKE)),)),
        {},
        "FetchFailed",
        "closed the connection 5 times",
    ),
    "node silent": (
        pod(container(state=running()), phase="Running"),
        {"node": SILENT},
        "NodeLost",
        "node-1 is not ready: Kubelet stopped posting",
    ),
    "node not ready": (pod(container(state=running()), phase="Running"), {"node": DOWN}, "NodeLost", "container runtime is down"),
    "node gone": (
        pod(container(state=running(), ready=True), conditions=(condition("ContainersReady"),), phase="Running"),
        {"node": {}},
        "NodeLost",
        "its node node-1 is gone",
    ),
    "node shut down": (
        pod(phase="Failed", reason="Terminated", message="Pod was terminated in response to imminent node shutdown."),
        {},
        "NodeLost",
        "imminent node shutdown",
    ),
    "lost by its node": (
        pod(phase="Running", reason="NodeLost", message="Node node-1 which was running pod is unresponsive"),
        {},
        "NodeLost",
        "unresponsive",
    ),
    "evicted": (
        pod(phase="Failed", reason="Evicted", message="The node was low on resource: ephemeral-storage. Container worker was using 90Gi."),
        {},
        "Evicted",
        "low on resource: ephemeral-storage",
    ),
    "deadline": (
        pod(phase="Failed", reason="DeadlineExceeded", message="Pod was active on the node longer than the specified deadline"),
        {},
        "DeadlineExceeded",
        "longer than the specified deadline",
    ),
    "loading": (pod(container(state=running()), phase="Running"), {"probe": LOADING}, "Loading", "loading weights"),
    "loading, nothing heard": (pod(container(state=running()), phase="Running"), {}, "", ""),
    "loading again": (
        pod(container(state=running(), last=ended(1, message="boom"), restartCount=1), phase="Running"),
        {},
        "Loading",
        "started again after exit status 1, last words: boom",
    ),
    "out of memory, loading again": (
        pod(container(state=running(), last=ended(3, message=OUR_OOM), restartCount=1), phase="Running"),
        {"probe": LOADING},
        "OutOfMemory",
        "weights take 15.2 of 16 GB: set spec.engine.maxModelLen to 2048 at most",
    ),
    "no such model, asking again": (
        pod(inits=(container("fetch", running(), ended(3, message=FETCH_NOT_FOUND)),)),
        {"probe": {"ready": False, "reason": "WeightsDownload", "message": "asking hf://org/nmae"}},
        "ModelNotFound",
        "the hub has no org/nmae",
    ),
    "no such model, and now it is there": (
        pod(inits=(container("fetch", running(), ended(3, message=FETCH_NOT_FOUND)),)),
        {"probe": FETCHING},
        "WeightsDownload",
        "fetching hf://org/name",
    ),
    "out of memory, and now another trouble": (
        pod(container(state=running(), last=ended(3, message=OUR_OOM), restartCount=1), phase="Running"),
        {"probe": {"ready": False, "reason": "Stalled", "message": "no token for 20 s"}},
        "Stalled",
        "no token for 20 s",
    ),
    "stalled": (
        pod(container(state=running()), phase="Running"),
        {"probe": {"ready": False, "reason": "Stalled", "message": "no token for 20 s"}},
        "Stalled",
        "no token for 20 s",
    ),
    "being made": (pod(container(state=waiting("ContainerCreating"))), {"node": NODE}, "", ""),
    "just seen": (pod(conditions=(condition("PodScheduled", "False"),)), {}, "Unschedulable", ""),
}


@pytest.mark.parametrize(("found", "more", "reason", "words"), CAUSES.values(), ids=CAUSES.keys())
def test_a_pod_that_does_not_serve_says_why(found: dict[str, Any], more: dict[str, Any], reason: str, words: str) -> None:
    view = pod_view(found, more.get("node"), more.get("probe"))
    assert (view.serving, view.reason) == (False, reason)
    assert words in view.message
    assert "\n" not in view.message


def serving(*, gate: str = "True", routed_at: int = 31, **more: Any) -> dict[str, Any]:
    marks = (condition("ContainersReady", second=30), condition("pagoda.dev/routed", gate, routed_at))
    return pod(container(state=running(10), ready=True), conditions=marks, phase="Running", podIP="10.0.0.7", **more)


def test_a_worker_that_serves_has_measured_and_counts_when_the_routers_say_so() -> None:
    probe = {
        "ready": True,
        "capacity": {"kvTokens": 4096, "maxModelLen": 512, "prefillTokensPerS": 900.5, "decodeTokensPerS": 80, "device": "cpu"},
    }
    view = pod_view(serving(), NODE, probe)
    assert (view.ready, view.reason, view.message, view.node, view.ip) == (True, "", "", "node-1", "10.0.0.7")
    assert view.capacity is not None
    assert (view.capacity.kv_tokens, view.capacity.max_model_len, view.capacity.prefill_tokens_per_s) == (4096, 512, 900.5)
    waits = pod_view(serving(gate="False"), NODE, probe)
    assert (waits.serving, waits.routed, waits.ready) == (True, False, False)


def test_a_router_needs_no_gate() -> None:
    found = serving(gate="False")
    del found["spec"]["readinessGates"]
    assert pod_view(found, NODE).ready


def test_a_silent_node_takes_nothing_from_a_worker_that_routers_still_reach() -> None:
    assert pod_view(serving(), SILENT).serving
    assert pod_view(serving(gate="False"), SILENT).reason == "NodeLost"
    assert pod_view(serving(), {}).reason == "NodeLost"


def test_milestones_are_the_moments_at_which_each_step_was_done() -> None:
    view = pod_view(serving(inits=(container("fetch", ended(0, "Completed", second=9), ready=True),)), NODE)
    assert [view.created_at, view.scheduled_at, view.image_at, view.weights_at, view.engine_at, view.routed_at] == [
        moment(second) for second in (0, 1, 8, 9, 30, 31)
    ]
    without_fetch = pod_view(serving(gate="False"), NODE)
    assert (without_fetch.image_at, without_fetch.weights_at, without_fetch.routed_at) == (moment(10), moment(10), None)
    fetching = pod_view(pod(inits=(container("fetch", running(4)),)), NODE)
    assert (fetching.image_at, fetching.weights_at, fetching.engine_at) == (moment(4), None, None)


def test_an_engine_that_routers_heard_of_before_the_kubelet_serves_since_then() -> None:
    view = pod_view(serving(routed_at=29), NODE)
    assert (view.engine_at, view.routed_at) == (moment(29), moment(29))


def test_progress_is_told_with_its_bytes_until_it_serves() -> None:
    view = pod_view(pod(inits=(container("fetch", running()),)), NODE, FETCHING)
    assert (view.progress, view.bytes_done, view.bytes_total) == (0.43, 2_100, 4_900)
    assert pod_view(serving(), NODE, FETCHING).progress is None


def test_a_pod_told_to_end_is_terminating_and_restarts_are_summed() -> None:
    found = serving()
    found["metadata"]["deletionTimestamp"] = at(40)
    found["status"]["containerStatuses"][0]["restartCount"] = 3
    view = pod_view(found)
    assert (view.terminating, view.restarts) == (True, 3)


FAILURES: dict[str, tuple[dict[str, Any], dict[str, Any], int, bool]] = {
    # pod, what it says → ends in a row before it served, and whether the last said that another try is useless
    "none yet": (pod(container(state=running())), LOADING, 0, False),
    "between two tries": (pod(container(state=waiting("CrashLoopBackOff"), last=ended(1), restartCount=2)), {}, 3, False),
    "just ended": (pod(container(state=ended(139), restartCount=1)), {}, 2, False),
    "tries again": (pod(container(state=running(), last=ended(1), restartCount=2)), LOADING, 2, False),
    "bad settings": (pod(container(state=waiting("CrashLoopBackOff"), last=ended(2), restartCount=1)), {}, 2, True),
    "its engine ends": (pod(container(state=running())), LOADING | {"reason": "EngineCrash", "engineFailures": 4}, 4, False),
    "the fetch step": (pod(container(state=waiting("PodInitializing")), inits=(container("fetch", ended(3)),)), {}, 1, True),
    "after a fetch": (pod(container(state=ended(1)), inits=(FETCHED | {"restartCount": 7},)), {}, 1, False),
    "it has served": (
        pod(container(state=ended(1), restartCount=7), conditions=(condition("pagoda.dev/routed", "False"),)),
        LOADING | {"engineFailures": 4},
        0,
        False,
    ),
}


@pytest.mark.parametrize(("found", "probe", "failures", "incurable"), FAILURES.values(), ids=FAILURES)
def test_ends_are_counted_until_a_pod_has_served(found: dict[str, Any], probe: dict[str, Any], failures: int, incurable: bool) -> None:
    view = pod_view(found, NODE, probe)
    assert (view.failures, view.incurable) == (failures, incurable)
    assert view.has_served == any(each["type"] == "pagoda.dev/routed" for each in found["status"]["conditions"])


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@given(
    st.dictionaries(
        st.sampled_from(["ready", "reason", "message", "progress", "bytesDone", "bytesTotal", "engineFailures", "capacity"]), ANYTHING
    )
)
def test_whatever_a_worker_of_another_version_answers_there_is_a_view(probe: dict[str, Any]) -> None:
    assert pod_view(pod(container(state=running()), phase="Running"), NODE, probe).name
    assert pod_view(serving(), NODE, probe).serving
