"""What to tell people about one InferenceModel: conditions with a closed set of reasons, counts, endpoint. Pure.

Called after each round's apply, with the world as it was observed; the caller writes the result to the object.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pagoda_operator.conditions import Condition, ConditionType, Reason, merge_conditions
from pagoda_operator.manifests import worker_name
from pagoda_operator.observed import LABEL_COMPONENT, LABEL_MODEL, LABEL_TEMPLATE, ObjectRef, Observed, PodView
from pagoda_operator.plan import Plan
from pagoda_operator.spec import InferenceModel, key_of

REASON_OF_POD: Mapping[str, Reason] = {
    "Loading": Reason.LOADING,
    "Starting": Reason.LOADING,
    "ContainerCreating": Reason.LOADING,
    "ModelNotFound": Reason.MODEL_NOT_FOUND,
    "OOMKilled": Reason.OUT_OF_MEMORY,
    "OutOfMemory": Reason.OUT_OF_MEMORY,
    "Stalled": Reason.WORKER_STALLED,
    "CrashLoopBackOff": Reason.WORKER_CRASH_LOOPING,
    "Error": Reason.WORKER_CRASH_LOOPING,
    "RunContainerError": Reason.WORKER_CRASH_LOOPING,
    "ErrImagePull": Reason.IMAGE_NOT_PULLED,
    "ImagePullBackOff": Reason.IMAGE_NOT_PULLED,
    "InvalidImageName": Reason.IMAGE_NOT_PULLED,
    "Unschedulable": Reason.UNSCHEDULABLE,
}
"""What pods and workers say, to what an InferenceModel says. Anything else is Loading, or WorkerCrashLooping once the pod failed."""

GRAVITY = (
    Reason.MODEL_NOT_FOUND,
    Reason.OUT_OF_MEMORY,
    Reason.IMAGE_NOT_PULLED,
    Reason.UNSCHEDULABLE,
    Reason.WORKER_CRASH_LOOPING,
    Reason.WORKER_STALLED,
    Reason.LOADING,
)
"""Several workers, several reasons: the first of these is told, being the one that somebody must act on."""

NEXT_STEP: Mapping[Reason, str] = {
    Reason.MODEL_NOT_FOUND: "correct spec.model.source",
    Reason.OUT_OF_MEMORY: "raise spec.resources.memory, or lower spec.engine.maxModelLen or maxRunning",
    Reason.IMAGE_NOT_PULLED: "check the image's name and the node's access to its registry",
    Reason.UNSCHEDULABLE: "lower spec.resources, or add a node that has them",
    Reason.WORKER_CRASH_LOOPING: "read its log",
    Reason.WORKER_STALLED: "it restarts by itself; read its log when this lasts",
}


def model_status(document: Mapping[str, Any], plan: Plan, observed: Observed) -> dict[str, Any]:
    """The whole `status` of one object that was in `plan`'s documents. Its present `status`, if any, keeps transition times stable.

    {observedGeneration, ready: "True" | first false reason, replicas, readyReplicas, endpoint, servedNames, progress, conditions}
    """
    metadata, key = document["metadata"], key_of(document)
    model = next((model for model in plan.models if model.key == key), None)
    workers = _workers(metadata["name"], key.partition("/")[0], observed)
    ready = [pod for pod in workers if pod.ready]
    conditions = (_accepted(key, plan), _ready(model, workers, observed, key, plan), _progressing(model, workers, observed))
    generation = metadata.get("generation") or 1
    status: dict[str, Any] = {
        "observedGeneration": generation,
        "ready": summary(conditions),
        "replicas": len(workers),
        "readyReplicas": len(ready),
        "servedNames": list(plan.served_names.get(key, ())),
        "conditions": merge_conditions(conditions, _previous(document), generation=generation, now=observed.now),
    }
    if observed.endpoint is not None:
        status["endpoint"] = observed.endpoint
    progress = [pod.progress for pod in workers if not pod.ready and pod.progress is not None]
    if progress and not ready:
        status["progress"] = f"{min(progress):.0%}"
    return status


def summary(conditions: Sequence[Condition]) -> str:
    """The READY column: "True", or the reason of the first condition that is false. Progressing is news, not trouble."""
    troubles = (condition for condition in conditions if condition.type != ConditionType.PROGRESSING and not condition.status)
    return next((str(condition.reason) for condition in troubles), "True")


def worker_trouble(workers: Sequence[PodView]) -> tuple[Reason, str] | None:
    """The gravest reason among workers that are not ready, and a sentence with the pod's own words. None: all are ready."""
    found = [(reason_of(pod), pod) for pod in workers if not pod.ready]
    if not found:
        return None
    reason, pod = min(found, key=lambda pair: (GRAVITY.index(pair[0]), pair[1].name))
    parts = [_what_happens(reason, pod)]
    if pod.message:
        parts.append(pod.message.strip().rstrip("."))
    if step := NEXT_STEP.get(reason):
        parts.append(step)
    return reason, ": ".join(parts)


def reason_of(pod: PodView) -> Reason:
    """Only for pods that are not ready."""
    if pod.reason in REASON_OF_POD:
        return REASON_OF_POD[pod.reason]
    return Reason.WORKER_CRASH_LOOPING if pod.phase == "Failed" else Reason.LOADING


