"""Ranks that share every layer compute what one rank computes: the same tokens, whatever the batch, the architecture, or the cache did."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import run_all
from front_support import TINY
from gguf import GGMLQuantizationType
from published_layouts import Published, awq, fp8_blocks, gptq, write_quantized
from random_adapter import GPT2_ALL, write_adapter
from random_checkpoint import kv_bytes, small_engine
from rank_threads import engine_of_ranks
from test_gguf import write_gguf
from test_quantized_checkpoints import w8a8
from test_speculation import corpus, tokens_of

from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.errors import ConfigError
from pagoda_worker.models.files import read_json
from pagoda_worker.models.registry import footprint_of
from pagoda_worker.request import Request, Sampling

Checkpoint = Callable[..., Path]

PROMPTS = [[3, 4, 5], [7] * 40, [9, 8], [each % 150 + 2 for each in range(70)]]
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "odd-vocabulary": {"vocab_size": 157},
    "mistral-window": {"model_type": "mistral", "sliding_window": 16},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3"},
    "gpt2": {"model_type": "gpt2"},
}

LAYOUTS: dict[str, Callable[[torch.Tensor], Published]] = {
    "gptq": lambda weight: gptq(weight, symmetric=False),
    "awq": awq,
    "W8A8": w8a8,
    "fp8 by block": lambda weight: fp8_blocks(weight, (16, 32)),
}


@pytest.fixture(scope="module")
def pair(checkpoint: Checkpoint) -> Iterator[tuple[Engine, Engine]]:
    """One rank and two, of the small Llama, with a cache of few blocks."""
    settings: dict[str, Any] = {"dtype": "fp32", "kv_cache_bytes": kv_bytes(24), "max_batch_tokens": 48}
    folder = checkpoint()
    with closing(engine_of_ranks(folder, 2, **settings)) as two:
        yield small_engine(folder, **settings), two


def tokens(engine: Engine, prompts: list[list[int]] = PROMPTS, **settings: Any) -> list[list[int]]:
    return [each.token_ids for each in engine.generate(prompts, max_tokens=16, ignore_eos=True, **settings)]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_two_ranks_compute_the_tokens_of_one(checkpoint: Checkpoint, name: str):
    folder = checkpoint(f"ranks-{name}", **ARCHITECTURES[name])
    with closing(engine_of_ranks(folder, 2, dtype="fp32")) as two:
        assert tokens(two) == tokens(small_engine(folder, dtype="fp32"))


def test_four_ranks_share_two_kv_heads(checkpoint: Checkpoint):
    folder = checkpoint()
    with closing(engine_of_ranks(folder, 4, dtype="fp32")) as four:
        assert four.runner.model.cache_shape.kv_heads == 1
        assert tokens(four) == tokens(small_engine(folder, dtype="fp32"))


def test_logits_of_two_ranks_are_those_of_one_within_rounding(pair: tuple[Engine, Engine]):
    one, two = (each.generate(PROMPTS, max_tokens=8, ignore_eos=True, top_logprobs=5) for each in pair)
    for alone, shared in zip(one, two, strict=True):
        assert alone.logprobs is not None
        assert shared.logprobs is not None
        for ours, theirs in zip(alone.logprobs, shared.logprobs, strict=True):
            assert theirs.sampled == pytest.approx(ours.sampled, abs=1e-4)
            assert [token for token, _ in theirs.top] == [token for token, _ in ours.top]


def test_a_cache_that_preempts_and_finds_prefixes_changes_no_token(pair: tuple[Engine, Engine]):
    one, two = pair
    prompts = [[each] * 60 + PROMPTS[3] for each in (5, 5, 6, 5, 6, 7)]
    expected = tokens(one, prompts)
    assert tokens(two, prompts) == expected
    assert tokens(two, prompts) == expected, "prefixes are found now"
    two.check_integrity()


def test_sequences_that_part_copy_their_blocks_on_every_rank(pair: tuple[Engine, Engine]):
    sampling = Sampling(temperature=1.0, seed=11)
    one, two = (tokens(engine, [PROMPTS[1], PROMPTS[2]], n=3, sampling=sampling) for engine in pair)
    assert one == two


@pytest.mark.parametrize("ahead", [False, True], ids=["step by step", "planned ahead"])
def test_every_way_of_choosing_a_token_chooses_the_same(checkpoint: Checkpoint, ahead: bool):
    folder = checkpoint()
    with closing(engine_of_ranks(folder, 2, async_scheduling=ahead)) as two:
        outcomes = run_all(two, *corpus())
    assert tokens_of(outcomes) == tokens_of(run_all(small_engine(folder), *corpus()))


def test_prompt_logprobs_and_embeddings_need_no_sampling_rank_elsewhere(pair: tuple[Engine, Engine]):
    requests = [
        Request(request_id="told", prompt_ids=PROMPTS[3], max_tokens=2, prompt_logprobs=2),
        Request(request_id="embedded", prompt_ids=PROMPTS[1], max_tokens=1, embedding=True),
    ]
    one, two = (run_all(engine, *requests) for engine in pair)
    (ours,), (theirs,) = one["told", 0].prompt_logprobs, two["told", 0].prompt_logprobs
    assert theirs.own == pytest.approx(ours.own, abs=1e-4)
    assert two["embedded", 0].embedding == pytest.approx(one["embedded", 0].embedding, abs=1e-4)


def test_preempted_sequences_come_back_from_host_memory_on_every_rank(checkpoint: Checkpoint):
    folder = checkpoint()
    settings: dict[str, Any] = {"dtype": "fp32", "kv_cache_bytes": kv_bytes(8), "swap_bytes": kv_bytes(32), "host_tier_bytes": kv_bytes(16)}
    prompts = [[each] * 40 for each in (5, 6, 7, 8)]
    with closing(engine_of_ranks(folder, 2, **settings)) as two:
        first, again = tokens(two, prompts), tokens(two, prompts)
    assert first == again == tokens(small_engine(folder, **settings), prompts)


@pytest.mark.parametrize("kv_dtype", ["int8", "fp8"])
def test_a_quantized_cache_has_each_heads_scales_where_the_head_is(checkpoint: Checkpoint, kv_dtype: str):
    folder = checkpoint()
    with closing(engine_of_ranks(folder, 2, kv_dtype=kv_dtype)) as two:
        divided = prompt_logprobs(two)
    whole = prompt_logprobs(small_engine(folder, kv_dtype=kv_dtype))
    assert (divided - whole).abs().mean() < 0.1 * (whole - prompt_logprobs(small_engine(folder))).abs().mean()


@pytest.mark.parametrize("load", ["eager", "lazy"])
def test_ranks_sleep_and_wake_together(checkpoint: Checkpoint, load: str):
    folder = checkpoint()
    with closing(engine_of_ranks(folder, 2, dtype="fp32", load=load)) as two:
        first = tokens(two)
        for level in (1, 2):
            two.sleep(level)
            assert two.sleep_level == level
            assert tokens(two) == first


@pytest.mark.parametrize("speculative", ["ngram", "draft"])
def test_tokens_guessed_ahead_are_verified_by_all_ranks(checkpoint: Checkpoint, speculative: str):
    folder = checkpoint()
    prompts = [[5, 6, 7, 8] * 12, PROMPTS[3]]
    guessing: dict[str, Any] = {"speculative": speculative, "draft_dir": folder if speculative == "draft" else None}
    with closing(engine_of_ranks(folder, 2, dtype="fp32", **guessing)) as two:
        assert tokens(two, prompts) == tokens(small_engine(folder, dtype="fp32"), prompts)
        assert two.speculation is not None
        assert sum(two.speculation.accepted_by_place) > 0


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_adapters_are_divided_as_the_weights_beside_which_they_stand(checkpoint: Checkpoint, tmp_path: Path, architecture: str):
    folder = checkpoint(f"ranks-{architecture}", **ARCHITECTURES[architecture])
    targets = {"targets": GPT2_ALL} if architecture == "gpt2" else {}
    adapters = {name: write_adapter(tmp_path / name, folder, seed=seed, **targets) for seed, name in enumerate("ab")}
    named = {"adapters": ["a", "b", "", "a"]}
    with closing(engine_of_ranks(folder, 2, dtype="fp32", adapters=adapters)) as two:
        divided = tokens(two, **named)
        two.sleep(2)
        assert tokens(two, **named) == divided
    one = small_engine(folder, dtype="fp32", adapters=adapters)
    assert divided == tokens(one, **named) != tokens(one)


def test_random_weights_of_ranks_are_slices_of_what_one_rank_has(checkpoint: Checkpoint):
    for folder in (checkpoint(), checkpoint("ranks-gpt2", model_type="gpt2")):
        with closing(engine_of_ranks(folder, 2, dtype="fp32", random_weights=True)) as two:
            assert tokens(two) == tokens(small_engine(folder, dtype="fp32", random_weights=True))


@pytest.fixture
def exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the numbers that quantized weights mean. The CPU's own kernels round activations too, each rank its own."""
    monkeypatch.setattr("pagoda_worker.layers.selection.load_library", lambda: None)


