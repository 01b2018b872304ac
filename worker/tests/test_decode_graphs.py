"""Which steps a graph may run, and that padded batches over static buffers give the same tokens. Captured graphs need a GPU: gpu_check."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_runs import run_all
from random_checkpoint import small_engine
from scripted_proposer import speculate
from torch import Tensor

from pagoda_worker.engine import Engine
from pagoda_worker.errors import ConfigError
from pagoda_worker.execution.decode_graphs import DecodeGraphs
from pagoda_worker.execution.graph_ladder import ladder, padded_size
from pagoda_worker.layers.attention import AttentionBatch, AttentionShape, attend_sdpa
from pagoda_worker.layers.operators import Operators
from pagoda_worker.request import Request, Sampling
from pagoda_worker.scheduling.plan import Chunk, StepPlan
from pagoda_worker.scheduling.sequence import Sequence


@pytest.mark.parametrize(("max_running", "sizes"), [(1, [1]), (3, [1, 2, 3]), (24, [1, 2, 4, 8, 16, 24]), (30, [1, 2, 4, 8, 16, 24, 30])])
def test_the_ladder_ends_at_what_can_run(max_running: int, sizes: list[int]):
    assert ladder(max_running) == sizes


def test_a_large_ladder_stays_short_enough_to_capture():
    assert len(ladder(1024)) < 80


@pytest.mark.parametrize(("decodes", "chunks", "size"), [(1, 0, 1), (3, 0, 4), (8, 0, 8), (9, 0, None), (0, 0, None), (3, 1, None)])
def test_only_steps_without_prompts_are_padded_to_the_next_size(decodes: int, chunks: int, size: int | None):
    one = Sequence(Request(request_id="a", prompt_ids=[1]), 0, arrival=0, accepted=0.0, limit=9, seed=0, root=b"")
    plan = StepPlan(decodes=[one] * decodes, chunks=[Chunk(one, 0, 1, [])] * chunks)
    assert padded_size(plan, [1, 2, 4, 8]) == size


class RealRows(Operators):
    """torch's operators, but rows with slot -1 are passed over, as the kernels that can be captured do."""

    def __init__(self) -> None:
        super().__init__(attend_sdpa)

    def store(self, key_value: Tensor, cache: Tensor, batch: AttentionBatch) -> None:
        real = batch.slots >= 0
        super().store(key_value[real], cache, replace(batch, slots=batch.slots[real]))

    def attend(self, query: Tensor, key_value: Tensor, cache: Tensor, batch: AttentionBatch, shape: AttentionShape) -> Tensor:
        if batch.chunks:
            return super().attend(query, key_value, cache, batch, shape)
        count = int((batch.slots >= 0).sum())
        real = replace(batch, block_table=batch.block_table[:count], context_lens=batch.context_lens[:count])
        real = replace(real, decode_lens=batch.decode_lens[:count])
        out = torch.zeros_like(query).flatten(1)
        out[:count] = super().attend(query[:count], key_value[:count], cache, real, shape)
        return out


def test_graphs_that_cannot_be_captured_are_refused_with_what_they_need(checkpoint: Callable[..., Path]):
    with pytest.raises(ConfigError, match="cuda_graphs is true; it needs device cuda and attention triton or flash"):
        small_engine(checkpoint(), cuda_graphs=True)


def mixture(engine: Engine) -> Iterator[tuple[tuple[str, int], list[int]]]:
    for i in range(6):
        sampling = [Sampling(), Sampling(temperature=1.0, seed=i), Sampling(presence_penalty=1.0)][i % 3]
        engine.submit(Request(request_id=str(i), prompt_ids=[2 + i] * (5 + 7 * i), max_tokens=4 + 3 * i, sampling=sampling, n=1 + (i == 4)))
    while engine.has_work:
        for update in engine.step().updates:
            yield (update.request_id, update.sequence), update.token_ids
    engine.check_integrity()


@pytest.mark.parametrize("ahead", [False, True], ids=["in step", "ahead"])
def test_padded_batches_over_static_buffers_give_the_same_tokens(checkpoint: Callable[..., Path], ahead: bool):
    engine = small_engine(checkpoint(), attention="sdpa", max_running=8, async_scheduling=ahead)
    engine.runner.model.operators = RealRows()  # type: ignore[attr-defined]
    expected = sorted(mixture(engine))
    runs: list[int] = []

    def eagerly(compute: Callable[[], tuple[Tensor, Tensor]]) -> Callable[[], tuple[Tensor, Tensor]]:
        def run() -> tuple[Tensor, Tensor]:
            logits, ids = compute()
            runs.append(len(ids))
            return logits, ids

        return run

    engine.runner.graphs = DecodeGraphs(engine.runner, ladder(8), eagerly)
    engine.scheduler.residency.forget_prefixes()
    assert sorted(mixture(engine)) == expected
    assert {1, 4, 8} <= set(runs)


def test_drafts_are_verified_by_a_graph_as_rows_of_their_own(checkpoint: Callable[..., Path]):
    """Penalties count the drafts, over which a graph writes its own greedy ids."""
    engine = small_engine(checkpoint(), attention="sdpa", max_running=8)
    engine.runner.model.operators = RealRows()  # type: ignore[attr-defined]
    ways = [Sampling(), Sampling(temperature=1.0, seed=1), Sampling(presence_penalty=1.0, repetition_penalty=1.2)]
    requests = [
        Request(request_id=f"{i}", prompt_ids=[2 + i] * 5, max_tokens=20, ignore_eos=True, sampling=way) for i, way in enumerate(ways)
    ]
    expected = {key: outcome.tokens for key, outcome in run_all(engine, *requests).items()}
    runs: list[int] = []

    def eagerly(compute: Callable[[], tuple[Tensor, Tensor]]) -> Callable[[], tuple[Tensor, Tensor]]:
        def run() -> tuple[Tensor, Tensor]:
            logits, ids = compute()
            runs.append(len(ids))
            return logits, ids

        return run

    engine.runner.graphs = DecodeGraphs(engine.runner, ladder(24), eagerly)
    speculation = speculate(engine, expected)
    runs.clear()
    assert {key: outcome.tokens for key, outcome in run_all(engine, *requests).items()} == expected
    assert speculation.accepted_by_place[2] > 0
    assert max(runs) > 4
