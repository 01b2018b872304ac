"""The InferenceModel as people write it: parsed into frozen dataclasses, every problem found at once.

Knows no Kubernetes client and no files. Called by `plan` for stored objects and by the command line before it submits one.
What values a field takes, and the sentence for wrong ones, stand in `rules.py`, which the CRD repeats.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pagoda_operator.errors import InvalidManifest, Problem
from pagoda_operator.quantities import parse_quantity
from pagoda_operator.validate import in_path, problems_of


@dataclass(frozen=True, kw_only=True, slots=True)
class KvCache:
    block_size: int = 16
    """Tokens per block of the paged cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    dtype: str = "auto"
    attention: str = "auto"
    max_model_len: int | None = None
    """Prompt + output of one sequence, tokens. None: what the checkpoint was made for."""
    max_batch_tokens: int | None = None
    """Tokens of one step. None: what suits the device (the worker knows)."""
    max_running: int = 256
    prefix_caching: bool = True
    kv_cache: KvCache = field(default_factory=KvCache)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    gpus: int = 0
    """Per worker. 0: a CPU worker."""
    gpu_resource: str = "nvidia.com/gpu"
    cpu_cores: float | None = None
    """None: no request and no limit; the worker uses what it finds."""
    memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaling:
    min: int = 1
    max: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    max_queue_tokens: int = 200_000
    """Tokens that may wait for this model before the router answers 429."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    source: str

    @property
    def scheme(self) -> str:
        """builtin | file | hf"""
        return self.source.partition("://")[0]

    @property
    def location(self) -> str:
        """What follows "://": a name, an absolute folder, ORG/NAME."""
        return self.source.partition("://")[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One way to run the model, with the model's own settings and its overrides merged. For now each model has one, `default`."""

    name: str
    weight: int
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
    routing: Routing


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
        spec = self.spec
        return (Variant(name="default", weight=100, engine=spec.engine, resources=spec.resources, scaling=spec.scaling),)


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
        model=ModelSource(source=spec["model"]["source"]),
        served_names=tuple(spec.get("servedNames") or (name,)),
        engine=_engine(spec.get("engine", {})),
        resources=_resources(spec.get("resources", {})),
        scaling=_scaling(spec.get("scaling", {})),
        routing=Routing(**_given(spec.get("routing", {}), max_queue_tokens="maxQueueTokens")),
    )


def _engine(engine: Mapping[str, Any]) -> Engine:
    return Engine(
        **_given(
            engine,
            dtype="dtype",
            attention="attention",
            max_model_len="maxModelLen",
            max_batch_tokens="maxBatchTokens",
            max_running="maxRunning",
            prefix_caching="prefixCaching",
        ),
        kv_cache=KvCache(**_given(engine.get("kvCache", {}), block_size="blockSize")),
    )


def _resources(resources: Mapping[str, Any]) -> Resources:
    cpu, memory = resources.get("cpu"), resources.get("memory")
    return Resources(
        **_given(resources, gpus="gpus", gpu_resource="gpuResource"),
        cpu_cores=None if cpu is None else float(parse_quantity(cpu)),
        memory_bytes=None if memory is None else int(parse_quantity(memory)),
    )


def _scaling(scaling: Mapping[str, Any]) -> Scaling:
    least = scaling.get("min", 1)
    return Scaling(min=least, max=scaling.get("max", least))


def _given(values: Mapping[str, Any], **attributes: str) -> dict[str, Any]:
    """{attribute: value} for the manifest's names that were written."""
    return {attribute: values[name] for attribute, name in attributes.items() if name in values}


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
