"""The InferenceModel as people write it: parsed into frozen dataclasses, every problem found at once.

Knows no Kubernetes client and no files. Called by `plan` for stored objects and by the command line before it submits one. What values a
field takes, and the sentence for wrong ones, stand in `rules/`, which the CRD repeats. Each section's dataclass is in a module of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pagoda_operator.errors import InvalidManifest, Problem
from pagoda_operator.manifest.engine import Engine, Resources, engine, resources
from pagoda_operator.manifest.promises import Cost, Slo, cost, slo
from pagoda_operator.manifest.routing import Routing, routing
from pagoda_operator.manifest.rules.variants import with_overrides
from pagoda_operator.manifest.scaling import Rollout, Scaling, rollout, scaling
from pagoda_operator.manifest.source import Adapter, ModelSource, adapter, source
from pagoda_operator.manifest.validate import in_path, problems_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One way to run the model: the model's own settings with the variant's overrides merged in."""

    name: str
    weight: int
    """Share of the requests that ask for no variant, beside the other variants' weights. 0: only those that ask for it."""
    engine: Engine
    resources: Resources
    scaling: Scaling


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    model: ModelSource
    served_names: tuple[str, ...]
    """Never empty: the object's own name when the manifest gives none."""
    engine: Engine
    resources: Resources
    scaling: Scaling
    rollout: Rollout
    routing: Routing
    variants: tuple[Variant, ...]
    """Never empty: `default` with weight 100 when the manifest gives none."""
    adapters: tuple[Adapter, ...] = ()
    slo: Slo | None = None
    """None: nothing is promised, and nothing alerts."""
    cost: Cost | None = None
    """None: nobody knows what a worker costs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceModel:
    name: str
    namespace: str
    uid: str
    """Empty before the object is stored."""
    generation: int
    created: datetime | None
    """None before the object is stored: younger than everything that has a date."""
    spec: Spec
    document: Mapping[str, Any]
    """The manifest this came from, unchanged."""

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def variants(self) -> tuple[Variant, ...]:
        return self.spec.variants


def key_of(document: Mapping[str, Any]) -> str:
    """The key of a document that may not parse."""
    metadata = document.get("metadata")
    if not isinstance(metadata, Mapping):
        metadata = {}
    return f"{metadata.get('namespace') or 'default'}/{metadata.get('name') or ''}"


def parse(document: Mapping[str, Any]) -> InferenceModel:
    """Raises InvalidManifest with every problem of the document."""
    if problems := problems_of(document):
        raise InvalidManifest(_shown_name(document), problems)
    metadata = document["metadata"]
    name = metadata["name"]
    return InferenceModel(
        name=name,
        namespace=metadata.get("namespace") or "default",
        uid=metadata.get("uid") or "",
        generation=metadata.get("generation") or 1,
        created=_moment(name, metadata.get("creationTimestamp")),
        spec=_spec(name, document["spec"]),
        document=document,
    )


def _shown_name(document: Mapping[str, Any]) -> str:
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    return in_path(name) if name else "(no name)"


def _spec(name: str, spec: Mapping[str, Any]) -> Spec:
    """The manifest's values are known to be right; absent ones take the dataclasses' defaults."""
    return Spec(
        model=source(spec["model"]),
        served_names=tuple(spec.get("servedNames") or (name,)),
        engine=engine(spec.get("engine", {})),
        resources=resources(spec.get("resources", {})),
        scaling=scaling(spec.get("scaling", {})),
        rollout=rollout(spec.get("rollout", {})),
        routing=routing(spec.get("routing", {})),
        variants=tuple(_variant(spec, written) for written in spec.get("variants") or [{"name": "default"}]),
        adapters=tuple(adapter(one) for one in spec.get("adapters", ())),
        slo=slo(spec["slo"]) if "slo" in spec else None,
        cost=cost(spec["cost"]) if "cost" in spec else None,
    )


def _variant(spec: Mapping[str, Any], written: Mapping[str, Any]) -> Variant:
    return Variant(
        name=written["name"],
        weight=written.get("weight", 100),
        engine=engine(with_overrides(spec, written, "engine")),
        resources=resources(with_overrides(spec, written, "resources")),
        scaling=scaling(with_overrides(spec, written, "scaling")),
    )


def _moment(name: str, written: str | datetime | None) -> datetime | None:
    if written is None or written == "":
        return None
    try:
        moment = written if isinstance(written, datetime) else datetime.fromisoformat(written)
    except (TypeError, ValueError) as error:
        raise InvalidManifest(
            name, [Problem("metadata.creationTimestamp", "write a time such as 2026-01-31T12:00:00Z, or remove it")]
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
