"""From what keeps a worker from serving to the closed set of reasons, and to one sentence that ends with what to do next. Pure.

Called by model_status.py and model_conditions.py with pods as either executor shows them.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pagoda_operator.conditions import Reason
from pagoda_operator.observed.world import PodView
from pagoda_operator.status.manifest_words import in_words_of_the_manifest

REASON_OF_POD: Mapping[str, Reason] = {
    "Loading": Reason.LOADING,
    "Starting": Reason.LOADING,
    "ContainerCreating": Reason.LOADING,
    "Draining": Reason.LOADING,
    "WeightsDownload": Reason.WEIGHTS_DOWNLOAD,
    "FetchFailed": Reason.WEIGHTS_DOWNLOAD,
    "ModelNotFound": Reason.MODEL_NOT_FOUND,
    "DiskFull": Reason.DISK_FULL,
    "Unauthorized": Reason.UNAUTHORIZED,
    "OOMKilled": Reason.OUT_OF_MEMORY,
    "OutOfMemory": Reason.OUT_OF_MEMORY,
    "Stalled": Reason.STALLED,
    "DeadlineExceeded": Reason.STALLED,
    "EngineCrash": Reason.ENGINE_CRASH,
    "CrashLoopBackOff": Reason.ENGINE_CRASH,
    "Error": Reason.ENGINE_CRASH,
    "Failed": Reason.ENGINE_CRASH,
    "RunContainerError": Reason.CONTAINER_CONFIG,
    "CreateContainerConfigError": Reason.CONTAINER_CONFIG,
    "CreateContainerError": Reason.CONTAINER_CONFIG,
    "ContainerCannotRun": Reason.CONTAINER_CONFIG,
    "StartError": Reason.CONTAINER_CONFIG,
    "ErrImagePull": Reason.IMAGE_PULL,
    "ImagePullBackOff": Reason.IMAGE_PULL,
    "InvalidImageName": Reason.IMAGE_PULL,
    "ErrImageNeverPull": Reason.IMAGE_PULL,
    "RegistryUnavailable": Reason.IMAGE_PULL,
    "ImageInspectError": Reason.IMAGE_PULL,
    "SignatureValidationFailed": Reason.IMAGE_PULL,
    "Unschedulable": Reason.UNSCHEDULABLE,
    "NodeLost": Reason.NODE_LOST,
    "Evicted": Reason.EVICTED,
}
"""What pods and workers say, to what an InferenceModel says. Anything else is Loading, or EngineCrash once the pod failed."""

GRAVITY = (
    Reason.MODEL_NOT_FOUND,
    Reason.UNAUTHORIZED,
    Reason.DISK_FULL,
    Reason.OUT_OF_MEMORY,
    Reason.IMAGE_PULL,
    Reason.CONTAINER_CONFIG,
    Reason.UNSCHEDULABLE,
    Reason.ENGINE_CRASH,
    Reason.EVICTED,
    Reason.NODE_LOST,
    Reason.STALLED,
    Reason.WEIGHTS_DOWNLOAD,
    Reason.LOADING,
)
"""Several workers, several reasons: the first of these is told, being the one that somebody must act on."""

PASSING = frozenset({Reason.LOADING, Reason.WEIGHTS_DOWNLOAD, Reason.STALLED, Reason.NODE_LOST})
"""Go by themselves, as a rule: a rollout that waits for them is in progress, not stuck."""

ABOUT_THE_MODEL = frozenset({Reason.MODEL_NOT_FOUND, Reason.UNAUTHORIZED, Reason.DISK_FULL, Reason.WEIGHTS_DOWNLOAD})
"""Told by ModelAvailable; WorkersReady repeats them as Loading."""

NEXT_STEP: Mapping[Reason, str] = {
    Reason.MODEL_NOT_FOUND: "correct spec.model.source",
    Reason.UNAUTHORIZED: "name a Secret that may read it in spec.model.tokenSecretRef or credentialsSecretRef",
    Reason.DISK_FULL: "give spec.model.cache a larger volume",
    Reason.OUT_OF_MEMORY: "raise spec.resources.memory, or lower spec.engine.maxModelLen or maxRunning",
    Reason.IMAGE_PULL: "check the image's name and the node's access to its registry",
    Reason.CONTAINER_CONFIG: "create what is missing, or correct its name in the spec",
    Reason.UNSCHEDULABLE: "lower spec.resources, or add a node that has them",
    Reason.ENGINE_CRASH: "read its log",
    Reason.EVICTED: "set spec.resources.memory, or free the node",
    Reason.NODE_LOST: "another worker starts by itself; check the node",
    Reason.STALLED: "it restarts by itself; read its log when this lasts",
}
GIGA, MEGA = 10**9, 10**6
NO_CLAIM = re.compile(r'persistentvolumeclaim "[^"]+" not found')
CLAIMS = re.compile(r'persistentvolumeclaim "([^"]+)"|(?:the claim|one of the claims) ([\w.-]+(?:, [\w.-]+)*) is Pending')
"""By name: in the scheduler's words, and as `observed/volumes.py` puts them before those."""


