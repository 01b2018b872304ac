"""Walks a manifest along the table in `rules/table.py` and collects every problem. Called by `spec.parse` only."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pagoda_operator.errors import Problem
from pagoda_operator.manifest.rules.predicates import KIND_MESSAGES, Field, Kind
from pagoda_operator.manifest.rules.table import FIELDS, NAME, NOT_YET, NOT_YET_MESSAGE, OWN_DRAFTS, OWN_FALLBACK, children_of
from pagoda_operator.manifest.rules.variants import SPEC

API_VERSION = "pagoda.dev/v1alpha1"
KIND = "InferenceModel"
NAMESPACE = re.compile("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
OTHER_NAMES = {
    "spec.replicas": "scaling.min and scaling.max",
    "spec.scaling.minReplicas": "min",
    "spec.scaling.maxReplicas": "max",
    "spec.resources.limits": "cpu, memory and gpus directly below resources",
    "spec.resources.requests": "cpu, memory and gpus directly below resources",
}
"""What Deployments, HorizontalPodAutoscalers and containers call what an InferenceModel has, and its name here."""
TOP_LEVEL = ("apiVersion", "kind", "metadata", "spec", "status")

METADATA = (
    *("name", "namespace", "labels", "annotations", "generateName", "finalizers", "ownerReferences", "uid", "resourceVersion"),
    *("generation", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "managedFields", "selfLink"),
)
"""Of Kubernetes' ObjectMeta. The API server knows no others either."""


def problems_of(document: Mapping[str, Any]) -> list[Problem]:
    return [*_envelope(document), *_field(SPEC, SPEC, document), *_other_models(document)]


def _envelope(document: Mapping[str, Any]) -> Iterator[Problem]:
    if document.get("apiVersion") != API_VERSION:
        yield Problem("apiVersion", f"write {API_VERSION}", shown(document.get("apiVersion")))
    if document.get("kind") != KIND:
        yield Problem("kind", f"write {KIND}", shown(document.get("kind")))
    for name in document:
        if name not in TOP_LEVEL:
            yield Problem(in_path(name), f"is not a field of {KIND}{_closest(str(name), TOP_LEVEL)}; remove it")
    metadata = document.get("metadata")
    if isinstance(metadata, Mapping):
        for name in metadata:
            if name not in METADATA:
                yield Problem(f"metadata.{in_path(name)}", f"is not a field of metadata{_closest(str(name), METADATA)}; remove it")
    if not isinstance(metadata, Mapping) or not metadata.get("name"):
        yield Problem("metadata.name", "is required")
        return
    if not isinstance(metadata["name"], str) or not NAME.holds(metadata["name"]):
        yield Problem("metadata.name", NAME.message.removeprefix("metadata.name: "), shown(metadata["name"]))
    namespace = metadata.get("namespace")
    if namespace is not None and not (isinstance(namespace, str) and NAMESPACE.fullmatch(namespace)):
        yield Problem("metadata.namespace", "write 1 to 63 lower-case letters, digits and dashes", shown(namespace))
    generation = metadata.get("generation")
    if generation is not None and not is_kind("integer", generation):
        yield Problem("metadata.generation", "leave it out: it counts the changes of spec and is kept by the server", shown(generation))


def _other_models(document: Mapping[str, Any]) -> Iterator[Problem]:
    metadata, spec = document.get("metadata"), document.get("spec")
    routing = spec.get("routing") if isinstance(spec, Mapping) else None
    if not isinstance(metadata, Mapping) or not isinstance(routing, Mapping):
        return
    for sentence in (OWN_DRAFTS, OWN_FALLBACK):
        path, _, message = sentence.partition(": ")
        name = path.rpartition(".")[2]
        if name in routing and routing[name] == metadata.get("name"):
            yield Problem(path, message, shown(routing[name]))


def _field(path: str, shape: str, parent: Mapping[str, Any]) -> Iterator[Problem]:
    """One field of an object. `path` names it with list positions, `shape` as the table does."""
    field, name = FIELDS[shape], path.rpartition(".")[2]
    if name in parent:
        yield from _value(path, shape, field, parent[name])
    elif field.required:
        yield Problem(path, "is required")


def _value(path: str, shape: str, field: Field, value: Any) -> Iterator[Problem]:
    if not is_kind(field.kind, value):
        yield Problem(path, KIND_MESSAGES[field.kind], shown(value))
        return
    if field.max_size is not None and not isinstance(value, int) and len(value) > field.max_size:
        yield Problem(path, f"write at most {field.max_size} {'items' if field.kind == 'list' else 'characters'}")
        return
    below: list[Problem] = []
    if field.kind == "object":
        below = list(_object(path, shape, value))
    elif field.kind == "list":
        items = FIELDS[f"{shape}[]"]
        below = [problem for i, item in enumerate(value) for problem in _value(f"{path}[{i}]", f"{shape}[]", items, item)]
    yield from below
    if below and not _well_typed(shape, field, value):
        return
    for rule in field.rules:
        if not rule.holds(value):
            yield Problem(path, rule.message, shown(value) if field.kind not in ("object", "list") else "")


def _object(path: str, shape: str, value: Mapping[str, Any]) -> Iterator[Problem]:
    known = children_of(shape)
    for name in value:
        if name in known:
            continue
        if f"{shape}.{name}" in NOT_YET:
            yield Problem(f"{path}.{name}", NOT_YET_MESSAGE)
        else:
            instead = f": write {OTHER_NAMES[f'{shape}.{name}']}" if f"{shape}.{name}" in OTHER_NAMES else None
            advice = instead or f"{_closest(str(name), list(known))}; remove it"
            yield Problem(f"{path}.{in_path(name)}", f"is not a field of {path}{advice}")
    for name in known:
        yield from _field(f"{path}.{name}", f"{shape}.{name}", value)


def _well_typed(shape: str, field: Field, value: Any) -> bool:
    """Whether a rule over the whole object or list can be asked although something below it is wrong: what it may look at is there and
    of its kind, at any depth."""
    if not is_kind(field.kind, value):
        return False
    if field.kind == "list":
        return all(_well_typed(f"{shape}[]", FIELDS[f"{shape}[]"], item) for item in value)
    if field.kind == "object":
        below = ((name, FIELDS[f"{shape}.{name}"]) for name in children_of(shape))
        return all(_well_typed(f"{shape}.{name}", one, value[name]) if name in value else not one.required for name, one in below)
    return True


def is_kind(kind: Kind, value: Any) -> bool:
    match kind:
        case "object":
            return isinstance(value, Mapping)
        case "list":
            return isinstance(value, list | tuple)
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "quantity":
            return isinstance(value, str | int) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """What was written, short enough for a line."""
    if value is None:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def in_path(name: object) -> str:
    """A field's name as part of a path, on one line whatever it is."""
    return name if isinstance(name, str) and name.isprintable() and name else shown(name)


def _closest(name: str, known: tuple[str, ...] | list[str]) -> str:
    lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), list(lower), n=1)
    return f" (did you mean {lower[close[0]]}?)" if close else ""
