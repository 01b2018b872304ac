"""From weights to a runner that is ready: on all ranks, with its cache and its captured graphs. Called by the engine, at start and when a
model that slept wakes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pagoda_worker.config import EngineConfig
from pagoda_worker.execution.alone import EngineRanks
from pagoda_worker.execution.decode_graphs import capture_graphs
from pagoda_worker.execution.runner import Runner, RunnerShape
from pagoda_worker.loading.draft import load_draft
from pagoda_worker.loading.loader import News, out_of_memory_says
from pagoda_worker.models.base import Model
from pagoda_worker.sampling.constraints import RowMasks
from pagoda_worker.scheduling.sequence import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerStart:
    """All that a runner needs but the model."""

    config: EngineConfig
    shape: RunnerShape
    dtype: torch.dtype
    kv_dtype: torch.dtype
    device: torch.device
    masks: Callable[[list[Sequence]], RowMasks | None]
    ranks: EngineRanks
    news: News

    def __call__(self, model: Model) -> Runner:
        """Raises OutOfMemory, and ConfigError for graphs that cannot be or a rank that cannot follow."""
        tokens = self.shape.block_count * self.shape.block_size
        with out_of_memory_says(f"no room for a KV cache of {tokens} tokens: something else uses the device"):
            draft = load_draft(self.config, dtype=self.dtype, device=self.device, max_model_len=self.shape.max_model_len)
            led = self.ranks.lead(model, self.shape)
            runner = Runner(
                led,
                self.shape,
                dtype=self.dtype,
                kv_dtype=self.kv_dtype,
                device=self.device,
                masks=self.masks,
                draft=draft,
                changes=self.ranks.change,
            )
        runner.graphs = capture_graphs(runner, self.config, self.news)
        return runner