def worker_trouble(workers: Sequence[PodView]) -> tuple[Reason, str] | None:
    """The gravest reason among workers that do not serve, and a sentence with the pod's own words. None: all serve."""
    found = [(reason_of(pod), pod) for pod in workers if not pod.serving]
    if not found:
        return None
    reason, pod = min(found, key=lambda pair: (GRAVITY.index(pair[0]), pair[1].name))
    return reason, sentence(reason, pod)


def reason_of(pod: PodView) -> Reason:
    """Only for pods that do not serve."""
    if pod.reason in REASON_OF_POD:
        return REASON_OF_POD[pod.reason]
    return Reason.ENGINE_CRASH if pod.phase == "Failed" else Reason.LOADING


def sentence(reason: Reason, pod: PodView) -> str:
    parts = [_what_happens(reason, pod)]
    told = pod.message.strip().rstrip(".")
    if told and not (reason == Reason.WEIGHTS_DOWNLOAD and pod.progress is not None):
        parts.append(in_words_of_the_manifest(told))
    refuses = reason == Reason.ENGINE_CRASH and pod.incurable
    if step := "correct the spec, or read its log" if refuses else next_step(reason, told):
        parts.append(step)
    return ": ".join(parts)


def next_step(reason: Reason, told: str) -> str:
    """Nothing where the pod's own words end with one."""
    lower = told.lower()
    if reason == Reason.OUT_OF_MEMORY and "maxmodellen" in lower:
        return ""
    if reason == Reason.UNAUTHORIZED and "secretref" in lower:
        return ""
    if reason == Reason.UNSCHEDULABLE and _is_of_a_volume(told):
        return _step_of_a_volume(told)
    if reason == Reason.MODEL_NOT_FOUND and _is_of_an_adapter(told):
        return "correct spec.adapters"
    if reason == Reason.MODEL_NOT_FOUND and _is_of_a_draft(told):
        return "correct spec.engine.speculative.draft"
    return NEXT_STEP.get(reason, "")


def _step_of_a_volume(told: str) -> str:
    if NO_CLAIM.search(told):
        return "create the claim, or correct its name in spec.model or spec.adapters"
    if (named := CLAIMS.search(told)) is None:
        return "`kubectl describe pvc` says what its claim waits for"
    claims = named[1] or named[2].replace(",", "")
    return f"`kubectl describe pvc {claims}` says what it waits for, such as a storage class, a provisioner or a volume that fits"


def progress_text(pod: PodView) -> str:
    """ "43% (2.1 of 4.9 GB)", "43%", or nothing."""
    if pod.progress is None:
        return ""
    share = f"{pod.progress:.0%}"
    if not pod.bytes_total or pod.bytes_done is None:
        return share
    size, unit = (GIGA, "GB") if pod.bytes_total >= GIGA else (MEGA, "MB")
    return f"{share} ({pod.bytes_done / size:.1f} of {pod.bytes_total / size:.1f} {unit})"


