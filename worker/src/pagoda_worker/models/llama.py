"""Llama: pre-norm blocks of grouped-query attention and a gated SiLU feed-forward.

Owns the parameters and the order of operations of one architecture. The projections of q, k, v and of gate, up are stored as one matrix
each: fewer, larger products. Checkpoint tensors are copied into views of those.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pagoda_worker.errors import ModelError, UnsupportedModel
from pagoda_worker.layers.attention import AttentionBatch, AttentionShape
from pagoda_worker.layers.linear import Linear
from pagoda_worker.layers.operators import Operators
from pagoda_worker.layers.rotary import rotary_table
from pagoda_worker.models.base import CacheShape, Footprint

IGNORED_SUFFIXES = (".rotary_emb.inv_freq",)


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    eps: float
    max_position: int
    tied: bool
    attention_bias: bool
    mlp_bias: bool
    rope: dict[str, Any]

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "LlamaConfig":
        """Raises ModelError for what is missing, UnsupportedModel for what the engine would compute wrongly."""
        _refuse(raw, "hidden_act", "silu")
        _refuse(raw, "pretraining_tp", 1)
        hidden, heads = _integer(raw, "hidden_size"), _integer(raw, "num_attention_heads")
        config = cls(
            hidden=hidden,
            layers=_integer(raw, "num_hidden_layers"),
            heads=heads,
            kv_heads=_integer(raw, "num_key_value_heads", heads),
            head_dim=_integer(raw, "head_dim", hidden // heads),
            intermediate=_integer(raw, "intermediate_size"),
            vocab=_integer(raw, "vocab_size"),
            eps=float(raw.get("rms_norm_eps", 1e-6)),
            max_position=_integer(raw, "max_position_embeddings"),
            tied=bool(raw.get("tie_word_embeddings", False)),
            attention_bias=bool(raw.get("attention_bias", False)),
            mlp_bias=bool(raw.get("mlp_bias", False)),
            rope=_rope(raw),
        )
        if config.heads % config.kv_heads:
            raise ModelError(f"config.json: num_attention_heads {heads} is not a multiple of num_key_value_heads {config.kv_heads}")
        if config.head_dim % 2:
            raise ModelError(f"config.json: head_dim {config.head_dim} is odd; rotary embedding needs pairs")
        return config


def _integer(raw: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = raw.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"config.json: {name} must be a positive integer, it is {value!r}")
    return value


def _refuse(raw: Mapping[str, Any], name: str, only: object) -> None:
    value = raw.get(name)
    if value is not None and value != only:
        raise UnsupportedModel(f"LlamaForCausalLM with {name} {value!r} is not supported; only {only!r} is")


def _rope(raw: Mapping[str, Any]) -> dict[str, Any]:
    """transformers 5 writes rope_parameters; before, rope_theta and rope_scaling (whose key was once `type`)."""
    parameters = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    parameters.setdefault("rope_type", parameters.pop("type", "default"))
    if parameters.get("rope_theta") is None:
        parameters["rope_theta"] = raw.get("rope_theta") or 10_000.0
    partial = parameters.get("partial_rotary_factor", raw.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise UnsupportedModel(f"LlamaForCausalLM with partial_rotary_factor {partial!r} is not supported; only 1.0 is")
    return parameters


class LlamaLayer:
    """Parameters of one block."""

    __slots__ = ("attention_norm", "down", "gate_up", "mlp_norm", "out", "qkv")

    def __init__(self, c: LlamaConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        def linear(rows: int, columns: int, *, bias: bool, gated: bool = False) -> Linear:
            weight = torch.empty(rows, columns, dtype=dtype, device=device)
            return Linear(weight, torch.empty(rows, dtype=dtype, device=device) if bias else None, gated=gated)

        self.attention_norm, self.mlp_norm = torch.empty(2, c.hidden, dtype=dtype, device=device)
        self.qkv = linear((c.heads + 2 * c.kv_heads) * c.head_dim, c.hidden, bias=c.attention_bias)
        self.out = linear(c.hidden, c.heads * c.head_dim, bias=c.attention_bias)
        self.gate_up = linear(2 * c.intermediate, c.hidden, bias=c.mlp_bias, gated=True)
        self.down = linear(c.hidden, c.intermediate, bias=c.mlp_bias)

    def destinations(self, c: LlamaConfig) -> dict[str, Tensor]:
        """Checkpoint names within this layer."""
        named = {"input_layernorm.weight": self.attention_norm, "post_attention_layernorm.weight": self.mlp_norm}
        split_qkv = [c.heads * c.head_dim, c.kv_heads * c.head_dim, c.kv_heads * c.head_dim]
        for kind in ("weight", "bias"):
            qkv, out, gate_up, down = (getattr(linear, kind) for linear in (self.qkv, self.out, self.gate_up, self.down))
            if qkv is not None:
                q, k, v = torch.split(qkv, split_qkv)
                named |= {f"self_attn.{name}_proj.{kind}": part for name, part in zip("qkvo", (q, k, v, out), strict=True)}
            if gate_up is not None:
                gate, up = torch.split(gate_up, c.intermediate)
                named |= {f"mlp.gate_proj.{kind}": gate, f"mlp.up_proj.{kind}": up, f"mlp.down_proj.{kind}": down}
        return named

    def pack(self, operators: Operators) -> None:
        for linear in (self.qkv, self.out, self.gate_up, self.down):
            linear.pack(operators)


class Llama:
    def __init__(
        self, raw: Mapping[str, Any], *, max_model_len: int, dtype: torch.dtype, device: torch.device, operators: Operators
    ) -> None:
        c = self.config = LlamaConfig.parse(raw)
        self.cache_shape = CacheShape(layers=c.layers, kv_heads=c.kv_heads, head_dim=c.head_dim)
        self.vocab_size = c.vocab
        self.max_position = c.max_position
        self.operators = operators
        self.embedding = torch.empty(c.vocab, c.hidden, dtype=dtype, device=device)
        self.head = Linear(self.embedding if c.tied else torch.empty_like(self.embedding))
        self.norm = torch.empty(c.hidden, dtype=dtype, device=device)
        self.layers = [LlamaLayer(c, dtype=dtype, device=device) for _ in range(c.layers)]
        self.rotary = rotary_table(c.head_dim, max_model_len, c.rope, max_position=c.max_position, dtype=dtype, device=device)

    @staticmethod
    def footprint(raw: Mapping[str, Any]) -> Footprint:
        c = LlamaConfig.parse(raw)
        attention = (2 * c.heads + 2 * c.kv_heads) * c.head_dim
        biases = c.attention_bias * (attention - c.heads * c.head_dim + c.hidden) + c.mlp_bias * (2 * c.intermediate + c.hidden)
        layer = c.hidden * (attention + 3 * c.intermediate + 2) + biases
        return Footprint(
            cache=CacheShape(layers=c.layers, kv_heads=c.kv_heads, head_dim=c.head_dim),
            parameters=c.layers * layer + c.hidden * (1 + c.vocab * (1 if c.tied else 2)),
            per_step_token=4 * c.hidden + attention + 3 * c.intermediate,
            vocab=c.vocab,
        )

    def destinations(self) -> dict[str, Tensor]:
        named = {"model.embed_tokens.weight": self.embedding, "model.norm.weight": self.norm}
        if not self.config.tied:
            assert self.head.weight is not None, "destinations are asked for before packing"
            named["lm_head.weight"] = self.head.weight
        for i, layer in enumerate(self.layers):
            named |= {f"model.layers.{i}.{name}": tensor for name, tensor in layer.destinations(self.config).items()}
        return named

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
        shape = AttentionShape(c.head_dim**-0.5)
        rotation = self.rotary.at(positions)
        residual = F.embedding(ids, self.embedding)
        for layer, cache in zip(self.layers, caches, strict=True):
            x = ops.rms_norm(residual, layer.attention_norm, c.eps)
            heads = layer.qkv(x).view(len(ids), -1, c.head_dim)
            ops.rotate_and_store(heads, rotation, cache, batch)
            x = ops.attend(heads[:, : c.heads], heads[:, c.heads :], cache, batch, shape)
            residual = layer.out.add(x, residual)
            x = ops.rms_norm(residual, layer.mlp_norm, c.eps)
            residual = layer.down.add(layer.gate_up.silu_mul(x), residual)
        return ops.rms_norm(residual, self.norm, c.eps)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)
