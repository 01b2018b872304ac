"""Desired against observed, without I/O: what to apply, what to delete, and why. Level-triggered: only the present counts.

plan             the whole world: one machine's supervisor, every round
plan_namespace   what a namespace's models share     } a cluster's loop, one or the other for each change;
plan_model       one model's own objects             } plan is their union

Called by the reconcile loop, which carries the plan out through its executor.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pagoda_operator.conditions import Reason
from pagoda_operator.errors import InvalidManifest
from pagoda_operator.labels import LABEL_MANAGED_BY, LABEL_MODEL, MANAGED_BY
from pagoda_operator.manifest.spec import InferenceModel, key_of, parse
from pagoda_operator.observed.world import MADE, ObjectRef, Observed, ref_of
from pagoda_operator.plan.claims import Claims, Conflict, claim_names
from pagoda_operator.plan.differences import adopted, first_difference
from pagoda_operator.render.installation import Settings
from pagoda_operator.render.kinds import APPLY_ORDER
from pagoda_operator.render.objects import model_objects, namespace_objects, worker_name

LABEL_CANARY = "pagoda.dev/canary"
"""On the InferenceModel by which the operator sees that its watch lives. It is no model: nobody plans, serves or lists it."""

Objects = Mapping[ObjectRef, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    apply: tuple[dict[str, Any], ...]
    """Objects that are missing or differ, whole, in the order to apply them. One exception: of a worker Deployment that exists,
    spec.replicas is left out, being the scaler's. NOTE: server-side apply resets a field that its last owner leaves out, so the scaler
    must own spec.replicas (scale(), as field manager pagoda-scaler) before the first update of a Deployment is applied."""
    delete: tuple[ObjectRef, ...]
    reasons: tuple[str, ...]
    """One sentence per change, those of `apply` first: for the event log."""
    models: tuple[InferenceModel, ...]
    """The documents that parsed, oldest first."""
    served_names: Mapping[str, tuple[str, ...]]
    """By `InferenceModel.key`: the names a model really answers to, after older models took theirs."""
    conflicts: Mapping[str, Conflict]
    """By key: NameTaken, ForeignObject, HostPathForbidden; of several the model's own. What does not conflict is still wanted."""
    invalid: Mapping[str, InvalidManifest]
    """By key: documents that did not parse. Their existing children stay as they are."""
    unknown_models: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By key, as `Claims.unknown`: news, no conflict."""
    replicas: Mapping[ObjectRef, int | None] = field(default_factory=dict)
    """Of each worker Deployment that should be: the number that the spec fixes (min equal to max, or mode external), None where demand
    decides."""

    @property
    def empty(self) -> bool:
        return not self.apply and not self.delete


@dataclass(slots=True)
class _Changes:
    apply: list[tuple[dict[str, Any], str]] = field(default_factory=list)
    """Each with its reason."""
    delete: list[ObjectRef] = field(default_factory=list)
    foreign: list[ObjectRef] = field(default_factory=list)
    """Objects of a wanted name that are not ours: nothing may be done to them."""

    def add(self, other: "_Changes") -> None:
        self.apply += other.apply
        self.delete += other.delete

    def plan(self, **facts: Any) -> Plan:
        applies = sorted(self.apply, key=lambda change: APPLY_ORDER.index(change[0]["kind"]))
        deletes = sorted(self.delete, key=lambda ref: (-APPLY_ORDER.index(ref.kind), ref))
        reasons = (*(reason for _, reason in applies), *(f"delete {ref}: no model wants it any more" for ref in deletes))
        return Plan(apply=tuple(document for document, _ in applies), delete=tuple(deletes), reasons=reasons, **facts)


def plan(documents: Sequence[Mapping[str, Any]], observed: Observed, settings: Settings) -> Plan:
    """`documents` are InferenceModel objects as stored: apiVersion, kind, metadata (name, namespace, uid, creationTimestamp), spec."""
    models, invalid = _parse_all(document for document in documents if is_served(document))
    claims = claim_names(models, invalid)
    groups = _by_owner(observed.objects)
    changes = _Changes()
    conflicts: dict[str, Conflict] = {}
    replicas: dict[ObjectRef, int | None] = {}
    for namespace in sorted({model.namespace for model in models} | {namespace for namespace, _ in groups}):
        shared = _shared(namespace, claims, observed.objects, groups.get((namespace, ""), {}), settings)
        conflicts |= _foreign(shared, claims.of(namespace))
        changes.add(shared)
    for model in models:
        own, found = _own(model, observed.objects, groups.get((model.namespace, model.name), {}), settings)
        conflicts |= _claimed(model, claims) | found
        replicas.update(_replicas(model))
        changes.add(own)
    known = {tuple(key.split("/")) for key in (*claims.served_names, *invalid)}
    changes.delete += [ref for owner, left in groups.items() if owner[1] and owner not in known for ref in left]
    return changes.plan(
        models=tuple(models),
        served_names=claims.served_names,
        conflicts=conflicts,
        unknown_models=claims.unknown,
        invalid=invalid,
        replicas=replicas,
    )


def plan_namespace(namespace: str, claims: Claims, observed: Observed, settings: Settings) -> Plan:
    """Only what the namespace's models share. `claims` are of all its models; without any, everything shared goes."""
    mine = _by_owner(observed.objects).get((namespace, ""), {})
    changes = _shared(namespace, claims, observed.objects, mine, settings)
    return changes.plan(models=(), served_names={}, conflicts=_foreign(changes, claims.of(namespace)), invalid={})


