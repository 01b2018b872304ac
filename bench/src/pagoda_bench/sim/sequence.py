"""What a simulated worker has of one request while it runs there, and who hears what happens to it. Plain records.

Written by worker.py; the loop listens, and so does whoever plays a worker in real time (rank_order/paced_worker.py).
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pagoda_bench.sim.requests import SimRequest

if TYPE_CHECKING:
    from pagoda_bench.sim.worker import SimWorker


@dataclass(slots=True, eq=False)
class Sequence:
    request: SimRequest
    target: int
    """Tokens to have in the cache before the next one can be sampled: the prompt, and after a preemption what was sampled since."""
    left: int
    """Output tokens still to come."""
    began_s: float | None = None
    computed: int = 0
    held: list[bytes] = field(default_factory=list)
    expected_tokens: int = 0
    """Uncached, as far as known when it came."""


class WorkerLoad(NamedTuple):
    """What a worker's frame tells at the end of a step, before the engine has read what came meanwhile."""

    running: int = 0
    waiting: int = 0
    queued_prefill_tokens: int = 0


class WorkerListener(Protocol):
    def begun(self, worker: "SimWorker", sequence: Sequence, now_s: float) -> None: ...

    def first_token(self, worker: "SimWorker", sequence: Sequence, now_s: float) -> None: ...

    def over(self, worker: "SimWorker", sequence: Sequence, now_s: float) -> None: ...

    def decoded(self, worker: "SimWorker", sequences: int, steps: int, step_s: float) -> None: ...

    def cache_changed(self, worker: "SimWorker", stored: list[bytes], evicted: list[bytes], now_s: float) -> None: ...
