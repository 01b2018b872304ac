"""Which adapters there are under which names: those that manifests declare, and those that workers have. Owned by the fleet, which knows
both; a model's own name goes before an adapter's, and of two models the older one's adapter.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pagoda_router.backends.base import WorkerLink
from pagoda_router.catalog import ServedName
from pagoda_router.discovery.model_object import ModelObject
from pagoda_router.generation import ModelName


@dataclass(frozen=True, slots=True)
class NamedAdapter:
    name: str
    source: str
    model: ModelObject


class FleetAdapters:
    def __init__(self, links: Callable[[ModelName], Sequence[WorkerLink]]) -> None:
        self._links = links
        self._models: Mapping[ModelName, ModelObject] = {}
        self._taken: Mapping[ServedName, ModelObject] = {}
        self._known: dict[str, NamedAdapter] = {}
        """As last looked for."""

    def apply(self, models: Mapping[ModelName, ModelObject], owners: Mapping[ServedName, ModelObject]) -> None:
        """Of a new snapshot; `owners`: whose each served name is."""
        self._models, self._taken = models, owners

    def all(self) -> dict[str, NamedAdapter]:
        found: dict[str, NamedAdapter] = {}
        for model in sorted(self._models.values(), key=lambda each: (each.created, each.name)):
            for name, source in self._of(model).items():
                if ServedName(name) not in self._taken:
                    found.setdefault(name, NamedAdapter(name, source, model))
        return dict(sorted(found.items()))

    def find(self, name: str) -> NamedAdapter | None:
        """As last found, while it is there: a request need not look through all workers of all models."""
        found = self._known.get(name)
        if found is None or self._models.get(found.model.name) is not found.model or not self._is_there(found):
            self._known = self.all()
            found = self._known.get(name)
        return found

    def label(self, model: ModelName, name: str) -> str:
        """What hashes of its prefixes cover; of the first worker that has it."""
        return next((link.adapters[name].label for link in self._links(model) if name in link.adapters), name)

    def _of(self, model: ModelObject) -> dict[str, str]:
        """Names and sources."""
        loaded = {each.name: each.source for link in self._links(model.name) for each in link.adapters.values()}
        return {each.name: each.source for each in model.adapters} | loaded

    def _is_there(self, found: NamedAdapter) -> bool:
        declared = any(each.name == found.name for each in found.model.adapters)
        return declared or any(found.name in link.adapters for link in self._links(found.model.name))
