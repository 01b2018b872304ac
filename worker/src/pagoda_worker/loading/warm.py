"""Runs steps of the sizes that will come, once each, so that no request pays for what the first of its size costs: primitives that are
made for a shape, kernels compiled for one, memory touched for the first time.

Called by the engine after loading (spec.engine.load: warm), with a scheduler of its own, as the self-test is.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from pagoda_worker.loading.self_test import Trial
from pagoda_worker.scheduling.scheduler import Scheduler

BUDGET_S = 30.0
"""Sizes are run from small to large; those that the time does not reach stay cold."""
FIRST_CHUNK = 16


@dataclass(frozen=True, slots=True)
class Warmed:
    seconds: float
    sizes: int
    """Run: sequences decoded together, or tokens of a prompt chunk."""
    left_out: int
    """For lack of time."""


def warm(
    scheduler: Scheduler,
    step: Callable[[], object],
    *,
    vocab_size: int,
    news: Callable[[int, int], None] = lambda done, total: None,
    clock: Callable[[], float] = time.monotonic,
    budget_s: float = BUDGET_S,
) -> Warmed:
    """`step` schedules, runs and settles once. `news` hears how many sizes are done and how many there are. Leaves the scheduler empty."""
    began = clock()
    trial = Trial(scheduler, step, vocab_size, clock)
    chunks, batches = sizes_to_come(scheduler)
    total, done = len(chunks) + len(batches), 0
    for chunk in chunks:
        if clock() - began < budget_s:
            trial.prefill(f"chunk {chunk}", chunk)
            news(done := done + 1, total)
    rows = 0
    for batch in batches:
        if clock() - began < budget_s:
            for row in range(rows, batch):
                trial.begin(f"row {row}", 1)
            rows = batch
            while scheduler.num_waiting:
                step()
            step()
            news(done := done + 1, total)
    trial.end()
    return Warmed(clock() - began, done, total - done)


def sizes_to_come(scheduler: Scheduler) -> tuple[list[int], list[int]]:
    """Tokens of prompt chunks, and sequences decoded together: doubling up to what one step may hold, and that itself."""
    limits, blocks = scheduler.limits, scheduler.blocks
    longest = min(limits.max_model_len, blocks.count * blocks.block_size) - 2
    most = min(limits.max_running, limits.max_batch_tokens, blocks.count // 2)  # a row needs a block, and one to grow into
    return doubling(FIRST_CHUNK, min(limits.max_batch_tokens, longest)), doubling(1, most)


def doubling(first: int, last: int) -> list[int]:
    """From `first` on, below `last`, then `last`; nothing when `last` is below 1."""
    sizes = []
    while first < last:
        sizes.append(first)
        first *= 2
    return [*sizes, last] if last >= 1 else []
