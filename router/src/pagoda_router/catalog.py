"""What the router knows of each model that clients may name: how it stands, its variants, and where its text rules lie.

Pure data and one protocol; the fleet implements it, the OpenAI surface asks it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType, Protocol

from pagoda_router.generation import ModelName
from pagoda_router.records import record

ServedName = NewType("ServedName", str)
"""What clients call a model: one of spec.servedNames."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextAssets:
    """Where a model's text rules lie on disk: fetched from a worker once, named by content hash."""

    tokenizer_file: str
    chat_template: str | None
    special_tokens: dict[str, str]
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    vocab_size: int
    max_model_len: int
    max_sequences_per_request: int
    max_top_logprobs: int
    features: frozenset[str] | None = None
    """Feature values, and names that only newer routers know. None: not told, so the worker itself must refuse."""


class ModelState(StrEnum):
    READY = "ready"
    LOADING = "loading"
    """A worker is on its way."""
    ASLEEP = "asleep"
    """No worker; a request wakes one."""
    UNAVAILABLE = "unavailable"
    """No worker will come until somebody changes something."""


@record(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """One served name. Known from InferenceModel objects, so it exists without any worker."""

    served_name: ServedName
    model: ModelName
    created: int
    """Unix seconds of the object's creation."""
    ready: bool
    """At least one routable worker."""
    reason: str
    """One sentence when not ready."""
    max_model_len: int | None
    """None until a worker has described it."""
    state: ModelState = ModelState.READY
    variants: tuple[str, ...] = ("default",)
    backends: tuple[str, ...] = ()
    """Of the variants, in their order; empty: all have our own workers."""
    weights: tuple[int, ...] = ()
    """The same; empty: equal."""
    quantizations: tuple[str, ...] = ()
    """The same, as manifests declare them, "" where one declares none; empty: none does."""
    fallback: ServedName | None = None
    """Of the model that answers when this one cannot. None: none."""
    fallback_after_s: float = 0.0
    """How long a request waits for a worker of this one to come, when the other has one."""
    adapter: str = ""
    """It is one of `model`'s adapters. Empty: the model itself."""
    parent: ServedName | None = None
    """Of an adapter: its model's name."""
    root: str = ""
    """Of an adapter: where it comes from."""


class Catalog(Protocol):
    @property
    def relays(self) -> bool:
        """Some model has a variant whose workers take text instead of tokens."""
        ...

    @property
    def falls_back(self) -> bool:
        """Some model names another that answers in its place."""
        ...

    def list(self) -> Sequence[CatalogEntry]: ...

    def get(self, served_name: str) -> CatalogEntry:
        """Raises errors.ModelNotFound naming what there is."""
        ...

    def can_answer(self, model: ModelName, variant: str | None = None) -> bool:
        """A worker of it, or of this variant, takes requests now."""
        ...

    def text(self, model: ModelName, variant: str | None = None) -> TextAssets | None:
        """Of one variant, or what holds for all that take requests by weight. None: no worker has described it yet."""
        ...
