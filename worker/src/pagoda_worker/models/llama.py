"""Llama and its relatives (Mistral, Qwen2, Qwen3): pre-norm blocks of grouped-query attention and a gated SiLU feed-forward.

Owns the parameters and the order of operations; what the relatives differ in are fields of LlamaConfig. The projections of q, k, v and of
gate, up are stored as one matrix each: fewer, larger products. Checkpoint tensors are copied into views of those. A rank of a tensor
parallel engine is the same model with fewer heads, feed-forward columns and rows of the vocabulary; `parts` says which.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pagoda_worker.layers.attention import AttentionBatch, AttentionShape
from pagoda_worker.layers.linear import Linear
from pagoda_worker.layers.operators import Operators
from pagoda_worker.layers.parallel import Collectives, Part, Vocabulary, row_parallel
from pagoda_worker.layers.rotary import rotary_table
from pagoda_worker.models.base import CacheShape, Footprint, FusedLinear
from pagoda_worker.models.llama_config import LlamaConfig

IGNORED_SUFFIXES = (".rotary_emb.inv_freq",)


class LlamaLayer:
    """Parameters of one block."""

    __slots__ = ("attention", "attention_norm", "down", "gate_up", "head_norms", "mlp_norm", "out", "qkv")

    def __init__(
        self,
        c: LlamaConfig,
        window: int | None,
        collectives: Collectives,
        *,
        dtype: torch.dtype,
        device: torch.device,
        weights: torch.device,
    ) -> None:
        def empty(rows: int, columns: int, *, bias: bool) -> tuple[Tensor, Tensor | None]:
            weight = torch.empty(rows, columns, dtype=dtype, device=weights)
            return weight, torch.empty(rows, dtype=dtype, device=device) if bias else None

        self.attention = AttentionShape(c.head_dim**-0.5, window)
        self.attention_norm, self.mlp_norm = torch.empty(2, c.hidden, dtype=dtype, device=device)
        self.head_norms: tuple[Tensor, Tensor] | None = None
        """Of queries and of keys."""
        if c.qk_norm:
            self.head_norms = (torch.empty(c.head_dim, dtype=dtype, device=device), torch.empty(c.head_dim, dtype=dtype, device=device))
        self.qkv = Linear(*empty((c.heads + 2 * c.kv_heads) * c.head_dim, c.hidden, bias=c.qkv_bias))
        self.out = row_parallel(collectives, *empty(c.hidden, c.heads * c.head_dim, bias=c.out_bias))
        self.gate_up = Linear(*empty(2 * c.intermediate, c.hidden, bias=c.mlp_bias), gated=True)
        self.down = row_parallel(collectives, *empty(c.hidden, c.intermediate, bias=c.mlp_bias))

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

    def linears(self, c: LlamaConfig, prefix: str) -> list[FusedLinear]:
        q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
        qkv = ((f"{attention}q_proj", q), (f"{attention}k_proj", kv), (f"{attention}v_proj", kv))
        gate_up = ((f"{mlp}gate_proj", c.intermediate), (f"{mlp}up_proj", c.intermediate))
        return [
            FusedLinear(linear=self.qkv, modules=qkv, inputs=c.hidden),
            FusedLinear(linear=self.out, modules=((f"{attention}o_proj", c.hidden),), inputs=q),
            FusedLinear(linear=self.gate_up, modules=gate_up, inputs=c.hidden),
            FusedLinear(linear=self.down, modules=((f"{mlp}down_proj", c.hidden),), inputs=c.intermediate),
        ]

    def pack(self, operators: Operators) -> None:
        for linear in (self.qkv, self.out, self.gate_up, self.down):
            linear.pack(operators)


class Llama:
    optional_prefix = ""

    def __init__(
        self,
        raw: Mapping[str, Any],
        *,
        max_model_len: int,
        dtype: torch.dtype,
        device: torch.device,
        operators: Operators,
        deferred: bool = False,
    ) -> None:
        """`deferred`: the linears' weights have shapes but no memory until they are read, because they may come quantized."""
        whole, collectives = LlamaConfig.parse(raw), operators.collectives
        c = self.config = whole.of_rank(collectives.size)
        self._parts = _parts(whole, collectives)
        self._vocabulary = Vocabulary(c.vocab, collectives)
        self.cache_shape = CacheShape(layers=c.layers, kv_heads=c.kv_heads, head_dim=c.head_dim)
        self.vocab_size = c.vocab
        self.operators = operators
        # first: a scaling that it refuses must not cost the allocation of the weights
        self.rotary = rotary_table(c.head_dim, max_model_len, c.rope, max_position=c.max_position, dtype=dtype, device=device)
        self.embedding = torch.empty(self._vocabulary.rows, c.hidden, dtype=dtype, device=device)
        weights = torch.device("meta") if deferred else device
        self.head = Linear(self.embedding if c.tied else torch.empty_like(self.embedding, device=weights))
        self.norm = torch.empty(c.hidden, dtype=dtype, device=device)
        self.layers = [LlamaLayer(c, window, collectives, dtype=dtype, device=device, weights=weights) for window in c.windows]

    @staticmethod
    def footprint(raw: Mapping[str, Any], ranks: int = 1) -> Footprint:
        return LlamaConfig.parse(raw).footprint(ranks)

    def destinations(self) -> dict[str, Tensor]:
        named = {"model.embed_tokens.weight": self.embedding, "model.norm.weight": self.norm}
        if not self.config.tied:
            assert isinstance(self.head.weight, Tensor), "destinations are asked for before packing"
            named["lm_head.weight"] = self.head.weight
        for i, layer in enumerate(self.layers):
            named |= {f"model.layers.{i}.{name}": tensor for name, tensor in layer.destinations(self.config).items()}
        return named

    def linears(self) -> list[FusedLinear]:
        c = self.config
        head = [] if c.tied else [FusedLinear(linear=self.head, modules=(("lm_head", self._vocabulary.rows),), inputs=c.hidden)]
        layers = [each for i, layer in enumerate(self.layers) for each in layer.linears(c, f"model.layers.{i}.")]
        return layers + head

    def parts(self) -> dict[str, Part]:
        if not self._parts:
            return {}
        tables = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), self._vocabulary.part)
        return tables | {f"model.layers.{i}.{name}": part for i in range(self.config.layers) for name, part in self._parts.items()}

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
        residual = self._vocabulary.embed(ids, self.embedding)
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
        return self._vocabulary.gather(self.head(hidden))


def _parts(whole: LlamaConfig, collectives: Collectives) -> dict[str, Part]:
    """Of each layer, by checkpoint names within it. What is not named is whole on every rank."""
    rank, size = collectives.rank, collectives.size
    if size == 1:
        return {}
    queries = Part.of(0, whole.heads * whole.head_dim, rank, size)
    keys = Part.heads(0, whole.kv_heads, whole.head_dim, rank, size)
    columns = Part.of(0, whole.intermediate, rank, size)
    named = {"self_attn.q_proj": queries, "self_attn.k_proj": keys, "self_attn.v_proj": keys}
    named |= {"mlp.gate_proj": columns, "mlp.up_proj": columns}
    both = {f"{name}.{kind}": part for name, part in named.items() for kind in ("weight", "bias")}
    rows = {"self_attn.o_proj.weight": replace(queries, dim=1), "mlp.down_proj.weight": replace(columns, dim=1)}
    return both | rows
