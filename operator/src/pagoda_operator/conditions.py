"""The closed set of reasons that a condition of an InferenceModel may carry, and how conditions change over time.

Shared by `plan` (which finds conflicts) and `status` (which writes conditions). Knows nothing of pods.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any


class ConditionType(StrEnum):
    """In the order in which the READY column looks for the first false one. Progressing is not looked at: false means settled."""

    ACCEPTED = "Accepted"
    MODEL_AVAILABLE = "ModelAvailable"
    WORKERS_READY = "WorkersReady"
    ROUTED = "Routed"
    READY = "Ready"
    PROGRESSING = "Progressing"


class Reason(StrEnum):
    # Accepted
    ACCEPTED = "Accepted"
    SPEC_INVALID = "SpecInvalid"
    NAME_TAKEN = "NameTaken"
    FOREIGN_OBJECT = "ForeignObject"
    FIELD_CONFLICT = "FieldConflict"
    HOST_PATH_FORBIDDEN = "HostPathForbidden"
    # ModelAvailable
    AVAILABLE = "Available"
    WEIGHTS_DOWNLOAD = "WeightsDownload"
    MODEL_NOT_FOUND = "ModelNotFound"
    DISK_FULL = "DiskFull"
    UNAUTHORIZED = "Unauthorized"
    UNKNOWN = "Unknown"
    # WorkersReady
    WORKERS_READY = "WorkersReady"
    NO_WORKERS = "NoWorkers"
    LOADING = "Loading"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL = "ImagePull"
    CONTAINER_CONFIG = "ContainerConfig"
    OUT_OF_MEMORY = "OutOfMemory"
    ENGINE_CRASH = "EngineCrash"
    STALLED = "Stalled"
    QUOTA_EXCEEDED = "QuotaExceeded"
    NODE_LOST = "NodeLost"
    EVICTED = "Evicted"
    ASLEEP = "Asleep"
    # Routed
    ROUTED = "Routed"
    ROUTER_NOT_READY = "RouterNotReady"
    NOT_ACKNOWLEDGED = "NotAcknowledged"
    # Ready
    READY = "Ready"
    # Progressing
    ROLLING_OUT = "RollingOut"
    SCALING = "Scaling"
    SETTLED = "Settled"
    STUCK = "Stuck"


@dataclass(frozen=True, slots=True)
class Condition:
    type: ConditionType
    status: bool | None
    """None: nobody can tell, and nothing is wrong for it."""
    reason: Reason
    message: str
    """One sentence; where something is wrong it ends with what to do next."""


def merge_conditions(
    conditions: Sequence[Condition], previous: Sequence[Mapping[str, Any]], *, generation: int, now: datetime
) -> list[dict[str, Any]]:
    """As the API stores them. lastTransitionTime moves only when a condition's status flips, not when its words change."""
    before = {old["type"]: old for old in previous}
    merged = []
    for condition in conditions:
        status = {True: "True", False: "False", None: "Unknown"}[condition.status]
        old = before.get(condition.type, {})
        same = old.get("status") == status and old.get("lastTransitionTime")
        merged.append(
            {
                "type": str(condition.type),
                "status": status,
                "reason": str(condition.reason),
                "message": condition.message,
                "observedGeneration": generation,
                "lastTransitionTime": old["lastTransitionTime"] if same else rfc3339(now),
            }
        )
    return merged


def rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
