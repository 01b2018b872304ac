"""An engine that sleeps gives its memory back, and wakes as it was: the same tokens, no prefix remembered. Lazy and warm starts."""

import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_checkpoint import small_engine

from pagoda_worker.engine import Engine
from pagoda_worker.errors import CannotSleep, ModelError, OutOfMemory
from pagoda_worker.facts import ModelFacts
from pagoda_worker.loading.sleep import HostCopy, tensors_of
from pagoda_worker.loading.warm import doubling, sizes_to_come, warm
from pagoda_worker.request import FinishReason, Request
from pagoda_worker.scheduling.blocks import BlockPool
from pagoda_worker.scheduling.scheduler import Scheduler
from pagoda_worker.scheduling.scheduler_limits import SchedulerLimits

Checkpoint = Callable[..., Path]
PROMPTS = [[(7919 * each) % 150 + 2 for each in range(40)], [3, 4, 5]]


def answers(engine: Engine) -> list[list[int]]:
    return [each.token_ids for each in engine.generate(PROMPTS, max_tokens=12, ignore_eos=True)]


@pytest.mark.parametrize("levels", [[1], [2], [1, 2], [2, 1]], ids=str)
def test_a_woken_engine_answers_as_before_and_remembers_no_prefix(checkpoint: Checkpoint, levels: list[int]):
    engine = small_engine(checkpoint())
    expected = answers(engine)
    assert engine.generate([PROMPTS[0]], max_tokens=1)[0].finish.usage.cached_tokens > 0
    for level in levels:
        engine.sleep(level)
    state = engine.idle_state()
    assert (state.sleep_level, state.num_running, state.kv_free_tokens) == (max(levels), 0, state.kv_capacity_tokens)
    engine.check_integrity()
    engine.wake()
    assert engine.sleep_level == 0
    assert engine.generate([PROMPTS[0]], max_tokens=1)[0].finish.usage.cached_tokens == 0
    assert answers(engine) == expected
    engine.check_integrity()


def test_asleep_nothing_holds_the_cache_nor_at_level_2_the_weights(checkpoint: Checkpoint):
    engine = small_engine(checkpoint())
    cache, model = weakref.ref(engine.runner.caches[0]), weakref.ref(engine.runner.model)
    engine.sleep(1)
    assert cache() is None
    assert model() is not None, "a CPU keeps at level 1 what is in its memory already"
    engine.sleep(2)
    assert model() is None


def test_the_freed_bytes_are_what_the_process_gave_back(checkpoint: Checkpoint):
    """A model that is large beside what else the process holds."""
    folder = checkpoint("wide", hidden_size=512, intermediate_size=4096, num_hidden_layers=4)
    engine = small_engine(folder)
    weights = sum(tensor.nbytes for tensor in engine.runner.model.destinations().values())
    assert engine.sleep(2) > 0.8 * weights
    assert engine.sleep(2) == 0, "it sleeps that deep already"


def test_a_busy_engine_does_not_sleep_and_loses_nothing(checkpoint: Checkpoint):
    engine = small_engine(checkpoint())
    engine.submit(Request(request_id="runs", prompt_ids=[3, 4], max_tokens=2, ignore_eos=True))
    with pytest.raises(CannotSleep, match="only when it is idle"):
        engine.sleep(1)
    updates = [update for _ in range(2) for update in engine.step().updates]
    assert [update.finish.reason for update in updates if update.finish] == [FinishReason.LENGTH]


@pytest.mark.parametrize("level", [0, 3])
def test_other_levels_are_refused(checkpoint: Checkpoint, level: int):
    engine = small_engine(checkpoint())
    with pytest.raises(CannotSleep, match=f"level {level} was asked for; it must be 1"):
        engine.sleep(level)
    assert engine.sleep_level == 0


def test_a_wake_that_finds_no_weights_says_so_and_the_next_one_may_succeed(checkpoint: Checkpoint, tmp_path: Path):
    folder = shutil.copytree(checkpoint(), tmp_path / "copy")
    engine = small_engine(folder)
    expected = answers(engine)
    engine.sleep(2)
    weights = folder / "model.safetensors"
    weights.rename(folder / "away")
    with pytest.raises(ModelError, match="holds neither"):
        engine.wake()
    assert engine.sleep_level == 2
    (folder / "away").rename(weights)
    engine.wake()
    assert answers(engine) == expected


