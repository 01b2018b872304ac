"""Products by Triton's kernels, each quantized weight in the layout that its kernel reads best. Made by layers/cuda.py's packer.

int8 rounds activations too, int4 and e4m3 do not: docs/decisions/gpu-quantized-products.md says why, and where the limits come from.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pagoda_worker.kernels.few_rows import few_rows_product, takes
from pagoda_worker.kernels.int8_product import int8_product
from pagoda_worker.kernels.packed_weight import PackedWeight, dequantize, pack_words, packable_group
from pagoda_worker.kernels.quantize_rows import quantize_rows
from pagoda_worker.kernels.silu import silu_mul
from pagoda_worker.kernels.weight_only import weight_only_product
from pagoda_worker.layers.linear import PlainProduct, Product
from pagoda_worker.quantization.weights import Fp8Weight, Int4Weight, Int8Weight, QuantizedWeight

DEQUANTIZED_ROWS = 256
"""From so many on, 16 bits are made of the weight once and cuBLAS multiplies them: that reads and writes the weight once more, which the
faster product repays. Measured on an H200: `make gpu-check` times both."""
COPY_BYTES = 64 << 20
"""Of the weight at a time: what it takes of the device beside the model."""
COPY_OUTPUTS = 128
"""A slice is a multiple of these: of another size cuBLAS took 2.5 times as long (docs/log.md)."""


class FewRowsProduct(PlainProduct):
    """A plain weight: few rows by our kernel, more by cuBLAS."""

    __slots__ = ("_weight",)

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return few_rows_product(x, self._weight, bias) if takes(*self._sizes(x)) else F.linear(x, self._weight, bias)

    def silu_mul(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if takes(*self._sizes(x)):
            return few_rows_product(x, self._weight, bias, gated=True)
        return silu_mul(F.linear(x, self._weight, bias))

    def _sizes(self, x: Tensor) -> tuple[int, int]:
        return len(x), len(self._weight)


class Int8Product(PlainProduct):
    """W8A8."""

    __slots__ = ("_scales", "_values")

    def __init__(self, weight: Int8Weight) -> None:
        self._values, self._scales = weight.values.contiguous(), weight.scales.contiguous()

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        values, row_scales = quantize_rows(x)
        return int8_product(values, row_scales, self._values, self._scales, bias, x.dtype)


class WeightOnlyProduct(PlainProduct):
    """W4A16 or W8A16."""

    __slots__ = ("_order", "_weight")

    def __init__(self, weight: PackedWeight, order: Tensor | None = None) -> None:
        """order: the product's input for each of the weight's columns."""
        self._weight = weight
        self._order = order

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self._order is not None:
            x = x.index_select(1, self._order)
        return self.by_copy(x, bias) if len(x) >= DEQUANTIZED_ROWS else weight_only_product(x, self._weight, bias)

    def by_copy(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """A slice of outputs at a time. x is in the weight's order."""
        outputs = self._weight.outputs
        step = max(1, COPY_BYTES // (self._weight.inputs * x.element_size()) // COPY_OUTPUTS) * COPY_OUTPUTS
        out = x.new_empty((len(x), outputs))
        for first in range(0, outputs, step):
            stop = min(first + step, outputs)
            columns, copy = out[:, first:stop], dequantize(self._weight, x.dtype, first, stop).T
            if bias is None:
                torch.mm(x, copy, out=columns)
            else:
                torch.addmm(bias[first:stop], x, copy, out=columns)
        return out


def quantized_product(weight: QuantizedWeight) -> Product | None:
    """None: groups of inputs that no kernel takes."""
    if isinstance(weight, Int8Weight):
        return Int8Product(weight)
    packed = packed_int4(weight) if isinstance(weight, Int4Weight) else packed_fp8(weight)
    if packed is None:
        return None
    return WeightOnlyProduct(packed, weight.order if isinstance(weight, Int4Weight) else None)


def packed_int4(weight: Int4Weight) -> PackedWeight | None:
    outputs, inputs = weight.shape
    group = inputs // weight.scales.shape[1]
    if not packable_group(group, 4, inputs):
        return None
    nibbles = torch.stack((weight.values & 15, weight.values >> 4), dim=-1).view(outputs, inputs)
    zeros = None if weight.zeros is None else weight.zeros.T.contiguous()
    return PackedWeight(pack_words(nibbles, 4), weight.scales.T.contiguous(), zeros, bits=4, inputs=inputs, group=group, block=1)


def packed_fp8(weight: Fp8Weight) -> PackedWeight | None:
    outputs, inputs = weight.shape
    block, group = min(weight.block[0], outputs), min(weight.block[1], inputs)
    if not packable_group(group, 8, inputs):
        return None
    words = pack_words(weight.values.view(torch.uint8), 8)
    return PackedWeight(words, weight.scales.T.contiguous(), None, bits=8, inputs=inputs, group=group, block=block)
