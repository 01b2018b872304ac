"""What the runner needs of any architecture."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from pagoda_worker.layers.attention import AttentionBatch
from pagoda_worker.layers.linear import Linear
from pagoda_worker.layers.operators import Operators


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheShape:
    """Of the KV cache, per layer and token."""

    layers: int
    kv_heads: int
    head_dim: int

    def bytes_per_token(self, itemsize: int) -> int:
        return self.layers * 2 * self.kv_heads * self.head_dim * itemsize


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
    per_adapter_rank: int = 0
    """Values of A and B of one LoRA adapter, over all linears that adapters may change, for each of its ranks."""


@dataclass(frozen=True, slots=True)
class AdaptableLinear:
    """A product that adapters may change."""

    linear: Linear
    size: int
    """Its inputs."""
    parts: dict[str, int]
    """Names that checkpoints have for what it computes, in order, with the columns of each. Full names, as destinations have them."""


class Model(Protocol):
    cache_shape: CacheShape
    vocab_size: int
    operators: Operators

    def destinations(self) -> dict[str, Tensor]:
        """Checkpoint tensor name → where it goes (a view into a parameter)."""
        ...

    @property
    def optional_prefix(self) -> str:
        """What a checkpoint may or may not put before the names; destinations are named without it."""
        ...

    @property
    def ignored_suffixes(self) -> tuple[str, ...]:
        """Ends of tensor names that a checkpoint may hold and the model does not read."""
        ...

    def adaptable(self) -> list[AdaptableLinear]:
        """Which products LoRA adapters may change."""
        ...

    def pack(self) -> None:
        """Called once when all destinations are filled: weights move into the layout the device multiplies fastest."""
        ...

    def forward(self, ids: Tensor, positions: Tensor, caches: list[Tensor], batch: AttentionBatch) -> Tensor:
        """ids and positions [T] int64 → final hidden states [T, E], normed."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """[S, E] → [S, V] in the model's dtype."""
        ...
