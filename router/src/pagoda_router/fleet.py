"""The router's picture of its namespace: models by object, a link per worker, what each model's text needs. Implements catalog.Catalog.

Owns the links and their tasks, and reconciles them with every snapshot from discovery. Knows no wire and no queue: links come from a
factory, and what they notice goes to the listener (the dispatcher).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from pagoda_router.backends.base import LinkListener, WorkerLink
from pagoda_router.backends.describe import stored_description
from pagoda_router.catalog import CatalogEntry, ModelState, ServedName, TextAssets
from pagoda_router.discovery.model_object import ModelObject
from pagoda_router.discovery.snapshot import Endpoint, FleetSnapshot, names_to_models
from pagoda_router.errors import ModelNotFound, Starting
from pagoda_router.fleet_adapters import FleetAdapters, NamedAdapter
from pagoda_router.fleet_texts import FleetTexts
from pagoda_router.generation import ModelName
from pagoda_router.placement.policy import variants_in_turn
from pagoda_router.relays import OWN_BACKEND
from pagoda_router.text.artifacts import ArtifactCache

log = logging.getLogger(__name__)

STARTING_RETRY_AFTER_S = 2.0


class LinkFactory(Protocol):
    def __call__(self, endpoint: Endpoint, *, listener: LinkListener, on_described: Callable[[Any], Awaitable[None]]) -> WorkerLink: ...


class Fleet:
    def __init__(self, make_link: LinkFactory, artifacts: ArtifactCache) -> None:
        self._make_link = make_link
        self._listener: LinkListener | None = None
        self._models: dict[ModelName, ModelObject] = {}
        self._owners: dict[ServedName, ModelObject] = {}
        self._awaited: frozenset[ModelName] = frozenset()
        self._links: dict[Endpoint, WorkerLink] = {}
        self._by_model: dict[ModelName, list[WorkerLink]] = {}
        self._groups: dict[tuple[ModelName, str, bool], list[WorkerLink]] = {}
        """Of _by_model by variant, and by whether they take text; made on demand."""
        self._entries: dict[tuple[ServedName, ModelName], tuple[TextAssets | None, CatalogEntry]] = {}
        """Of this snapshot, with the assets they were made of: good while the model can answer."""
        self._tasks: dict[asyncio.Task[None], WorkerLink] = {}
        self._texts = FleetTexts(artifacts)
        self.adapters = FleetAdapters(self.links)
        self._only_variant: dict[ModelName, str] = {}
        self.relays = False
        """Some model has a variant of another backend than ours."""
        self.falls_back = False
        """Some model has another that answers in its place."""
        self.is_loaded = False
        """A snapshot was read: what is not in it does not exist."""

    def attach(self, listener: LinkListener) -> None:
        """Before the first snapshot."""
        self._listener = listener

    # ------------------------------------------------------------ reconciliation

    def apply(self, snapshot: FleetSnapshot) -> None:
        previous, self.is_loaded = self._models, True
        self._texts.reweighed()
        self._models = {model.name: model for model in snapshot.models}
        self._owners = names_to_models(snapshot.models)
        self.adapters.apply(self._models, self._owners)
        self._awaited = snapshot.awaited
        self.relays = any(backend != OWN_BACKEND for model in snapshot.models for backend in model.backends)
        self.falls_back = any(model.fallback is not None for model in snapshot.models)
        for endpoint in [endpoint for endpoint in self._links if endpoint not in snapshot.endpoints]:
            self._links.pop(endpoint).retire()
        for endpoint, accepting in snapshot.endpoints.items():
            if endpoint not in self._links:
                self._links[endpoint] = self._start_link(endpoint)
            self._links[endpoint].accepting = accepting
        self._by_model = {}
        self._groups.clear()
        self._entries.clear()
        for endpoint, link in self._links.items():
            self._by_model.setdefault(endpoint.model, []).append(link)
        for name, model in self._models.items():
            if name not in previous or previous[name].source != model.source:
                self._texts.recall(model, self.routable_variants(name))
        for name in previous.keys() - self._models.keys():
            self._texts.forget(name)
        self._only_variant = {}
        for name, model in self._models.items():
            if len(model.variants) == 1:
                ((variant, _),) = model.variants
                if all(link.endpoint.variant == variant for link in self.links(name)):
                    self._only_variant[name] = variant
        for name in self._models:
            self._require_listener().capacity_changed(name)

    async def close(self) -> None:
        """Every session at once; what is in flight ends with an error."""
        for link in list(self._tasks.values()):
            await link.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start_link(self, endpoint: Endpoint) -> WorkerLink:
        async def on_described(description: Any) -> None:
            model = self._models.get(endpoint.model)
            source = model.source if model is not None else ""
            stored = stored_description(description, source)
            await self._texts.remember(endpoint, stored, partial(self.routable_variants, endpoint.model))

        link = self._make_link(endpoint, listener=self._require_listener(), on_described=on_described)
        task = asyncio.create_task(link.run(), name=f"link {link.worker}")
        self._tasks[task] = link
        task.add_done_callback(self._link_ended)
        return link

    def _link_ended(self, task: asyncio.Task[None]) -> None:
        link = self._tasks.pop(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("fleet: the link to %s stopped: %r", link.worker, error)

    def _require_listener(self) -> LinkListener:
        assert self._listener is not None, "attach a listener before the first snapshot"
        return self._listener

    # ------------------------------------------------------------ for the dispatcher and the operator

    def models(self) -> Sequence[ModelObject]:
        return list(self._models.values())

    def model(self, name: ModelName) -> ModelObject:
        found = self._models.get(name)
        if found is None:
            raise self._not_found(name)
        return found

    def find(self, name: ModelName) -> ModelObject | None:
        return self._models.get(name)

    def links(self, model: ModelName) -> Sequence[WorkerLink]:
        return self._by_model.get(model, ())

    def group(self, model: ModelName, variant: str, *, relays: bool) -> Sequence[WorkerLink]:
        """Those that may run one request."""
        found = self._groups.get((model, variant, relays))
        if found is None:
            links = [link for link in self.links(model) if link.endpoint.variant == variant and link.endpoint.relays == relays]
            found = self._groups[model, variant, relays] = links
        return found

    def only_variant(self, model: ModelName) -> str | None:
        """The one that all workers are of; None when there is a choice."""
        return self._only_variant.get(model)

    def routable_variants(self, model: ModelName) -> frozenset[str]:
        return frozenset(link.endpoint.variant for link in self.links(model) if link.routable)

    def why_not(self, model: ModelName) -> str:
        """One sentence for a model that cannot answer now; empty when it can."""
        return self._reason(self._models[model]) if model in self._models else "the model is being deleted"

    def can_answer(self, model: ModelName, variant: str | None = None) -> bool:
        if variant is None and model in self._only_variant:
            return any(link.routable for link in self.links(model))
        routable = self.routable_variants(model)
        if variant is not None:
            return variant in routable
        found = self._models.get(model)
        return found is not None and bool(variants_in_turn(found.variants, routable))

    def is_awaited(self, model: ModelName) -> bool:
        """A worker of it exists or is being started: worth holding requests for."""
        return model in self._awaited

    def block_size(self, model: ModelName) -> int:
        """Of the first worker that told; 16, what workers use unless told otherwise, before."""
        for link in self.links(model):
            if (size := link.block_size) is not None:
                return size
        return 16

    # ------------------------------------------------------------ Catalog

    def list(self) -> Sequence[CatalogEntry]:
        self._require_loaded()
        return [*self.entries(), *map(self._adapter_entry, self.adapters.all().values())]

    def entries(self) -> Sequence[CatalogEntry]:
        """As far as known: also before the first snapshot."""
        return [self._entry(name, model) for name, model in sorted(self._owners.items())]

    def get(self, served_name: str) -> CatalogEntry:
        self._require_loaded()
        model = self._owners.get(ServedName(served_name))
        if model is None:
            adapter = self.adapters.find(served_name)
            if adapter is None:
                raise self._not_found(served_name)
            return self._adapter_entry(adapter)
        return self._entry(ServedName(served_name), model)

    def text(self, model: ModelName, variant: str | None = None) -> TextAssets | None:
        return self._texts.of(model, variant, self._models.get(model))

    def _entry(self, served_name: ServedName, model: ModelObject) -> CatalogEntry:
        reason = self._reason(model)
        assets = self.text(model.name)
        key = served_name, model.name  # an adapter may have the name under which another model is served
        known = self._entries.get(key)
        if known is None or known[0] is not assets or known[1].reason or reason or assets is None or self._relays(model):
            known = self._entries[key] = assets, self._entry_with(served_name, model, assets, reason)
        return known[1]

    def _entry_with(self, served_name: ServedName, model: ModelObject, assets: TextAssets | None, reason: str) -> CatalogEntry:
        return CatalogEntry(
            served_name=served_name,
            model=model.name,
            created=model.created,
            ready=not reason,
            reason=reason,
            max_model_len=self._longest(model, assets),
            state=self._state(model) if reason else ModelState.READY,
            variants=tuple(name for name, _ in model.variants),
            backends=model.backends,
            quantizations=model.quantizations,
            weights=tuple(weight for _, weight in model.variants),
            fallback=self._fallback_name(model),
            fallback_after_s=model.fallback_after_s,
        )

    def _adapter_entry(self, adapter: NamedAdapter) -> CatalogEntry:
        """Its model's entry under its name. Another model would answer without it, so there is none to fall back to."""
        entry, model = self._entry(ServedName(adapter.name), adapter.model), adapter.model
        return replace(entry, adapter=adapter.name, parent=model.served_names[0], root=adapter.source, fallback=None)

    def _fallback_name(self, model: ModelObject) -> ServedName | None:
        """One under which the other model is reached; None: there is none, or it has none."""
        other = None if model.fallback is None else self._models.get(model.fallback)
        return None if other is None else next((name for name in other.served_names if self._owners.get(name) is other), None)

    def _relays(self, model: ModelObject) -> bool:
        return self.relays and any(backend != OWN_BACKEND for backend in model.backends)

    def _longest(self, model: ModelObject, assets: TextAssets | None) -> int | None:
        """What fits every variant that a request without a header may get; other servers tell theirs, and describe nothing else."""
        if not self._relays(model):
            return None if assets is None else assets.max_model_len
        weights = dict(model.variants)
        told = [(link.endpoint.variant, link.max_model_len) for link in self.links(model.name) if link.max_model_len is not None]
        weighed = [length for variant, length in told if weights.get(variant)]
        known = [] if assets is None else [assets.max_model_len]
        return min(weighed or [length for _, length in told] or known, default=None)

    def _state(self, model: ModelObject) -> ModelState:
        if model.hopeless:
            return ModelState.UNAVAILABLE
        return ModelState.LOADING if self.is_awaited(model.name) or model.min_replicas > 0 else ModelState.ASLEEP

    def _reason(self, model: ModelObject) -> str:
        """Why it cannot answer now; empty when it can."""
        if self.can_answer(model.name):
            return ""
        views = [link.view() for link in self.links(model.name)]
        if model.hopeless:
            return model.hopeless
        reasons = sorted({view.reason for view in views if view.reason})
        return (
            "; ".join(reasons) or model.not_ready_reason or ("a worker is starting" if self.is_awaited(model.name) else "it has no worker")
        )

    def _require_loaded(self) -> None:
        if not self.is_loaded:
            raise Starting("the router has not read its models yet: try again shortly", retry_after_s=STARTING_RETRY_AFTER_S)

    def _not_found(self, name: str) -> ModelNotFound:
        there_is = ", ".join(sorted([*self._owners, *self.adapters.all()])) or "none yet"
        return ModelNotFound(f"there is no model {name!r}; there is: {there_is}", param="model")
