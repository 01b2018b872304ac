"""From a plan to steps in flight, whatever raises on the way: a step that fails is launched again in halves until the culprit is alone.

Owns that search; called by the engine. Knows neither what a plan means nor how the device computes it.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from pagoda_worker.execution.runner import InFlight
from pagoda_worker.loading.loader import is_out_of_memory
from pagoda_worker.scheduling.plan import StepPlan
from pagoda_worker.scheduling.sampled import Sampled

MAX_LAUNCHES = 40
"""Of one step. Finding one culprit among 256 takes 17; a device that fails at everything is given up long before."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Flight:
    """One planned step on its way: one part, or several after a failure, in the order of their launches."""

    plan: StepPlan
    began: float
    parts: list[tuple[StepPlan, InFlight]] = field(default_factory=list)

    def results(self) -> list[tuple[StepPlan, Sampled]]:
        """Waits for the device. Without parts there are still endings to tell."""
        return [(plan, pending.result()) for plan, pending in self.parts] or [(StepPlan(), Sampled([]))]


def launch(
    run: Callable[[StepPlan], InFlight], withdraw: Callable[[StepPlan, list[StepPlan], str], None], plan: StepPlan, began: float
) -> Flight:
    """`withdraw(part, later parts, sentence)` hears of a part that cannot be computed before any later one runs. Raises what `run` raised
    when nothing could be computed for another reason than memory, when blocks cannot be copied to the host, or after too many tries.

    Out of memory shows here, where tensors are allocated. A fault that a CUDA kernel reports afterwards shows in `results`; the device is
    not usable after it, so there is nothing to try again."""
    flight = Flight(plan, began)
    todo, launches = [] if plan.empty else [plan], 0
    while todo:
        part = todo.pop()
        launches += 1
        try:
            pending = run(part)
        except Exception as error:  # whatever a model raises: others in the step must not pay for it
            memory = is_out_of_memory(error)
            if launches >= MAX_LAUNCHES or not (memory or flight.parts or todo or part.splits):
                raise
            if part.swap_out and not part.splits:  # not copied, and others count on it
                raise
            log.warning("a step of %d sequences and %d tokens failed: %s", part.sequences, part.tokens, error)
            if part.splits:
                first, second = part.halves()
                todo += [second, first]
            else:
                withdraw(part, todo, _sentence(error, memory=memory, tokens=part.tokens))
                todo = _without_the_empty(todo, part)
        else:
            flight.parts.append((part, pending))
    return flight


def _without_the_empty(todo: list[StepPlan], failed: StepPlan) -> list[StepPlan]:
    """The rows and blocks that the failed part was to change are needed by those that come after it."""
    todo = [part for part in todo if not part.empty]
    if todo:
        todo[-1].with_changes_of(failed)
    return todo


def _sentence(error: Exception, *, memory: bool, tokens: int) -> str:
    if memory:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return f"the device has no memory to compute {tokens} tokens of this request at once; a lower maxBatchTokens would leave more"
    return f"the model cannot compute this request ({type(error).__name__}); the others go on"
