"""Desired against observed, without I/O: what to apply, what to delete, and why. Level-triggered: only the present counts.

Called every round by the reconcile loop, which carries the plan out through its executor.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pagoda_operator.conditions import Reason
from pagoda_operator.errors import InvalidManifest
from pagoda_operator.manifests import Settings, model_objects, namespace_objects
from pagoda_operator.observed import LABEL_MANAGED_BY, LABEL_MODEL, MANAGED_BY, ObjectRef, Observed, ref_of
from pagoda_operator.spec import InferenceModel, key_of, parse

APPLY_ORDER = ("ServiceAccount", "NetworkPolicy", "Service", "PodDisruptionBudget", "Deployment")
"""What a pod needs comes before the pods; deletes go the other way round."""


@dataclass(frozen=True, slots=True)
class Conflict:
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    apply: tuple[dict[str, Any], ...]
    """Objects that are missing or differ, whole, in the order to apply them."""
    delete: tuple[ObjectRef, ...]
    reasons: tuple[str, ...]
    """One sentence per change, those of `apply` first: for the event log."""
    models: tuple[InferenceModel, ...]
    """The documents that parsed, oldest first."""
    served_names: Mapping[str, tuple[str, ...]]
    """By `InferenceModel.key`: the names a model really answers to, after older models took theirs."""
    conflicts: Mapping[str, Conflict]
    """By key: NameTaken, ForeignObject. Whatever does not conflict is still wanted."""
    invalid: Mapping[str, InvalidManifest]
    """By key: documents that did not parse. Their existing children stay as they are."""

    @property
    def empty(self) -> bool:
        return not self.apply and not self.delete


def plan(documents: Sequence[Mapping[str, Any]], observed: Observed, settings: Settings) -> Plan:
    """`documents` are InferenceModel objects as stored: apiVersion, kind, metadata (name, namespace, uid, creationTimestamp), spec."""
    models, invalid = _parse_all(documents)
    served_names, conflicts = claim_names(models)
    wanted = _wanted(models, settings)
    changes: list[tuple[dict[str, Any], str]] = []
    for ref, (document, key) in wanted.items():
        live = observed.objects.get(ref)
        if live is not None and not is_ours(live):
            conflicts.update(_foreign(ref, models if key is None else [model for model in models if model.key == key]))
        elif live is None:
            changes.append((document, f"create {ref}: {_cause(key)}"))
        elif difference := first_difference(document, live):
            changes.append((document, f"update {ref}: {difference} changed"))
    changes.sort(key=lambda change: APPLY_ORDER.index(change[0]["kind"]))
    deletes = sorted(_unwanted(wanted, invalid, observed), key=lambda ref: (-APPLY_ORDER.index(ref.kind), ref))
    return Plan(
        apply=tuple(document for document, _ in changes),
        delete=tuple(deletes),
        reasons=(*(reason for _, reason in changes), *(f"delete {ref}: no model wants it any more" for ref in deletes)),
        models=tuple(models),
        served_names=served_names,
        conflicts=conflicts,
        invalid=invalid,
    )


def claim_names(models: Sequence[InferenceModel]) -> tuple[dict[str, tuple[str, ...]], dict[str, Conflict]]:
    """Who answers to which name, by model key; `models` are oldest first. The older model keeps a name that two claim in a namespace."""
    holders: dict[tuple[str, str], str] = {}
    served: dict[str, tuple[str, ...]] = {}
    conflicts: dict[str, Conflict] = {}
    for model in models:
        lost = {name: holders[model.namespace, name] for name in model.spec.served_names if (model.namespace, name) in holders}
        served[model.key] = tuple(name for name in model.spec.served_names if name not in lost)
        holders.update({(model.namespace, name): model.name for name in served[model.key]})
        if lost:
            names = ", ".join(f"{name} (by {holder})" for name, holder in lost.items())
            conflicts[model.key] = Conflict(
                Reason.NAME_TAKEN, f"an older InferenceModel already serves {names}: choose other spec.servedNames, or delete the older one"
            )
    return served, conflicts


def is_ours(live: Mapping[str, Any]) -> bool:
    return bool((live["metadata"].get("labels") or {}).get(LABEL_MANAGED_BY) == MANAGED_BY)


def first_difference(desired: Any, live: Any, path: str = "") -> str | None:
    """Path of the first field that we want and the live object does not have so. Fields that others added are theirs."""
    if isinstance(desired, Mapping) and isinstance(live, Mapping):
        for name, value in desired.items():
            below = f"{path}.{name}" if path else str(name)
            if name not in live:
                if value not in ({}, []):  # the API server does not store what is empty
                    return below
            elif found := first_difference(value, live[name], below):
                return found
        return None
    if isinstance(desired, list) and isinstance(live, list) and len(desired) == len(live):
        pairs = enumerate(zip(desired, live, strict=True))
        return next((found for i, (want, have) in pairs if (found := first_difference(want, have, f"{path}[{i}]"))), None)
    return None if desired == live else path


def _parse_all(documents: Sequence[Mapping[str, Any]]) -> tuple[list[InferenceModel], dict[str, InvalidManifest]]:
    models: list[InferenceModel] = []
    invalid: dict[str, InvalidManifest] = {}
    for document in documents:
        try:
            models.append(parse(document))
        except InvalidManifest as error:
            invalid[key_of(document)] = error
    return sorted(models, key=lambda model: (model.created or datetime.max.replace(tzinfo=UTC), model.key)), invalid


def _wanted(models: Sequence[InferenceModel], settings: Settings) -> dict[ObjectRef, tuple[dict[str, Any], str | None]]:
    """Each object with the key of its model; None for what a namespace's models share."""
    wanted: dict[ObjectRef, tuple[dict[str, Any], str | None]] = {}
    for namespace in sorted({model.namespace for model in models}):
        wanted.update({ref_of(document): (document, None) for document in namespace_objects(namespace, settings)})
    for model in models:
        wanted.update({ref_of(document): (document, model.key) for document in model_objects(model, settings)})
    return wanted


def _unwanted(wanted: Mapping[ObjectRef, Any], invalid: Mapping[str, InvalidManifest], observed: Observed) -> Iterator[ObjectRef]:
    """Ours, of a kind that we make, and nobody's. An invalid edit must not take down what still runs: its children stay, and so does
    what its namespace shares."""
    kept_namespaces = {key.partition("/")[0] for key in invalid}
    for ref, live in observed.objects.items():
        if ref in wanted or ref.kind not in APPLY_ORDER or not is_ours(live):
            continue
        model = live["metadata"]["labels"].get(LABEL_MODEL)
        kept = f"{ref.namespace}/{model}" in invalid if model else ref.namespace in kept_namespaces
        if not kept:
            yield ref


def _foreign(ref: ObjectRef, models: Sequence[InferenceModel]) -> dict[str, Conflict]:
    message = f"{ref} exists and was not made by Pagoda: delete or rename it, or rename this InferenceModel"
    return {model.key: Conflict(Reason.FOREIGN_OBJECT, message) for model in models if model.namespace == ref.namespace}


def _cause(key: str | None) -> str:
    return "the namespace has models" if key is None else f"InferenceModel {key} wants it"
