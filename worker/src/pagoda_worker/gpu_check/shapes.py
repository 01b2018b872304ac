"""The models that the check builds, as numbers: their config.json, what one of their tokens costs, and a small one as a real checkpoint.

Knows no engine and no device. Called by the other modules of the check.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

BF16_BYTES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A Llama or, with norms of queries and keys, a Qwen3: grouped-query attention and a gated feed-forward."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool = False
    qk_norm: bool = False
    rope_theta: float = 10_000.0
    positions: int = 16_384
    dtype: str = "bfloat16"

    @property
    def matmul_parameters(self) -> int:
        """Weights that every token is multiplied with, the output head included and the embedding's look-up not."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate) + self.head_parameters

    @property
    def head_parameters(self) -> int:
        return self.vocab * self.hidden

    @property
    def kv_bytes_per_token(self) -> int:
        """In bf16."""
        return self.layers * 2 * self.kv_heads * self.head_dim * BF16_BYTES

    def config(self) -> dict[str, Any]:
        """Of a Hugging Face folder. No eos: nothing ends early."""
        return {
            "architectures": ["Qwen3ForCausalLM" if self.qk_norm else "LlamaForCausalLM"],
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.positions,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": self.tied,
            "dtype": self.dtype,
        }

    def write_config(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(self.config()))


LLAMA_8B = Shape(
    name="llama-8b",
    hidden=4096,
    layers=32,
    heads=32,
    kv_heads=8,
    head_dim=128,
    intermediate=14_336,
    vocab=128_256,
    rope_theta=500_000.0,
)
QWEN3_06B = Shape(
    name="qwen3-0.6b",
    hidden=1024,
    layers=28,
    heads=16,
    kv_heads=8,
    head_dim=128,
    intermediate=3072,
    vocab=151_936,
    tied=True,
    qk_norm=True,
    rope_theta=1_000_000.0,
)
TINY = Shape(name="tiny", hidden=128, layers=2, heads=2, kv_heads=2, head_dim=64, intermediate=256, vocab=1000)
"""For dry runs on a CPU."""


def write_checkpoint(folder: Path, shape: Shape) -> None:
    """A Hugging Face folder without a tokenizer, the same numbers on every machine. The wide spread keeps the best tokens apart, so that
    greedy tokens do not hang on rounding."""
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, shape.dtype)

    def weight(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator).mul_(1.5 * columns**-0.5).to(dtype)

    tensors = {
        "model.embed_tokens.weight": weight(shape.vocab, shape.hidden) * shape.hidden**0.5,
        "lm_head.weight": weight(shape.vocab, shape.hidden),
        "model.norm.weight": torch.ones(shape.hidden, dtype=dtype),
    }
    for i in range(shape.layers):
        sizes = {
            "self_attn.q_proj": (shape.heads * shape.head_dim, shape.hidden),
            "self_attn.k_proj": (shape.kv_heads * shape.head_dim, shape.hidden),
            "self_attn.v_proj": (shape.kv_heads * shape.head_dim, shape.hidden),
            "self_attn.o_proj": (shape.hidden, shape.heads * shape.head_dim),
            "mlp.gate_proj": (shape.intermediate, shape.hidden),
            "mlp.up_proj": (shape.intermediate, shape.hidden),
            "mlp.down_proj": (shape.hidden, shape.intermediate),
        }
        tensors |= {f"model.layers.{i}.{name}.weight": weight(*size) for name, size in sizes.items()}
        norms = {"input_layernorm": shape.hidden, "post_attention_layernorm": shape.hidden}
        norms |= {"self_attn.q_norm": shape.head_dim, "self_attn.k_norm": shape.head_dim} if shape.qk_norm else {}
        tensors |= {f"model.layers.{i}.{name}.weight": torch.ones(size, dtype=dtype) for name, size in norms.items()}
    shape.write_config(folder)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def write_adapter(folder: Path, shape: Shape, *, rank: int, seed: int) -> None:
    """A PEFT folder for queries, values and the way down: random, and strong enough to move greedy tokens."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {
        "self_attn.q_proj": (shape.heads * shape.head_dim, shape.hidden),
        "self_attn.v_proj": (shape.kv_heads * shape.head_dim, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.intermediate),
    }
    tensors = {}
    for layer in range(shape.layers):
        for name, (outputs, inputs) in sizes.items():
            module = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator).mul_(inputs**-0.5)
            tensors[f"{module}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator).mul_(0.1)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    targets = [name.rsplit(".", 1)[1] for name in sizes]
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "target_modules": targets, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
