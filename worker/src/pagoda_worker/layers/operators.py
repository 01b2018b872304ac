"""What a model computes with, beside its matrix products: one object per engine, made for its device and given to the model.

This one is plain torch on any device; layers/native.py has the CPU's own kernels behind the same methods, layers/cuda.py Triton's for GPUs.
Knows no requests.
"""

from collections.abc import Callable

from torch import Tensor

from pagoda_worker.layers.adapters import (
    AdapterRoom,
    AdapterRows,
    AdapterSide,
    AdapterStack,
    StackedSide,
    add_deltas_reference,
)
from pagoda_worker.layers.attention import Attend, AttentionBatch, AttentionShape, write_cache
from pagoda_worker.layers.linear import Linear, OneDnnProduct, Product, Weight, onednn_packs
from pagoda_worker.layers.norm import rms_norm
from pagoda_worker.layers.parallel import Alone, Collectives
from pagoda_worker.layers.rotary import rotate

Choose = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(logits [S, V], then [S] each: temperature > 0, top-k (0: off), top-p (1: off), min-p (0: off), keys of the noise) → ids [S] int64."""


CopyBlocks = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""(source [H, N, W], target [H, M, W], sources [C], targets [C]): block sources[i] becomes block targets[i], on the device or between it
and pinned memory. No block is written twice, or both read and written."""


class Operators:
    name = "torch"
    choose: Choose | None = None
    """None: as sampling/sampler.py does it, step by step."""
    copy_blocks: CopyBlocks | None = None
    """None: by torch's operations, and to the host through memory of the device."""

    collectives: Collectives = Alone()
    """With the other ranks of a tensor parallel engine; set before the model is made."""

    def __init__(self, attend: Attend) -> None:
        self._attend = attend

    def pack(self, weight: Weight, *, gated: bool) -> Product | None:
        """See layers/linear.py."""
        return OneDnnProduct(weight) if onednn_packs(weight) else None

    def adapter_side(self, linear: Linear, room: AdapterRoom, rows: AdapterRows) -> AdapterSide:
        """For a packed linear."""
        return StackedSide(AdapterStack.of(room), rows, self.add_deltas)

    def add_deltas(self, x: Tensor, y: Tensor, stack: AdapterStack, rows: AdapterRows) -> None:
        """Of tokens with an adapter, see layers/adapters.py."""
        add_deltas_reference(x, y, stack, rows)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [T, E], weight [E] → [T, E]."""
        return rms_norm(x, weight, eps)

    def add_and_norm(self, linear: Linear, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """linear's product of x added to residual [T, E], and the norm of that sum. What was residual must not be used again: it may have
        become the sum."""
        residual = linear.add(x, residual)
        return residual, self.rms_norm(residual, weight, eps)

    def silu_mul(self, linear: Linear, x: Tensor) -> Tensor:
        """[T, E] → [T, I]: silu of the first half of a gated linear's product times the second."""
        return linear.silu_mul(x)

    def store(self, key_value: Tensor, cache: Tensor, batch: AttentionBatch) -> None:
        """key_value [T, 2 * H_kv, D] → the cache, at the batch's slots."""
        write_cache(key_value, cache, batch)

    def rotate_and_store(
        self,
        heads: Tensor,
        rotation: tuple[Tensor, Tensor],
        cache: Tensor,
        batch: AttentionBatch,
        norms: tuple[Tensor, Tensor] | None = None,
        eps: float = 0.0,
    ) -> None:
        """heads [T, H + 2 * H_kv, D], queries, keys, values: queries and keys are normed per head (norms: theirs, [D] each) and turned by
        their positions in place; keys and values go to the cache. rotation: cos and sin [T, 1, D], see layers/rotary.py."""
        turned = heads.shape[1] - batch.kv_heads
        queries = turned - batch.kv_heads
        if norms is not None:
            heads[:, :queries] = rms_norm(heads[:, :queries], norms[0], eps)
            heads[:, queries:turned] = rms_norm(heads[:, queries:turned], norms[1], eps)
        heads[:, :turned] = rotate(heads[:, :turned], *rotation)
        self.store(heads[:, queries:], cache, batch)

    def attend(self, query: Tensor, key_value: Tensor, cache: Tensor, batch: AttentionBatch, shape: AttentionShape) -> Tensor:
        """query [T, H, D], key_value [T, 2 * H_kv, D] as it was stored → [T, H * D]."""
        return self._attend(query, key_value, cache, batch, shape)