@pytest.mark.usefixtures("exact_products")
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_quantized_checkpoint_is_divided_as_it_is_stored(checkpoint: Checkpoint, tmp_path: Path, name: str):
    write_quantized(checkpoint("wide", intermediate_size=128), tmp_path / "it", LAYOUTS[name], meant=tmp_path / "meant")
    with closing(engine_of_ranks(tmp_path / "it", 2, dtype="fp32")) as two:
        assert tokens(two) == tokens(small_engine(tmp_path / "it", dtype="fp32"))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
@pytest.mark.usefixtures("exact_products")
def test_a_gguf_file_is_divided(checkpoint: Checkpoint, tmp_path: Path, kind: str):
    plain = checkpoint("wide", intermediate_size=128)
    write_gguf(plain, tmp_path / "it", "llama", GGMLQuantizationType[kind], meant=tmp_path / "meant")
    with closing(engine_of_ranks(tmp_path / "it", 2, dtype="fp32")) as two:
        assert tokens(two) == tokens(small_engine(tmp_path / "it", dtype="fp32"))


@pytest.mark.parametrize("quantization", ["int8", "int4", "fp8"])
def test_weights_rounded_at_load_are_as_near_to_the_plain_ones_on_two_ranks(checkpoint: Checkpoint, quantization: str):
    folder = checkpoint("wide", intermediate_size=128)
    with closing(engine_of_ranks(folder, 2, dtype="fp32", quantization=quantization)) as two:
        divided = prompt_logprobs(two)
    plain = prompt_logprobs(small_engine(folder, dtype="fp32"))
    whole = prompt_logprobs(small_engine(folder, dtype="fp32", quantization=quantization))
    assert 0 < (divided - plain).abs().mean() < 1.25 * (whole - plain).abs().mean()


