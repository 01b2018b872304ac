"""What is known of one local pod, and how the planner sees it. Plain data; pod.py owns and changes it."""

from dataclasses import dataclass, field
from datetime import datetime

from pagoda_operator.local.backoff import Backoff
from pagoda_operator.local.machine import Launch
from pagoda_operator.local.template import PodTemplate
from pagoda_operator.observed.terminations import INCURABLE
from pagoda_operator.observed.world import Capacity, PodView


@dataclass
class Condition:
    """What is known of one pod now."""

    phase: str = "Pending"
    reason: str = ""
    message: str = ""
    ready: bool = False
    served: bool = False
    """It was ready once in this life: routers keep their sessions to it even while it recovers."""
    progress: float | None = None
    bytes_done: int | None = None
    bytes_total: int | None = None
    capacity: Capacity | None = None
    restarts: int = 0
    engine_failures: int = 0
    """Of this life: engines in a row that ended before they served."""
    pid: int | None = None
    launch: Launch | None = None
    created_at: datetime | None = None
    image_at: datetime | None = None
    """Its first process started."""
    weights_at: datetime | None = None
    engine_at: datetime | None = None
    routed_at: datetime | None = None
    last_exit: int | None = None
    backoff: Backoff = field(default_factory=Backoff)

    def view(self, name: str, template: PodTemplate, *, ending: bool) -> PodView:
        return PodView(
            name=name,
            labels=template.labels,
            namespace=template.namespace,
            serving=self.ready and not ending,
            terminating=ending,
            phase=self.phase,
            reason=self.reason,
            message=self.message,
            restarts=self.restarts,
            has_served=self.engine_at is not None,
            failures=0 if self.engine_at is not None else max(self.backoff.failures, self.engine_failures),
            incurable=self.last_exit in INCURABLE,
            progress=self.progress,
            bytes_done=self.bytes_done,
            bytes_total=self.bytes_total,
            capacity=self.capacity,
            created_at=self.created_at,
            scheduled_at=self.created_at,
            image_at=self.image_at,
            weights_at=self.weights_at,
            engine_at=self.engine_at,
            routed_at=self.routed_at,
        )
