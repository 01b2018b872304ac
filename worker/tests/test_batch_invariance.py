"""A request alone and in company: what holds bit for bit, and how near to a tie a token must be to change where it does not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from batch_invariance import compare, random_prompts
from engine_runs import run_all
from front_support import TINY
from random_checkpoint import VOCAB, small_engine

from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.errors import ConfigError
from pagoda_worker.layers.attention import AttentionBatch, AttentionShape, write_cache
from pagoda_worker.layers.invariant import KEYS, attend_invariant
from pagoda_worker.native.library import load_library
from pagoda_worker.request import Request, Sampling

Checkpoint = Callable[..., Path]
CROWDS = ((3, 512), (7, 24))
CLOSE = {"fp32": 1e-3, "bf16": 0.5}
"""A token may change only where the lone run's two best logits are nearer than this; measured: never in fp32, 0.28 in bf16."""


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {"model_type": "gpt2"},
    "mistral": {"model_type": "mistral", "sliding_window": 21},
    "qwen3": {"model_type": "qwen3"},
}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("model", ["tiny", *FAMILIES])
def test_invariant_layers_give_the_same_bits_in_any_company(checkpoint: Checkpoint, dtype: str, model: str):
    folder, vocab = (TINY, 1000) if model == "tiny" else (checkpoint(f"invariant {model}", **FAMILIES[model]), VOCAB)
    config: dict[str, Any] = {"dtype": dtype, "batch_invariant": True, "threads": 1}
    tally = compare(config, folder, prompts=random_prompts(3, vocab), tokens=12, crowds=CROWDS)
    assert (tally.positions, tally.unequal, tally.flips) == (3 * 2 * 12, 0, [])


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("model", ["random", "tiny"])
def test_without_them_only_tokens_near_a_tie_change(checkpoint: Checkpoint, dtype: str, model: str):
    folder, vocab = (TINY, 1000) if model == "tiny" else (checkpoint(), VOCAB)
    tally = compare({"dtype": dtype, "threads": 1}, folder, prompts=random_prompts(4, vocab), tokens=12, crowds=CROWDS)
    assert all(gap < CLOSE[dtype] for gap in tally.flips)


@pytest.mark.skipif(load_library() is None, reason="no CPU kernels: Debian's g++ was missing at installation")
def test_our_own_kernels_keep_the_bits_of_prompts_that_are_not_cut():
    crowds = ((3, 4096), (9, 4096))
    tally = compare({"dtype": "bf16", "threads": 1}, TINY, prompts=random_prompts(3, 1000), tokens=12, crowds=crowds)
    assert (tally.positions, tally.unequal) == (3 * 2 * 12, 0)


def test_the_prefix_cache_changes_no_bit_of_an_invariant_answer(checkpoint: Checkpoint):
    engine = small_engine(checkpoint(), batch_invariant=True, max_batch_tokens=24)
    request = Request(request_id="a", prompt_ids=[7 * i % VOCAB for i in range(60)], max_tokens=12, ignore_eos=True, top_logprobs=3)
    seen = []
    for _ in range(2):
        engine.submit(request)
        while engine.has_work:
            seen += [update.logprobs for update in engine.step().updates if update.logprobs]
    assert seen[:12] == seen[12:]


@pytest.mark.parametrize("window", [None, 5, 70])
def test_invariant_attention_is_the_reference_up_to_rounding(window: int | None):
    torch.manual_seed(3)
    block, kv_heads, heads, dim = 16, 2, 6, 8
    cache = torch.randn(2, kv_heads, 40 * block, dim)
    decode_lens, chunks = [KEYS + 9, KEYS, 3], [(5, 0), (11, KEYS - 2), (1, 30)]
    contexts = [*decode_lens, *(count + prefix for count, prefix in chunks)]
    table = torch.randperm(40)[: 6 * 6].view(6, 6).int()
    starts = torch.tensor([0, 1, 2, 3, 8, 19, 20], dtype=torch.int32)
    positions = [(i, length - 1) for i, length in enumerate(decode_lens)]
    positions += [(3 + i, prefix + k) for i, (count, prefix) in enumerate(chunks) for k in range(count)]
    slots = torch.tensor([int(table[row, at // block]) * block + at % block for row, at in positions])
    batch = AttentionBatch(
        slots=slots,
        query_starts=starts,
        context_lens=torch.tensor(contexts, dtype=torch.int32),
        block_table=table,
        block_size=block,
        kv_heads=kv_heads,
        dtype=torch.float32,
        decode_lens=decode_lens,
        chunks=chunks,
    )
    query, key_value = torch.randn(20, heads, dim), torch.randn(20, 2 * kv_heads, dim)
    write_cache(key_value, cache, batch)
    mine = attend_invariant(query, key_value, cache, batch, AttentionShape(dim**-0.5, window))
    for line, (row, at) in enumerate(positions):
        first = 0 if window is None else max(0, at - window + 1)
        seen = torch.tensor([int(table[row, j // block]) * block + j % block for j in range(first, at + 1)])
        keys, values = cache[:, :, seen].repeat_interleave(heads // kv_heads, dim=1)
        weights = torch.einsum("hd,hkd->hk", query[line], keys).mul(dim**-0.5).softmax(-1)
        torch.testing.assert_close(mine[line].view(heads, dim), torch.einsum("hk,hkd->hd", weights, values), atol=2e-6, rtol=1e-5)


def test_a_seed_gives_the_same_tokens_in_any_company(checkpoint: Checkpoint):
    def seeded(n: int = 1) -> Request:
        sampling = Sampling(temperature=1.5, top_p=0.9, seed=11)
        return Request(request_id="seeded", prompt_ids=[3, 1, 4], sampling=sampling, n=n, max_tokens=16, ignore_eos=True)

    engine = small_engine(checkpoint(), max_batch_tokens=16)
    alone = run_all(engine, seeded(3))
    strangers = [
        Request(request_id=f"s{i}", prompt_ids=[i + 5] * (9 * i + 1), sampling=Sampling(temperature=1.0), max_tokens=5 + i, ignore_eos=True)
        for i in range(6)
    ]
    together = run_all(engine, *strangers[:3], seeded(3), *strangers[3:])
    for i in range(3):
        assert together["seeded", i].tokens == alone["seeded", i].tokens


def test_a_gpu_worker_refuses_what_was_shown_on_cpus_only(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match="batchInvariant is shown to hold on CPUs only"):
        Engine(EngineConfig(model_dir=TINY, device="cuda", batch_invariant=True))
