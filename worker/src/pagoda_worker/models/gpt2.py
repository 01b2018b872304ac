"""GPT-2: pre-norm blocks of plain multi-head attention, learned positions, a GELU feed-forward, and a head that is the embedding.

Owns the parameters and the order of operations of one architecture. Its checkpoints hold the matrices of each block transposed, [in, out]:
they are copied into transposed views of ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pagoda_worker.errors import ModelError
from pagoda_worker.layers.attention import AttentionBatch, AttentionShape
from pagoda_worker.layers.linear import Linear
from pagoda_worker.layers.norm import layer_norm
from pagoda_worker.layers.operators import Operators
from pagoda_worker.layers.parallel import Collectives, HeadShare, Part, Vocabulary, columns_of_rank, row_parallel, rows_of_rank
from pagoda_worker.models.base import CacheShape, Footprint, FusedLinear
from pagoda_worker.models.config_fields import ConfigFields

IGNORED_SUFFIXES = (".attn.bias", ".attn.masked_bias")
"""Not parameters: old checkpoints store their causal mask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GPT2Config:
    hidden: int
    layers: int
    heads: int
    head_dim: int
    intermediate: int
    vocab: int
    eps: float
    max_position: int
    tied: bool

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
            head_dim=hidden // heads,
            intermediate=fields.integer("n_inner", 4 * hidden),
            vocab=fields.integer("vocab_size"),
            eps=fields.number("layer_norm_epsilon", 1e-5),
            max_position=fields.integer("n_positions"),
            tied=fields.flag("tie_word_embeddings", True),
        )

    @property
    def cache_shape(self) -> CacheShape:
        return CacheShape(layers=self.layers, kv_heads=self.heads, head_dim=self.head_dim)

    def of_rank(self, ranks: int) -> "GPT2Config":
        """What each rank of a tensor parallel engine computes. Raises ConfigError when it cannot be divided."""
        share = HeadShare.of(self.heads, self.heads, ranks)
        return replace(self, heads=share.queries, intermediate=columns_of_rank(self.intermediate, ranks))

    def footprint(self, ranks: int = 1) -> Footprint:
        """Of one rank."""
        c = self.of_rank(ranks)
        attended = c.heads * c.head_dim
        matrices = c.hidden * (4 * attended + 2 * c.intermediate)
        vectors = 3 * attended + 2 * c.hidden + c.intermediate + 4 * c.hidden  # biases, then two norms
        rows = rows_of_rank(c.vocab, ranks) * (1 if c.tied else 2) + c.max_position + 2
        return Footprint(
            cache=c.cache_shape,
            parameters=c.layers * (matrices + vectors) + rows * c.hidden,
            per_step_token=4 * c.hidden + 4 * attended + 2 * c.intermediate,
            vocab=c.vocab,
            max_position=c.max_position,
            linear_parameters=c.layers * matrices,
            head_parameters=0 if c.tied else rows_of_rank(c.vocab, ranks) * c.hidden,
            tied_head_parameters=rows_of_rank(c.vocab, ranks) * c.hidden if c.tied else 0,
            per_adapter_rank=c.layers * (4 * c.hidden + 4 * attended + 2 * c.intermediate),
        )


class GPT2Layer:
    """Parameters of one block. A norm is its weight and its bias."""

    __slots__ = ("attention_norm", "down", "mlp_norm", "out", "qkv", "up")

    def __init__(self, c: GPT2Config, collectives: Collectives, *, dtype: torch.dtype, device: torch.device, weights: torch.device) -> None:
        def empty(rows: int, columns: int) -> tuple[Tensor, Tensor]:
            return torch.empty(rows, columns, dtype=dtype, device=weights), torch.empty(rows, dtype=dtype, device=device)

        self.attention_norm, self.mlp_norm = torch.empty(2, 2, c.hidden, dtype=dtype, device=device)
        attended = c.heads * c.head_dim
        self.qkv = Linear(*empty(3 * attended, c.hidden))
        self.out = row_parallel(collectives, *empty(c.hidden, attended))
        self.up = Linear(*empty(c.intermediate, c.hidden))
        self.down = row_parallel(collectives, *empty(c.hidden, c.intermediate))

    def destinations(self) -> dict[str, Tensor]:
        """Checkpoint names within this layer."""
        named: dict[str, Tensor] = {}
        for name, norm in (("ln_1", self.attention_norm), ("ln_2", self.mlp_norm)):
            named |= _norm_destinations(name, norm)
        for name, linear in self.named_linears().items():
            assert isinstance(linear.weight, Tensor), "destinations are asked for before packing"
            assert linear.bias is not None, "all of them have one"
            named |= {f"{name}.weight": linear.weight.T, f"{name}.bias": linear.bias}
        return named

    def named_linears(self) -> dict[str, Linear]:
        return {"attn.c_attn": self.qkv, "attn.c_proj": self.out, "mlp.c_fc": self.up, "mlp.c_proj": self.down}

    def linears(self, c: GPT2Config, prefix: str) -> list[FusedLinear]:
        attended = c.heads * c.head_dim
        outputs = {"attn.c_attn": 3 * attended, "attn.c_proj": c.hidden, "mlp.c_fc": c.intermediate, "mlp.c_proj": c.hidden}
        inputs = {"attn.c_attn": c.hidden, "attn.c_proj": attended, "mlp.c_fc": c.hidden, "mlp.c_proj": c.intermediate}
        return [
            FusedLinear(
                linear=linear,
                modules=((prefix + name, outputs[name]),),
                inputs=inputs[name],
                transposed=True,
            )
            for name, linear in self.named_linears().items()
        ]

    def pack(self, operators: Operators) -> None:
        for linear in (self.qkv, self.out, self.up, self.down):
            linear.pack(operators)


