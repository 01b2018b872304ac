"""`python -m pagoda_bench.across_workers.paced_engine --fd N`: the worker's own engine process, whose steps last as long as a larger
model's.

Tokens, scheduling and speculation are the real ones of the model that it loads; only the wait for each step's result is longer, by
sleeping, so that the core is free for others as it is while a GPU computes. Started by paced_worker.py; PACE_VARIABLE says how long.
"""

import os
import time

from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.engine_process import LoadingNews, run_process
from pagoda_worker.execution.runner import InFlight
from pagoda_worker.scheduling.plan import StepPlan
from pagoda_worker.scheduling.sampled import Sampled

PACE_VARIABLE = "BENCH_STEP_S"


class PacedFlight:
    """One step; its result is there when it would be on the larger model's device."""

    def __init__(self, flight: InFlight, due_s: float) -> None:
        self._flight = flight
        self._due_s = due_s

    def result(self) -> Sampled:
        sampled = self._flight.result()
        time.sleep(max(0.0, self._due_s - time.monotonic()))
        return sampled


def build(config: EngineConfig, news: LoadingNews) -> Engine:
    engine = Engine(config, news=news)
    launch, step_s = engine.runner.launch, float(os.environ[PACE_VARIABLE])

    def paced(plan: StepPlan) -> PacedFlight:
        due_s = time.monotonic() + step_s
        return PacedFlight(launch(plan), due_s)

    setattr(engine.runner, "launch", paced)  # noqa: B010 - the runner has no such switch, and should have none
    return engine


if __name__ == "__main__":
    run_process(build)
