"""From a Kubernetes Pod, its Node and its own last word to a `PodView`: how far it is, and why no further. Pure.

Called by cluster/observe.py for every pod of a look. The words that come out as `reason` are those that `status/troubles.py` maps.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pagoda_operator.labels import LABEL_COMPONENT
from pagoda_operator.observed.terminations import INCURABLE, Cause, cause_of_next_try, cause_of_termination, missing_resources
from pagoda_operator.observed.volumes import claims_of, with_claims
from pagoda_operator.observed.world import Capacity, PodView

ROUTED_CONDITION = "pagoda.dev/routed"
FETCH_CONTAINER = "fetch"

NODE_REASONS = frozenset({"NodeLost", "NodeShutdown", "Terminated", "Shutdown", "NodeUnreachable"})
"""Of a pod whose node went away under it, as status.reason has them."""
IMAGE_REASONS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "RegistryUnavailable",
        "ImageInspectError",
        "SignatureValidationFailed",
    }
)
CONFIG_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "ContainerCannotRun", "StartError"})

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Said:
    """The last answer to GET /ready, of the fetch step or of the worker."""

    cause: Cause
    progress: float | None = None
    bytes_done: int | None = None
    bytes_total: int | None = None
    capacity: Capacity | None = None
    engine_failures: int = 0
    """Engines in a row that ended before they served, within one process."""


def pod_view(pod: Object, node: Object | None = None, probe: Object | None = None, now: datetime | None = None) -> PodView:
    """`node`: None: not known; empty: there is none of that name any more. `probe`: the JSON of its last /ready, None: none yet."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    labels, conditions = metadata.get("labels") or {}, _conditions(status)
    routed = _is_true(conditions, ROUTED_CONDITION) or not _has_gate(pod) or labels.get(LABEL_COMPONENT) == "router"
    lost = _node_trouble(pod, node)
    # while routers still hold a session to it, a node that fell silent has not taken the worker with it
    serving = _is_true(conditions, "ContainersReady") and (lost is None or (_is_true(conditions, ROUTED_CONDITION) and node != {}))
    said = _said(probe)
    cause = Cause() if serving else (lost or _cause(pod, said))
    loads = not serving and cause == said.cause
    has_served = serving or ROUTED_CONDITION in conditions  # also where it was taken back
    failures, incurable = (0, False) if has_served else _failures(status)
    return PodView(
        name=metadata["name"],
        labels=labels,
        namespace=metadata.get("namespace", "default"),
        uid=metadata.get("uid", ""),
        node=(pod.get("spec") or {}).get("nodeName"),
        ip=status.get("podIP"),
        serving=serving,
        routed=routed,
        terminating="deletionTimestamp" in metadata,
        phase=status.get("phase", "Pending"),
        reason=cause.reason,
        message=cause.message,
        restarts=sum(each.get("restartCount", 0) for each in _containers(status)),
        has_served=has_served,
        failures=0 if has_served else max(failures, said.engine_failures),
        incurable=incurable,
        progress=said.progress if loads else None,
        bytes_done=said.bytes_done if loads else None,
        bytes_total=said.bytes_total if loads else None,
        capacity=said.capacity,
        **_milestones(pod, conditions),
    )


# ---------------------------------------------------------------- why it does not serve


def _cause(pod: Object, said: Said) -> Cause:
    """The first thing on a pod's way that is not done."""
    status = pod.get("status") or {}
    if told := _of_the_pod(status):
        return told
    if told := _unscheduled(status, claims_of(pod.get("spec") or {})):
        return told
    for container in status.get("initContainerStatuses") or ():
        if not _completed(container):
            return _of_container(container, said)
    for container in status.get("containerStatuses") or ():
        if not container.get("ready"):
            return _of_container(container, said)
    return Cause("Failed", status.get("message", "")) if status.get("phase") == "Failed" else said.cause


def _of_the_pod(status: Object) -> Cause | None:
    """What ended a pod as a whole: eviction, its node's end, the kubelet's refusal to take it."""
    reason, message = status.get("reason", ""), _one_line(status.get("message", ""))
    if reason in NODE_REASONS:
        return Cause("NodeLost", message or "its node was shut down")
    if status.get("phase") != "Failed" or not reason:
        return None
    if reason.startswith(("OutOf", "NodeAffinity", "UnexpectedAdmissionError")):
        return Cause("Unschedulable", message or reason)
    return Cause(reason, message) if reason in ("Evicted", "DeadlineExceeded") else None


def _unscheduled(status: Object, claims: Sequence[str]) -> Cause | None:
    scheduled = _conditions(status).get("PodScheduled", {})
    if scheduled.get("status") != "False":
        return None
    # what preemption could not do either is a second sentence of the same content
    sentence = _one_line(scheduled.get("message", "")).partition(" preemption: ")[0].rstrip(". ")
    missing = missing_resources(sentence)
    return Cause("Unschedulable", f"not enough {', '.join(missing)}: {sentence}" if missing else with_claims(sentence, claims))