def _accepted(key: str, plan: Plan) -> Condition:
    if error := plan.invalid.get(key):
        return Condition(ConditionType.ACCEPTED, False, Reason.INVALID_SPEC, "; ".join(map(str, error.problems)))
    if conflict := plan.conflicts.get(key):
        return Condition(ConditionType.ACCEPTED, False, conflict.reason, conflict.message)
    return Condition(ConditionType.ACCEPTED, True, Reason.ACCEPTED, "the spec is valid and its names are its own")


def _ready(model: InferenceModel | None, workers: Sequence[PodView], observed: Observed, key: str, plan: Plan) -> Condition:
    """Whether a request to one of its names would be answered now."""

    def not_ready(reason: Reason, message: str) -> Condition:
        return Condition(ConditionType.READY, False, reason, message)

    if not any(pod.ready for pod in workers):
        if model is None:
            return not_ready(Reason.INVALID_SPEC, "no worker runs, and the spec is not valid: correct it as the Accepted condition says")
        if trouble := worker_trouble(workers):
            return not_ready(*trouble)
        return not_ready(Reason.NO_WORKERS, f"none of {_wanted_replicas(model)} workers has started yet")
    if model is not None and not plan.served_names[key]:
        return not_ready(Reason.NAME_TAKEN, plan.conflicts[key].message)
    routers = [pod for pod in observed.pods if pod.namespace == key.partition("/")[0] and pod.labels.get(LABEL_COMPONENT) == "router"]
    if not any(pod.ready for pod in routers) or observed.endpoint is None:
        return not_ready(Reason.ROUTER_NOT_READY, _router_message(routers))
    ready = sum(pod.ready for pod in workers)
    return Condition(ConditionType.READY, True, Reason.READY, f"{ready} of {len(workers)} workers ready at {observed.endpoint}")


def _progressing(model: InferenceModel | None, workers: Sequence[PodView], observed: Observed) -> Condition:
    """True while the present spec is on its way; false when it stands, or when it is stuck, with the reason."""
    if model is None:
        return Condition(ConditionType.PROGRESSING, False, Reason.INVALID_SPEC, "what ran before the last change goes on")
    templates = wanted_templates(model, observed)
    current = [pod for pod in workers if pod.labels.get(LABEL_TEMPLATE) in templates]
    wanted, ready = _wanted_replicas(model), sum(pod.ready for pod in current)
    trouble = worker_trouble(current)
    if trouble and trouble[0] not in (Reason.LOADING, Reason.WORKER_STALLED):
        return Condition(ConditionType.PROGRESSING, False, trouble[0], f"{ready} of {wanted} workers ready; {trouble[1]}")
    if old := len(workers) - len(current):
        message = f"{ready} of {wanted} workers run the present spec, {old} an older one"
        return Condition(ConditionType.PROGRESSING, True, Reason.ROLLING_OUT, message)
    if ready < wanted or trouble:
        told = trouble[1] if trouble else "starting"
        return Condition(ConditionType.PROGRESSING, True, Reason.LOADING, f"{ready} of {wanted} workers ready; {told}")
    return Condition(ConditionType.PROGRESSING, False, Reason.SETTLED, f"{ready} of {wanted} workers run the present spec")


def wanted_templates(model: InferenceModel, observed: Observed) -> frozenset[str]:
    """Template hashes of the model's Deployments as they stand in the world."""
    refs = (ObjectRef("Deployment", model.namespace, worker_name(model.name, variant.name)) for variant in model.variants)
    live = (observed.objects[ref] for ref in refs if ref in observed.objects)
    labels = ((document["spec"]["template"]["metadata"].get("labels") or {}) for document in live)
    return frozenset(label[LABEL_TEMPLATE] for label in labels if LABEL_TEMPLATE in label)


def _workers(name: str, namespace: str, observed: Observed) -> list[PodView]:
    return [
        pod
        for pod in observed.pods
        if pod.namespace == namespace
        and pod.labels.get(LABEL_MODEL) == name
        and pod.labels.get(LABEL_COMPONENT) == "worker"
        and not pod.terminating
    ]


def _wanted_replicas(model: InferenceModel) -> int:
    return sum(variant.scaling.min for variant in model.variants)


def _what_happens(reason: Reason, pod: PodView) -> str:
    match reason:
        case Reason.LOADING:
            if pod.progress is not None:
                return f"{pod.name} is loading the model, {pod.progress:.0%} done"
            return f"{pod.name} is not ready yet" if pod.message else f"{pod.name} is starting"
        case Reason.WORKER_CRASH_LOOPING:
            return f"{pod.name} ended" + (f" and was restarted {_times(pod.restarts)}" if pod.restarts else "")
        case Reason.MODEL_NOT_FOUND:
            return f"{pod.name} did not find the model"
        case Reason.OUT_OF_MEMORY:
            return f"{pod.name} ran out of memory"
        case Reason.IMAGE_NOT_PULLED:
            return f"the image of {pod.name} cannot be pulled"
        case Reason.UNSCHEDULABLE:
            return f"no node has room for {pod.name}"
        case _:
            return f"{pod.name} does not move"


def _router_message(routers: Sequence[PodView]) -> str:
    if not routers:
        return "workers are ready, the router has not started yet"
    pod = routers[0]
    words = (
        f": {pod.message.strip().rstrip('.')}: read its log" if pod.message else ": it starts within seconds; read its log when this lasts"
    )
    return f"workers are ready, the router {pod.name} is not{words}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _previous(document: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    conditions: Sequence[Mapping[str, Any]] = (document.get("status") or {}).get("conditions") or ()
    return conditions
