"""What a router knows of its namespace at one moment: models, and the endpoints of their workers. Pure parsing, no I/O.

File and Kubernetes discovery both yield a FleetSnapshot; fleet.py reconciles it. Objects arrive as plain dicts in Kubernetes' own shape,
from a writer that may be newer than this router: unknown fields are ignored, one bad object never hides the others (it is named in
`problems`).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pagoda_router.catalog import ServedName
from pagoda_router.discovery.model_object import ModelObject, cause_of, read_model, text_of
from pagoda_router.generation import ModelName
from pagoda_router.relays import BACKENDS, OWN_BACKEND

MODEL_LABEL = "pagoda.dev/model"
VARIANT_LABEL = "pagoda.dev/variant"
TEMPLATE_LABEL = "pagoda.dev/template"
BACKEND_LABEL = "pagoda.dev/backend"
"""Absent on our own workers, which listen on a port named grpc; the others on one named openai."""
CANARY_LABEL = "pagoda.dev/canary"
"""The operator's own liveness object; no model."""


class BadSnapshot(Exception):
    """The whole document is unusable; the last good one stays in force."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One worker's address. Equal endpoints are the same worker process as far as discovery can tell."""

    name: str
    """The pod's."""
    model: ModelName
    variant: str
    template: str
    """Pod template hash: which generation of the worker Deployment this is."""
    host: str
    port: int
    backend: str = OWN_BACKEND
    """pagoda speaks gRPC there, the others OpenAI's HTTP."""
    zone: str = field(default="", compare=False)
    """Of the node, as Kubernetes writes it into slices; empty: not told."""

    @property
    def relays(self) -> bool:
        """It takes a request's text, not its tokens."""
        return self.backend != OWN_BACKEND

    @property
    def target(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def is_elsewhere(self, zone: str) -> bool:
        """In another zone than `zone`, the router's; never where either is not known."""
        return bool(zone and self.zone and zone != self.zone)


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
    models = read_models(_items(document, "models"), problems)
    endpoints: dict[Endpoint, bool] = {}
    awaited: set[ModelName] = set()
    for seen in read_endpoints(_items(document, "endpointSlices"), problems):
        if not seen.terminating:
            awaited.add(seen.endpoint.model)
        if seen.serving:
            endpoints[seen.endpoint] = not seen.terminating
    return FleetSnapshot(models=models, endpoints=endpoints, awaited=frozenset(awaited), problems=tuple(problems))


def read_models(items: Iterable[Any], problems: list[str], where: str = "models[{}]") -> tuple[ModelObject, ...]:
    """Without those on their way out and without canaries; what cannot be read is named in `problems`."""
    models: dict[ModelName, ModelObject] = {}
    for index, item in enumerate(items):
        try:
            metadata = item["metadata"]
            if metadata.get("deletionTimestamp") or (metadata.get("labels") or {}).get(CANARY_LABEL) == "true":
                continue
            complaints: list[str] = []
            model = read_model(item, complaints)
            problems += [f"{where.format(index)}: {complaint}" for complaint in complaints]
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            problems.append(f"{where.format(index)} is unusable: {cause_of(error)}")
            continue
        models[model.name] = model
    return tuple(models.values())


@dataclass(frozen=True, slots=True)
class SeenEndpoint:
    """One entry of an EndpointSlice."""

    endpoint: Endpoint
    pod: str
    """The pod's uid, or what else names it."""
    family: str
    """IPv4 or IPv6."""
    serving: bool
    terminating: bool


def read_endpoints(items: Iterable[Any], problems: list[str], where: str = "endpointSlices[{}]") -> list[SeenEndpoint]:
    seen: list[SeenEndpoint] = []
    for index, item in enumerate(items):
        try:
            seen += _endpoints(item)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            problems.append(f"{where.format(index)} is unusable: {cause_of(error)}")
    return seen


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


def _endpoints(item: Any) -> Iterator[SeenEndpoint]:
    metadata = item["metadata"]
    labels = metadata.get("labels") or {}
    backend = str(labels.get(BACKEND_LABEL) or OWN_BACKEND)
    if backend not in BACKENDS:
        raise ValueError(f"{BACKEND_LABEL} is {backend!r}; this router speaks to {', '.join(sorted(BACKENDS))}")
    port_name = "grpc" if backend == OWN_BACKEND else "openai"
    port = next((int(p["port"]) for p in item.get("ports") or [] if p.get("name") == port_name), None)
    entries = item.get("endpoints") or []
    if port is None:
        if not entries:
            return  # the API server drops the ports of a slice that lists nobody
        raise ValueError(f"no port is named {port_name}")
    for place, entry in enumerate(entries):
        conditions = entry.get("conditions") or {}
        target = entry.get("targetRef") or {}
        name = text_of(target.get("name") or f"{metadata.get('name', 'worker')}-{place}", "targetRef.name")
        endpoint = Endpoint(
            name=name,
            model=ModelName(text_of(labels[MODEL_LABEL], MODEL_LABEL)),
            variant=str(labels.get(VARIANT_LABEL, "default")),
            template=str(labels.get(TEMPLATE_LABEL, "")),
            host=text_of(entry["addresses"][0], "addresses"),
            port=port,
            backend=backend,
            zone=str(entry.get("zone") or ""),
        )
        terminating = conditions.get("terminating") is True or bool(metadata.get("deletionTimestamp"))
        serving = conditions.get("serving") is not False or terminating
        yield SeenEndpoint(endpoint, str(target.get("uid") or name), str(item.get("addressType", "")), serving, terminating)
