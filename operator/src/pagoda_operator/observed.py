"""What the world looks like now, as the executors (local processes, Kubernetes) report it to `plan` and `status`.

Plain data. Knows neither processes nor the Kubernetes API; an executor builds one `Observed` per round.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

MANAGED_BY = "pagoda-operator"
"""Value of app.kubernetes.io/managed-by on everything that we made. Only such objects are ever changed or deleted."""

LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_PART_OF = "app.kubernetes.io/part-of"
LABEL_COMPONENT = "app.kubernetes.io/component"
LABEL_MODEL = "pagoda.dev/model"
LABEL_VARIANT = "pagoda.dev/variant"
LABEL_TEMPLATE = "pagoda.dev/template"


@dataclass(frozen=True, slots=True, order=True)
class ObjectRef:
    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


def ref_of(document: Mapping[str, Any]) -> ObjectRef:
    metadata = document["metadata"]
    return ObjectRef(document["kind"], metadata.get("namespace", "default"), metadata["name"])


@dataclass(frozen=True, slots=True, kw_only=True)
class PodView:
    """One pod, or one local process that runs a pod template."""

    name: str
    labels: Mapping[str, str]
    """Those of the pod template: component (router | worker), model, variant and template decide what `status` makes of the pod."""
    namespace: str = "default"
    node: str | None = None
    ready: bool = False
    """The last answer of its readiness probe."""
    terminating: bool = False
    """Told to stop: it serves what it has, and no longer counts as a replica."""
    phase: str = "Pending"
    """Pending | Running | Succeeded | Failed, as Kubernetes has them."""
    reason: str = ""
    """Why it is not ready. Kubernetes' words where they exist (CrashLoopBackOff, OOMKilled, Error, Unschedulable, ImagePullBackOff), else
    the `reason` of the worker's /ready (Loading, ModelNotFound, OutOfMemory, …). `status.REASON_OF_POD` maps them to the closed set."""
    message: str = ""
    """One line for people: the scheduler's sentence, or the last log line of a process that ended."""
    restarts: int = 0
    progress: float | None = None
    """Share of the model loaded, 0 to 1. None: unknown."""
    started_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """One look at the world. `now` comes with it, so that plan and status need no clock."""

    objects: Mapping[ObjectRef, Mapping[str, Any]]
    """Every child object that could be ours, foreign ones of the same kinds included."""
    pods: Sequence[PodView]
    endpoint: str | None
    """Where clients reach the router: "http://127.0.0.1:8000/v1". None: nowhere yet."""
    now: datetime
