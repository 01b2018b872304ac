"""The CPU's own kernels (native/) where they apply, torch where not. Chosen by the loader; knows no requests.

What applies is a matter of sizes alone and decided per call or per weight: heads and rows in whole vectors, weights in whole tiles.
"""

import torch
from torch import Tensor

from pagoda_worker.layers.adapters import AdapterRoom, AdapterRows, AdapterSide
from pagoda_worker.layers.allocation import HugePages
from pagoda_worker.layers.attention import Attend, AttentionBatch, AttentionShape, attend_sdpa
from pagoda_worker.layers.kv_cache import slot_count
from pagoda_worker.layers.linear import Linear, Product, Weight
from pagoda_worker.layers.native_adapters import NativeSide, fits
from pagoda_worker.layers.native_quantized import quantized_product
from pagoda_worker.layers.operators import Operators
from pagoda_worker.layers.panels import PANEL, WEIGHT_BF16, Packed, PanelProduct, interleave
from pagoda_worker.native.library import Library

_LANES = 16
"""Values of the widest vector: rows and head sizes must be whole vectors of it."""
_STEP = 32
_GROUPS = frozenset((1, 2, 3, 4, 5, 6, 7, 8, 16))
"""Query heads of one kv head that attention.h has an instance for."""
_MOST_DIM = 256
_KINDS = {torch.float32: "f32", torch.bfloat16: "bf16"}
_MULTIPLY_BYTES = ("amx", "avx512_bf16", "avx512_vnni")
"""Instruction sets with VNNI or better."""
_CACHE_KINDS = {torch.int8: "_int8", torch.float8_e4m3fn: "_fp8"}


class NativeProduct(PanelProduct):
    """A bf16 weight in panels, see native/linear.h."""

    __slots__ = ("_linear", "_size", "_values")

    def __init__(self, library: Library, weight: Tensor, pages: HugePages, *, gated: bool) -> None:
        super().__init__(library, weight.shape[0], gated=gated)
        self._linear, self._size = library["linear"], weight.shape[1]
        self._values = pages.copy(_panels(interleave(weight) if gated else weight))

    @property
    def packed(self) -> Packed:
        return Packed(WEIGHT_BF16, self._values)

    def takes_along(self, dtype: torch.dtype) -> bool:
        return dtype == torch.bfloat16

    def _run(self, x: Tensor, bias: Tensor | None, residual: Tensor | None, columns: int, epilogue: int) -> Tensor:
        rows = x.shape[0]
        if x.stride(1) != 1:
            x = x.contiguous()
        y = x.new_empty((rows, columns))
        assert residual is None or residual.is_contiguous()
        self._linear(
            x.data_ptr(),
            self._values.data_ptr(),
            None if bias is None else bias.data_ptr(),
            None if residual is None else residual.data_ptr(),
            y.data_ptr(),
            rows,
            self._out,
            self._size,
            x.stride(0),
            columns,
            epilogue,
            *self._taken_along(),
        )
        return y