def is_quota(told: str) -> bool:
    return "exceeded quota" in told.lower()


def refusal_of_pods(deployment: Mapping[str, Any]) -> tuple[Reason, str] | None:
    """What the API server says of pods that a Deployment could not even create: quota, policies. From its status."""
    for condition in (deployment.get("status") or {}).get("conditions") or ():
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            told = " ".join(str(condition.get("message", "")).split()).rstrip(".")
            return refused(told)
    return None


def refused(told: str, what: str = "a worker") -> tuple[Reason, str]:
    if is_quota(told):
        return Reason.QUOTA_EXCEEDED, f"the namespace's quota refuses {what}: {told}: raise the ResourceQuota, or lower spec.resources"
    return Reason.CONTAINER_CONFIG, f"the API server refuses {what}: {told}: correct what it names"


def past_its_deadline(deployment: Mapping[str, Any]) -> bool:
    conditions = (deployment.get("status") or {}).get("conditions") or ()
    return any(each.get("type") == "Progressing" and each.get("reason") == "ProgressDeadlineExceeded" for each in conditions)


def _what_happens(reason: Reason, pod: PodView) -> str:
    match reason:
        case Reason.LOADING:
            if done := progress_text(pod):
                return f"{pod.name} is loading the model, {done} done"
            return f"{pod.name} is not ready yet" if pod.message else f"{pod.name} is starting"
        case Reason.WEIGHTS_DOWNLOAD:
            if pod.reason == "FetchFailed":
                return f"{pod.name} could not fetch the weights and tries again"
            done = progress_text(pod)
            return f"{pod.name} is fetching the weights" + (f", {done} done" if done else "")
        case Reason.ENGINE_CRASH:
            return f"{pod.name} ended" + (f" and was restarted {times(pod.restarts)}" if pod.restarts else "")
        case Reason.NODE_LOST:
            return f"{pod.name} is out of reach"
        case Reason.UNSCHEDULABLE if _is_of_a_volume(pod.message):
            return f"{pod.name} waits for its volume"
        case Reason.MODEL_NOT_FOUND if _is_of_an_adapter(pod.message):
            return f"{pod.name} cannot load an adapter of the model"
        case Reason.MODEL_NOT_FOUND if _is_of_a_draft(pod.message):
            return f"{pod.name} did not find the draft model"
        case _:
            return f"{_SUBJECTS[reason].format(pod=pod.name)}"


_SUBJECTS: Mapping[Reason, str] = {
    Reason.MODEL_NOT_FOUND: "{pod} did not find the model",
    Reason.UNAUTHORIZED: "{pod} may not read the model",
    Reason.DISK_FULL: "{pod} has no room for the model",
    Reason.OUT_OF_MEMORY: "{pod} ran out of memory",
    Reason.IMAGE_PULL: "the image of {pod} cannot be pulled",
    Reason.CONTAINER_CONFIG: "{pod} cannot be started",
    Reason.UNSCHEDULABLE: "no node has room for {pod}",
    Reason.EVICTED: "{pod} was evicted by its node",
    Reason.STALLED: "{pod} does not move",
}


def _is_of_a_volume(told: str) -> bool:
    return "persistentvolumeclaim" in told.lower() or CLAIMS.match(told) is not None


def _is_of_an_adapter(told: str) -> bool:
    """As workers begin what they say of one (`loading/adapters.py`, `settings/adapters.py` of theirs)."""
    return told.startswith(("adapter '", "adapter source "))


def _is_of_a_draft(told: str) -> bool:
    """As workers name the source that they could not read (`settings/engine.py` of theirs)."""
    return told.startswith("PAGODA_ENGINE.speculative.draft ")


def times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
