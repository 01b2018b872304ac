"""The InferenceModel as people write it: parsed into frozen dataclasses, every problem found at once.

Knows no Kubernetes client and no files. Called by `plan` for stored objects and by the command line before it submits one.
What values a field takes, and the sentence for wrong ones, stand in `rules.py`, which the CRD repeats.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

API_VERSION = "pagoda.dev/v1alpha1"
KIND = "InferenceModel"


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
    max_batch_tokens: int = 8192
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
    metadata = document.get("metadata") or {}
    return f"{metadata.get('namespace') or 'default'}/{metadata.get('name') or ''}"


def parse(document: Mapping[str, Any]) -> InferenceModel:
    """Raises InvalidManifest with every problem of the document."""
    raise NotImplementedError