def test_rounded_random_weights_are_slices_too(checkpoint: Checkpoint):
    folder = checkpoint("wide", intermediate_size=128)
    settings: dict[str, Any] = {"dtype": "fp32", "random_weights": True, "quantization": "fp8"}
    with closing(engine_of_ranks(folder, 2, **settings)) as two:
        divided = prompt_logprobs(two)
    whole = prompt_logprobs(small_engine(folder, **settings))
    assert torch.corrcoef(torch.stack((divided, whole)))[0, 1] > 0.98


def prompt_logprobs(engine: Engine) -> torch.Tensor:
    outcomes = run_all(engine, Request(request_id="told", prompt_ids=PROMPTS[3], max_tokens=1, prompt_logprobs=1))
    return torch.tensor(outcomes["told", 0].prompt_logprobs[0].own)


def test_groups_that_ranks_would_cut_are_refused_with_the_layers_name(checkpoint: Checkpoint, tmp_path: Path):
    write_quantized(checkpoint(), tmp_path / "it", LAYOUTS["awq"], meant=tmp_path / "meant")
    sentence = r"down_proj cannot be divided among ranks: inputs 0 to 48 are not whole groups of 32; lower tensorParallel"
    with pytest.raises(ConfigError, match=sentence):
        engine_of_ranks(tmp_path / "it", 2, dtype="fp32")


def test_the_shipped_model_says_the_same_on_two_ranks():
    config: dict[str, Any] = {"dtype": "fp32", "threads": 1, "max_running": 8}
    prompts = [[5, 6, 7], [100 + each for each in range(90)]]
    with closing(engine_of_ranks(TINY, 2, **config)) as two:
        assert tokens(two, prompts) == tokens(Engine(EngineConfig(model_dir=TINY, device="cpu", **config)), prompts)


# ------------------------------------------------------------ sizes and refusals


def test_each_rank_holds_its_share_of_weights_and_cache(checkpoint: Checkpoint):
    raw = read_json(checkpoint(), "config.json")
    whole, half = footprint_of(raw), footprint_of(raw, 2)
    assert half.cache.bytes_per_token(torch.float32) * 2 == whole.cache.bytes_per_token(torch.float32)
    norms = 2 * 2 * 64 + 64
    assert (half.parameters - norms) * 2 == whole.parameters - norms


def test_the_cache_of_all_ranks_has_the_bytes_that_were_asked_for(pair: tuple[Engine, Engine]):
    one, two = pair
    assert two.facts.kv_capacity_tokens == one.facts.kv_capacity_tokens
    assert sum(cache.nbytes for cache in two.runner.caches) * 2 == sum(cache.nbytes for cache in one.runner.caches)


@pytest.mark.parametrize(
    ("count", "differences", "sentence"),
    [
        (3, {}, "tensorParallel is 3; the model has 4 attention heads and 2 KV heads"),
        (4, {"num_key_value_heads": 4, "intermediate_size": 90}, "the model's feed-forward has 90 columns"),
        (8, {}, "tensorParallel is 8; the model has 4 attention heads"),
    ],
)
def test_a_model_that_cannot_be_divided_is_refused(checkpoint: Checkpoint, count: int, differences: dict[str, Any], sentence: str):
    folder = checkpoint(f"refused-{count}", **differences)
    with pytest.raises(ConfigError, match=sentence):
        footprint_of(read_json(folder, "config.json"), count)


@pytest.mark.parametrize("setting", ["compile", "batch_invariant", "cuda_graphs"])
def test_what_does_not_go_with_ranks_yet_is_refused_with_one_sentence(checkpoint: Checkpoint, setting: str):
    settings: dict[str, Any] = {setting: True}
    with pytest.raises(ConfigError, match="and tensorParallel 2 do not go together yet"), torch.inference_mode():
        small_engine(checkpoint(), tensor_parallel=2, **settings)
