"""The truth is transformers: logits of random small Llamas, in every way the engine can come to compute them.

Tolerance in float32: 5e-5 absolute on logits up to about 10, some tens of roundings; measured differences stay below 1e-5. The same
tokens follow wherever the two most likely tokens lie further apart than that.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from logits_tap import Truth, logits_of
from random_checkpoint import LLAMA3, VOCAB, kv_bytes, small_engine

from pagoda_worker.engine import Engine
from pagoda_worker.request import Sampling

TOLERANCE = 5e-5
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "one query head per kv head": {"num_key_value_heads": 4},
    "four query heads per kv head": {"num_key_value_heads": 1},
    "head size 64, not hidden / heads": {"head_dim": 64},
    "llama3 scaling": {"rope_parameters": LLAMA3},
    "linear scaling": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}},
    "another theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 200.0}},
    "sharded": {"shard_size": "20KB"},
}
Checkpoint = Callable[..., Path]


def prompts(count: int, shortest: int = 1, longest: int = 60, seed: int = 0) -> list[list[int]]:
    generator = random.Random(seed)
    return [[generator.randrange(VOCAB) for _ in range(generator.randint(shortest, longest))] for _ in range(count)]


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_of_a_ragged_batch_equal_transformers(checkpoint: Checkpoint, name: str, attention: str):
    folder = checkpoint(name, **CONFIGURATIONS[name])
    engine = small_engine(folder, attention=attention)
    with logits_of(engine) as seen:
        engine.generate(prompts(5), max_tokens=6, ignore_eos=True)
    assert len(seen) == 5 * 6
    assert Truth(folder).worst_difference(seen) < TOLERANCE


@pytest.mark.parametrize("max_batch_tokens", [7, 16, 33])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_after_chunked_prefill_equal_transformers(checkpoint: Checkpoint, max_batch_tokens: int, attention: str):
    engine = small_engine(checkpoint(), max_batch_tokens=max_batch_tokens, attention=attention)
    with logits_of(engine) as seen:
        engine.generate(prompts(6, 20, 70), max_tokens=5, ignore_eos=True)
    assert Truth(checkpoint()).worst_difference(seen) < TOLERANCE


@pytest.mark.parametrize("tail", [0, 1, 5, 16, 20])
def test_logits_after_a_prefix_hit_equal_transformers(checkpoint: Checkpoint, tail: int):
    """Tail 0: the whole prompt is cached, at a block's edge."""
    engine = small_engine(checkpoint())
    (first,) = prompts(1, 64, 64)
    engine.generate([first], max_tokens=3, ignore_eos=True)
    with logits_of(engine) as seen:
        (completion,) = engine.generate([[*first, *prompts(1, tail, tail, seed=1)[0]]], max_tokens=3, ignore_eos=True)
    assert completion.finish.usage.cached_tokens == (48 if tail == 0 else 64)
    assert Truth(checkpoint()).worst_difference(seen) < TOLERANCE


def test_logits_of_a_burst_that_shares_a_prefix_within_one_step_equal_transformers(checkpoint: Checkpoint):
    engine = small_engine(checkpoint())
    (common,) = prompts(1, 40, 40)
    burst = [[*common, *tail] for tail in prompts(4, 1, 9, seed=2)]
    with logits_of(engine) as seen:
        completions = engine.generate(burst, max_tokens=4, ignore_eos=True)
    assert [c.finish.usage.cached_tokens for c in completions] == [0, 32, 32, 32]
    assert Truth(checkpoint()).worst_difference(seen) < TOLERANCE


def test_logits_around_preemptions_equal_transformers(checkpoint: Checkpoint):
    engine = small_engine(checkpoint(), kv_cache_bytes=kv_bytes(12, 8), block_size=8, max_model_len=96, prefix_caching=False)
    with logits_of(engine) as seen:
        engine.generate(prompts(5, 10, 20), max_tokens=40, ignore_eos=True)
    assert engine.idle_state().preemptions_total > 0
    assert Truth(checkpoint()).worst_difference(seen) < TOLERANCE


