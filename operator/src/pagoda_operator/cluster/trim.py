"""What of an API object is kept in memory: enough to plan, to tell and to compare. Pure.

A pod as the API gives it takes some 40 KB as Python objects; trimmed it takes 4.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pagoda_operator.observed.world import MADE

Object = dict[str, Any]
Trim = Callable[[Mapping[str, Any]], Object]

SCALED = "pagoda.dev/scaled"
"""Put into a trimmed Deployment in place of its managed fields."""

CLAIM = "persistentVolumeClaim"
METADATA = ("name", "namespace", "uid", "resourceVersion", "generation", "labels", "creationTimestamp", "deletionTimestamp")


def child(item: Mapping[str, Any]) -> Object:
    """Whole but for managed fields and status; of the status of a Deployment its conditions: quota refusals of pods stand there."""
    kept = {key: value for key, value in item.items() if key not in ("metadata", "status")}
    metadata = {key: value for key, value in item["metadata"].items() if key not in ("managedFields", "annotations")}
    if annotations := _annotations(item["metadata"]):
        metadata["annotations"] = annotations
    kept["metadata"] = metadata
    if conditions := (item.get("status") or {}).get("conditions"):
        kept["status"] = {"conditions": [_condition(each) for each in conditions]}
    managers = item["metadata"].get("managedFields") or ()
    kept[MADE] = any((entry.get("manager"), entry.get("operation")) == ("pagoda-operator", "Apply") for entry in managers)
    if item["kind"] == "Deployment":
        kept[SCALED] = any(_owns_replicas(entry) for entry in managers)
    return kept


def is_scaled(deployment: Mapping[str, Any]) -> bool:
    """Whether the scaler's field manager owns spec.replicas."""
    return bool(deployment.get(SCALED))


def pod(item: Mapping[str, Any]) -> Object:
    spec, status = item.get("spec") or {}, item.get("status") or {}
    kept_spec: Object = {key: spec[key] for key in ("nodeName", "readinessGates") if key in spec}
    for key in ("containers", "initContainers"):
        if key in spec:
            kept_spec[key] = [{"name": each["name"]} for each in spec[key]]
    if claims := [{CLAIM: each[CLAIM]} for each in spec.get("volumes") or () if CLAIM in each]:
        kept_spec["volumes"] = claims
    kept_status: Object = {key: status[key] for key in ("phase", "podIP", "reason", "message", "startTime") if key in status}
    kept_status["conditions"] = [_condition(each) for each in status.get("conditions") or ()]
    for key in ("containerStatuses", "initContainerStatuses"):
        if key in status:
            kept_status[key] = [_container_status(each) for each in status[key]]
    return {"metadata": _metadata(item), "spec": kept_spec, "status": kept_status}


def node(item: Mapping[str, Any]) -> Object:
    """Only whether it is there: heartbeats must not look like changes."""
    conditions = (item.get("status") or {}).get("conditions") or ()
    ready = [
        {key: each[key] for key in ("type", "status", "reason", "message", "lastTransitionTime") if key in each}
        for each in conditions
        if each["type"] == "Ready"
    ]
    metadata = {key: item["metadata"][key] for key in ("name", "uid", "resourceVersion", "deletionTimestamp") if key in item["metadata"]}
    return {"metadata": metadata, "spec": {}, "status": {"conditions": ready}}


def _owns_replicas(entry: Mapping[str, Any]) -> bool:
    return entry.get("manager") == "pagoda-scaler" and "f:replicas" in (entry.get("fieldsV1") or {}).get("f:spec", {})


def _metadata(item: Mapping[str, Any]) -> Object:
    return {key: item["metadata"][key] for key in METADATA if key in item["metadata"]}


def _annotations(metadata: Mapping[str, Any]) -> Object:
    written = metadata.get("annotations") or {}
    return {key: value for key, value in written.items() if not key.startswith(("kubectl.kubernetes.io/", "deployment.kubernetes.io/"))}


def _condition(condition: Mapping[str, Any]) -> Object:
    return {key: value for key, value in condition.items() if key not in ("lastProbeTime", "lastUpdateTime", "lastHeartbeatTime")}


def _container_status(status: Mapping[str, Any]) -> Object:
    return {key: status[key] for key in ("name", "ready", "started", "restartCount", "state", "lastState") if key in status}