def test_a_wake_without_room_for_the_cache_leaves_it_asleep(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch):
    engine = small_engine(checkpoint())
    expected = answers(engine)
    engine.sleep(1)

    def no_room(*_: object, **__: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("pagoda_worker.execution.starting.Runner", no_room)
        with pytest.raises(OutOfMemory, match="no room for a KV cache"):
            engine.wake()
    assert engine.sleep_level == 2, "whatever came back half way is given back"
    engine.wake()
    assert answers(engine) == expected


# ---- the copy in host memory, here of a CPU's tensors: the storages are emptied and filled in the same way


def test_emptied_storages_come_back_bit_for_bit_under_the_same_tensors():
    whole = torch.randn(6, 4)
    view, bias, shared = whole[2:4], torch.randn(3, dtype=torch.bfloat16), whole.view(24)
    kept = [tensor.clone() for tensor in (whole, view, bias, shared)]
    copy = HostCopy([whole, view, bias, shared], pin=False)
    assert copy.nbytes == 6 * 4 * 4 + 3 * 2, "a storage that several look at is copied once"
    assert {tensor.untyped_storage().nbytes() for tensor in (whole, view, bias, shared)} == {0}
    copy.restore()
    for tensor, before in zip((whole, view, bias, shared), kept, strict=True):
        assert torch.equal(tensor, before)
    whole[2, 0] = 7.0
    assert view[0, 0] == 7.0, "views are views still"


def test_every_weight_of_a_model_is_found_wherever_it_is_kept(checkpoint: Checkpoint):
    engine = small_engine(checkpoint("biased", attention_bias=True, mlp_bias=True))
    found = {tensor.untyped_storage().data_ptr() for tensor in tensors_of(engine.runner.model)}
    for name, tensor in engine.runner.model.destinations().items():
        assert tensor.untyped_storage().data_ptr() in found, name


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_a_model_is_itself_after_its_storages_were_emptied_and_filled(checkpoint: Checkpoint, family: str):
    engine = small_engine(checkpoint(family, model_type=family), attention="sdpa")
    expected = answers(engine)
    weights = engine.runner.model.destinations().values()
    copy = HostCopy(tensors_of(engine.runner.model), pin=False)
    assert all(tensor.untyped_storage().nbytes() == 0 for tensor in weights)
    copy.restore()
    assert answers(engine) == expected


# ---- lazy and warm


def without_what_weights_tell(facts: ModelFacts) -> ModelFacts:
    return replace(facts, load_s=0, warm_s=0, weights_s=0, prefill_tokens_per_s=0, decode_tokens_per_s=0, kernels="")


def test_a_lazy_engine_knows_its_facts_and_reads_its_weights_with_the_first_request(checkpoint: Checkpoint):
    eager, lazy = (small_engine(checkpoint(), load=load, self_test=True) for load in ("eager", "lazy"))
    assert (lazy.sleep_level, lazy.facts.load_s, lazy.facts.prefill_tokens_per_s) == (2, 0, 0)
    assert without_what_weights_tell(lazy.facts) == without_what_weights_tell(eager.facts)
    assert not hasattr(lazy, "runner")
    assert answers(lazy) == answers(eager)
    assert lazy.sleep_level == 0
    assert lazy.facts.load_s > 0
    assert lazy.facts.prefill_tokens_per_s > 0, "the self-test came with the weights"
    assert lazy.facts.kernels == eager.facts.kernels != ""


def test_a_lazy_engine_notices_at_once_that_there_are_no_weights(checkpoint: Checkpoint, tmp_path: Path):
    folder = shutil.copytree(checkpoint(), tmp_path / "copy")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds neither"):
        small_engine(folder, load="lazy")


def test_a_warm_start_tells_its_time_and_leaves_no_trace(checkpoint: Checkpoint):
    news: list[tuple[str, int, int]] = []
    cold = small_engine(checkpoint())
    config = replace(cold._config, load="warm")
    warmed = Engine(config, news=lambda *told: news.append(told))
    assert 0 < warmed.facts.warm_s < warmed.facts.load_s
    assert cold.facts.warm_s == 0
    told = [each for each in news if each[0].startswith("warming")]
    assert [done for _, done, _ in told] == list(range(1, told[-1][2] + 1))
    warmed.check_integrity()
    assert replace(warmed.idle_state(), at_mono_us=0) == replace(cold.idle_state(), at_mono_us=0)
    assert answers(warmed) == answers(cold)


class Ticks:
    """A scheduler stepped without a model: each step takes a second, every sampled token is 5."""

    def __init__(self, **limits: Any) -> None:
        usual: dict[str, Any] = {"max_running": 8, "max_batch_tokens": 64, "max_model_len": 256}
        self.scheduler = Scheduler(BlockPool(limits.pop("blocks", 64), 16), SchedulerLimits(**{**usual, **limits}))
        self.now = 0.0
        self.chunks: set[int] = set()
        self.batches: set[int] = set()

    def step(self) -> None:
        from pagoda_worker.scheduling.sampled import Sampled

        plan = self.scheduler.schedule(self.now)
        self.chunks |= {chunk.count for chunk in plan.chunks}
        self.batches.add(len(plan.decodes))
        self.now += 1.0
        self.scheduler.settle(plan, Sampled([5] * len(plan.sampling())), self.now)

    def warm(self, budget_s: float) -> Any:
        return warm(self.scheduler, self.step, vocab_size=100, clock=lambda: self.now, budget_s=budget_s)


def test_warming_runs_every_size_that_can_come():
    ticks = Ticks()
    warmed = ticks.warm(1000.0)
    assert {16, 32, 64} <= ticks.chunks
    assert {1, 2, 4, 8} <= ticks.batches
    assert (warmed.sizes, warmed.left_out) == (7, 0)
    ticks.scheduler.check()


def test_warming_ends_with_its_time_and_says_what_it_left_out():
    warmed = Ticks().warm(4.0)
    assert warmed.sizes + warmed.left_out == 7
    assert warmed.left_out > 0


@given(st.integers(1, 40), st.integers(1, 300), st.integers(2, 300), st.integers(1, 40))
def test_warming_fits_whatever_the_limits(max_running: int, max_batch_tokens: int, max_model_len: int, blocks: int):
    ticks = Ticks(max_running=max_running, max_batch_tokens=max_batch_tokens, max_model_len=min(max_model_len, 16 * blocks), blocks=blocks)
    sizes = sum(map(len, sizes_to_come(ticks.scheduler)))
    assert ticks.warm(1e9).sizes == sizes
    assert not ticks.scheduler.has_work
    ticks.scheduler.check()


@pytest.mark.parametrize(
    ("first", "last", "sizes"), [(1, 8, [1, 2, 4, 8]), (1, 6, [1, 2, 4, 6]), (16, 5, [5]), (1, 1, [1]), (1, 0, []), (16, -1, [])]
)
def test_sizes_double_up_to_the_last(first: int, last: int, sizes: list[int]):
    assert doubling(first, last) == sizes
