"""The six conditions of one InferenceModel, from what is known of it. Pure; called by model_status.py.

The first five say whether a request is answered, in the order in which it comes to that; Progressing says where the present spec is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pagoda_operator.conditions import Condition, ConditionType, Reason
from pagoda_operator.errors import InvalidManifest
from pagoda_operator.labels import LABEL_TEMPLATE
from pagoda_operator.manifest.spec import InferenceModel
from pagoda_operator.observed.world import ObjectRef, PodView
from pagoda_operator.plan.claims import Conflict
from pagoda_operator.render.objects import ROUTER_NAME
from pagoda_operator.status.troubles import ABOUT_THE_MODEL, PASSING, past_its_deadline, reason_of, refusal_of_pods, refused, worker_trouble

Trouble = tuple[Reason, str]

FINISHED = frozenset({"Failed", "Succeeded"})
"""Phases of pods that nothing starts again."""
ROUTER_STEPS: Mapping[Reason, str] = {
    Reason.CONTAINER_CONFIG: "make what it names, or correct the value that names it",
    Reason.IMAGE_PULL: "check the image's name and the node's access to its registry",
    Reason.UNSCHEDULABLE: "make room on a node",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    key: str
    model: InferenceModel | None
    """None: the document is not valid."""
    workers: Sequence[PodView]
    """Without those that were told to end."""
    routers: Sequence[PodView]
    endpoint: str | None
    served_names: Sequence[str]
    conflict: Conflict | None
    invalid: InvalidManifest | None
    deployments: Mapping[str, Mapping[str, Any]]
    """Live, by variant."""
    blocked: Mapping[ObjectRef, str]
    """What the API server refused of the model's objects, and of the shared ones."""
    sleepers: frozenset[str]
    """Workers that routers send requests to and that gave their memory back until one comes."""
    unknown_models: Mapping[str, str]
    """Fields of spec.routing that name a model which is not there, or not valid."""

    def desired_of(self, variant: str) -> int:
        live = self.deployments.get(variant)
        if live is not None and "replicas" in live["spec"]:
            return int(live["spec"]["replicas"])
        return next((each.scaling.at_first for each in self.model.variants if each.name == variant), 0) if self.model else 0

    @property
    def desired(self) -> int:
        names = [variant.name for variant in self.model.variants] if self.model else list(self.deployments)
        return sum(self.desired_of(name) for name in names)

    @property
    def asleep(self) -> bool:
        """No worker runs, nor is one wanted."""
        return self.model is not None and self.desired == 0 and not self.workers

    @property
    def templates(self) -> frozenset[str]:
        """Of the live Deployments: pods of another are of an older spec."""
        labels = ((live["spec"]["template"]["metadata"].get("labels") or {}) for live in self.deployments.values())
        return frozenset(label[LABEL_TEMPLATE] for label in labels if LABEL_TEMPLATE in label)

    @property
    def refused_workers(self) -> Trouble | None:
        """Workers that could not even be created."""
        for live in self.deployments.values():
            if trouble := refusal_of_pods(live):
                return trouble
        for ref, told in self.blocked.items():
            if not _is_router(ref) and not _is_conflict(told):
                return refused(told.rstrip("."), str(ref))
        return None


def conditions_of(view: ModelView) -> tuple[Condition, ...]:
    answering = (_accepted(view), _model_available(view), _workers_ready(view), _routed(view))
    return (*answering, _ready(view, answering), _progressing(view))


def _accepted(view: ModelView) -> Condition:
    def no(reason: Reason, message: str) -> Condition:
        return Condition(ConditionType.ACCEPTED, False, reason, message)

    if view.invalid is not None:
        return no(Reason.SPEC_INVALID, "; ".join(map(str, view.invalid.problems)))
    if view.conflict is not None:
        return no(view.conflict.reason, view.conflict.message)
    for ref, told in view.blocked.items():
        if _is_conflict(told):
            return no(
                Reason.FIELD_CONFLICT, f"{ref}: {told.rstrip('.')}: let go of that field, or delete the object so that it is made anew"
            )
    # No trouble: whoever applies a folder of models sends one of them first.
    unknown = "".join(f"; {field}: there is no model {name} yet" for field, name in view.unknown_models.items())
    return Condition(ConditionType.ACCEPTED, True, Reason.ACCEPTED, f"the spec is valid and its names are its own{unknown}")