def test_logits_of_n_sequences_after_they_part_equal_transformers(checkpoint: Checkpoint):
    engine = small_engine(checkpoint(), block_size=8)
    with logits_of(engine) as seen:
        completions = engine.generate(prompts(2, 9, 30), Sampling(temperature=2.0, seed=1), 8, n=3, ignore_eos=True)
    assert len({tuple(c.token_ids) for c in completions}) > 3
    assert Truth(checkpoint()).worst_difference(seen) < TOLERANCE


def test_rows_of_very_different_length_equal_transformers(checkpoint: Checkpoint):
    """Decode rows fall into several length groups."""
    engine = small_engine(checkpoint())
    ragged = [prompts(1, n, n, seed=n)[0] for n in (1, 3, 17, 40, 100, 200)]
    with logits_of(engine) as seen:
        engine.generate(ragged, max_tokens=6, ignore_eos=True)
    assert Truth(checkpoint()).worst_difference(seen) < TOLERANCE


# ---------------------------------------------------------------- the same greedy tokens, alone or not


def _alone(folder: Path, batch: list[list[int]], count: int, **settings: Any) -> list[list[int]]:
    engine = small_engine(folder, prefix_caching=False, **settings)
    return [engine.generate([prompt], max_tokens=count, ignore_eos=True)[0].token_ids for prompt in batch]


SITUATIONS: dict[str, dict[str, Any]] = {
    "one batch": {},
    "small chunks": {"max_batch_tokens": 9},
    "few rows": {"max_running": 3},
    "preemption": {"kv_cache_bytes": kv_bytes(16, 8), "block_size": 8, "max_model_len": 100},
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_float32_greedy_tokens_are_the_same_alone_and_in_a_random_batch(checkpoint: Checkpoint, situation: str):
    batch = prompts(8, 1, 50, seed=3)
    engine = small_engine(checkpoint(), **SITUATIONS[situation])
    together = [c.token_ids for c in engine.generate(batch, max_tokens=24, ignore_eos=True)]
    if situation == "preemption":
        assert engine.idle_state().preemptions_total > 0
    assert together == _alone(checkpoint(), batch, 24)
    engine.check_integrity()


def test_float32_greedy_tokens_are_transformers_own(checkpoint: Checkpoint):
    batch = prompts(3, 1, 30, seed=4)
    truth = Truth(checkpoint())
    completions = small_engine(checkpoint()).generate(batch, max_tokens=12, ignore_eos=True)
    assert [c.token_ids for c in completions] == [truth.greedy(prompt, 12) for prompt in batch]


def test_bf16_greedy_tokens_differ_from_alone_only_where_the_choice_is_close(checkpoint: Checkpoint):
    """Up to the first difference all is the same; there the reference's two best logits lie within the tolerance of bf16 (0.25 on logits up
    to about 16, whose neighbours in bf16 are 0.06 apart). At most a quarter of the sequences may meet such a place."""
    batch = prompts(12, 1, 50, seed=5)
    folder = checkpoint()
    together = [c.token_ids for c in small_engine(folder, dtype="bf16").generate(batch, max_tokens=16, ignore_eos=True)]
    alone = _alone(folder, batch, 16, dtype="bf16")
    differing = [i for i in range(len(batch)) if together[i] != alone[i]]
    assert len(differing) <= 3
    truth = Truth(folder)
    for i in differing:
        at = next(k for k in range(16) if together[i][k] != alone[i][k])
        best = truth.logits([*batch[i], *alone[i][:at]])[-1].topk(2).values
        assert best[0] - best[1] < 0.25


def test_bf16_logits_are_near_transformers_in_float32(checkpoint: Checkpoint):
    """0.5 absolute: two layers of bf16 activations on logits of a spread of about 10."""
    engine = small_engine(checkpoint(), dtype="bf16")
    with logits_of(engine) as seen:
        engine.generate(prompts(4), max_tokens=4, ignore_eos=True)
    assert Truth(checkpoint()).worst_difference(seen) < 0.5


def test_the_engine_serves_the_shipped_model():
    folder = Path(__file__).parents[1] / "src/pagoda_worker/builtin/tiny"
    engine: Engine = small_engine(folder)
    assert engine.facts.architecture == "LlamaForCausalLM"
    assert engine.generate([[5, 6, 7]], max_tokens=3, ignore_eos=True)[0].finish.usage.completion_tokens == 3
