"""What the runner needs of any architecture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pagoda_worker.layers.attention import AttentionBatch
from pagoda_worker.layers.kv_cache import row_bytes
from pagoda_worker.layers.linear import Linear
from pagoda_worker.layers.operators import Operators
from pagoda_worker.layers.parallel import Part


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheShape:
    """Of the KV cache, per layer and token."""

    layers: int
    kv_heads: int
    head_dim: int

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """`dtype`: of what the cache holds."""
        return self.layers * 2 * self.kv_heads * row_bytes(self.head_dim, dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What a config.json says of a model's size, before anything is allocated."""

    cache: CacheShape
    parameters: int
    per_step_token: int
    """Values held at once for each token of a step, at the widest place of the forward pass."""
    vocab: int
    max_position: int
    """Tokens of the longest sequence that the model was made for."""
    linear_parameters: int
    """Of them, weights of the layers' products: what quantizing makes smaller."""
    head_parameters: int
    """Of them, the head's; 0: it is the embedding."""
    tied_head_parameters: int
    """Of such a head, of which some forms are a copy; 0: it is one of its own."""
    per_adapter_rank: int
    """Values of A and B of one LoRA adapter, over all products of the layers, for each of its ranks."""
    stored_bytes: int | None = None
    """Of a checkpoint that is held as it is stored, quantized. None: all parameters at the model's dtype."""

    def weight_bytes(self, itemsize: int) -> int:
        return self.parameters * itemsize if self.stored_bytes is None else self.stored_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedLinear:
    """A linear and the checkpoint's modules that it is made of: what quantized weights are read into, whole."""

    linear: Linear
    modules: tuple[tuple[str, int], ...]
    """(name, outputs), above one another; of a rank that has part of them, its own."""
    inputs: int
    transposed: bool = False
    """The checkpoint has the plain weight as [in, out]."""


def part_of(fused: FusedLinear, module: str, parts: Mapping[str, Part]) -> Part | None:
    """Of the module's weight as [out, in]; None: all of it. `parts`: the model's."""
    part = parts.get(f"{module}.weight")
    return part.transposed if part is not None and fused.transposed else part


def adaptable(linears: Sequence[FusedLinear]) -> list[FusedLinear]:
    """Of a model's, those that LoRA adapters may change: all but the head."""
    return [each for each in linears if each.modules[0][0] != "lm_head"]


class ForwardPass(Protocol):
    """What a step needs of a model."""

    cache_shape: CacheShape
    vocab_size: int
    operators: Operators

    def forward(self, ids: Tensor, positions: Tensor, caches: list[Tensor], batch: AttentionBatch) -> Tensor:
        """ids and positions [T] int64 → final hidden states [T, E], normed."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """[S, E] → [S, V] in the model's dtype."""
        ...


class Model(ForwardPass, Protocol):
    def destinations(self) -> dict[str, Tensor]:
        """Checkpoint tensor name → where it goes (a view into a parameter)."""
        ...

    def linears(self) -> list[FusedLinear]:
        """Whose weights may be quantized, in the order of the forward pass. Those are among the destinations too."""
        ...

    def parts(self) -> dict[str, Part]:
        """Which part of a checkpoint's tensor its destination is; those not named are whole."""
        ...

    @property
    def optional_prefix(self) -> str:
        """What a checkpoint may or may not put before the names; destinations are named without it."""
        ...

    @property
    def ignored_suffixes(self) -> tuple[str, ...]:
        """Ends of tensor names that a checkpoint may hold and the model does not read."""
        ...

    def pack(self) -> None:
        """Called once when all destinations are filled: weights move into the layout the device multiplies fastest."""
        ...