class GPT2:
    optional_prefix = "transformer."
    """The first checkpoints were saved without the head, hence without the name of the part below it."""

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
        whole, collectives = GPT2Config.parse(raw), operators.collectives
        c = self.config = whole.of_rank(collectives.size)
        self._parts = _parts(whole, collectives)
        self._vocabulary = Vocabulary(c.vocab, collectives)
        assert max_model_len <= c.max_position, "the loader has checked it: there is no vector for a later position"
        self.cache_shape = c.cache_shape
        self.vocab_size = c.vocab
        self.operators = operators
        self._attention = AttentionShape(c.head_dim**-0.5)
        self.embedding = torch.empty(self._vocabulary.rows, c.hidden, dtype=dtype, device=device)
        self.position_embedding = torch.empty(c.max_position, c.hidden, dtype=dtype, device=device)
        weights = torch.device("meta") if deferred else device
        self.head = Linear(self.embedding if c.tied else torch.empty_like(self.embedding, device=weights))
        self.norm = torch.empty(2, c.hidden, dtype=dtype, device=device)
        self.layers = [GPT2Layer(c, collectives, dtype=dtype, device=device, weights=weights) for _ in range(c.layers)]

    @staticmethod
    def footprint(raw: Mapping[str, Any], ranks: int = 1) -> Footprint:
        return GPT2Config.parse(raw).footprint(ranks)

    def destinations(self) -> dict[str, Tensor]:
        named = {"wte.weight": self.embedding, "wpe.weight": self.position_embedding, **_norm_destinations("ln_f", self.norm)}
        if not self.config.tied:
            assert isinstance(self.head.weight, Tensor), "destinations are asked for before packing"
            named["lm_head.weight"] = self.head.weight
        for i, layer in enumerate(self.layers):
            named |= {f"h.{i}.{name}": tensor for name, tensor in layer.destinations().items()}
        return named

    def linears(self) -> list[FusedLinear]:
        c = self.config
        head = [] if c.tied else [FusedLinear(linear=self.head, modules=(("lm_head", self._vocabulary.rows),), inputs=c.hidden)]
        return [each for i, layer in enumerate(self.layers) for each in layer.linears(c, f"h.{i}.")] + head

    def parts(self) -> dict[str, Part]:
        if not self._parts:
            return {}
        tables = dict.fromkeys(("wte.weight", "lm_head.weight"), self._vocabulary.part)
        return tables | {f"h.{i}.{name}": part for i in range(self.config.layers) for name, part in self._parts.items()}

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
        residual = self._vocabulary.embed(ids, self.embedding) + F.embedding(positions, self.position_embedding)
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
        return self._vocabulary.gather(self.head(hidden))


def _parts(whole: GPT2Config, collectives: Collectives) -> dict[str, Part]:
    """Of each layer, by checkpoint names within it, in the shape that checkpoints have: [in, out]. What is not named is whole on every
    rank."""
    rank, size = collectives.rank, collectives.size
    if size == 1:
        return {}
    heads = Part.of(0, whole.hidden, rank, size)
    columns = Part.of(0, whole.intermediate, rank, size)
    ((start, stop),) = heads.ranges
    qkv = Part(0, 3 * whole.hidden, tuple((start + each * whole.hidden, stop + each * whole.hidden) for each in range(3)))
    return {
        "attn.c_attn.weight": replace(qkv, dim=1),
        "attn.c_attn.bias": qkv,
        "attn.c_proj.weight": heads,
        "mlp.c_fc.weight": replace(columns, dim=1),
        "mlp.c_fc.bias": columns,
        "mlp.c_proj.weight": columns,
    }


def _norm_destinations(name: str, norm: Tensor) -> dict[str, Tensor]:
    weight, bias = norm
    return {f"{name}.weight": weight, f"{name}.bias": bias}
