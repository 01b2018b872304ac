"""What a model computes with on CUDA: Triton's kernels behind the same methods as layers/operators.py. Made by loading; knows no requests.

Triton is imported by the constructor's caller only when it is wanted: a machine with torch for CPUs has none.
"""

from torch import Tensor

from pagoda_worker.kernels import decode_attention, norm, prefill_attention, rotary_cache, silu
from pagoda_worker.layers.attention import Attend, AttentionBatch, AttentionShape
from pagoda_worker.layers.operators import Operators


def attend_triton(query: Tensor, key_value: Tensor, cache: Tensor, batch: AttentionBatch, shape: AttentionShape) -> Tensor:
    """Decode rows by one kernel, chunks by the other; both read the cache, so key_value is not looked at."""
    decodes = len(batch.decode_lens)
    size, scale, window = batch.block_size, shape.scale, shape.window
    lengths, table = batch.context_lens, batch.block_table
    mixed = None
    if decodes:
        mixed = decode_attention.paged_decode(
            query[:decodes], cache, table[:decodes], lengths[:decodes], block_size=size, scale=scale, window=window
        )
        if not batch.chunks:
            return mixed.flatten(1)
    out = query.new_empty(query.shape)
    if mixed is not None:
        out[:decodes] = mixed
    starts = batch.query_starts[decodes:]
    inputs = query, cache, table[decodes:], starts, lengths[decodes:]
    prefill_attention.paged_prefill(*inputs, out, block_size=size, scale=scale, window=window)
    return out.flatten(1)


class TritonOperators(Operators):
    name = "triton"

    def __init__(self, attend: Attend = attend_triton) -> None:
        super().__init__(attend)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return norm.rms_norm(x, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """residual += x in place; returns its norm. Ready for models that ask for it."""
        return norm.add_rms_norm(x, residual, weight, eps)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """[T, 2 * I] → [T, I]. Ready for models that ask for it."""
        return silu.silu_mul(gate_up)

    def store(self, key_value: Tensor, cache: Tensor, batch: AttentionBatch) -> None:
        rotary_cache.rotate_and_write(key_value, None, None, cache, batch.slots)

    def rotate_and_store(
        self,
        heads: Tensor,
        rotation: tuple[Tensor, Tensor],
        cache: Tensor,
        batch: AttentionBatch,
        norms: tuple[Tensor, Tensor] | None = None,
        eps: float = 0.0,
    ) -> None:
        """One kernel. The keys in `heads` stay unturned, so whoever attends must read the cache, or turn them (`turn_keys`)."""
        cos, sin = rotation
        named = rotary_cache.HeadNorms(norms[0], norms[1], eps) if norms else None
        if self._attend is attend_triton:
            rotary_cache.rotate_and_write(heads, cos, sin, cache, batch.slots, norms=named)
        else:
            super().rotate_and_store(heads, rotation, cache, batch, norms, eps)