def plan_model(document: Mapping[str, Any], claims: Claims, observed: Observed, settings: Settings) -> Plan:
    """Only one model's own objects; `observed` need hold no more than what carries its label or has a name that it wants.

    Empty for a model that is being deleted: its objects go with it, by their owner references.
    """
    models, invalid = _parse_all([document] if is_served(document) else [])
    if not models:
        return _Changes().plan(models=(), served_names={}, conflicts={}, invalid=invalid)
    (model,) = models
    mine = _by_owner(observed.objects).get((model.namespace, model.name), {})
    changes, conflicts = _own(model, observed.objects, mine, settings)
    return changes.plan(
        models=(model,),
        served_names={model.key: claims.served_names.get(model.key, ())},
        conflicts=_claimed(model, claims) | conflicts,
        unknown_models=claims.unknown,
        invalid={},
        replicas=_replicas(model),
    )


def _claimed(model: InferenceModel, claims: Claims) -> dict[str, Conflict]:
    return {model.key: claims.conflicts[model.key]} if model.key in claims.conflicts else {}


def is_served(document: Mapping[str, Any]) -> bool:
    """Neither the canary nor on its way out."""
    metadata = document.get("metadata")
    if not isinstance(metadata, Mapping):
        return True
    return (metadata.get("labels") or {}).get(LABEL_CANARY) != "true" and not metadata.get("deletionTimestamp")


def is_ours(live: Mapping[str, Any]) -> bool:
    return bool((live["metadata"].get("labels") or {}).get(LABEL_MANAGED_BY) == MANAGED_BY)


def was_made(live: Mapping[str, Any]) -> bool:
    """By us. Executors that keep their objects themselves need not say so."""
    return is_ours(live) and bool(live.get(MADE, True))


def _parse_all(documents: Iterable[Mapping[str, Any]]) -> tuple[list[InferenceModel], dict[str, InvalidManifest]]:
    models: list[InferenceModel] = []
    invalid: dict[str, InvalidManifest] = {}
    for document in documents:
        try:
            models.append(parse(document))
        except InvalidManifest as error:
            invalid[key_of(document)] = error
    return sorted(models, key=lambda model: (model.created or datetime.max.replace(tzinfo=UTC), model.key)), invalid


def _by_owner(objects: Objects) -> dict[tuple[str, str], Objects]:
    """What may be deleted: made by us, of a kind that we make; by namespace and model; model "": what the namespace shares."""
    groups: dict[tuple[str, str], dict[ObjectRef, Mapping[str, Any]]] = {}
    for ref, live in objects.items():
        if ref.kind in APPLY_ORDER and was_made(live):
            groups.setdefault((ref.namespace, live["metadata"]["labels"].get(LABEL_MODEL, "")), {})[ref] = live
    return dict(groups)


def _shared(namespace: str, claims: Claims, live: Objects, mine: Objects, settings: Settings) -> _Changes:
    """An invalid edit must not take down what still runs: while the namespace has a document, valid or not, what is there stays."""
    if not claims.of(namespace):
        return _Changes(delete=[] if claims.has_invalid(namespace) else list(mine))
    return _compare(namespace_objects(namespace, settings), live, mine, "the namespace has models")


def _own(model: InferenceModel, live: Objects, mine: Objects, settings: Settings) -> tuple[_Changes, dict[str, Conflict]]:
    drafts = [variant.engine.speculative.draft or "" for variant in model.variants]
    sources = [model.spec.model.source, *(adapter.source for adapter in model.spec.adapters), *drafts]
    if any(each.startswith("file://") for each in sources) and not settings.host_paths:
        message = (
            "the operator does not mount folders of nodes: put the weights on a PersistentVolumeClaim and write pvc://CLAIM/FOLDER, "
            "or install the operator with hostPaths enabled"
        )
        return _Changes(), {model.key: Conflict(Reason.HOST_PATH_FORBIDDEN, message)}
    changes = _compare(model_objects(model, settings), live, mine, f"InferenceModel {model.key} wants it")
    # a cache outlives every edit of its model: weights of terabytes are not thrown away for a changed field
    changes.delete = [ref for ref in changes.delete if ref.kind != "PersistentVolumeClaim"]
    return changes, _foreign(changes, [model.key])


def _compare(documents: Iterable[dict[str, Any]], live: Objects, mine: Objects, cause: str) -> _Changes:
    """`mine` is what may be deleted: unwanted, it goes."""
    changes, wanted = _Changes(), set()
    for fresh in documents:
        ref = ref_of(fresh)
        wanted.add(ref)
        present = live.get(ref)
        if present is None:
            changes.apply.append((fresh, f"create {ref}: {cause}"))
        elif not is_ours(present):
            changes.foreign.append(ref)
        elif not _leaving(present):
            document = adopted(fresh, present)
            # restored from a backup, say, it is as wanted and yet not written by us: it could never be deleted
            if difference := first_difference(document, present) or ("" if was_made(present) else "metadata.managedFields"):
                changes.apply.append((document, f"update {ref}: {difference} changed"))
    changes.delete = [ref for ref, present in mine.items() if ref not in wanted and not _leaving(present)]
    return changes


def _leaving(present: Mapping[str, Any]) -> bool:
    """Being deleted: nothing can be done to it; it is made again when it is gone."""
    return bool(present["metadata"].get("deletionTimestamp"))


def _foreign(changes: _Changes, keys: Iterable[str]) -> dict[str, Conflict]:
    if not changes.foreign:
        return {}
    message = f"{changes.foreign[0]} exists and was not made by Pagoda: delete or rename it, or rename this InferenceModel"
    return {key: Conflict(Reason.FOREIGN_OBJECT, message) for key in keys}


def _replicas(model: InferenceModel) -> dict[ObjectRef, int | None]:
    return {
        ObjectRef("Deployment", model.namespace, worker_name(model.name, variant.name)): variant.scaling.fixed for variant in model.variants
    }
