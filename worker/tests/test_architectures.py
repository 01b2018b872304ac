"""Every architecture beside transformers: random small checkpoints in float32, in every way the engine can come to compute them.

Tolerance: 5e-5 absolute on logits up to about 10, as in test_models.py; prompts are longer than the windows.
"""

import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from logits_tap import Truth, logits_of
from random_checkpoint import VOCAB, small_engine
from safetensors.torch import load_file, save_file

from pagoda_worker.models.registry import footprint_of

TOLERANCE = 5e-5
WINDOW = 20
"""Neither a multiple of a block of 16 nor below it."""
CASES: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2"},
    "gpt2 with a head of its own": {"model_type": "gpt2", "tie_word_embeddings": False, "n_inner": 96, "layer_norm_epsilon": 1e-3},
    "mistral": {"model_type": "mistral", "sliding_window": None, "head_dim": 32},
    "mistral with a window": {"model_type": "mistral", "sliding_window": WINDOW, "rms_norm_eps": 1e-3},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2 with a window from layer 1": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": True},
    "qwen3 with biases and windows by layer": {
        "model_type": "qwen3",
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}
WAYS: dict[str, dict[str, Any]] = {
    "one ragged batch": {},
    "the reference attention": {"attention": "eager", "max_batch_tokens": 48},
    "chunks of 16": {"max_batch_tokens": 16},
    "blocks of 5": {"block_size": 5, "max_batch_tokens": 33},
}
Checkpoint = Callable[..., Path]


@pytest.fixture(params=CASES)
def folder(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> Path:
    return checkpoint(request.param, **CASES[request.param])


@cache
def truth(folder: Path) -> Truth:
    return Truth(folder)


def prompts(count: int, shortest: int, longest: int, seed: int = 0) -> list[list[int]]:
    generator = random.Random(seed)
    return [[generator.randrange(VOCAB) for _ in range(generator.randint(shortest, longest))] for _ in range(count)]


@pytest.mark.parametrize("way", WAYS)
def test_logits_and_greedy_tokens_equal_transformers(folder: Path, way: str):
    engine = small_engine(folder, **WAYS[way])
    with logits_of(engine) as seen:
        completions = engine.generate([*prompts(4, 1, 70), *prompts(1, 90, 90)], max_tokens=6, ignore_eos=True)
    assert len(seen) == 5 * 6
    assert truth(folder).worst_difference(seen) < TOLERANCE
    last = completions[-1]
    assert last.token_ids == truth(folder).greedy(prompts(1, 90, 90)[0], 6)


@pytest.mark.parametrize("tail", [0, 7])
def test_logits_after_a_prefix_hit_equal_transformers(folder: Path, tail: int):
    engine = small_engine(folder)
    (first,) = prompts(1, 64, 64)
    engine.generate([first], max_tokens=2, ignore_eos=True)
    with logits_of(engine) as seen:
        (completion,) = engine.generate([[*first, *prompts(1, tail, tail, seed=1)[0]]], max_tokens=3, ignore_eos=True)
    assert completion.finish.usage.cached_tokens == (48 if tail == 0 else 64)
    assert truth(folder).worst_difference(seen) < TOLERANCE


def test_the_footprint_counts_what_the_checkpoint_holds(folder: Path):
    """Memory is planned by it before anything is read."""
    parameters = truth(folder).model.parameters()  # a tied head comes once
    raw = json.loads((folder / "config.json").read_text())
    assert footprint_of(raw).parameters == sum(parameter.numel() for parameter in parameters)
    assert footprint_of(raw).max_position == 256


# ---------------------------------------------------------------- the same model, written in another way


def agrees(folder: Path, original: Path) -> None:
    engine = small_engine(folder)
    with logits_of(engine) as seen:
        engine.generate(prompts(3, 30, 60), max_tokens=4, ignore_eos=True)
    assert truth(original).worst_difference(seen) < TOLERANCE


def as_transformers_4(raw: dict[str, Any]) -> dict[str, Any]:
    """Without layer_types, with rope_theta and rope_scaling in place of rope_parameters, and torch_dtype."""
    old = {key: value for key, value in raw.items() if key not in ("layer_types", "rope_parameters", "dtype")}
    if "rope_parameters" in raw:
        old |= {"rope_theta": raw["rope_parameters"]["rope_theta"], "rope_scaling": None}
    return {**old, "torch_dtype": raw["dtype"], "transformers_version": "4.40.0"}


@pytest.mark.parametrize("name", ["gpt2", "mistral with a window", "qwen2 with a window from layer 1", "qwen3"])
def test_a_config_as_transformers_4_wrote_it_is_the_same_model(checkpoint: Checkpoint, tmp_path: Path, name: str):
    original = checkpoint(name, **CASES[name])
    folder = Path(copytree(original, tmp_path / "old"))
    config = folder / "config.json"
    config.write_text(json.dumps(as_transformers_4(json.loads(config.read_text()))))
    agrees(folder, original)


@pytest.mark.parametrize("name", ["gpt2", "qwen3 with biases and windows by layer"])
def test_a_sharded_checkpoint_is_the_same_model(checkpoint: Checkpoint, name: str):
    sharded = checkpoint(f"{name}, sharded", **CASES[name], shard_size="40KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    agrees(sharded, checkpoint(name, **CASES[name]))


def test_a_gpt2_saved_without_its_head_and_with_its_masks_is_the_same_model(checkpoint: Checkpoint, tmp_path: Path):
    """As openai-community/gpt2 and its sizes are."""
    original = checkpoint("gpt2", **CASES["gpt2"])
    folder = Path(copytree(original, tmp_path / "bare"))
    stored = load_file(original / "model.safetensors")
    assert all(name.startswith("transformer.") for name in stored)
    bare = {name.removeprefix("transformer."): tensor for name, tensor in stored.items()}
    for i in range(2):
        bare[f"h.{i}.attn.bias"] = torch.ones(1, 1, 256, 256).tril()
        bare[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(bare, folder / "model.safetensors", {"format": "pt"})
    agrees(folder, original)
