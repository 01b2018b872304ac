"""What an engine asks of its ranks, and the answers where it is the only one: nobody to tell, nobody to wait for. Called by the engine.

ranks.py has the same for several. It is imported for them only, since what it talks with is not on every machine: `gpu_check` runs with
torch, numpy and safetensors.
"""

import contextlib
from typing import Protocol

from pagoda_worker.config import EngineConfig
from pagoda_worker.execution.runner import RunnerShape
from pagoda_worker.loading.loader import Loaded, News, load
from pagoda_worker.models.base import ForwardPass
from pagoda_worker.scheduling.plan import StepPlan


class EngineRanks(Protocol):
    def load(self, config: EngineConfig, news: News) -> Loaded: ...

    def lead(self, model: ForwardPass, shape: RunnerShape) -> ForwardPass: ...

    def change(self, plan: StepPlan) -> None: ...

    def sleep(self, level: int) -> None: ...

    def waking(self) -> contextlib.AbstractContextManager[None]: ...

    def close(self) -> None: ...


class Alone:
    def load(self, config: EngineConfig, news: News) -> Loaded:
        return load(config, news=news)

    def lead(self, model: ForwardPass, shape: RunnerShape) -> ForwardPass:
        return model

    def change(self, plan: StepPlan) -> None:
        pass

    def sleep(self, level: int) -> None:
        pass

    def waking(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def close(self) -> None:
        pass


def ranks_of(config: EngineConfig) -> EngineRanks:
    """Several begin to load: see Ranks.start."""
    if config.tensor_parallel == 1:
        return Alone()
    from pagoda_worker.execution.ranks import Ranks

    return Ranks.start(config)
