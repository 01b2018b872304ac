"""What is written down of one request while it runs: stamps of this process, decisions, and what workers told. Plain data, no clock.

    RequestTrace ──▶ GenerationTrace (one per prompt) ──▶ Attempt (one per worker asked) ──▶ WorkerTimes

app.py owns the first, the dispatcher writes attempts, a session's streams write what its worker tells. phases.py and document.py read.
Nothing of a prompt or an answer is in here.
"""

from dataclasses import dataclass, field
from typing import Any

from pagoda_router.http.surface import RequestOutcome
from pagoda_router.tracing.clock import ClockReading
from pagoda_router.tracing.context import TraceContext

MOST_RUNS = 257
"""Of batch sizes kept of one request, as many as workers of this version tell: bounds what a ring of long answers may cost."""


class WorkerTimes:
    """What one worker told of one generation, in microseconds of its own clock; 0: not told.

    Of n sequences, those of the one that ended last: it is what the request waited for.
    """

    __slots__ = (
        "batch_runs",
        "cached_tokens",
        "clock",
        "cut_short",
        "first_frame_us",
        "first_scheduled_us",
        "first_token_us",
        "last_frame_us",
        "last_token_us",
        "output_tokens",
        "preemptions",
        "received_us",
        "steps",
    )

    def __init__(self) -> None:
        self.clock: ClockReading | None = None
        self.received_us = self.first_scheduled_us = self.first_token_us = self.last_token_us = 0
        self.first_frame_us = self.last_frame_us = 0
        """Of the frames that brought tokens to a reader: known before the worker's last word."""
        self.cached_tokens = self.steps = self.preemptions = self.output_tokens = 0
        self.batch_runs: tuple[tuple[int, int], ...] = ()
        """(sequences in the batch, steps in a row), in the order of steps; a size of 0: steps of which the worker did not keep it."""
        self.cut_short = False
        """Its reader stopped it: what the worker did after its last frame is no part of the answer."""

    @property
    def told(self) -> bool:
        """The worker's last word is there."""
        return self.received_us > 0

    def saw_tokens(self, at_us: int, clock: ClockReading | None) -> None:
        if not self.first_frame_us:
            self.first_frame_us = at_us
            self.clock = clock
        self.last_frame_us = at_us

    def finished(self, timings: Any, clock: ClockReading | None, output_tokens: int = 0) -> None:
        """`timings`: the wire's, of one sequence."""
        self.preemptions += timings.preemptions
        if timings.last_token_mono_us < self.last_token_us:
            return
        self.clock = clock
        self.received_us = timings.received_mono_us
        self.first_scheduled_us = timings.first_scheduled_mono_us
        self.first_token_us = timings.first_token_mono_us
        self.last_token_us = timings.last_token_mono_us
        self.steps = timings.steps
        self.output_tokens = output_tokens
        self.batch_runs = tuple(zip(timings.batch_sizes[:MOST_RUNS], timings.batch_steps[:MOST_RUNS], strict=False))


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One worker that was asked, and why that one."""

    placed_s: float
    """When the choice began."""
    worker: str
    policy: str
    reason: str
    reserved_tokens: int
    predicted_ms: float
    """From here to the first token."""
    predicted_cached_tokens: int
    runner_up: str | None
    runner_up_ms: float | None
    times: WorkerTimes
    variant: str = ""
    """The worker's; empty: not told."""
    failed: str = ""
    """Why another one had to be asked; empty: it answered, or the request ended under it."""


@dataclass(slots=True)
class GenerationTrace:
    queued_s: float | None = None
    """When it was ready for a worker; before that it was parsed, rendered and tokenized."""
    predicted_output_tokens: int = 0
    """Of one sequence."""
    attempts: list[Attempt] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class RequestTrace:
    context: TraceContext
    outcome: RequestOutcome
    """Filled by the surface as the request goes on."""
    received_s: float
    """Monotonic, as all stamps ending in _s: the first moment in which this process knew of it."""
    received_unix_s: float
    """The same moment by the calendar's clock."""
    body_s: float | None = None
    """Its last byte was here."""
    held_s: float | None = None
    """Since when it waited for a worker that could say how its prompt is tokenized."""
    ended_s: float | None = None
    """Its last byte had left, or it had failed. None: it runs."""
    answer_id: str = ""
    max_tokens: int | None = None
    choices: int = 1
    """Asked for in all."""
    generations: list[GenerationTrace] = field(default_factory=list)
