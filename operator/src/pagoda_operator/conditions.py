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
    READY = "Ready"
    PROGRESSING = "Progressing"


class Reason(StrEnum):
    # Accepted
    ACCEPTED = "Accepted"
    INVALID_SPEC = "InvalidSpec"
    NAME_TAKEN = "NameTaken"
    FOREIGN_OBJECT = "ForeignObject"
    # Ready
    READY = "Ready"
    NO_WORKERS = "NoWorkers"
    LOADING = "Loading"
    MODEL_NOT_FOUND = "ModelNotFound"
    OUT_OF_MEMORY = "OutOfMemory"
    WORKER_CRASH_LOOPING = "WorkerCrashLooping"
    WORKER_STALLED = "WorkerStalled"
    IMAGE_NOT_PULLED = "ImageNotPulled"
    UNSCHEDULABLE = "Unschedulable"
    ROUTER_NOT_READY = "RouterNotReady"
    # Progressing
    ROLLING_OUT = "RollingOut"
    SETTLED = "Settled"


@dataclass(frozen=True, slots=True)
class Condition:
    type: ConditionType
    status: bool
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
        status = "True" if condition.status else "False"
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
