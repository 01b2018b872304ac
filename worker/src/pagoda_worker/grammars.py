"""From grammars that were compiled to requests that may run: between the constraints, which know no queues, and the scheduler, which knows
no grammars. Called by the engine before it plans a step."""

from pagoda_worker.request import Rejection
from pagoda_worker.sampling.constraints import Constraints
from pagoda_worker.scheduling.scheduler import Scheduler

GRAMMAR_WAIT_S = 0.005
"""Short: a request that arrives meanwhile waits as long."""


def take_grammars(constraints: Constraints, scheduler: Scheduler) -> list[Rejection]:
    """What was compiled meanwhile may run; with nothing else to do the step waits for it a moment. Returns what cannot be."""
    if not constraints.compiling:
        return []
    if all(sequence.held for sequence in scheduler.waiting) and not scheduler.running:
        constraints.wait(GRAMMAR_WAIT_S)
    compiled = constraints.poll()
    for request_id in compiled.ready:
        scheduler.release(request_id)
    for request_id in compiled.complete:
        scheduler.complete(request_id)
    return [each for each in compiled.rejections if scheduler.drop(each.request_id)]
