"""A quantized KV cache in a whole engine: the same tokens however a prompt is cut, found, preempted or woken, and near those without it."""

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from batch_invariance import compare, random_prompts
from engine_runs import run_all
from front_support import TINY
from random_checkpoint import small_engine
from rank_threads import engine_of_ranks

from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.layers.kv_cache import QUANTIZED, row_bytes
from pagoda_worker.layers.selection import fp8_cache_refusal
from pagoda_worker.models import compiled
from pagoda_worker.models.base import CacheShape
from pagoda_worker.request import Request, Sampling
from pagoda_worker.settings.sources import BUILTIN_DIR

Checkpoint = Callable[..., Path]
PROMPTS = [[3 + i] * 9 + [20 + i, 40 + i] for i in range(6)]
EACH = pytest.mark.parametrize("kv_dtype", QUANTIZED)


def answers(engine: Engine, prompts: Sequence[Sequence[int]] = PROMPTS, tokens: int = 25) -> list[list[int]]:
    answered = [each.token_ids for each in engine.generate(prompts, max_tokens=tokens, ignore_eos=True)]
    engine.check_integrity()
    return answered


def room(blocks: int, kv_dtype: str, block_size: int = 4) -> int:
    """Bytes for so many blocks of the small Llama."""
    return blocks * block_size * 2 * 2 * 2 * row_bytes(16, QUANTIZED[kv_dtype])


def pressed(checkpoint: Checkpoint, kv_dtype: str, **settings: Any) -> Engine:
    """Room for 16 blocks of 4; copies are predicted to take no time, whatever this machine measured."""
    settings = {"kv_cache_bytes": room(16, kv_dtype), "block_size": 4, "max_model_len": 60, "kv_dtype": kv_dtype, **settings}
    engine = small_engine(checkpoint(), **settings)
    if engine.runner.host:
        engine.runner.host.copy_bytes_per_s = 1e18
    return engine


@EACH
@pytest.mark.parametrize(("dtype", "attention"), [("bf16", "auto"), ("fp32", "sdpa")])
def test_cutting_or_knowing_a_prompt_changes_no_token(kv_dtype: str, dtype: str, attention: str):
    """Of the shipped model, on our own kernels and on torch's; in bf16 torch adds up by the batch's size, so only ours are exact there."""
    config: dict[str, Any] = {"model_dir": TINY, "dtype": dtype, "attention": attention, "kv_dtype": kv_dtype, "threads": 1}
    prompts = random_prompts(3, 1000)
    whole = Engine(EngineConfig(**config))
    expected = answers(whole, prompts, 8)
    assert answers(whole, prompts, 8) == expected, "found in the prefix cache"
    assert whole.idle_state().prefix_hits_total > 0
    assert answers(Engine(EngineConfig(**config, max_batch_tokens=24)), prompts, 8) == expected


@EACH
def test_a_request_has_the_same_bits_in_any_company(kv_dtype: str):
    config: dict[str, Any] = {"dtype": "bf16", "batch_invariant": True, "kv_dtype": kv_dtype, "threads": 1}
    tally = compare(config, TINY, prompts=random_prompts(2, 1000), tokens=8, crowds=((3, 512), (5, 24)))
    assert (tally.positions, tally.unequal, tally.flips) == (2 * 2 * 8, 0, [])


@EACH
@pytest.mark.parametrize("settings", [{}, {"swap": 40}], ids=["computed again", "swapped"])
def test_preempted_sequences_have_the_tokens_of_those_that_were_not(checkpoint: Checkpoint, kv_dtype: str, settings: dict[str, int]):
    expected = answers(small_engine(checkpoint(), block_size=4, max_model_len=60, kv_dtype=kv_dtype))
    swap = room(settings.get("swap", 0), kv_dtype)
    engine = pressed(checkpoint, kv_dtype, prefix_caching=False, swap_bytes=swap)
    assert answers(engine) == expected
    state = engine.idle_state()
    assert state.preemptions_total > 0
    assert (state.swaps_total > 0) == bool(swap)


@EACH
def test_prefixes_come_back_from_the_host_as_they_went(checkpoint: Checkpoint, kv_dtype: str):
    engine = pressed(checkpoint, kv_dtype, host_tier_bytes=room(60, kv_dtype))
    expected = [answers(engine, [prompt], 4) for prompt in PROMPTS]
    assert [answers(engine, [prompt], 4) for prompt in PROMPTS] == expected
    assert engine.idle_state().host_prefix_hits_total > 0


@EACH
def test_sequences_that_share_a_block_part_when_they_write(checkpoint: Checkpoint, kv_dtype: str):
    """Copy on write: each of three sampled together is what it is alone."""

    def sampled(seed: int, n: int) -> Request:
        sampling = Sampling(temperature=1.5, seed=seed)
        return Request(request_id="a", prompt_ids=PROMPTS[0], sampling=sampling, n=n, max_tokens=12, ignore_eos=True)

    together = run_all(small_engine(checkpoint(), kv_dtype=kv_dtype), sampled(5, 3))
    whole = run_all(small_engine(checkpoint(), kv_dtype=kv_dtype, kv_cache=False, prefix_caching=False), sampled(5, 3))
    assert len({tuple(each.tokens) for each in together.values()}) == 3
    assert {at: each.tokens for at, each in together.items()} == {at: each.tokens for at, each in whole.items()}


