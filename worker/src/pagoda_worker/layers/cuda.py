"""What a model computes with on CUDA: Triton's kernels behind the same methods as layers/operators.py. Made by loading; knows no requests.

Triton is imported by the constructor's caller only when it is wanted: a machine with torch for CPUs has none.
"""

from torch import Tensor

from pagoda_worker.kernels import adapter_deltas, copy_blocks, decode_attention, norm, prefill_attention, rotary_cache, sample, silu
from pagoda_worker.kernels.launch import launches
from pagoda_worker.layers.adapters import AdapterRows, AdapterStack
from pagoda_worker.layers.attention import Attend, AttentionBatch, AttentionShape
from pagoda_worker.layers.cuda_linear import FewRowsProduct, quantized_product
from pagoda_worker.layers.linear import Linear, Product, Weight
from pagoda_worker.layers.operators import Operators


def attend_triton(query: Tensor, key_value: Tensor, cache: Tensor, batch: AttentionBatch, shape: AttentionShape) -> Tensor:
    """Decode rows by one kernel, chunks by the other; both read the cache, so key_value is not looked at."""
    decodes = len(batch.decode_lens)
    mixed = decode_rows(query[:decodes], cache, batch, shape) if decodes else None
    if mixed is not None and not batch.chunks:
        return mixed.flatten(1)
    out = query.new_empty(query.shape)
    if mixed is not None:
        out[:decodes] = mixed
    inputs = query, cache, batch.block_table[decodes:], batch.query_starts[decodes:], batch.context_lens[decodes:]
    prefill_attention.paged_prefill(*inputs, out, block_size=batch.block_size, scale=shape.scale, window=shape.window)
    return out.flatten(1)


def decode_rows(query: Tensor, cache: Tensor, batch: AttentionBatch, shape: AttentionShape) -> Tensor:
    """query [B, H, D] of the batch's first B sequences, which decode → [B, H, D]."""
    rows = len(query)
    table, lengths = batch.block_table[:rows], batch.context_lens[:rows]
    return decode_attention.paged_decode(query, cache, table, lengths, block_size=batch.block_size, scale=shape.scale, window=shape.window)


class TritonOperators(Operators):
    name = "triton"
    choose = staticmethod(sample.choose)
    copy_blocks = staticmethod(copy_blocks.copy_blocks)

    def __init__(self, attend: Attend = attend_triton) -> None:
        """attend: one that reads keys and values from the cache."""
        super().__init__(attend)

    def pack(self, weight: Weight, *, gated: bool) -> Product | None:
        """A plain weight stays as it is. In the interpreter it stays with torch: a product there is a thousand programs."""
        if not isinstance(weight, Tensor):
            return quantized_product(weight)
        return FewRowsProduct(weight) if launches(weight) and weight.is_contiguous() else super().pack(weight, gated=gated)

    def add_deltas(self, x: Tensor, y: Tensor, stack: AdapterStack, rows: AdapterRows) -> None:
        assert rows.slots is not None
        adapter_deltas.add_deltas(x, y, stack.a, stack.b, stack.ranks, rows.slots, stack.parts)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return norm.rms_norm(x, weight, eps)

    def add_and_norm(self, linear: Linear, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Adds in place."""
        return residual, norm.add_rms_norm(linear(x), residual, weight, eps)

    def silu_mul(self, linear: Linear, x: Tensor) -> Tensor:
        """One kernel of its own, or within the product where that has it."""
        product, adapters = linear.product, linear.adapters
        if isinstance(product, FewRowsProduct) and (adapters is None or not adapters.active):
            return product.silu_mul(x, linear.bias)
        return silu.silu_mul(linear(x))

    def store(self, key_value: Tensor, cache: Tensor, batch: AttentionBatch) -> None:
        rotary_cache.rotate_and_write(key_value, None, None, cache, batch.slots, block_size=batch.block_size)

    def rotate_and_store(
        self,
        heads: Tensor,
        rotation: tuple[Tensor, Tensor],
        cache: Tensor,
        batch: AttentionBatch,
        norms: tuple[Tensor, Tensor] | None = None,
        eps: float = 0.0,
    ) -> None:
        """One kernel. The keys in `heads` stay unturned: whoever attends reads the cache."""
        cos, sin = rotation
        named = rotary_cache.HeadNorms(norms[0], norms[1], eps) if norms else None
        rotary_cache.rotate_and_write(heads, cos, sin, cache, batch.slots, block_size=batch.block_size, norms=named)
