"""What a router knows of its namespace at one moment: models, and the endpoints of their workers. Pure parsing, no I/O.

File and Kubernetes discovery both yield a FleetSnapshot; fleet.py reconciles it. Objects arrive as plain dicts in Kubernetes' own shape,
from a writer that may be newer than this router: unknown fields are ignored, one bad object never hides the others (it is named in
`problems`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pagoda_router.generation import ModelName, ServedName

MODEL_LABEL = "pagoda.dev/model"
VARIANT_LABEL = "pagoda.dev/variant"
TEMPLATE_LABEL = "pagoda.dev/template"


class BadSnapshot(Exception):
    """The whole document is unusable; the last good one stays in force."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelObject:
    """The parts of an InferenceModel that a router acts on."""

    name: ModelName
    served_names: tuple[ServedName, ...]
    created: int
    """Unix seconds; the older object keeps a name that two claim."""
    source: str
    """spec.model.source: a description cached for another source is stale."""
    min_replicas: int = 0
    max_queue_tokens: int | None = None
    not_ready_reason: str = ""
    """Message of the first false condition in status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One worker's gRPC address. Equal endpoints are the same worker process as far as discovery can tell."""

    name: str
    """The pod's."""
    model: ModelName
    variant: str
    template: str
    """Pod template hash: which generation of the worker Deployment this is."""
    host: str
    port: int

    @property
    def target(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSnapshot:
    models: tuple[ModelObject, ...] = ()
    endpoints: Mapping[Endpoint, bool] = field(default_factory=dict)
    """Endpoint → takes new requests (false: terminating, finish what runs). Only those that serve."""
    awaited: frozenset[ModelName] = frozenset()
    """Models with an endpoint of any kind, serving or not yet: a request for one of them is worth holding."""
    problems: tuple[str, ...] = ()


def parse_snapshot(document: Any) -> FleetSnapshot:
    """Raises BadSnapshot when the document as a whole is not a fleet this router understands."""
    if not isinstance(document, Mapping):
        raise BadSnapshot(f"a fleet is an object with models and endpointSlices, not {type(document).__name__}")
    if document.get("version") != 1:
        raise BadSnapshot(f"fleet version {document.get('version')!r} is not known to this router (1 is): upgrade the router")
    problems: list[str] = []
    models: dict[ModelName, ModelObject] = {}
    for index, item in enumerate(_items(document, "models")):
        try:
            model = _model(item)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            problems.append(f"models[{index}] is unusable: {_cause(error)}")
            continue
        models[model.name] = model
    endpoints: dict[Endpoint, bool] = {}
    awaited: set[ModelName] = set()
    for index, item in enumerate(_items(document, "endpointSlices")):
        try:
            for endpoint, serving, terminating in _endpoints(item):
                if not terminating:
                    awaited.add(endpoint.model)
                if serving:
                    endpoints[endpoint] = not terminating
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            problems.append(f"endpointSlices[{index}] is unusable: {_cause(error)}")
    return FleetSnapshot(models=tuple(models.values()), endpoints=endpoints, awaited=frozenset(awaited), problems=tuple(problems))


def names_to_models(models: tuple[ModelObject, ...]) -> dict[ServedName, ModelObject]:
    """Who answers to which name; claimed twice, the older object wins (by name when created in the same second)."""
    owners: dict[ServedName, ModelObject] = {}
    for model in sorted(models, key=lambda m: (m.created, m.name)):
        for name in model.served_names:
            owners.setdefault(name, model)
    return owners


def _items(document: Mapping[str, Any], key: str) -> list[Any]:
    items = document.get(key)
    if items is None:
        return []
    if not isinstance(items, list):
        raise BadSnapshot(f"{key} is a list, not {type(items).__name__}")
    return items


def _cause(error: Exception) -> str:
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) and error.args else str(error)


def _model(item: Any) -> ModelObject:
    metadata, spec, status = item["metadata"], item.get("spec") or {}, item.get("status") or {}
    name = _text(metadata["name"], "metadata.name")
    served = [_text(n, "spec.servedNames") for n in spec.get("servedNames") or [name]]
    scaling, routing = spec.get("scaling") or {}, spec.get("routing") or {}
    queue_tokens = routing.get("maxQueueTokens")
    return ModelObject(
        name=ModelName(name),
        served_names=tuple(ServedName(n) for n in served),
        created=_unix_seconds(metadata.get("creationTimestamp")),
        source=str((spec.get("model") or {}).get("source", "")),
        min_replicas=int(scaling.get("min") or 0),
        max_queue_tokens=None if queue_tokens is None else int(queue_tokens),
        not_ready_reason=_first_false_condition(status.get("conditions") or []),
    )


def _endpoints(item: Any) -> Iterator[tuple[Endpoint, bool, bool]]:
    """Each with: serving, terminating."""
    labels = item["metadata"].get("labels") or {}
    port = next((int(p["port"]) for p in item.get("ports") or [] if p.get("name") == "grpc"), None)
    if port is None:
        raise ValueError("no port is named grpc")
    for place, entry in enumerate(item.get("endpoints") or []):
        conditions = entry.get("conditions") or {}
        name = (entry.get("targetRef") or {}).get("name") or f"{item['metadata'].get('name', 'worker')}-{place}"
        endpoint = Endpoint(
            name=_text(name, "targetRef.name"),
            model=ModelName(_text(labels[MODEL_LABEL], MODEL_LABEL)),
            variant=str(labels.get(VARIANT_LABEL, "default")),
            template=str(labels.get(TEMPLATE_LABEL, "")),
            host=_text(entry["addresses"][0], "addresses"),
            port=port,
        )
        terminating = conditions.get("terminating") is True
        yield endpoint, conditions.get("serving") is not False or terminating, terminating


def _text(value: Any, field_name: str) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"{field_name} is a non-empty string, not {value!r}")
    return value


def _unix_seconds(value: Any) -> int:
    return int(datetime.fromisoformat(value).timestamp()) if isinstance(value, str) and value else 0


def _first_false_condition(conditions: list[Any]) -> str:
    for condition in conditions:
        if condition.get("status") == "False":
            return str(condition.get("message") or condition.get("reason") or "")
    return ""
