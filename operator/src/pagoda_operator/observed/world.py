"""What the world looks like now, as the executors (local processes, Kubernetes) report it to `plan` and `status`.

Plain data. Knows neither processes nor the Kubernetes API; an executor builds one `Observed` per round.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

MADE = "pagoda.dev/made"
"""Put into an object by an executor that can tell: whether we ever wrote it. A label alone is easily copied (`kubectl expose` does), so
only what we wrote is ever deleted."""


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
class Capacity:
    """What a worker measured of itself after loading."""

    kv_tokens: int
    max_model_len: int
    prefill_tokens_per_s: float = 0.0
    decode_tokens_per_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PodView:
    """One pod, or one local process that runs a pod template."""

    name: str
    labels: Mapping[str, str]
    """Those of the pod template: component (router | worker), model, variant and template decide what `status` makes of the pod."""
    namespace: str = "default"
    uid: str = ""
    node: str | None = None
    ip: str | None = None
    serving: bool = False
    """The last answer of its readiness probe."""
    routed: bool = True
    """Every router that answers counts it among those that take requests. Always true for routers."""
    terminating: bool = False
    """Told to stop: it serves what it has, and no longer counts as a replica."""
    phase: str = "Pending"
    """Pending | Running | Succeeded | Failed, as Kubernetes has them."""
    reason: str = ""
    """Why it is not ready. Kubernetes' words where they exist (CrashLoopBackOff, OOMKilled, Error, Unschedulable, ImagePullBackOff), else
    the `reason` of the worker's /ready (Loading, ModelNotFound, OutOfMemory, …). `status/troubles.py` maps them to the closed set."""
    message: str = ""
    """One line for people: the scheduler's sentence, or the last log line of a process that ended."""
    restarts: int = 0
    has_served: bool = False
    """At some time since it was made."""
    failures: int = 0
    """Ends in a row of its process, or of the engine in it, before it served; of one that has served, 0."""
    incurable: bool = False
    """The process said so as it ended last, by its exit status: another start ends the same way."""
    progress: float | None = None
    """Share of the model fetched or loaded, 0 to 1. None: unknown."""
    bytes_done: int | None = None
    bytes_total: int | None = None
    capacity: Capacity | None = None
    created_at: datetime | None = None
    scheduled_at: datetime | None = None
    image_at: datetime | None = None
    """Its first container started: the image is there."""
    weights_at: datetime | None = None
    """The fetch step ended; equal to image_at where there is none."""
    engine_at: datetime | None = None
    """Its readiness probe first answered."""
    routed_at: datetime | None = None

    @property
    def ready(self) -> bool:
        """A request may go there now."""
        return self.serving and self.routed


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """One worker as one router sees it."""

    routable: bool
    reason: str = ""
    sleeps: bool = False
    """Its memory is given back until the next request, which the router sends to it all the same."""
    in_flight: int = 0
    kv_capacity_tokens: int = 0
    kv_available_tokens: int = 0
    """What the router may still reserve; of several routers each has a share."""
    kv_reserved_tokens: int | None = None
    """What the router's own requests hold. None: an older router, which does not tell."""
    kv_used_tokens: int = 0
    """What the worker says that sequences hold, all routers'."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """One model's traffic at one router."""

    in_flight: int = 0
    waiting: int = 0
    queued_tokens: int = 0
    idle_s: float = 0.0
    """Since anything was last in flight or waiting."""
    ttft_p95_s: float | None = None
    """Of the last minute; None: nothing was answered in it."""
    waiting_by_variant: Mapping[str, int] | None = None
    """Of `waiting`, those for one variant each; None: the router does not tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterReport:
    """What one router answered to GET /internal/v1/fleet in this round."""

    workers: Mapping[str, WorkerReport]
    """By pod name."""
    models: Mapping[str, ModelReport]
    """By InferenceModel name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """One look at the world, or at one namespace of it. `now` comes with it, so that plan and status need no clock."""

    objects: Mapping[ObjectRef, Mapping[str, Any]]
    """Every child object that could be ours, foreign ones of the same kinds included."""
    pods: Sequence[PodView]
    endpoint: str | None
    """Where clients reach the router: "http://127.0.0.1:8000/v1". None: nowhere yet."""
    now: datetime
    reports: Mapping[tuple[str, str], RouterReport] = field(default_factory=dict)
    """By (namespace, router pod); routers that did not answer are missing."""
    blocked: Mapping[ObjectRef, str] = field(default_factory=dict)
    """What the API server refused of the last apply, in its words: quota, field conflicts, admission."""
