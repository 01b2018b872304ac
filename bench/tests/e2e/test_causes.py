"""A model that cannot run says why in `kubectl get im`, in words that name the cause and the next step."""

from datetime import timedelta

from conftest import UNBOUND, Installation, quickstart
from kube import Object, eventually, written_at

KINDS = {"pods": "api/v1", "inferencemodels": "apis/pagoda.dev/v1alpha1"}
COPIED_WITHIN = timedelta(seconds=5)
"""From a version of the pod to one of the model, by the API server's clock alone: how fast this test looks does not count."""
CLOCK = timedelta(seconds=1)
"""Both moments are whole seconds."""


def told(installation: Installation, name: str, reason: str, *words: str, **spec: Object) -> None:
    """READY shows `reason`, within five seconds of the pod knowing it; a condition of that reason has the words."""
    models = installation.models
    paths = {kind: f"/{group}/namespaces/{models.name}/{kind}" for kind, group in KINDS.items()}
    since = {kind: models.now(path) for kind, path in paths.items()}
    models.apply(quickstart(name=name, spec={"resources": UNBOUND} | spec))
    try:
        eventually(lambda: shows(models.get("inferencemodel", name), reason), within_s=90, of=f"READY shows {reason}")
        pods, statuses = (models.versions(paths[kind], since[kind]) for kind in KINDS)
        told_at = next(written_at(model) for model in statuses if model["metadata"]["name"] == name and shows(model, reason))
        known_at = None
        for pod in (pod for pod in pods if pod["metadata"].get("labels", {}).get("pagoda.dev/model") == name):
            known_at = (known_at or written_at(pod)) if is_in_trouble(pod) else None  # another trouble may have passed before
        assert known_at is None or told_at - known_at <= COPIED_WITHIN + CLOCK, (known_at, told_at)

        def said() -> bool:
            conditions = models.get("inferencemodel", name)["status"]["conditions"]
            messages = " | ".join(c["message"] for c in conditions if c["reason"] == reason)
            assert all(word in messages for word in words), messages
            return True

        eventually(said, within_s=60, of=f"a condition says {', '.join(words)}")
    finally:
        models.delete("inferencemodel", name)


def shows(model: Object, reason: str) -> bool:
    return bool(model.get("status", {}).get("ready") == reason)


def is_in_trouble(pod: Object) -> bool:
    """The API server tells it of the pod: nowhere to run, or a container that ended badly or cannot start."""
    status = pod["status"]
    containers = [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]
    states = [container[key] for container in containers for key in ("state", "lastState")]
    return (
        any(c["type"] == "PodScheduled" and c["status"] == "False" for c in status.get("conditions", ()))
        or any(state.get("terminated", {}).get("exitCode") for state in states)
        or any(state.get("waiting", {}).get("reason") not in (None, "PodInitializing", "ContainerCreating") for state in states)
    )


def test_a_model_that_does_not_ship(installation: Installation) -> None:
    told(installation, "missing", "ModelNotFound", "builtin://tiny", model={"source": "builtin://nowhere"})


def test_more_cores_than_any_node_has(installation: Installation) -> None:
    told(installation, "huge", "Unschedulable", "cpu", "spec.resources", resources={"cpu": "500", "memory": "2Gi"})


def test_a_gpu_where_there_is_none(installation: Installation) -> None:
    told(installation, "gpu", "Unschedulable", "nvidia.com/gpu", resources=UNBOUND | {"gpus": 1})


def test_a_claim_that_is_not_there(installation: Installation) -> None:
    told(installation, "unclaimed", "Unschedulable", "waits for its volume", "create the claim", model={"source": "pvc://nowhere"})


def test_memory_too_small_for_the_engine(installation: Installation) -> None:
    told(installation, "tight", "OutOfMemory", "96 MiB", "raise the limit", resources=UNBOUND | {"memory": "96Mi"})


def test_a_hub_that_cannot_be_reached(installation: Installation) -> None:
    source = {"source": "hf://nobody/nothing", "endpoint": "http://127.0.0.1:9"}
    told(installation, "unreachable", "WeightsDownload", "127.0.0.1:9", model=source)


def test_a_node_folder_where_the_operator_forbids_it(installation: Installation) -> None:
    told(installation, "folder", "HostPathForbidden", model={"source": "file:///models/chat"})


def test_a_quota_that_is_used_up(installation: Installation) -> None:
    models = installation.models
    used = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "tight"}, "spec": {"hard": {"requests.memory": "1Mi"}}}
    models.apply(used)
    try:
        told(installation, "over", "QuotaExceeded", "tight")
    finally:
        models.delete("resourcequota", "tight")
