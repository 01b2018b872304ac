"""What a router knows of its namespace at one moment: models, and the endpoints of their workers. Pure parsing, no I/O.

File and Kubernetes discovery both yield a FleetSnapshot; fleet.py reconciles it. Objects arrive as plain dicts in Kubernetes' own shape,
from a writer that may be newer than this router: unknown fields are ignored, one bad object never hides the others (it is named in
`problems`).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pagoda_router.adapters import DeclaredAdapter
from pagoda_router.generation import ModelName, ServedName
from pagoda_router.objectives import Slo, duration_s, read_prices, read_slo, read_token_prices
from pagoda_router.placement.scores import POLICY, PolicyName
from pagoda_router.relays import BACKENDS, OWN_BACKEND, backends_of, quantizations_of
from pagoda_router.usage.amounts import TokenPrices

MODEL_LABEL = "pagoda.dev/model"
VARIANT_LABEL = "pagoda.dev/variant"
TEMPLATE_LABEL = "pagoda.dev/template"
BACKEND_LABEL = "pagoda.dev/backend"
"""Absent on our own workers, which listen on a port named grpc; the others on one named openai."""
CANARY_LABEL = "pagoda.dev/canary"
"""The operator's own liveness object; no model."""

DEFAULT_VARIANTS = (("default", 100),)
MAX_WAITING = 256
WAKE_TIMEOUT_S = 300.0
FALLBACK_AFTER_S = 10.0
HOPELESS = frozenset(
    {
        *("SpecInvalid", "HostPathForbidden"),
        *("ModelNotFound", "Unauthorized", "DiskFull", "OutOfMemory", "ContainerConfig"),
    }
)
"""Reasons of a false Accepted, ModelAvailable or WorkersReady that no waiting heals: somebody has to change something. Others
(Unschedulable, ImagePull, QuotaExceeded, EngineCrash, …) may pass by themselves, and requests wait for that. NameTaken and ForeignObject
are not here: a model that lost one of its names, or whose disruption budget is somebody else's, serves all the same."""
HOPELESS_TYPES = frozenset({"Accepted", "ModelAvailable", "WorkersReady"})


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
    max_waiting: int = MAX_WAITING
    """Requests held while no worker can answer."""
    wake_timeout_s: float = WAKE_TIMEOUT_S
    """How long a request waits for a worker to come."""
    fallback: ModelName | None = None
    """The model that answers when this one cannot."""
    fallback_after_s: float = FALLBACK_AFTER_S
    """How long a request waits for a worker of this one before that."""
    draft_model: ModelName | None = None
    """Whose workers draft for this one's. None: nobody does, whatever the workers could verify."""
    policy: PolicyName = POLICY
    """By which its workers are chosen."""
    variants: tuple[tuple[str, int], ...] = DEFAULT_VARIANTS
    """Names and weights."""
    backends: tuple[str, ...] = ()
    """Of the variants, in their order; empty: all have our own workers."""
    quantizations: tuple[str, ...] = ()
    """The same, as declared; empty: none is."""
    adapters: tuple[DeclaredAdapter, ...] = ()
    not_ready_reason: str = ""
    """Message of the first false condition in status."""
    hopeless: str = ""
    """Why no worker will come however long one waits: reason and message of a condition in HOPELESS."""
    slo: Slo | None = None
    prices: tuple[tuple[str, float], ...] = ()
    """$ per hour of one worker, by variant; empty: not told."""
    token_prices: TokenPrices | None = None
    """By which keys pay. None: they pay nothing."""
    wake_s: float | None = None
    """From the creation to the routing of the pod that status tells of: how long a wake takes."""


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
            model = _model(item, complaints)
            problems += [f"{where.format(index)}: {complaint}" for complaint in complaints]
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            problems.append(f"{where.format(index)} is unusable: {_cause(error)}")
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
            problems.append(f"{where.format(index)} is unusable: {_cause(error)}")
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


def _cause(error: Exception) -> str:
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) and error.args else str(error)


