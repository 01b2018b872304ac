"""Decode steps as captured graphs: everything from the newest token ids to logits and greedy ids, over buffers that stay where they are.

Owns the static inputs and one callable for each batch size; used by the runner. A graph replays kernels with the addresses and launch
sizes of its capture, so whatever changes from step to step is read on the device: rows, positions and context lengths here, block tables
and tokens from the runner's. Rows that pad a batch have context 0 and slot -1: the kernels that can be captured neither write nor read
for them.
"""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pagoda_worker.config import EngineConfig
from pagoda_worker.errors import ConfigError
from pagoda_worker.execution.graph_ladder import ladder
from pagoda_worker.layers.attention import AttentionBatch
from pagoda_worker.models.compiled import compile_decoding
from pagoda_worker.sampling.row_tables import IntArray, to_device
from pagoda_worker.sampling.sampler import BROKEN

if TYPE_CHECKING:
    from pagoda_worker.execution.runner import Runner

log = logging.getLogger(__name__)

Compute = Callable[[], tuple[Tensor, Tensor]]
"""() → logits [B, V] and the most likely ids [B] (BROKEN where logits are not finite)."""
Capture = Callable[[Compute], Compute]

CAPTURABLE = ("triton", "flash")
"""Operators that read nothing of a batch but its tensors, and pass over rows without a slot or a context."""


class DecodeGraphs:
    def __init__(
        self, runner: "Runner", sizes: list[int], capture: Capture, *, told: Callable[[int, int], None] = lambda done, total: None
    ):
        """`told` hears how many of the sizes are captured. The largest is first: the smaller ones then fit into its memory."""
        self.sizes = sizes
        self._runner = runner
        largest = sizes[-1]
        self._inputs = torch.zeros((3, largest), dtype=torch.int64, device=runner.device)
        self._starts = torch.arange(largest + 1, dtype=torch.int32, device=runner.device)
        self._inputs[0] = runner.rows.padding_row
        self._graphs: dict[tuple[int, bool], Compute] = {}
        """By size, and whether some of the rows may have adapters."""
        kinds = (False, True) if runner.adapters is not None else (False,)
        for done, size in enumerate(reversed(sizes)):
            told(done, len(sizes))
            for adapted in kinds:
                self._graphs[size, adapted] = capture(lambda size=size, adapted=adapted: self._compute(size, adapted=adapted))  # type: ignore[misc]

    def run(self, rows: IntArray, at: IntArray, size: int) -> tuple[Tensor, Tensor]:
        """Logits, valid until the next run, and ids of `rows` at positions `at`. Each row's new token is in the table too: where drafts are
        verified, over them."""
        count = len(rows)
        inputs = np.zeros((3, size), np.int64)
        inputs[0] = self._runner.rows.padding_row
        inputs[0, :count] = rows
        inputs[1, :count] = at
        inputs[2, :count] = inputs[1, :count] + 1
        self._inputs[:, :size].copy_(to_device(inputs, self._runner.device))
        adapters = self._runner.adapters
        logits, ids = self._graphs[size, adapters is not None and adapters.any_in(rows)]()
        return logits[:count], ids[:count].clone()  # the next replay may write before this one's ids have left

    def _compute(self, size: int, *, adapted: bool) -> tuple[Tensor, Tensor]:
        runner, block_size = self._runner, self._runner.shape.block_size
        rows, positions, contexts = self._inputs[:, :size]
        if runner.adapters is not None:
            runner.adapters.begin_graph(rows if adapted else None)
        slots = runner.rows.tables[rows, positions // block_size].long() * block_size + positions % block_size
        batch = AttentionBatch(
            slots=torch.where(contexts > 0, slots, -1),
            query_starts=self._starts[: size + 1],
            context_lens=contexts.int(),
            block_table=runner.rows.tables.index_select(0, rows),
            block_size=block_size,
            kv_heads=runner.model.cache_shape.kv_heads,
            dtype=runner.dtype,
            decode_lens=[runner.shape.max_model_len] * size,
        )
        hidden = runner.model.forward(runner.rows.tokens[rows, positions].long(), positions, runner.caches, batch)
        logits = runner.model.logits(hidden)
        best, ids = logits.max(dim=-1)
        ids = torch.where(best.isfinite(), ids, BROKEN)
        runner.rows.tokens[rows, contexts] = ids.clamp(min=0).int()
        return logits, ids


@torch.inference_mode()
def capture_graphs(runner: "Runner", config: EngineConfig, news: Callable[[str, int, int], None]) -> DecodeGraphs | None:
    """After compiling, where that is asked for: a graph captures what was compiled. Raises ConfigError when graphs are asked for where
    there can be none. Left to the engine, a capture that fails costs speed only."""
    if config.compile:
        shape = runner.shape
        compile_decoding(
            runner.model, runner.caches, dtype=runner.dtype, block_size=shape.block_size, max_running=shape.max_running, news=news
        )
    possible = runner.device.type == "cuda" and runner.model.operators.name in CAPTURABLE
    if config.cuda_graphs and not possible:
        raise ConfigError(f"cuda_graphs is true; it needs device cuda and attention {' or '.join(CAPTURABLE)}")
    if config.cuda_graphs is False or not possible or config.tensor_parallel > 1:
        return None
    began, free = time.monotonic(), torch.cuda.mem_get_info(runner.device)[0]
    sizes = ladder(config.max_running)
    try:
        graphs = DecodeGraphs(runner, sizes, cuda_capture(), told=lambda done, total: news("capturing graphs", done, total))
    except RuntimeError as error:  # whatever torch says of an operation that cannot be captured
        if config.cuda_graphs:
            raise
        log.warning("decode graphs cannot be captured here; steps are launched operation by operation: %s", error)
        return None
    taken = (free - torch.cuda.mem_get_info(runner.device)[0]) / 2**20
    log.info("captured %d decode graphs in %.1f s; they hold %.0f MiB", len(sizes), time.monotonic() - began, taken)
    return graphs


def cuda_capture() -> Capture:
    """Graphs that share one memory pool: only one of them runs at a time."""
    pool = torch.cuda.graph_pool_handle()

    def capture(compute: Compute) -> Compute:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            compute()  # kernels are compiled and libraries take their workspaces before, not while capturing
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            outputs = compute()

        def replay() -> tuple[Tensor, Tensor]:
            graph.replay()
            return outputs

        return replay

    return capture
