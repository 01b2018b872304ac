"""Does a live object have what we want of it? Compared as server-side apply would leave it. Pure; called by `plan`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pagoda_operator.labels import LABEL_MODEL
from pagoda_operator.manifest.quantities import parse_quantity

Key = Callable[[Mapping[str, Any]], Any]


def _port_key(port: Mapping[str, Any]) -> Any:
    return port.get("containerPort", port.get("port")), port.get("protocol")


LIST_KEYS: Mapping[str, Key] = {
    "containers": lambda item: item["name"],
    "initContainers": lambda item: item["name"],
    "env": lambda item: item["name"],
    "volumes": lambda item: item["name"],
    "imagePullSecrets": lambda item: item["name"],
    "volumeMounts": lambda item: item["mountPath"],
    "ports": _port_key,
    "ownerReferences": lambda item: item["uid"],
}
"""Lists that the API merges item by item, by their field's name: items that others added are theirs. All other lists are one value."""
WHOLE = frozenset({"ingress", "egress"})
"""Of NetworkPolicies: what is below is one value, lists named `ports` included."""


def first_difference(desired: Any, live: Any, path: str = "") -> str | None:
    """Path of the first field that we want and the live object does not have so. Fields that others added are theirs."""
    if isinstance(desired, Mapping) and isinstance(live, Mapping):
        return _first_in_object(desired, live, path)
    if isinstance(desired, list) and isinstance(live, list):
        return _first_in_list(desired, live, path)
    return None if desired == live else path


def adopted(fresh: dict[str, Any], live: Mapping[str, Any]) -> dict[str, Any]:
    """What we want of an object that exists: without what is no longer ours to decide.

    A worker Deployment's replicas are the scaler's. A claim's size only grows, and nothing else of its spec can change.
    """
    if fresh["kind"] == "Deployment" and LABEL_MODEL in fresh["metadata"]["labels"]:
        return fresh | {"spec": {name: value for name, value in fresh["spec"].items() if name != "replicas"}}
    if fresh["kind"] == "PersistentVolumeClaim":
        return fresh | {"spec": _grown(fresh["spec"], live["spec"])}
    return fresh


def _grown(fresh: Mapping[str, Any], live: Mapping[str, Any]) -> dict[str, Any]:
    sizes = [spec["resources"]["requests"]["storage"] for spec in (live, fresh)]
    fixed = {name: live[name] for name in ("accessModes", "storageClassName") if name in live}
    return {**fixed, "resources": {"requests": {"storage": max(sizes, key=parse_quantity)}}}


def _first_in_object(desired: Mapping[str, Any], live: Mapping[str, Any], path: str) -> str | None:
    for name, value in desired.items():
        below = f"{path}.{name}" if path else str(name)
        if name not in live:
            if value not in ({}, []):  # the API server does not store what is empty
                return below
        elif found := first_difference(value, live[name], below):
            return found
    return None


def _first_in_list(desired: Sequence[Any], live: Sequence[Any], path: str) -> str | None:
    *parents, name = path.replace("[", ".").split(".")
    if (key := LIST_KEYS.get(name)) and WHOLE.isdisjoint(parents):
        by_key = {key(item): item for item in live}
        pairs = ((f"{path}[{i}]", item, by_key.get(key(item))) for i, item in enumerate(desired))
        return next((found for below, want, have in pairs if (found := first_difference(want, have, below))), None)
    if len(desired) != len(live):
        return path
    numbered = enumerate(zip(desired, live, strict=True))
    return next((found for i, (want, have) in numbered if (found := first_difference(want, have, f"{path}[{i}]"))), None)
