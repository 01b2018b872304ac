"""GPT-2: pre-norm blocks of plain multi-head attention, learned positions, a GELU feed-forward, and a head that is the embedding.

Owns the parameters and the order of operations of one architecture. Its checkpoints hold the matrices of each block transposed, [in, out]:
they are copied into transposed views of ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pagoda_worker.errors import ModelError
from pagoda_worker.layers.attention import AttentionBatch, AttentionShape
from pagoda_worker.layers.linear import Linear
from pagoda_worker.layers.norm import layer_norm
from pagoda_worker.layers.operators import Operators
from pagoda_worker.models.base import AdaptableLinear, CacheShape, Footprint
from pagoda_worker.models.config_fields import ConfigFields

IGNORED_SUFFIXES = (".attn.bias", ".attn.masked_bias")
"""Not parameters: old checkpoints store their causal mask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GPT2Config:
    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocab: int
    eps: float
    max_position: int
    tied: bool

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "GPT2Config":
        """Raises ModelError for what is missing, UnsupportedModel for what the engine would compute wrongly."""
        fields = ConfigFields(raw)
        fields.only("activation_function", "gelu_new", "gelu_pytorch_tanh")  # two names of one formula
        fields.only("scale_attn_weights", True)
        for name in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention"):
            fields.only(name, False)
        hidden, heads = fields.integer("n_embd"), fields.integer("n_head")
        if hidden % heads:
            raise ModelError(f"config.json: n_embd {hidden} is not a multiple of n_head {heads}")
        return cls(
            hidden=hidden,
            layers=fields.integer("n_layer"),
            heads=heads,
            intermediate=fields.integer("n_inner", 4 * hidden),
            vocab=fields.integer("vocab_size"),
            eps=fields.number("layer_norm_epsilon", 1e-5),
            max_position=fields.integer("n_positions"),
            tied=fields.flag("tie_word_embeddings", True),
        )

    @property
    def cache_shape(self) -> CacheShape:
        return CacheShape(layers=self.layers, kv_heads=self.heads, head_dim=self.head_dim)

    def footprint(self) -> Footprint:
        matrices = self.hidden * (4 * self.hidden + 2 * self.intermediate)
        vectors = (3 + 1 + 1) * self.hidden + self.intermediate + 4 * self.hidden  # biases, then two norms
        rows = self.vocab * (1 if self.tied else 2) + self.max_position + 2
        return Footprint(
            cache=self.cache_shape,
            parameters=self.layers * (matrices + vectors) + rows * self.hidden,
            per_step_token=8 * self.hidden + 2 * self.intermediate,
            vocab=self.vocab,
            max_position=self.max_position,
            per_adapter_rank=self.layers * (8 * self.hidden + 2 * self.intermediate),
        )


class GPT2Layer:
    """Parameters of one block. A norm is its weight and its bias."""

    __slots__ = ("attention_norm", "down", "mlp_norm", "out", "qkv", "up")

    def __init__(self, c: GPT2Config, *, dtype: torch.dtype, device: torch.device) -> None:
        def linear(rows: int, columns: int) -> Linear:
            return Linear(torch.empty(rows, columns, dtype=dtype, device=device), torch.empty(rows, dtype=dtype, device=device))

        self.attention_norm, self.mlp_norm = torch.empty(2, 2, c.hidden, dtype=dtype, device=device)
        self.qkv = linear(3 * c.hidden, c.hidden)
        self.out = linear(c.hidden, c.hidden)
        self.up = linear(c.intermediate, c.hidden)
        self.down = linear(c.hidden, c.intermediate)

    def destinations(self) -> dict[str, Tensor]:
        """Checkpoint names within this layer."""
        named: dict[str, Tensor] = {}
        for name, norm in (("ln_1", self.attention_norm), ("ln_2", self.mlp_norm)):
            named |= _norm_destinations(name, norm)
        linears = {"attn.c_attn": self.qkv, "attn.c_proj": self.out, "mlp.c_fc": self.up, "mlp.c_proj": self.down}
        for name, linear in linears.items():
            assert linear.weight is not None, "destinations are asked for before packing"
            assert linear.bias is not None, "all of them have one"
            named |= {f"{name}.weight": linear.weight.T, f"{name}.bias": linear.bias}
        return named

    def adaptable(self, c: GPT2Config, prefix: str) -> list[AdaptableLinear]:
        return [
            AdaptableLinear(self.qkv, c.hidden, {f"{prefix}attn.c_attn": 3 * c.hidden}),
            AdaptableLinear(self.out, c.hidden, {f"{prefix}attn.c_proj": c.hidden}),
            AdaptableLinear(self.up, c.hidden, {f"{prefix}mlp.c_fc": c.intermediate}),
            AdaptableLinear(self.down, c.intermediate, {f"{prefix}mlp.c_proj": c.hidden}),
        ]

    def pack(self, operators: Operators) -> None:
        for linear in (self.qkv, self.out, self.up, self.down):
            linear.pack(operators)