def _model_available(view: ModelView) -> Condition:
    """Whether the weights are there, as far as any worker has looked."""

    def condition(status: bool | None, reason: Reason, message: str) -> Condition:
        return Condition(ConditionType.MODEL_AVAILABLE, status, reason, message)

    if any(pod.serving for pod in view.workers):
        return condition(True, Reason.AVAILABLE, "a worker serves the model")
    trouble = worker_trouble(view.workers)
    if trouble and trouble[0] in ABOUT_THE_MODEL:
        return condition(False, *trouble)
    fetched = view.model is not None and view.model.spec.model.fetched
    if fetched and any(pod.weights_at is not None for pod in view.workers):
        return condition(True, Reason.AVAILABLE, "the weights are fetched")
    if any(reason_of(pod) == Reason.LOADING and pod.phase == "Running" for pod in view.workers):
        return condition(None, Reason.LOADING, "a worker is reading the model")
    return condition(None, Reason.UNKNOWN, "no worker has looked for the model yet")


def _workers_ready(view: ModelView) -> Condition:
    """True while one serves: how many of them do is in the message, and Progressing tells what the others lack."""

    def no(reason: Reason, message: str) -> Condition:
        return Condition(ConditionType.WORKERS_READY, False, reason, message)

    serving = sum(pod.serving for pod in view.workers)
    if serving:
        return Condition(
            ConditionType.WORKERS_READY, True, Reason.WORKERS_READY, f"{serving} of {max(view.desired, serving)} workers serve"
        )
    if view.model is None and not view.workers:
        return no(Reason.NO_WORKERS, "no worker runs, and the spec is not valid: correct it as the Accepted condition says")
    if trouble := worker_trouble(view.workers):
        return no(Reason.LOADING, trouble[1]) if trouble[0] in ABOUT_THE_MODEL else no(*trouble)
    if trouble := view.refused_workers:
        return no(*trouble)
    if view.asleep:
        return no(Reason.ASLEEP, _asleep_message(view))
    return no(Reason.NO_WORKERS, f"none of {view.desired} workers has started yet")


def _routed(view: ModelView) -> Condition:
    """Whether routers that clients reach send requests to a worker."""

    def no(reason: Reason, message: str) -> Condition:
        return Condition(ConditionType.ROUTED, False, reason, message)

    if not any(pod.serving for pod in view.routers) or view.endpoint is None:
        return no(Reason.ROUTER_NOT_READY, _no_router_message(view))
    routed = sum(pod.ready for pod in view.workers)
    if routed:
        return Condition(
            ConditionType.ROUTED, True, Reason.ROUTED, f"every router sends requests to {routed} of {len(view.workers)} workers"
        )
    if view.asleep:
        return no(Reason.ASLEEP, _asleep_message(view))
    waiting = [pod for pod in view.workers if pod.serving]
    if not waiting:
        return no(Reason.NOT_ACKNOWLEDGED, "no worker serves yet, see WorkersReady")
    words = waiting[0].message.strip().rstrip(".") or "not every router has a session to it yet"
    return no(Reason.NOT_ACKNOWLEDGED, f"{waiting[0].name} serves, {words}: it takes seconds; read the routers' logs when it lasts")


def _ready(view: ModelView, before: Sequence[Condition]) -> Condition:
    """Whether a request to one of its names would be answered now."""

    def no(reason: Reason, message: str) -> Condition:
        return Condition(ConditionType.READY, False, reason, message)

    accepted, *answering = before
    if view.model is not None and not view.served_names and view.conflict is not None:
        return no(view.conflict.reason, view.conflict.message)
    if view.model is None and not view.workers:
        return no(Reason.SPEC_INVALID, "no worker runs, and the spec is not valid: correct it as the Accepted condition says")
    if accepted.status is False and not view.workers:
        return no(accepted.reason, accepted.message)
    for condition in answering:
        if condition.status is False:
            return no(condition.reason, condition.message)
    routed = sum(pod.ready for pod in view.workers)
    waking = ": the next request wakes it" if len(view.sleepers) == 1 else ""
    slept = f", {len(view.sleepers)} asleep{waking}" if view.sleepers else ""
    return Condition(ConditionType.READY, True, Reason.READY, f"{routed} of {len(view.workers)} workers ready at {view.endpoint}{slept}")


