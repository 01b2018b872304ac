"""Which model answers to which name: within a namespace, the older object keeps a name that two claim. Pure; called by `plan`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from pagoda_operator.conditions import Reason
from pagoda_operator.manifest.spec import InferenceModel


@dataclass(frozen=True, slots=True)
class Conflict:
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """Of one namespace's models, or of several namespaces'."""

    served_names: Mapping[str, tuple[str, ...]]
    """By model key, every model: the names it really answers to."""
    conflicts: Mapping[str, Conflict]
    """By key, of those that lost a name."""
    invalid: frozenset[str] = frozenset()
    """Keys of documents that do not parse: they claim nothing, but their namespace is not without models."""

    def of(self, namespace: str) -> list[str]:
        """Keys of a namespace's models."""
        return [key for key in self.served_names if key.startswith(f"{namespace}/")]

    def has_invalid(self, namespace: str) -> bool:
        return any(key.startswith(f"{namespace}/") for key in self.invalid)


def claim_names(models: Iterable[InferenceModel], invalid: Iterable[str] = ()) -> Claims:
    """`invalid`: keys of the documents that do not parse."""
    holders: dict[tuple[str, str], str] = {}
    served: dict[str, tuple[str, ...]] = {}
    conflicts: dict[str, Conflict] = {}
    for model in sorted(models, key=lambda model: (model.created or datetime.max.replace(tzinfo=UTC), model.key)):
        lost = {name: holders[model.namespace, name] for name in model.spec.served_names if (model.namespace, name) in holders}
        served[model.key] = tuple(name for name in model.spec.served_names if name not in lost)
        holders.update({(model.namespace, name): model.name for name in served[model.key]})
        if lost:
            names = ", ".join(f"{name} (by {holder})" for name, holder in lost.items())
            conflicts[model.key] = Conflict(
                Reason.NAME_TAKEN, f"an older InferenceModel already serves {names}: choose other spec.servedNames, or delete the older one"
            )
    return Claims(served_names=served, conflicts=conflicts, invalid=frozenset(invalid))
