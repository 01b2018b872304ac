"""What to tell people about one InferenceModel: conditions with a closed set of reasons, counts, how far it is, endpoint. Pure.

Called after each round's apply, with the world as it was observed; the caller writes the result to the object.

    view of one model ──> Accepted, ModelAvailable, WorkersReady, Routed, Ready, Progressing (model_conditions.py) ──> READY column
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pagoda_operator.conditions import Condition, ConditionType, merge_conditions, rfc3339
from pagoda_operator.labels import LABEL_COMPONENT, LABEL_MANAGED_BY, LABEL_MODEL, LABEL_TEMPLATE, LABEL_VARIANT, MANAGED_BY
from pagoda_operator.manifest.spec import InferenceModel, key_of
from pagoda_operator.observed.world import ObjectRef, Observed, PodView, RouterReport, ref_of
from pagoda_operator.plan.plan import Plan
from pagoda_operator.status.finality import unavailable, variants_in_vain
from pagoda_operator.status.model_conditions import FINISHED, ModelView, conditions_of
from pagoda_operator.status.troubles import progress_text

DECISIONS = 5
MILESTONES = ("created", "scheduled", "image", "weights", "engine", "routed")


def model_status(
    document: Mapping[str, Any], plan: Plan, observed: Observed, decisions: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The whole `status` of one object that was in `plan`'s documents. Its present `status`, if any, keeps transition times, the decisions
    of an earlier process and a capacity not known anew yet; nothing else is read of it. `decisions`: the scaler's, the latest first."""
    metadata, key, before = document["metadata"], key_of(document), document.get("status") or {}
    model = next((model for model in plan.models if model.key == key), None)
    view = _view(metadata["name"], key, model, plan, observed)
    conditions = conditions_of(view)
    in_vain = variants_in_vain(view, [ref_of(each) for each in plan.apply if ref_of(each) not in observed.blocked])
    generation = metadata.get("generation") or 1
    status: dict[str, Any] = {
        "observedGeneration": generation,
        "ready": summary(conditions),
        "rollout": next(str(each.reason) for each in conditions if each.type == ConditionType.PROGRESSING),
        "replicas": len(view.workers),
        "readyReplicas": sum(pod.serving for pod in view.workers),
        "routedReplicas": sum(pod.ready for pod in view.workers),
        "selector": ",".join(f"{label}={value}" for label, value in _selector(metadata["name"]).items()),
        "servedNames": list(plan.served_names.get(key, ())),
        "scaling": {"desired": view.desired, "decisions": last_decisions(decisions, before)},
        "variants": [_variant(name, weight, view, in_vain) for name, weight in _weights(model)] if model else [],
        "conditions": merge_conditions(conditions, before.get("conditions") or (), generation=generation, now=observed.now),
    }
    optional = {
        "endpoint": observed.endpoint,
        "unavailable": unavailable(view, conditions[0], in_vain),
        "progress": _progress(view),
        "capacity": _capacity(view.workers, before.get("capacity") or {}),
        "timeline": _timeline(view.workers),
    }
    return status | {name: value for name, value in optional.items() if value}


def summary(conditions: Sequence[Condition]) -> str:
    """The READY column: "True", or the reason of the first condition that is false. Progressing is news, not trouble."""
    troubles = (each for each in conditions if each.type != ConditionType.PROGRESSING and each.status is False)
    return next((str(each.reason) for each in troubles), "True")