def _progressing(view: ModelView) -> Condition:
    """True while the present spec is on its way; false when it stands, or when it is stuck, with the reason."""

    def condition(status: bool, reason: Reason, message: str) -> Condition:
        return Condition(ConditionType.PROGRESSING, status, reason, message)

    if view.model is None:
        return condition(False, Reason.SPEC_INVALID, "what ran before the last change goes on")
    current = [pod for pod in view.workers if pod.labels.get(LABEL_TEMPLATE) in view.templates]
    old = [pod for pod in view.workers if pod.labels.get(LABEL_TEMPLATE) not in view.templates]
    desired, ready = view.desired, sum(pod.ready for pod in current)
    count = f"{ready} of {desired} workers ready"
    trouble = worker_trouble(current) or view.refused_workers
    if trouble and trouble[0] not in PASSING:
        return condition(False, trouble[0], f"{count}; {trouble[1]}{_replace_hint(view, trouble[0], old)}")
    if any(past_its_deadline(live) for live in view.deployments.values()) and (old or ready < desired):
        told = f"; {trouble[1]}" if trouble else ""
        return condition(
            False, Reason.STUCK, f"{count}, and nothing has moved for long{told}: read the log of the worker that does not serve"
        )
    if old:
        return condition(True, Reason.ROLLING_OUT, f"{ready} of {desired} workers run the present spec, {len(old)} an older one")
    if ready < desired or trouble:
        scales = ready > 0 or desired < len(current)
        told = trouble[1] if trouble else "waiting for the routers" if any(pod.serving for pod in current) else "starting"
        return condition(True, Reason.SCALING if scales else Reason.LOADING, f"{count}; {told}")
    if len(current) > desired:
        return condition(True, Reason.SCALING, f"{len(current)} workers, {desired} are wanted")
    if (stuck := _stuck_router(view)) is not None:
        return condition(False, Reason.ROUTER_NOT_READY, f"{_router_message(stuck)}; others serve")
    if view.asleep:
        return condition(False, Reason.SETTLED, "no worker runs, as none is needed")
    return condition(False, Reason.SETTLED, f"{ready} of {desired} workers run the present spec")


def _replace_hint(view: ModelView, reason: Reason, old: Sequence[PodView]) -> str:
    """A rollout by surge needs room for one more worker."""
    if reason != Reason.UNSCHEDULABLE or view.model is None or view.model.spec.rollout.strategy != "surge":
        return ""
    if not any(pod.serving for pod in old):
        return ""
    return ", or set spec.rollout.strategy: replace, which ends an old worker before its successor starts"


def _asleep_message(view: ModelView) -> str:
    if view.model is not None and all(variant.scaling.mode == "external" for variant in view.model.variants):
        return "it has 0 replicas, as spec.scaling.replicas says: raise it to start workers"
    return "it sleeps, as nobody asked for a while: the next request wakes it and is answered when a worker is ready"


def _stuck_router(view: ModelView) -> PodView | None:
    """One that does not start by itself, while others serve. Routers are no model's own, so each model of the namespace tells of it. Not
    one that was evicted or rejected: its successor tells how it is."""
    if not any(pod.serving for pod in view.routers):
        return None
    starting = (pod for pod in view.routers if not pod.serving and pod.phase not in FINISHED)
    return next((pod for pod in starting if reason_of(pod) not in PASSING), None)


def _no_router_message(view: ModelView) -> str:
    workers = "workers are ready, " if any(pod.serving for pod in view.workers) else ""
    told = next((told for ref, told in view.blocked.items() if _is_router(ref)), None)
    if told is not None:
        return f"{workers}the API server refuses the router: {told.rstrip('.')}: correct what it names"
    if not view.routers:
        return f"{workers}the router has not started yet"
    return f"{workers}{_router_message(view.routers[0])}"


def _router_message(pod: PodView) -> str:
    """Of one that does not serve."""
    told = pod.message.strip().rstrip(".")
    if not told:
        words = ": it starts within seconds; read its log when this lasts"
    else:
        words = f": {told}: {ROUTER_STEPS.get(reason_of(pod), 'read its log')}"
    return f"the router {pod.name} is not ready{words}"


def _is_conflict(told: str) -> bool:
    """As the API server begins what it says of server-side apply. Names and messages of others may hold the word too."""
    return told.startswith("Apply failed with")


def _is_router(ref: ObjectRef) -> bool:
    return (ref.kind, ref.name) == ("Deployment", ROUTER_NAME)
