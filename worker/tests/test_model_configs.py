"""config.json of every architecture: what published ones mean, what is refused by name, what is broken."""

from typing import Any

import pytest
import torch
from random_checkpoint import LLAMA3

from pagoda_worker.errors import ModelError, UnsupportedModel
from pagoda_worker.layers.attention import attend_sdpa
from pagoda_worker.layers.operators import Operators
from pagoda_worker.models.gpt2 import GPT2Config
from pagoda_worker.models.llama_config import LlamaConfig
from pagoda_worker.models.registry import ARCHITECTURES, architecture_of, footprint_of

BASE: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "vocab_size": 160,
    "max_position_embeddings": 256,
}
BASE_GPT2: dict[str, Any] = {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 256, "vocab_size": 160}
LLAMA, MISTRAL, QWEN2, QWEN3, GPT2 = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "GPT2LMHeadModel",
)


def raw_config(architecture: str, **differences: Any) -> dict[str, Any]:
    return {"architectures": [architecture], **(BASE_GPT2 if architecture == GPT2 else BASE), **differences}


def build(raw: dict[str, Any]) -> None:
    """As the loader does: sizes first, then the model."""
    architecture = architecture_of(raw)
    footprint_of(raw)
    ARCHITECTURES[architecture](raw, max_model_len=64, dtype=torch.float32, device=torch.device("cpu"), operators=Operators(attend_sdpa))


# ---------------------------------------------------------------- published ones

PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "gpt2": (
        {"architectures": [GPT2], "activation_function": "gelu_new", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12}
        | {"n_positions": 1024, "layer_norm_epsilon": 1e-05, "vocab_size": 50257},
        124_439_808,
    ),
    "gpt2-xl": (
        {"architectures": [GPT2], "activation_function": "gelu_new", "n_embd": 1600, "n_head": 25, "n_layer": 48, "n_positions": 1024}
        | {"layer_norm_epsilon": 1e-05, "vocab_size": 50257},
        1_557_611_200,
    ),
    "Mistral-7B-v0.1": (
        {"architectures": [MISTRAL], "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32}
        | {"max_position_embeddings": 32768, "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05}
        | {"rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False, "vocab_size": 32000},
        7_241_732_096,
    ),
    "Mistral-Nemo": (
        {"architectures": [MISTRAL], "hidden_act": "silu", "hidden_size": 5120, "intermediate_size": 14336, "num_attention_heads": 32}
        | {"head_dim": 128, "max_position_embeddings": 131072, "num_hidden_layers": 40, "num_key_value_heads": 8, "rms_norm_eps": 1e-05}
        | {"rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": False, "vocab_size": 131072},
        12_247_782_400,
    ),
    "Qwen2.5-0.5B": (
        {"architectures": [QWEN2], "hidden_act": "silu", "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14}
        | {"max_position_embeddings": 32768, "max_window_layers": 24, "num_hidden_layers": 24, "num_key_value_heads": 2}
        | {"rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True}
        | {"use_sliding_window": False, "vocab_size": 151936},
        494_032_768,
    ),
    "Qwen3-0.6B": (
        {"architectures": [QWEN3], "attention_bias": False, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024}
        | {"intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28, "num_attention_heads": 16}
        | {"num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000}
        | {"sliding_window": None, "tie_word_embeddings": True, "use_sliding_window": False, "vocab_size": 151936},
        596_049_920,
    ),
    "Llama-3.2-1B": (
        {"architectures": [LLAMA], "attention_bias": False, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048}
        | {"intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False, "num_attention_heads": 32}
        | {"num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_theta": 500000.0}
        | {"rope_scaling": {**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 8192}, "tie_word_embeddings": True}
        | {"vocab_size": 128256},
        1_235_814_400,
    ),
}
"""As their folders say it, with the parameters that their pages name."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_has_the_parameters_it_is_known_for(name: str):
    raw, parameters = PUBLISHED[name]
    assert footprint_of(raw).parameters == parameters


@pytest.mark.parametrize(
    ("raw", "windows"),
    [
        (PUBLISHED["Mistral-7B-v0.1"][0], (4096,) * 32),
        (PUBLISHED["Mistral-Nemo"][0], (None,) * 40),
        (PUBLISHED["Qwen2.5-0.5B"][0], (None,) * 24),
        (PUBLISHED["Qwen3-0.6B"][0], (None,) * 28),
        (PUBLISHED["Llama-3.2-1B"][0], (None,) * 16),
        (raw_config(LLAMA, sliding_window=20), (None, None)),
        (raw_config(MISTRAL, sliding_window=20), (20, 20)),
        (raw_config(MISTRAL, sliding_window=256), (None, None)),
        (raw_config(MISTRAL, max_position_embeddings=8192), (4096, 4096)),
        (raw_config(QWEN2, sliding_window=20), (None, None)),
        (raw_config(QWEN2, sliding_window=20, use_sliding_window=True), (None, None)),
        (raw_config(QWEN2, sliding_window=20, use_sliding_window=True, max_window_layers=0), (20, 20)),
        (raw_config(QWEN3, sliding_window=20, use_sliding_window=True, max_window_layers=1), (None, 20)),
        (raw_config(QWEN3, sliding_window=None, use_sliding_window=True, max_window_layers=0), (None, None)),
        (
            raw_config(QWEN3, sliding_window=20, use_sliding_window=True, layer_types=["sliding_attention", "full_attention"]),
            (20, None),
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_windows_are_those_that_transformers_reads(raw: dict[str, Any], windows: tuple[int | None, ...]):
    assert LlamaConfig.parse(raw).windows == windows


def test_the_head_size_of_qwen3_is_128_when_nothing_is_said():
    assert LlamaConfig.parse(raw_config(QWEN3)).head_dim == 128
    assert LlamaConfig.parse(raw_config(QWEN2)).head_dim == 16


def test_rope_of_old_and_new_transformers_reads_the_same():
    old = LlamaConfig.parse(raw_config(LLAMA, rope_theta=500.0, rope_scaling={**LLAMA3, "type": "llama3"}))
    new = LlamaConfig.parse(raw_config(LLAMA, rope_parameters=LLAMA3))
    assert old.rope == new.rope == LLAMA3
    ancient = LlamaConfig.parse(raw_config(LLAMA, rope_theta=500.0, rope_scaling={"type": "linear", "factor": 2.0}))
    assert ancient.rope == {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
    plain = LlamaConfig.parse(raw_config(LLAMA, rope_theta=300.0, rope_scaling=None))
    assert (plain.rope["rope_theta"], plain.rope["rope_type"]) == (300.0, "default")


def test_gpt2_says_its_sizes_in_names_of_its_own():
    config = GPT2Config.parse(raw_config(GPT2, n_inner=None))
    assert (config.hidden, config.heads, config.head_dim, config.intermediate, config.max_position) == (64, 4, 16, 256, 256)
    assert config.tied


# ---------------------------------------------------------------- refused, broken


@pytest.mark.parametrize(
    ("architecture", "differences", "sentence"),
    [
        (LLAMA, {"hidden_act": "gelu"}, "LlamaForCausalLM with hidden_act 'gelu' is not supported; only 'silu' is"),
        (QWEN2, {"hidden_act": "gelu"}, "Qwen2ForCausalLM with hidden_act 'gelu' is not supported"),
        (LLAMA, {"pretraining_tp": 2}, "pretraining_tp 2 is not supported"),
        (LLAMA, {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_type 'yarn' is not supported"),
        (QWEN3, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type 'yarn' is not supported"),
        (MISTRAL, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic' is not supported"),
        (LLAMA, {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5 is not supported"),
        (
            QWEN3,
            {"rope_parameters": {"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "default"}}},
            r"Qwen3ForCausalLM with rope_parameters by kind of layer \(full_attention, sliding_attention\) is not supported",
        ),
        (MISTRAL, {"layer_types": ["sliding_attention", "full_attention"]}, "MistralForCausalLM with layer_types .* only null is"),
        (QWEN2, {"layer_types": ["full_attention", "chunked_attention"]}, "Qwen2ForCausalLM with 'chunked_attention' in layer_types"),
        (GPT2, {"activation_function": "gelu"}, "GPT2LMHeadModel with activation_function 'gelu' is not supported; only 'gelu_new' or"),
        (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "GPT2LMHeadModel with scale_attn_by_inverse_layer_idx True"),
        (GPT2, {"reorder_and_upcast_attn": True}, "GPT2LMHeadModel with reorder_and_upcast_attn True is not supported; only False is"),
        (GPT2, {"add_cross_attention": True}, "GPT2LMHeadModel with add_cross_attention True"),
        (GPT2, {"scale_attn_weights": False}, "GPT2LMHeadModel with scale_attn_weights False is not supported; only True is"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_would_be_computed_wrongly_is_refused_by_name(architecture: str, differences: dict[str, Any], sentence: str):
    with pytest.raises(UnsupportedModel, match=sentence):
        build(raw_config(architecture, **differences))


@pytest.mark.parametrize(
    ("architecture", "differences", "sentence"),
    [
        (LLAMA, {"hidden_size": None}, "hidden_size must be a positive integer, it is None"),
        (LLAMA, {"vocab_size": "many"}, "vocab_size must be a positive integer"),
        (QWEN2, {"num_key_value_heads": 3}, "not a multiple of num_key_value_heads 3"),
        (QWEN3, {"head_dim": 15}, "head_dim 15 is odd"),
        (LLAMA, {"rope_parameters": {"rope_type": "linear"}}, "rope_parameters.factor must be a number"),
        (LLAMA, {"rms_norm_eps": "small"}, "rms_norm_eps must be a positive number, it is 'small'"),
        (LLAMA, {"attention_bias": "no"}, "attention_bias must be true or false, it is 'no'"),
        (MISTRAL, {"sliding_window": 0}, "sliding_window must be a positive integer, it is 0"),
        (QWEN2, {"use_sliding_window": True, "max_window_layers": -1}, "max_window_layers must be an integer of at least 0, it is -1"),
        (QWEN2, {"layer_types": ["full_attention"]}, "layer_types must have one entry for each of the 2 layers"),
        (QWEN2, {"layer_types": ["full_attention", "sliding_attention"]}, "use_sliding_window and sliding_window give no window"),
        (GPT2, {"n_head": 5}, "n_embd 64 is not a multiple of n_head 5"),
        (GPT2, {"n_positions": None}, "n_positions must be a positive integer, it is None"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_broken_config_is_refused_naming_the_field(architecture: str, differences: dict[str, Any], sentence: str):
    with pytest.raises(ModelError, match=sentence):
        build(raw_config(architecture, **differences))
