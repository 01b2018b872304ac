"""Whether a worker of a model may still come by itself, or somebody has to change something first. Pure; called by model_status.py.

Routers obey it: they refuse at once, where they would hold a request for spec.routing.wakeTimeout. So it is said only where another try
is most likely to end the same way, and taken back with the first worker that may do better: no node yet, a registry or a hub that is
away, a quota, an eviction, a first crash, all these are waited for.
"""

import re
from collections.abc import Collection, Mapping, Sequence

from pagoda_operator.conditions import Condition, Reason
from pagoda_operator.labels import LABEL_TEMPLATE, LABEL_VARIANT
from pagoda_operator.observed.world import ObjectRef, PodView
from pagoda_operator.render.objects import worker_name
from pagoda_operator.status.model_conditions import ModelView
from pagoda_operator.status.troubles import NO_CLAIM, reason_of, refusal_of_pods, refused, worker_trouble

FINAL = frozenset({Reason.MODEL_NOT_FOUND, Reason.UNAUTHORIZED, Reason.DISK_FULL, Reason.CONTAINER_CONFIG})
"""Of a worker, whatever else is known of it."""
FINAL_SPECS = frozenset({Reason.SPEC_INVALID, Reason.HOST_PATH_FORBIDDEN})
"""Of a false Accepted. NameTaken and ForeignObject are not here: a model that lost one of its names, or whose disruption budget is somebody
else's, serves all the same."""
FINAL_IMAGES = frozenset({"InvalidImageName", "ErrImageNeverPull", "SignatureValidationFailed"})
NO_SUCH_IMAGE = re.compile(
    r"code = NotFound|: not found\b|manifest unknown|access (to the resource is )?denied|authorization failed|no basic auth|\b40[13] [A-Z]"
    r"|SignatureValidationFailed"
)
"""In the words of containerd and CRI-O, when the registry answered: it has no such image, or gives it to nobody unknown. Not "no such
host", and no 429 or 503. In ImagePullBackOff too, between two tries (`cluster/pulls.py`)."""
FAILURES_IN_VAIN = 3
FAILURES_OF_CONFIGURATION = 2
"""The first may be of a process that started just before what it needs was made."""


def is_final(pod: PodView) -> bool:
    """Of one that does not serve. One that has served is waited for, unless what it needs is not there: what it could once it can again."""
    reason = reason_of(pod)
    if reason == Reason.OUT_OF_MEMORY:
        return not pod.has_served
    if reason == Reason.IMAGE_PULL:
        return pod.reason in FINAL_IMAGES or NO_SUCH_IMAGE.search(pod.message) is not None
    if reason == Reason.UNSCHEDULABLE:
        return NO_CLAIM.search(pod.message) is not None
    if reason == Reason.ENGINE_CRASH:
        return not pod.has_served and pod.failures >= (FAILURES_OF_CONFIGURATION if pod.incurable else FAILURES_IN_VAIN)
    return reason in FINAL


def variants_in_vain(view: ModelView, changing: Collection[ObjectRef]) -> dict[str, str]:
    """Those of which no worker comes until somebody changes something, with the reason. `changing`: objects that are not as the spec wants
    them yet, so that their pods say nothing of it."""
    if view.model is None:
        return {}
    found = {}
    for variant in view.model.variants:
        ref = ObjectRef("Deployment", view.key.partition("/")[0], worker_name(view.model.name, variant.name))
        if ref not in changing and (why := _why_none_comes(view, variant.name, ref)):
            found[variant.name] = why
    return found


def unavailable(view: ModelView, accepted: Condition, in_vain: Mapping[str, str]) -> str:
    """Of requests that take any variant with a weight. Empty: one may come, or serves."""
    if any(pod.serving for pod in view.workers):
        return ""
    if accepted.status is False and accepted.reason in FINAL_SPECS:
        return f"{accepted.reason}: {accepted.message}" if all(map(is_final, view.workers)) else ""
    variants = view.model.variants if view.model is not None else ()
    drawn = [variant.name for variant in variants if variant.weight > 0] or [variant.name for variant in variants]
    return in_vain[drawn[0]] if drawn and all(name in in_vain for name in drawn) else ""


def _why_none_comes(view: ModelView, variant: str, ref: ObjectRef) -> str:
    mine = [pod for pod in view.workers if pod.labels.get(LABEL_VARIANT) == variant]
    live = view.deployments.get(variant)
    if any(pod.serving for pod in mine):
        return ""
    current = _of_template(mine, live)
    if current:
        trouble = worker_trouble(current) if all(map(is_final, current)) else None
    elif ref in view.blocked:
        trouble = refused(view.blocked[ref].rstrip("."), str(ref))
    else:
        trouble = refusal_of_pods(live) if live is not None else None
    return f"{trouble[0]}: {trouble[1]}" if trouble is not None and trouble[0] != Reason.QUOTA_EXCEEDED else ""


def _of_template(workers: Sequence[PodView], live: Mapping[str, object] | None) -> list[PodView]:
    """Those of the present spec: what fails beside them is of an older one, which the change may have mended."""
    template = None if live is None else live["spec"]["template"]["metadata"].get("labels", {}).get(LABEL_TEMPLATE)  # type: ignore[index]
    return [pod for pod in workers if pod.labels.get(LABEL_TEMPLATE) == template]
