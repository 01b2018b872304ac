"""A GGUF file's metadata → the config.json that transformers would have, and its tensors' names → those of that checkpoint. Pure.

Names and keys are llama.cpp's (gguf-py/gguf/constants.py). What llama.cpp stores otherwise than transformers is named here: Llama's queries
and keys, whose rows it turns from halves to pairs.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pagoda_worker.errors import ModelError, UnsupportedModel
from pagoda_worker.models.formats.gguf_file import GgufFile

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
LLAMA3_FACTORS = (8.0, 32.0)
"""Of Llama 3.1 and 3.2: the file has only what follows from them."""
ROPE_FACTORS = "rope_freqs.weight"
_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def config_of(file: GgufFile) -> dict[str, Any]:
    """Raises ModelError, UnsupportedModel."""
    known = _Metadata(file)
    kind = known.whole("general.architecture")
    if kind not in ARCHITECTURES:
        raise UnsupportedModel(f"{file.path}: architecture {kind!r} is not supported in GGUF; {', '.join(ARCHITECTURES)} are")
    if known.get("split.count", 1) != 1:
        raise UnsupportedModel(
            f"{file.path}: it is one of {known.get('split.count', 1)} parts; merge them first with llama-gguf-split --merge"
        )
    if known.of("expert_count", 0):
        raise UnsupportedModel(f"{file.path}: a mixture of experts is not supported")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelError(f"{file.path}: tensor 'token_embd.weight' is missing")
    heads = known.number("attention.head_count")
    head_dim = known.of("attention.key_length", known.number("embedding_length") // heads)
    config = {
        "architectures": [ARCHITECTURES[kind]],
        "hidden_size": known.number("embedding_length"),
        "num_hidden_layers": known.number("block_count"),
        "intermediate_size": known.number("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": known.of("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": known.number("context_length"),
        "vocab_size": embedding.shape[0],
        "rms_norm_eps": known.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": {**_rope(known), "rope_theta": known.of("rope.freq_base", 10_000.0)},
        "partial_rotary_factor": known.of("rope.dimension_count", head_dim) / head_dim,
        "dtype": "bfloat16",
    }
    if kind == "llama":  # Qwen's biases follow from its name
        config |= {"attention_bias": "blk.0.attn_output.bias" in file.tensors, "mlp_bias": "blk.0.ffn_up.bias" in file.tensors}
    for name in ("eos", "bos"):
        config[f"{name}_token_id"] = known.get(f"tokenizer.ggml.{name}_token_id", None)
    return config


class _Metadata:
    def __init__(self, file: GgufFile) -> None:
        self._file, self.prefix = file, f"{file.metadata.get('general.architecture')}."

    def get(self, name: str, default: Any) -> Any:
        return self._file.metadata.get(name, default)

    def of(self, name: str, default: Any) -> Any:
        """Of the architecture."""
        return self.get(self.prefix + name, default)

    def whole(self, name: str) -> Any:
        if name not in self._file.metadata:
            raise ModelError(f"{self._file.path}: its metadata has no {name}")
        return self._file.metadata[name]

    def number(self, name: str) -> Any:
        return self.whole(self.prefix + name)


def _rope(known: _Metadata) -> dict[str, Any]:
    kind = known.of("rope.scaling.type", "none")
    if kind == "none":
        return {"rope_type": "default"}
    return {"rope_type": kind, "factor": known.of("rope.scaling.factor", None)}


def llama3_rope(factors: Tensor, theta: float, file: GgufFile) -> dict[str, Any]:
    """The scaling of Llama 3.1 and 3.2, whose effect the file has, [D / 2]: what each frequency is divided by. Raises UnsupportedModel."""
    inverse = theta ** -(torch.arange(0, 2 * len(factors), 2, dtype=torch.int64).float() / (2 * len(factors)))
    for factor in LLAMA3_FACTORS:
        low, high, old = 1.0, 4.0, 8192
        blend = ((old * inverse / (2 * torch.pi) - low) / (high - low)).clamp(0, 1)
        if torch.allclose(1 / ((1 - blend) / factor + blend), factors, rtol=1e-3):
            names = ("rope_type", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
            return dict(zip(names, ("llama3", factor, low, high, old), strict=True))
    raise UnsupportedModel(f"{file.path}: tensor {ROPE_FACTORS!r} scales rotary frequencies as no Llama 3 does; only theirs is supported")


def checkpoint_name(name: str) -> str | None:
    """None: a tensor that transformers has not."""
    if found := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name):
        layer, part, kind = found.groups()
        return f"model.layers.{layer}.{_IN_BLOCK[part]}.{kind}" if part in _IN_BLOCK else None
    stem, _, kind = name.rpartition(".")
    return f"{_WHOLE[stem]}.{kind}" if stem in _WHOLE and kind in ("weight", "bias") else None


def turned_heads(name: str, config: Mapping[str, Any]) -> int:
    """How many heads of rows llama.cpp has turned in tensor `name` (its own name); 0: none."""
    if config["architectures"] != ["LlamaForCausalLM"]:
        return 0
    part = name.split(".")[-2]
    return int({"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}.get(part, 0))


def turned_back(rows: Tensor, heads: int) -> Tensor:
    """[heads * D, …] with each head's rows in pairs (i, i + D / 2) → in halves, as transformers has them."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
