"""What a model computes with, beside its matrix products: one object per engine, made for its device and given to the model.

This one is plain torch on any device; layers/native.py has the CPU's own kernels behind the same methods. Knows no requests.
"""

from torch import Tensor

from pagoda_worker.layers.attention import Attend, AttentionBatch, AttentionShape, write_cache
from pagoda_worker.layers.linear import OneDnnProduct, Product, onednn_packs
from pagoda_worker.layers.norm import rms_norm
from pagoda_worker.layers.rotary import rotate


class Operators:
    name = "torch"

    def __init__(self, attend: Attend) -> None:
        self._attend = attend

    def pack(self, weight: Tensor, *, gated: bool) -> Product | None:
        """See layers/linear.py."""
        return OneDnnProduct(weight) if onednn_packs(weight) else None

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [T, E], weight [E] → [T, E]."""
        return rms_norm(x, weight, eps)

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