class GPT2:
    optional_prefix = "transformer."
    """The first checkpoints were saved without the head, hence without the name of the part below it."""

    def __init__(
        self, raw: Mapping[str, Any], *, max_model_len: int, dtype: torch.dtype, device: torch.device, operators: Operators
    ) -> None:
        c = self.config = GPT2Config.parse(raw)
        assert max_model_len <= c.max_position, "the loader has checked it: there is no vector for a later position"
        self.cache_shape = c.cache_shape
        self.vocab_size = c.vocab
        self.operators = operators
        self._attention = AttentionShape(c.head_dim**-0.5)
        self.embedding = torch.empty(c.vocab, c.hidden, dtype=dtype, device=device)
        self.position_embedding = torch.empty(c.max_position, c.hidden, dtype=dtype, device=device)
        self.head = Linear(self.embedding if c.tied else torch.empty_like(self.embedding))
        self.norm = torch.empty(2, c.hidden, dtype=dtype, device=device)
        self.layers = [GPT2Layer(c, dtype=dtype, device=device) for _ in range(c.layers)]

    @staticmethod
    def footprint(raw: Mapping[str, Any]) -> Footprint:
        return GPT2Config.parse(raw).footprint()

    def destinations(self) -> dict[str, Tensor]:
        named = {"wte.weight": self.embedding, "wpe.weight": self.position_embedding, **_norm_destinations("ln_f", self.norm)}
        if not self.config.tied:
            assert self.head.weight is not None, "destinations are asked for before packing"
            named["lm_head.weight"] = self.head.weight
        for i, layer in enumerate(self.layers):
            named |= {f"h.{i}.{name}": tensor for name, tensor in layer.destinations().items()}
        return named

    def adaptable(self) -> list[AdaptableLinear]:
        return [each for i, layer in enumerate(self.layers) for each in layer.adaptable(self.config, f"h.{i}.")]

    @property
    def ignored_suffixes(self) -> tuple[str, ...]:
        """Tensors that a checkpoint may hold and the model does not read."""
        return (*IGNORED_SUFFIXES, "lm_head.weight") if self.config.tied else IGNORED_SUFFIXES

    def pack(self) -> None:
        self.head.pack(self.operators)
        for layer in self.layers:
            layer.pack(self.operators)

    def forward(self, ids: Tensor, positions: Tensor, caches: list[Tensor], batch: AttentionBatch) -> Tensor:
        c = self.config
        residual = F.embedding(ids, self.embedding) + F.embedding(positions, self.position_embedding)
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer_norm(residual, layer.attention_norm, c.eps)
            heads = layer.qkv(x).view(len(ids), -1, c.head_dim)
            self.operators.store(heads[:, c.heads :], cache, batch)
            x = self.operators.attend(heads[:, : c.heads], heads[:, c.heads :], cache, batch, self._attention)
            residual = layer.out.add(x, residual)
            x = layer_norm(residual, layer.mlp_norm, c.eps)
            residual = layer.down.add(F.gelu(layer.up(x), approximate="tanh"), residual)
        return layer_norm(residual, self.norm, c.eps)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)


def _norm_destinations(name: str, norm: Tensor) -> dict[str, Tensor]:
    weight, bias = norm
    return {f"{name}.weight": weight, f"{name}.bias": bias}