@pytest.mark.parametrize(("kv_dtype", "speculative"), [("int8", "ngram"), ("fp8", "draft")])
def test_drafted_tokens_that_are_rejected_leave_nothing_behind(kv_dtype: str, speculative: str):
    config: dict[str, Any] = {"model_dir": TINY, "dtype": "fp32", "kv_dtype": kv_dtype, "threads": 1, "max_model_len": 512}
    prompts = [*random_prompts(2, 1000), [50, 60, 70, 80] * 6]
    expected = answers(Engine(EngineConfig(**config)), prompts)
    draft = BUILTIN_DIR / "tiny-draft" if speculative == "draft" else None
    engine = Engine(EngineConfig(**config, speculative=speculative, draft_dir=draft))
    done = engine.generate(prompts, max_tokens=25, ignore_eos=True)
    assert [each.token_ids for each in done] == expected
    usages = [each.finish.usage for each in done]
    assert 0 < sum(each.accepted_draft_tokens for each in usages) < sum(each.draft_tokens for each in usages)


def test_two_ranks_compute_the_tokens_of_one(checkpoint: Checkpoint):
    kv_dtype = "int8"
    with closing(engine_of_ranks(checkpoint(), 2, dtype="fp32", kv_dtype=kv_dtype)) as two:
        assert two.runner.caches[0].dtype == QUANTIZED[kv_dtype]
        one = small_engine(checkpoint(), dtype="fp32", kv_dtype=kv_dtype)
        ours, theirs = (engine.generate(PROMPTS, max_tokens=12, ignore_eos=True, top_logprobs=1) for engine in (two, one))
    assert [each.token_ids for each in ours] == [each.token_ids for each in theirs]
    told = [[token.sampled for each in done for token in each.logprobs or ()] for done in (ours, theirs)]
    assert told[0] == pytest.approx(told[1], abs=1e-3), "each rank rounds the same: a plain cache on one would differ by more"


def test_a_woken_engine_answers_as_before(checkpoint: Checkpoint):
    kv_dtype = "fp8"
    engine = small_engine(checkpoint(), kv_dtype=kv_dtype)
    expected = answers(engine)
    for level in (1, 2):
        engine.sleep(level)
        engine.wake()
        assert engine.runner.caches[0].dtype == QUANTIZED[kv_dtype]
        assert answers(engine) == expected


@EACH
def test_numbers_that_are_not_finite_end_one_request_and_poison_nobody(checkpoint: Checkpoint, kv_dtype: str):
    engine = pressed(checkpoint, kv_dtype, prefix_caching=False)
    expected = answers(engine, PROMPTS[:1], 20)
    engine.runner.model.destinations()["model.embed_tokens.weight"][150] = float("nan")
    outcomes = run_all(engine, Request(request_id="bad", prompt_ids=[150] * 20, max_tokens=4))
    assert outcomes["bad", 0].reason == "ENGINE_ERROR"
    for _ in range(3):  # through the blocks that held NaN
        assert answers(engine, PROMPTS[:1], 20) == expected


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, when its compiler is imported
def test_traced_steps_choose_the_same_tokens(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch):
    """compile: true up to the C++ compiler, which never sees the cache: one opaque operation a layer has it."""
    torch.compiler.reset()  # else what another test compiled makes every size a symbol here, which takes three times as long
    kv_dtype, folder = "fp8", checkpoint("one layer", num_hidden_layers=1)
    expected = answers(small_engine(folder, kv_dtype=kv_dtype), tokens=6)
    monkeypatch.setattr(compiled.torch, "compile", partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(compiled, "cxx", lambda: "g++")
    assert answers(small_engine(folder, kv_dtype=kv_dtype, compile=True), tokens=6) == expected


def test_nearly_twice_as_many_tokens_fit_into_the_same_memory():
    def tokens(kv_dtype: str) -> int:
        config: dict[str, Any] = {"dtype": "bf16", "kv_dtype": kv_dtype, "kv_cache_bytes": 4 << 20, "max_running": 64}
        return Engine(EngineConfig(model_dir=TINY, **config)).facts.kv_capacity_tokens

    plain = tokens("auto")
    assert all(tokens(kv_dtype) >= plain / 0.55 for kv_dtype in QUANTIZED)
    shape = CacheShape(layers=5, kv_heads=2, head_dim=64)
    assert [shape.bytes_per_token(each) for each in (torch.bfloat16, torch.int8)] == [5 * 2 * 2 * 128, 5 * 2 * 2 * 66]


def test_fp8_is_refused_where_the_gpu_has_no_such_numbers():
    assert fp8_cache_refusal((8, 9)) is None
    assert "compute capability 8.9 or newer (this one is 8.0): set kvCache.dtype to int8" in (fp8_cache_refusal((8, 0)) or "")
