"""One InferenceModel as a router acts on it, read from Kubernetes' own shape. Pure.

Unknown fields are ignored, since whoever wrote the object may be newer than this router. Called by snapshot.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pagoda_router.adapters import DeclaredAdapter
from pagoda_router.catalog import ServedName
from pagoda_router.generation import ModelName
from pagoda_router.objectives import Slo, duration_s, read_prices, read_slo, read_token_prices
from pagoda_router.placement.scores import POLICY, PolicyName
from pagoda_router.relays import backends_of, quantizations_of
from pagoda_router.usage.amounts import TokenPrices

DEFAULT_VARIANTS = (("default", 100),)
MAX_WAITING = 256
WAKE_TIMEOUT_S = 300.0
FALLBACK_AFTER_S = 10.0


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
    """Why no worker will come however long one waits, as the operator's status says: somebody has to change something."""
    hopeless_variants: tuple[tuple[str, str], ...] = ()
    """The same of some variants: for requests that ask for one."""
    slo: Slo | None = None
    prices: tuple[tuple[str, float], ...] = ()
    """$ per hour of one worker, by variant; empty: not told."""
    token_prices: TokenPrices | None = None
    """By which keys pay. None: they pay nothing."""
    wake_s: float | None = None
    """From the creation to the routing of the pod that status tells of: how long a wake takes."""

    def why_hopeless(self, variant: str | None) -> str:
        """Of requests for that variant; None or empty: for any that has a weight. Empty: a worker may come."""
        return next((why for name, why in self.hopeless_variants if name == variant), "") if variant else self.hopeless


def read_model(item: Any, complaints: list[str]) -> ModelObject:
    """Of an InferenceModel; what is only odd joins `complaints`. Raises TypeError, ValueError, KeyError or AttributeError."""
    metadata, spec, status = item["metadata"], item.get("spec") or {}, item.get("status") or {}
    name = text_of(metadata["name"], "metadata.name")
    served = [text_of(n, "spec.servedNames") for n in spec.get("servedNames") or [name]]
    scaling, routing = spec.get("scaling") or {}, spec.get("routing") or {}
    queue_tokens, max_waiting = routing.get("maxQueueTokens"), routing.get("maxWaiting")
    conditions, seen = status.get("conditions") or [], status.get("variants") or []
    is_old = _is_of_an_older_spec(status, metadata)
    variants = _variants(spec.get("variants"))
    return ModelObject(
        name=ModelName(name),
        served_names=tuple(ServedName(n) for n in served),
        created=_unix_seconds(metadata.get("creationTimestamp")),
        source=str((spec.get("model") or {}).get("source", "")),
        min_replicas=_min_replicas(scaling),
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
        hopeless="" if is_old else _unavailable(status),
        hopeless_variants=() if is_old else tuple((str(each["name"]), why) for each in seen if (why := _unavailable(each))),
        wake_s=_wake_s(status.get("timeline")),
    )


def _min_replicas(scaling: Mapping[str, Any]) -> int:
    """As the operator reads it: one, unless told otherwise."""
    told = scaling.get("replicas") if scaling.get("mode") == "external" else None
    least = scaling.get("min") if told is None else told
    return 1 if least is None else int(least)


def _variants(entries: Any) -> tuple[tuple[str, int], ...]:
    if not entries:
        return DEFAULT_VARIANTS
    return tuple((text_of(entry["name"], "spec.variants.name"), max(0, int(entry.get("weight", 100)))) for entry in entries)


def _adapters(entries: Any, complaints: list[str]) -> tuple[DeclaredAdapter, ...]:
    """What is none hides neither the others nor the model."""
    found: list[DeclaredAdapter] = []
    for index, entry in enumerate(entries or ()):
        try:
            found.append(DeclaredAdapter(text_of(entry["name"], "name"), text_of(entry["source"], "source")))
        except (TypeError, KeyError) as error:
            complaints.append(f"spec.adapters[{index}] is unusable: {cause_of(error)}")
    return tuple(found)


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


def _is_of_an_older_spec(status: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    """What it says in vain does not count: the change may be the cure."""
    judged, generation = status.get("observedGeneration"), metadata.get("generation")
    return isinstance(judged, int) and isinstance(generation, int) and judged < generation


def _unavailable(told: Mapping[str, Any]) -> str:
    return str(told.get("unavailable") or "")


def _first_false_condition(conditions: list[Any]) -> str:
    for condition in conditions:
        if condition.get("status") == "False" and condition.get("type") != "Progressing":
            return str(condition.get("message") or condition.get("reason") or "")
    return ""


def cause_of(error: Exception) -> str:
    """Why an object could not be read."""
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) and error.args else str(error)


def text_of(value: Any, field_name: str) -> str:
    """Raises TypeError."""
    if not isinstance(value, str) or not value:
        raise TypeError(f"{field_name} is a non-empty string, not {value!r}")
    return value