def _panels(weight: Tensor) -> Tensor:
    """[out, in] → a view [out / 32, in / 32, 2, 16, 16, 2], rows of zeros added up to a whole panel."""
    out, size = weight.shape
    missing = -out % PANEL
    if missing:
        weight = torch.cat((weight, weight.new_zeros((missing, size))))
    return weight.view(-1, 2, 16, size // _STEP, 16, 2).permute(0, 3, 1, 4, 2, 5)


def _cache_kind(computed: Tensor, cache: Tensor) -> str | None:
    """What the library's functions for this pair are called by. None: it has none."""
    kind = _KINDS.get(computed.dtype)
    return None if kind is None else kind + _CACHE_KINDS.get(cache.dtype, "")


class NativeOperators(Operators):
    def __init__(self, library: Library, attend: Attend | None = None, *, invariant: bool = False) -> None:
        """attend: instead of the kernels. invariant: rows that decode take the kernel of prompts too, which is slower for them: a token's
        result is then the same whether it decodes, or is computed anew as part of a prompt."""
        super().__init__(attend or attend_sdpa)
        assert library.constants["panel"] == PANEL
        self._library = library
        self._pages = HugePages()
        self._own_attention = attend is None
        self._invariant = invariant
        self.name = f"native ({library.isa})"

    def pack(self, weight: Weight, *, gated: bool) -> Product | None:
        out, size = weight.shape
        if isinstance(weight, Tensor) and weight.dtype == torch.bfloat16 and size % _STEP == 0 and not (gated and out % PANEL):
            return NativeProduct(self._library, weight, self._pages, gated=gated)
        return quantized_product(self._library, weight, self._pages, gated=gated) or super().pack(weight, gated=gated)

    def adapter_side(self, linear: Linear, room: AdapterRoom, rows: AdapterRows) -> AdapterSide:
        if not fits(self._library, room):
            return super().adapter_side(linear, room, rows)
        product = linear.product
        if not isinstance(product, PanelProduct) or not product.takes_along(room.dtype):
            product = None
        return NativeSide(self._library, room, rows, product)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if (kind := _KINDS.get(x.dtype)) is None or x.shape[-1] % _LANES or x.ndim != 2 or x.stride(1) != 1:
            return super().rms_norm(x, weight, eps)
        out = x.new_empty(x.shape)
        self._library[f"rms_norm_{kind}"](x.data_ptr(), weight.data_ptr(), out.data_ptr(), x.shape[0], x.shape[1], x.stride(0), eps)
        return out

    def rotate_and_store(
        self,
        heads: Tensor,
        rotation: tuple[Tensor, Tensor],
        cache: Tensor,
        batch: AttentionBatch,
        norms: tuple[Tensor, Tensor] | None = None,
        eps: float = 0.0,
    ) -> None:
        rows, all_heads, dim = heads.shape
        if (kind := _cache_kind(heads, cache)) is None or dim % (2 * _LANES) or not heads.is_contiguous():
            super().rotate_and_store(heads, rotation, cache, batch, norms, eps)
            return
        self._library[f"rotate_and_store_{kind}"](
            heads.data_ptr(),
            rotation[0].data_ptr(),
            rotation[1].data_ptr(),
            None if norms is None else norms[0].data_ptr(),
            None if norms is None else norms[1].data_ptr(),
            cache.data_ptr(),
            batch.slots.data_ptr(),
            rows,
            all_heads - 2 * batch.kv_heads,
            batch.kv_heads,
            dim,
            slot_count(cache, batch.block_size),
            batch.block_size,
            eps,
        )

    @property
    def library(self) -> Library:
        return self._library

    @property
    def prefers_int8(self) -> bool:
        """Its products take less time than those of bf16 even where weights need not be fetched: one instruction multiplies 64 of them."""
        return self._library.isa in _MULTIPLY_BYTES

    def attends(self, heads: int, kv_heads: int, dim: int) -> bool:
        """Heads of this kind have a kernel here, and it is asked for."""
        return self._own_attention and dim % _LANES == 0 and dim <= _MOST_DIM and heads // kv_heads in _GROUPS

    def attend(self, query: Tensor, key_value: Tensor, cache: Tensor, batch: AttentionBatch, shape: AttentionShape) -> Tensor:
        _, heads, dim = query.shape
        kind = _cache_kind(query, cache)
        if not self.attends(heads, batch.kv_heads, dim) or query.stride(1) != dim or kind is None:
            return super().attend(query, key_value, cache, batch, shape)
        out = query.new_empty(query.shape)
        sequences = len(batch.decode_lens) + len(batch.chunks)
        rows = 0 if self._invariant else len(batch.decode_lens)
        pages = batch.block_table.shape[1]
        slots, stride = slot_count(cache, batch.block_size), query.stride(0)
        sizes = (heads, batch.kv_heads, dim, slots, pages, batch.block_size, stride, shape.window or 0, shape.scale)
        table, lengths = batch.block_table.data_ptr(), batch.context_lens.data_ptr()
        if rows:
            self._library[f"decode_attention_{kind}"](query.data_ptr(), cache.data_ptr(), table, lengths, out.data_ptr(), rows, *sizes)
        if sequences > rows:
            self._library[f"prefill_attention_{kind}"](
                query.data_ptr(),
                cache.data_ptr(),
                table + rows * pages * batch.block_table.element_size(),
                batch.query_starts.data_ptr() + rows * batch.query_starts.element_size(),
                lengths + rows * batch.context_lens.element_size(),
                out.data_ptr(),
                sequences - rows,
                *sizes,
            )
        return out.flatten(1)
