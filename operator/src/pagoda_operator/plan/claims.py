"""Which model answers to which name: within a namespace, the older object keeps a name that two claim. Pure; called by `plan`."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
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
    unknown: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By key: fields of spec.routing that name a model which is not there, or not valid, with that name."""
    invalid: frozenset[str] = frozenset()
    """Keys of documents that do not parse: they claim nothing, but their namespace is not without models."""

    def of(self, namespace: str) -> list[str]:
        """Keys of a namespace's models."""
        return [key for key in self.served_names if key.startswith(f"{namespace}/")]

    def has_invalid(self, namespace: str) -> bool:
        return any(key.startswith(f"{namespace}/") for key in self.invalid)


def claim_names(models: Iterable[InferenceModel], invalid: Iterable[str] = ()) -> Claims:
    """`invalid`: keys of the documents that do not parse."""
    by_age = sorted(models, key=lambda model: (model.created or datetime.max.replace(tzinfo=UTC), model.key))
    holders: dict[tuple[str, str], str] = {}
    served: dict[str, tuple[str, ...]] = {}
    conflicts: dict[str, Conflict] = {}
    for model in by_age:
        lost = {name: holders[model.namespace, name] for name in model.spec.served_names if (model.namespace, name) in holders}
        served[model.key] = tuple(name for name in model.spec.served_names if name not in lost)
        holders.update({(model.namespace, name): model.name for name in served[model.key]})
        if lost:
            conflicts[model.key] = Conflict(
                Reason.NAME_TAKEN,
                f"an older InferenceModel already serves {_told(lost)}: choose other spec.servedNames, or delete the older one",
            )
    unknown = {model.key: named for model in by_age if (named := _unknown(model, served))}
    return Claims(served_names=served, conflicts=_hidden_adapters(by_age, holders) | conflicts, unknown=unknown, invalid=frozenset(invalid))


def _unknown(model: InferenceModel, known: Collection[str]) -> dict[str, str]:
    """`known`: keys of valid models."""
    named = {"routing.draftModel": model.spec.routing.draft_model, "routing.fallback": model.spec.routing.fallback}
    return {where: name for where, name in named.items() if name is not None and f"{model.namespace}/{name}" not in known}


def _hidden_adapters(by_age: Iterable[InferenceModel], served: Mapping[tuple[str, str], str]) -> dict[str, Conflict]:
    """As routers choose (fleet_adapters.py): a served name goes before an adapter's, whichever is older, and of two adapters the older
    model's."""
    holders, hidden = dict(served), dict[str, Conflict]()
    for model in by_age:
        names = [adapter.name for adapter in model.spec.adapters]
        lost = {name: holders[model.namespace, name] for name in names if (model.namespace, name) in holders}
        holders |= {(model.namespace, name): model.name for name in names if name not in lost}
        if lost:
            hidden[model.key] = Conflict(
                Reason.NAME_TAKEN, f"others answer to names of its adapters, {_told(lost)}: choose other ones in spec.adapters"
            )
    return hidden


def _told(lost: Mapping[str, str]) -> str:
    return ", ".join(f"{name} (by {holder})" for name, holder in lost.items())