def last_decisions(fresh: Sequence[Mapping[str, Any]], before: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those of this process, then those that an earlier one wrote."""
    known = {(each["time"], each.get("variant")) for each in fresh}
    older = [each for each in (before.get("scaling") or {}).get("decisions") or () if (each["time"], each.get("variant")) not in known]
    ordered = sorted([*fresh, *older], key=lambda each: str(each["time"]), reverse=True)
    return [dict(each) for each in ordered[:DECISIONS]]


def _view(name: str, key: str, model: InferenceModel | None, plan: Plan, observed: Observed) -> ModelView:
    namespace = key.partition("/")[0]
    pods = [pod for pod in observed.pods if pod.namespace == namespace]
    workers = [pod for pod in pods if _is_worker(pod, name) and not pod.terminating]
    routers = [pod for pod in pods if pod.labels.get(LABEL_COMPONENT) == "router" and not pod.terminating]
    deployments = _deployments(name, namespace, observed)
    return ModelView(
        key=key,
        model=model,
        workers=_without_remains(workers, deployments),
        routers=routers,
        endpoint=observed.endpoint,
        served_names=plan.served_names.get(key, ()),
        conflict=plan.conflicts.get(key),
        invalid=plan.invalid.get(key),
        deployments=deployments,
        blocked={ref: told for ref, told in observed.blocked.items() if ref.namespace == namespace and _concerns(ref, observed, name)},
        sleepers=_sleepers(workers, [report for (of, _), report in observed.reports.items() if of == namespace]),
        unknown_models=plan.unknown_models.get(key, {}),
    )


def _sleepers(workers: Sequence[PodView], reports: Sequence[RouterReport]) -> frozenset[str]:
    """One router hears of a move a moment before the others: what any of them saw last awake is awake."""
    seen = [{name: worker.sleeps for name, worker in report.workers.items()} for report in reports]
    told = {pod.name: [states[pod.name] for states in seen if pod.name in states] for pod in workers if pod.ready}
    return frozenset(name for name, states in told.items() if states and all(states))


def _is_worker(pod: PodView, model: str) -> bool:
    return pod.labels.get(LABEL_COMPONENT) == "worker" and pod.labels.get(LABEL_MODEL) == model


def _without_remains(workers: Sequence[PodView], deployments: Mapping[str, Mapping[str, Any]]) -> list[PodView]:
    """Without evicted and rejected pods that were replaced: Kubernetes keeps thousands of them, and they say nothing of the model now."""

    def is_remains(pod: PodView) -> bool:
        live = deployments.get(pod.labels.get(LABEL_VARIANT, "default"))
        if not _has_ended(pod) or live is None:
            return _has_ended(pod)
        if (live["spec"]["template"]["metadata"].get("labels") or {}).get(LABEL_TEMPLATE) != pod.labels.get(LABEL_TEMPLATE):
            return True
        others = [each for each in workers if not _has_ended(each) and _same_kind(each, pod)]
        return len(others) >= int(live["spec"].get("replicas", 1))

    return [pod for pod in workers if not is_remains(pod)]


def _has_ended(pod: PodView) -> bool:
    return pod.phase in FINISHED and not pod.serving


def _same_kind(one: PodView, other: PodView) -> bool:
    return all(one.labels.get(label) == other.labels.get(label) for label in (LABEL_VARIANT, LABEL_TEMPLATE))


def _deployments(model: str, namespace: str, observed: Observed) -> dict[str, Mapping[str, Any]]:
    """The model's live worker Deployments by variant."""
    found = {}
    for ref, live in observed.objects.items():
        labels = live["metadata"].get("labels") or {}
        if (ref.kind, ref.namespace, labels.get(LABEL_MODEL), labels.get(LABEL_MANAGED_BY)) == ("Deployment", namespace, model, MANAGED_BY):
            found[labels.get(LABEL_VARIANT, "default")] = live
    return found


def _concerns(ref: ObjectRef, observed: Observed, model: str) -> bool:
    """A refused object is this model's, or what its namespace's models share."""
    live = observed.objects.get(ref)
    if live is None:
        return True
    owner: str = (live["metadata"].get("labels") or {}).get(LABEL_MODEL, model)
    return owner == model


def _selector(model: str) -> dict[str, str]:
    return {LABEL_MANAGED_BY: MANAGED_BY, LABEL_COMPONENT: "worker", LABEL_MODEL: model}


def _weights(model: InferenceModel) -> list[tuple[str, int]]:
    return [(variant.name, variant.weight) for variant in model.variants]


def _variant(name: str, weight: int, view: ModelView, in_vain: Mapping[str, str]) -> dict[str, Any]:
    mine = [pod for pod in view.workers if pod.labels.get(LABEL_VARIANT) == name]
    return {
        "name": name,
        "weight": weight,
        "desired": view.desired_of(name),
        "replicas": len(mine),
        "ready": sum(pod.ready for pod in mine),
        **({"unavailable": in_vain[name]} if name in in_vain else {}),
    }


def _progress(view: ModelView) -> str:
    """Of the worker that is least far, while none serves; of those that serve, whether all sleep."""
    serving = {pod.name for pod in view.workers if pod.serving}
    loading = [pod for pod in view.workers if pod.progress is not None]
    if serving or not loading:
        return "asleep" if serving and serving <= view.sleepers else ""
    return progress_text(min(loading, key=lambda pod: pod.progress or 0.0))


def _capacity(workers: Sequence[PodView], before: Mapping[str, Any]) -> dict[str, Any]:
    """Together, of those that serve; the length is the least. While some have not told theirs, as after an operator's start, what was
    known stands: else each restart would take it out of every status and put it back worker by worker."""
    serving = [pod.capacity for pod in workers if pod.serving]
    told = [capacity for capacity in serving if capacity is not None]
    if len(told) < len(serving) and before:
        return dict(before)
    if not told:
        return {}
    return {
        "kvTokens": sum(each.kv_tokens for each in told),
        "maxModelLen": min(each.max_model_len for each in told),
        "prefillTokensPerS": round(sum(each.prefill_tokens_per_s for each in told), 1),
        "decodeTokensPerS": round(sum(each.decode_tokens_per_s for each in told), 1),
    }


def _timeline(workers: Sequence[PodView]) -> dict[str, str]:
    """Of the worker that is starting now, else of the one that was routed last."""
    starting = [pod for pod in workers if not pod.ready and pod.created_at is not None]
    routed = [pod for pod in workers if pod.ready and pod.routed_at is not None]
    if starting:
        pod = max(starting, key=lambda pod: (_moments(pod)[0], pod.name))
    elif routed:
        pod = max(routed, key=lambda pod: (pod.routed_at, pod.name))
    else:
        return {}
    return {name: rfc3339(moment) for name, moment in zip(MILESTONES, _moments(pod), strict=True) if moment is not None}


def _moments(pod: PodView) -> tuple[datetime | None, ...]:
    return pod.created_at, pod.scheduled_at, pod.image_at, pod.weights_at, pod.engine_at, pod.routed_at
