"""Llama and its relatives (Mistral, Qwen2, Qwen3): pre-norm blocks of grouped-query attention and a gated SiLU feed-forward.

Owns the parameters and the order of operations; what the relatives differ in are fields of LlamaConfig. The projections of q, k, v and of
gate, up are stored as one matrix each: fewer, larger products. Checkpoint tensors are copied into views of those.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pagoda_worker.layers.attention import AttentionBatch, AttentionShape
from pagoda_worker.layers.linear import Linear
from pagoda_worker.layers.operators import Operators
from pagoda_worker.layers.rotary import rotary_table
from pagoda_worker.models.base import AdaptableLinear, CacheShape, Footprint
from pagoda_worker.models.llama_config import LlamaConfig

IGNORED_SUFFIXES = (".rotary_emb.inv_freq",)


class LlamaLayer:
    """Parameters of one block."""

    __slots__ = ("attention", "attention_norm", "down", "gate_up", "head_norms", "mlp_norm", "out", "qkv")

    def __init__(self, c: LlamaConfig, window: int | None, *, dtype: torch.dtype, device: torch.device) -> None:
        def linear(rows: int, columns: int, *, bias: bool, gated: bool = False) -> Linear:
            weight = torch.empty(rows, columns, dtype=dtype, device=device)
            return Linear(weight, torch.empty(rows, dtype=dtype, device=device) if bias else None, gated=gated)

        self.attention = AttentionShape(c.head_dim**-0.5, window)
        self.attention_norm, self.mlp_norm = torch.empty(2, c.hidden, dtype=dtype, device=device)
        self.head_norms: tuple[Tensor, Tensor] | None = None
        """Of queries and of keys."""
        if c.qk_norm:
            self.head_norms = (torch.empty(c.head_dim, dtype=dtype, device=device), torch.empty(c.head_dim, dtype=dtype, device=device))
        self.qkv = linear((c.heads + 2 * c.kv_heads) * c.head_dim, c.hidden, bias=c.qkv_bias)
        self.out = linear(c.hidden, c.heads * c.head_dim, bias=c.out_bias)
        self.gate_up = linear(2 * c.intermediate, c.hidden, bias=c.mlp_bias, gated=True)
        self.down = linear(c.hidden, c.intermediate, bias=c.mlp_bias)

    def destinations(self, c: LlamaConfig) -> dict[str, Tensor]:
        """Checkpoint names within this layer."""
        named = {"input_layernorm.weight": self.attention_norm, "post_attention_layernorm.weight": self.mlp_norm}
        split_qkv = [c.heads * c.head_dim, c.kv_heads * c.head_dim, c.kv_heads * c.head_dim]
        for kind in ("weight", "bias"):
            qkv, out, gate_up, down = (getattr(linear, kind) for linear in (self.qkv, self.out, self.gate_up, self.down))
            if qkv is not None:
                named |= {f"self_attn.{name}_proj.{kind}": part for name, part in zip("qkv", torch.split(qkv, split_qkv), strict=True)}
            if out is not None:
                named[f"self_attn.o_proj.{kind}"] = out
            if gate_up is not None:
                gate, up = torch.split(gate_up, c.intermediate)
                named |= {f"mlp.gate_proj.{kind}": gate, f"mlp.up_proj.{kind}": up, f"mlp.down_proj.{kind}": down}
        if self.head_norms is not None:
            named |= dict(zip(("self_attn.q_norm.weight", "self_attn.k_norm.weight"), self.head_norms, strict=True))
        return named

    def adaptable(self, c: LlamaConfig, prefix: str) -> list[AdaptableLinear]:
        kv = c.kv_heads * c.head_dim
        return [
            AdaptableLinear(linear, size, {prefix + name: columns for name, columns in parts.items()})
            for linear, size, parts in (
                (self.qkv, c.hidden, {"self_attn.q_proj": c.heads * c.head_dim, "self_attn.k_proj": kv, "self_attn.v_proj": kv}),
                (self.out, c.heads * c.head_dim, {"self_attn.o_proj": c.hidden}),
                (self.gate_up, c.hidden, {"mlp.gate_proj": c.intermediate, "mlp.up_proj": c.intermediate}),
                (self.down, c.intermediate, {"mlp.down_proj": c.hidden}),
            )
        ]

    def pack(self, operators: Operators) -> None:
        for linear in (self.qkv, self.out, self.gate_up, self.down):
            linear.pack(operators)


class Llama:
    optional_prefix = ""

    def __init__(
        self, raw: Mapping[str, Any], *, max_model_len: int, dtype: torch.dtype, device: torch.device, operators: Operators
    ) -> None:
        c = self.config = LlamaConfig.parse(raw)
        self.cache_shape = CacheShape(layers=c.layers, kv_heads=c.kv_heads, head_dim=c.head_dim)
        self.vocab_size = c.vocab
        self.operators = operators
        # first: a scaling that it refuses must not cost the allocation of the weights
        self.rotary = rotary_table(c.head_dim, max_model_len, c.rope, max_position=c.max_position, dtype=dtype, device=device)
        self.embedding = torch.empty(c.vocab, c.hidden, dtype=dtype, device=device)
        self.head = Linear(self.embedding if c.tied else torch.empty_like(self.embedding))
        self.norm = torch.empty(c.hidden, dtype=dtype, device=device)
        self.layers = [LlamaLayer(c, window, dtype=dtype, device=device) for window in c.windows]

    @staticmethod
    def footprint(raw: Mapping[str, Any]) -> Footprint:
        return LlamaConfig.parse(raw).footprint()

    def destinations(self) -> dict[str, Tensor]:
        named = {"model.embed_tokens.weight": self.embedding, "model.norm.weight": self.norm}
        if not self.config.tied:
            assert self.head.weight is not None, "destinations are asked for before packing"
            named["lm_head.weight"] = self.head.weight
        for i, layer in enumerate(self.layers):
            named |= {f"model.layers.{i}.{name}": tensor for name, tensor in layer.destinations(self.config).items()}
        return named

    def adaptable(self) -> list[AdaptableLinear]:
        return [each for i, layer in enumerate(self.layers) for each in layer.adaptable(self.config, f"model.layers.{i}.")]

    @property
    def ignored_suffixes(self) -> tuple[str, ...]:
        """Tensors that a checkpoint may hold and the model does not read."""
        return (*IGNORED_SUFFIXES, "lm_head.weight") if self.config.tied else IGNORED_SUFFIXES

    def pack(self) -> None:
        self.head.pack(self.operators)
        for layer in self.layers:
            layer.pack(self.operators)

    def forward(self, ids: Tensor, positions: Tensor, caches: list[Tensor], batch: AttentionBatch) -> Tensor:
        c, ops = self.config, self.operators
        rotation = self.rotary.at(positions)
        residual = F.embedding(ids, self.embedding)
        x = ops.rms_norm(residual, self.layers[0].attention_norm, c.eps)
        next_norms = [*(layer.attention_norm for layer in self.layers[1:]), self.norm]
        for layer, cache, next_norm in zip(self.layers, caches, next_norms, strict=True):
            heads = layer.qkv(x).view(len(ids), -1, c.head_dim)
            ops.rotate_and_store(heads, rotation, cache, batch, layer.head_norms, c.eps)
            x = ops.attend(heads[:, : c.heads], heads[:, c.heads :], cache, batch, layer.attention)
            residual, x = ops.add_and_norm(layer.out, x, residual, layer.mlp_norm, c.eps)
            residual, x = ops.add_and_norm(layer.down, ops.silu_mul(layer.gate_up, x), residual, next_norm, c.eps)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)