def _model(item: Any, complaints: list[str]) -> ModelObject:
    metadata, spec, status = item["metadata"], item.get("spec") or {}, item.get("status") or {}
    name = _text(metadata["name"], "metadata.name")
    served = [_text(n, "spec.servedNames") for n in spec.get("servedNames") or [name]]
    scaling, routing = spec.get("scaling") or {}, spec.get("routing") or {}
    queue_tokens, max_waiting = routing.get("maxQueueTokens"), routing.get("maxWaiting")
    conditions = status.get("conditions") or []
    variants = _variants(spec.get("variants"))
    return ModelObject(
        name=ModelName(name),
        served_names=tuple(ServedName(n) for n in served),
        created=_unix_seconds(metadata.get("creationTimestamp")),
        source=str((spec.get("model") or {}).get("source", "")),
        min_replicas=int(scaling.get("min") or 0),
        max_queue_tokens=None if queue_tokens is None else int(queue_tokens),
        max_waiting=MAX_WAITING if max_waiting is None else int(max_waiting),
        wake_timeout_s=_duration_s(routing.get("wakeTimeout"), WAKE_TIMEOUT_S),
        fallback=ModelName(str(routing["fallback"])) if routing.get("fallback") else None,
        fallback_after_s=_duration_s(routing.get("fallbackAfter"), FALLBACK_AFTER_S),
        draft_model=ModelName(str(routing["draftModel"])) if routing.get("draftModel") else None,
        policy=_policy(routing.get("policy"), complaints),
        variants=variants,
        backends=backends_of(spec),
        quantizations=quantizations_of(spec),
        adapters=_adapters(spec.get("adapters"), complaints),
        slo=read_slo(spec, complaints),
        prices=tuple(read_prices(spec, [variant for variant, _ in variants], complaints).items()),
        token_prices=read_token_prices(spec, complaints),
        not_ready_reason=_first_false_condition(conditions),
        hopeless=_hopeless(conditions, metadata.get("generation"), has_served="routed" in (status.get("timeline") or {})),
        wake_s=_wake_s(status.get("timeline")),
    )


def _variants(entries: Any) -> tuple[tuple[str, int], ...]:
    if not entries:
        return DEFAULT_VARIANTS
    return tuple((_text(entry["name"], "spec.variants.name"), max(0, int(entry.get("weight", 100)))) for entry in entries)


def _adapters(entries: Any, complaints: list[str]) -> tuple[DeclaredAdapter, ...]:
    """What is none hides neither the others nor the model."""
    found: list[DeclaredAdapter] = []
    for index, entry in enumerate(entries or ()):
        try:
            found.append(DeclaredAdapter(_text(entry["name"], "name"), _text(entry["source"], "source")))
        except (TypeError, KeyError) as error:
            complaints.append(f"spec.adapters[{index}] is unusable: {_cause(error)}")
    return tuple(found)


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
        name = _text(target.get("name") or f"{metadata.get('name', 'worker')}-{place}", "targetRef.name")
        endpoint = Endpoint(
            name=name,
            model=ModelName(_text(labels[MODEL_LABEL], MODEL_LABEL)),
            variant=str(labels.get(VARIANT_LABEL, "default")),
            template=str(labels.get(TEMPLATE_LABEL, "")),
            host=_text(entry["addresses"][0], "addresses"),
            port=port,
            backend=backend,
            zone=str(entry.get("zone") or ""),
        )
        terminating = conditions.get("terminating") is True or bool(metadata.get("deletionTimestamp"))
        serving = conditions.get("serving") is not False or terminating
        yield SeenEndpoint(endpoint, str(target.get("uid") or name), str(item.get("addressType", "")), serving, terminating)


def _text(value: Any, field_name: str) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"{field_name} is a non-empty string, not {value!r}")
    return value


def _unix_seconds(value: Any) -> int:
    return int(datetime.fromisoformat(value).timestamp()) if isinstance(value, str) and value else 0


def _duration_s(value: Any, default: float) -> float:
    """What is no duration counts as absent: the operator says so in status, and no model is hidden for it."""
    found = None if value is None else duration_s(value)
    return default if found is None else found


def _policy(value: Any, complaints: list[str]) -> PolicyName:
    """A newer operator may name one that this router does not have: the model is served all the same."""
    try:
        return POLICY if value is None else PolicyName(value)
    except ValueError:
        complaints.append(f"spec.routing.policy {str(value)[:40]!r} is not known to this router: {POLICY} is used")
        return POLICY


def _wake_s(timeline: Any) -> float | None:
    try:
        took_s = _unix_seconds(timeline["routed"]) - _unix_seconds(timeline["created"])
    except (TypeError, ValueError, KeyError):
        return None
    return float(took_s) if took_s > 0 else None


def _hopeless(conditions: list[Any], generation: Any, *, has_served: bool) -> str:
    """A verdict on an older spec does not count: the change may be the cure. Nor does running out of memory in a pod that has served: it
    starts again, and what it could hold once it can hold again."""
    for condition in conditions:
        if has_served and condition.get("reason") == "OutOfMemory":
            continue
        judged = condition.get("observedGeneration")
        is_old = isinstance(judged, int) and isinstance(generation, int) and judged < generation
        false = condition.get("status") == "False" and condition.get("type") in HOPELESS_TYPES
        if false and not is_old and condition.get("reason") in HOPELESS:
            message = str(condition.get("message") or "")
            return f"{condition['reason']}: {message}" if message else str(condition["reason"])
    return ""


def _first_false_condition(conditions: list[Any]) -> str:
    for condition in conditions:
        if condition.get("status") == "False" and condition.get("type") != "Progressing":
            return str(condition.get("message") or condition.get("reason") or "")
    return ""
