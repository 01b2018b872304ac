"""Blocks copied to host memory and back by a real runner: the same bytes, the same tokens, and the accounts at zero."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_checkpoint import kv_bytes, small_engine

from pagoda_worker.engine import Engine
from pagoda_worker.errors import ConfigError, OutOfMemory
from pagoda_worker.execution.host_memory import HostMemory
from pagoda_worker.execution.runner import InFlight
from pagoda_worker.loading.memory import check_host_fits
from pagoda_worker.offline.batch import timed
from pagoda_worker.scheduling.plan import StepPlan

Checkpoint = Callable[..., Path]
PROMPTS = [[3 + i] * 9 + [20 + i] for i in range(6)]


@given(st.lists(st.tuples(st.integers(0, 49), st.integers(0, 39)), max_size=40, unique_by=(lambda p: p[0], lambda p: p[1])))
def test_blocks_come_back_as_they_went(pairs: list[tuple[int, int]]):
    pages = [torch.randn(4, 50, 8) for _ in range(3)]
    before = [layer.clone() for layer in pages]
    host = HostMemory(pages, 40)
    host.copy_out(pairs)
    for layer in pages:
        for block, _ in pairs:
            layer[:, block] = 0
    host.copy_in(pairs)
    assert all(torch.equal(layer, old) for layer, old in zip(pages, before, strict=True))


def copying_pays(engine: Engine) -> Engine:
    """Whatever this machine measured: copies are predicted to take no time."""
    if engine.runner.host:
        engine.runner.host.copy_bytes_per_s = 1e18
    return engine


def pressed(checkpoint: Checkpoint, **settings: int) -> Engine:
    return small_engine(checkpoint(), kv_cache_bytes=kv_bytes(16, 4), block_size=4, max_model_len=60, prefix_caching=False, **settings)


@pytest.mark.parametrize("ahead", [False, True], ids=["in step", "ahead"])
def test_swapped_sequences_have_the_tokens_of_those_that_were_never_preempted(checkpoint: Checkpoint, ahead: bool):
    roomy = small_engine(checkpoint(), block_size=4, max_model_len=60)
    expected = [c.token_ids for c in roomy.generate(PROMPTS, max_tokens=25, ignore_eos=True)]
    engine = copying_pays(pressed(checkpoint, swap_bytes=kv_bytes(40, 4), async_scheduling=ahead))
    assert [c.token_ids for c in engine.generate(PROMPTS, max_tokens=25, ignore_eos=True)] == expected
    state = engine.idle_state()
    assert 0 < state.swaps_total <= state.preemptions_total
    assert state.kv_free_tokens == state.kv_capacity_tokens
    engine.check_integrity()
    engine.scheduler.residency.begin_step()
    assert len(engine.scheduler.residency.swap.take(40)) == 40


@pytest.mark.parametrize("ahead", [False, True], ids=["in step", "ahead"])
def test_a_step_that_is_tried_again_does_not_copy_out_what_its_first_try_wrote(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, ahead: bool
):
    settings = {"swap_bytes": kv_bytes(40, 4), "host_tier_bytes": kv_bytes(20, 4), "async_scheduling": ahead}
    expected = [c.token_ids for c in pressed(checkpoint).generate(PROMPTS, max_tokens=25, ignore_eos=True)]
    engine = copying_pays(pressed(checkpoint, **settings))
    launch, failures = engine.runner.launch, []

    def short_of_memory(plan: StepPlan) -> InFlight:
        pending = launch(plan)
        if plan.splits:
            failures.append(plan)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return pending

    monkeypatch.setattr(engine.runner, "launch", short_of_memory)
    assert [c.token_ids for c in engine.generate(PROMPTS, max_tokens=25, ignore_eos=True)] == expected
    assert failures
    assert engine.idle_state().swaps_total > 0
    engine.check_integrity()


def test_an_evicted_prefix_is_copied_in_and_says_so(checkpoint: Checkpoint):
    """The sums of docs/decisions/host-memory-for-blocks.md."""

    def second_turn(**settings: int) -> tuple[list[int], int, int, int]:
        engine = copying_pays(small_engine(checkpoint(), kv_cache_bytes=kv_bytes(16, 4), block_size=4, max_model_len=60, **settings))
        first = list(range(10, 50))
        engine.generate([first], max_tokens=2, ignore_eos=True)
        for other in range(3):
            engine.generate([[60 + 30 * other + each % 29 for each in range(50)]], max_tokens=2, ignore_eos=True)
        (again,) = engine.generate([first], max_tokens=8, ignore_eos=True)
        engine.check_integrity()
        state = engine.idle_state()
        return again.token_ids, again.finish.usage.cached_tokens, state.host_prefix_hits_total, state.prompt_tokens_total

    without, tier = second_turn(), second_turn(host_tier_bytes=kv_bytes(64, 4))
    assert without[0] == tier[0], "the same tokens"
    assert without[1:] == (0, 0, 230)
    assert tier[1:] == (36, 36, 194)


def test_a_size_that_holds_no_block_is_refused_and_host_memory_counts_on_cpu(checkpoint: Checkpoint):
    with pytest.raises(ConfigError, match=r"kvCache\.swap is 10 bytes; one block needs 8192: give it more, or 0"):
        small_engine(checkpoint(), swap_bytes=10)
    with pytest.raises(OutOfMemory, match="for everything else"):
        small_engine(checkpoint(), host_tier_bytes=2 << 30, memory_bytes=1 << 30)
    check_host_fits(1 << 30, 1 << 30)
    with pytest.raises(OutOfMemory, match=r"ask for 2 GiB of host memory; 1 GiB are there: lower them or raise the worker's memory"):
        check_host_fits(2 << 30, 1 << 30)


def test_a_batch_that_saturates_the_cache_writes_what_it_holds(checkpoint: Checkpoint):
    engine = small_engine(checkpoint(), kv_cache_bytes=kv_bytes(60, 16), max_model_len=200, max_running=64, prefix_caching=False)
    prompts = [[2 + (each + i) % 150 for each in range(60 + i % 9)] for i in range(30)]
    result = timed(engine, prompts, max_tokens=30, ignore_eos=True)
    assert result["kv_written_of_held_at_load_ratio"] >= 0.85
    assert result["kv_held_of_capacity_saturated_ratio"] >= 0.85