def _node_trouble(pod: Object, node: Object | None) -> Cause | None:
    name = (pod.get("spec") or {}).get("nodeName")
    if not name or node is None or (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        return None
    if not node:
        return Cause("NodeLost", f"its node {name} is gone")
    ready = _conditions(node.get("status") or {}).get("Ready")
    if ready is None or ready.get("status") == "True":
        return None
    told = _one_line(ready.get("message", "")).rstrip(".") or ready.get("reason", "")
    return Cause("NodeLost", f"its node {name} is not ready" + (f": {told}" if told else ""))


def _of_container(container: Object, said: Said) -> Cause:
    state, last = container.get("state") or {}, (container.get("lastState") or {}).get("terminated")
    fetches = container.get("name") == FETCH_CONTAINER
    if waiting := state.get("waiting"):
        return _of_waiting(waiting, last, fetches=fetches)
    if ended := state.get("terminated"):
        return cause_of_termination(ended, fetches=fetches)
    before = cause_of_termination(last, fetches=fetches) if last else Cause()
    if (told := cause_of_next_try(before, said.cause, bytes_done=said.bytes_done)).reason:
        return told
    if last:
        return Cause("WeightsDownload" if fetches else "Loading", f"started again after {before.message}")
    return Cause("WeightsDownload", "the weights are being fetched") if fetches else said.cause


def _of_waiting(waiting: Object, last: Object | None, *, fetches: bool) -> Cause:
    reason, message = waiting.get("reason", ""), _one_line(waiting.get("message", ""))
    if reason in IMAGE_REASONS or reason in CONFIG_REASONS:
        return Cause(reason, message)
    if last:
        return cause_of_termination(last, fetches=fetches, loops=reason == "CrashLoopBackOff")
    return Cause(reason, message) if reason == "CrashLoopBackOff" else Cause()


def _said(probe: Object | None) -> Said:
    """Of a worker of any version: what is not understood is left out."""
    if not isinstance(probe, Mapping):
        return Said(Cause())
    if probe.get("ready"):
        return Said(Cause(), capacity=capacity_of(probe.get("capacity")))
    progress, done, total, failures = (probe.get(name) for name in ("progress", "bytesDone", "bytesTotal", "engineFailures"))
    return Said(
        Cause(str(probe.get("reason") or ""), _one_line(str(probe.get("message") or ""))),
        progress=float(progress) if isinstance(progress, int | float) else None,
        bytes_done=done if isinstance(done, int) else None,
        bytes_total=total if isinstance(total, int) else None,
        engine_failures=failures if isinstance(failures, int) else 0,
    )


def _failures(status: Object) -> tuple[int, bool]:
    """How often the container that the pod waits for has ended, and whether its last end was incurable."""
    for container in _containers(status):
        if _completed(container):
            continue
        state, last = container.get("state") or {}, (container.get("lastState") or {}).get("terminated")
        ended = state.get("terminated") or last
        between_lives = "terminated" in state or ("waiting" in state and last is not None)
        failures = int(container.get("restartCount", 0)) + between_lives
        if ended is not None and failures:
            return failures, ended.get("exitCode") in INCURABLE
    return 0, False


def capacity_of(told: Any) -> Capacity | None:
    """The `capacity` of a worker's /ready. None: it measured nothing that could be shown."""
    try:
        return Capacity(
            kv_tokens=int(told["kvTokens"]),
            max_model_len=int(told["maxModelLen"]),
            prefill_tokens_per_s=float(told.get("prefillTokensPerS") or 0.0),
            decode_tokens_per_s=float(told.get("decodeTokensPerS") or 0.0),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


# ---------------------------------------------------------------- how far it is


def _milestones(pod: Object, conditions: Mapping[str, Object]) -> dict[str, datetime | None]:
    status = pod.get("status") or {}
    starts = [moment for container in _containers(status) for moment in _starts(container)]
    image_at = min(starts, default=None)
    routed_at = _since(conditions, ROUTED_CONDITION)
    # Routers may hear that the engine serves before the kubelet's next probe does.
    served = [moment for moment in (_since(conditions, "ContainersReady"), routed_at) if moment is not None]
    return {
        "created_at": _moment(pod["metadata"].get("creationTimestamp")),
        "scheduled_at": _since(conditions, "PodScheduled"),
        "image_at": image_at,
        "weights_at": _weights_at(pod, status, image_at),
        "engine_at": min(served, default=None),
        "routed_at": routed_at,
    }


def _weights_at(pod: Object, status: Object, image_at: datetime | None) -> datetime | None:
    fetches = any(each.get("name") == FETCH_CONTAINER for each in (pod.get("spec") or {}).get("initContainers") or ())
    ended = [each for each in status.get("initContainerStatuses") or () if each.get("name") == FETCH_CONTAINER and _completed(each)]
    if ended:
        return _moment(ended[0]["state"]["terminated"].get("finishedAt"))
    return None if fetches else image_at


def _starts(container: Object) -> Iterator[datetime]:
    for state in (container.get("state") or {}, container.get("lastState") or {}):
        for kind in ("running", "terminated"):
            if moment := _moment((state.get(kind) or {}).get("startedAt")):
                yield moment


def _completed(container: Object) -> bool:
    ended = (container.get("state") or {}).get("terminated")
    return ended is not None and ended.get("exitCode") == 0


def _containers(status: Object) -> list[Object]:
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def _conditions(status: Object) -> dict[str, Object]:
    return {each["type"]: each for each in status.get("conditions") or ()}


def _is_true(conditions: Mapping[str, Object], kind: str) -> bool:
    return conditions.get(kind, {}).get("status") == "True"


def _since(conditions: Mapping[str, Object], kind: str) -> datetime | None:
    return _moment(conditions[kind].get("lastTransitionTime")) if _is_true(conditions, kind) else None


def _has_gate(pod: Object) -> bool:
    return any(each.get("conditionType") == ROUTED_CONDITION for each in (pod.get("spec") or {}).get("readinessGates") or ())


def _moment(written: Any) -> datetime | None:
    if isinstance(written, datetime):
        return written
    if not isinstance(written, str):
        return None
    try:
        moment = datetime.fromisoformat(written)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _one_line(text: str) -> str:
    return " ".join(text.split())
