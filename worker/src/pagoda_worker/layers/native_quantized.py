"""Quantized weights in the panels of the CPU's own kernels (native/linear_quantized.h), and their products. Made by layers/native.py.

Activations are rounded to eight bits, a scale per token, at every call: the weights' numbers are kept as they are.
"""

from typing import Any

import torch
from torch import Tensor

from pagoda_worker.layers.linear import Weight
from pagoda_worker.native.library import Library
from pagoda_worker.quantization.weights import Int4Weight, Int8Weight

PANEL = 32
"""Outputs."""
_STEP = 64
"""Inputs of a tile."""
_QUAD = 4
PLAIN, ADD, SILU_MUL = 0, 1, 2
_TYPES = (torch.bfloat16, torch.float32)


class QuantizedNativeProduct:
    """An int8 or int4 weight."""

    __slots__ = ("_four_bits", "_gated", "_groups", "_library", "_linear", "_order", "_out", "_scales", "_size", "_values", "_zeros")

    def __init__(self, library: Library, weight: Int8Weight | Int4Weight, *, gated: bool) -> None:
        self._library, self._gated = library, gated
        self._linear = library["linear_quantized"]
        self._out, self._size = weight.shape
        order = _interleave if gated else _same
        self._zeros: Tensor | None = None
        self._order: Tensor | None = None
        self._four_bits = isinstance(weight, Int4Weight)
        if isinstance(weight, Int4Weight):
            self._values = _panels_of_nibbles(order(weight.values))
            self._scales = _panels_of_scales(order(weight.scales))
            self._zeros = None if weight.zeros is None else _panels_of_scales(order(weight.zeros))
            self._order = weight.order
        else:
            self._values = _panels_of_bytes((order(weight.values).to(torch.int16) + 128).to(torch.uint8))
            self._scales = _panels_of_scales(order(weight.scales)[:, None])
        self._groups = self._scales.shape[1]

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if not self._gated:
            return self._run(x, bias, None, self._out, PLAIN)
        return self.interleaved(x, bias).view(len(x), -1, 2, 16).transpose(1, 2).reshape(len(x), self._out)

    def interleaved(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Of a gated weight, [T, out]: 16 columns of the first half, 16 of the second, and so on."""
        return self._run(x, None if bias is None else _interleave(bias), None, self._out, PLAIN)

    def gate(self, both: Tensor) -> Tensor:
        """`interleaved`'s [T, out] → [T, out / 2], in bf16 or float32."""
        out = both.new_empty((len(both), self._out // 2))
        kind = "bf16" if both.dtype == torch.bfloat16 else "f32"
        self._library[f"gate_halves_{kind}"](both.data_ptr(), out.data_ptr(), len(both), self._out // 2)
        return out

    def add(self, x: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
        return self._run(x, bias, residual, self._out, ADD)

    def silu_mul(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self._run(x, None if bias is None else _interleave(bias), None, self._out // 2, SILU_MUL)

    def _run(self, x: Tensor, bias: Tensor | None, residual: Tensor | None, columns: int, epilogue: int) -> Tensor:
        if x.dtype not in _TYPES:
            return self._run(x.float(), _wide(bias), _wide(residual), columns, epilogue).to(x.dtype)
        if self._order is not None:
            x = x[:, self._order]
        if x.stride(1) != 1:
            x = x.contiguous()
        rows = x.shape[0]
        y = x.new_empty((rows, columns))
        assert residual is None or residual.is_contiguous()
        self._linear(
            x.data_ptr(),
            self._values.data_ptr(),
            self._scales.data_ptr(),
            _pointer(self._zeros),
            _pointer(bias),
            _pointer(residual),
            y.data_ptr(),
            rows,
            self._out,
            self._size,
            x.stride(0),
            columns,
            self._groups,
            epilogue,
            self._four_bits,
            x.dtype == torch.float32,
        )
        return y


def quantized_product(library: Library, weight: Weight, *, gated: bool) -> QuantizedNativeProduct | None:
    """None: of no form or shape that the kernels have."""
    if isinstance(weight, Int4Weight):
        group = weight.shape[1] // weight.scales.shape[1]
        fits = group % _QUAD == 0
    else:
        fits = isinstance(weight, Int8Weight)
    if not fits or (gated and weight.shape[0] % PANEL):
        return None
    assert isinstance(weight, Int8Weight | Int4Weight)
    return QuantizedNativeProduct(library, weight, gated=gated)


def _pointer(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.data_ptr()


def _wide(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float()


def _same(weight: Tensor) -> Tensor:
    return weight


def _interleave(both: Tensor) -> Tensor:
    """Halves along the first axis → 16 of the first, 16 of the second, and so on: both are then in one panel."""
    halves = both.view(2, -1, 16, *both.shape[1:])
    return halves.transpose(0, 1).reshape(both.shape)


def _whole(weight: Tensor, *, rows: int, columns: int = 1) -> Tensor:
    """Zeros added up to multiples."""
    out, size = weight.shape
    return torch.nn.functional.pad(weight, (0, -size % columns, 0, -out % rows))


def _panels_of_bytes(values: Tensor) -> Tensor:
    """[out, in] uint8 → [out / 32, in / 64, 2, 16, 16, 4]."""
    values = _whole(values, rows=PANEL, columns=_STEP)
    out, size = values.shape
    return values.view(out // PANEL, 2, 16, size // _STEP, 16, _QUAD).permute(0, 3, 1, 4, 2, 5).contiguous()


def _panels_of_nibbles(values: Tensor) -> Tensor:
    """[out, in / 2] as Int4Weight has them → [out / 32, in / 64, 16, 16, 4]: columns 0-15 of a panel low, 16-31 high."""
    panels = _panels_of_bytes(torch.stack((values & 15, values >> 4), dim=-1).flatten(1))
    return panels[:, :, 0] | panels[:, :, 1] << 4


def _panels_of_scales(scales: Tensor) -> Tensor:
    """[out, groups] → [out / 32, groups, 32]."""
    scales = _whole(scales, rows=PANEL)
    return scales.view(-1, PANEL, scales.shape[1]).transpose(1, 2).contiguous()
