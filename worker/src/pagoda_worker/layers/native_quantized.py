"""Quantized weights in the panels of the CPU's own kernels (native/linear_quantized.h), and their products. Made by layers/native.py.

Activations are rounded to eight bits, a scale per token, at every call: the weights' numbers are kept as they are.
"""

from typing import Any

import torch
from torch import Tensor

from pagoda_worker.layers.allocation import HugePages
from pagoda_worker.layers.linear import Product, Weight
from pagoda_worker.layers.panels import ADD, PANEL, PLAIN, WEIGHT_FP8, WEIGHT_INT4, WEIGHT_INT8, Packed, PanelProduct, interleave
from pagoda_worker.native.library import Library
from pagoda_worker.quantization.weights import Fp8Weight, Int4Weight, Int8Weight

_STEP = 64
"""Inputs of a tile."""
_QUAD = 4
_FP8_STEP = 32
_TYPES = (torch.bfloat16, torch.float32)


class QuantizedNativeProduct(PanelProduct):
    """An int8 or int4 weight."""

    __slots__ = ("_four_bits", "_groups", "_linear", "_order", "_scales", "_size", "_values", "_zeros")

    def __init__(self, library: Library, weight: Int8Weight | Int4Weight, pages: HugePages, *, gated: bool) -> None:
        super().__init__(library, weight.shape[0], gated=gated)
        self._linear, self._size = library["linear_quantized"], weight.shape[1]
        order = interleave if gated else _same
        self._zeros: Tensor | None = None
        self._order: Tensor | None = None
        self._four_bits = isinstance(weight, Int4Weight)
        if isinstance(weight, Int4Weight):
            self._values = pages.copy(_panels_of_nibbles(order(weight.values)))
            self._scales = _panels_of_scales(order(weight.scales))
            self._zeros = None if weight.zeros is None else _panels_of_scales(order(weight.zeros))
            self._order = weight.order
        else:
            self._values = pages.copy(_panels_of_bytes(order(weight.values).view(torch.uint8) ^ 128))
            self._scales = _panels_of_scales(order(weight.scales)[:, None])
        self._groups = self._scales.shape[1]

    @property
    def packed(self) -> Packed | None:
        """None where inputs are put in another order first."""
        form = WEIGHT_INT4 if self._four_bits else WEIGHT_INT8
        return Packed(form, self._values, self._scales, self._zeros) if self._order is None else None

    def takes_along(self, dtype: torch.dtype) -> bool:
        """Not where inputs are put in another order first: adapters have theirs in the model's."""
        return dtype in _TYPES and self._order is None

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
            *self._taken_along(),
        )
        return y


class Fp8NativeProduct(PanelProduct):
    """An fp8 weight, by activations in bf16: see native/linear_fp8.h."""

    __slots__ = ("_groups", "_linear", "_scales", "_size", "_values")

    def __init__(self, library: Library, weight: Fp8Weight, pages: HugePages, *, gated: bool) -> None:
        super().__init__(library, weight.shape[0], gated=gated)
        self._linear, self._size = library["linear_fp8"], weight.shape[1]
        order = interleave if gated else _same
        scales = weight.scales.repeat_interleave(weight.block[0], 0)[: self._out]
        self._values = pages.copy(_panels_of_pairs(order(weight.values.view(torch.uint8))))
        self._scales = _panels_of_scales(order(scales))
        self._groups = self._scales.shape[1]

    @property
    def packed(self) -> Packed:
        return Packed(WEIGHT_FP8, self._values, self._scales)

    def takes_along(self, dtype: torch.dtype) -> bool:
        return dtype == torch.bfloat16

    def _run(self, x: Tensor, bias: Tensor | None, residual: Tensor | None, columns: int, epilogue: int) -> Tensor:
        if x.dtype != torch.bfloat16:  # what is added is added in the model's dtype
            rest = PLAIN if epilogue == ADD else epilogue
            y = self._run(x.bfloat16(), None if bias is None else bias.bfloat16(), None, columns, rest).to(x.dtype)
            return y if residual is None else y + residual
        if x.stride(1) != 1:
            x = x.contiguous()
        rows = x.shape[0]
        y = x.new_empty((rows, columns))
        assert residual is None or residual.is_contiguous()
        self._linear(
            x.data_ptr(),
            self._values.data_ptr(),
            self._scales.data_ptr(),
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
            *self._taken_along(),
        )
        return y


def quantized_product(library: Library, weight: Weight, pages: HugePages, *, gated: bool) -> Product | None:
    """None: of no form or shape that the kernels have."""
    if isinstance(weight, Tensor) or (gated and weight.shape[0] % PANEL):
        return None
    size = weight.shape[1]
    match weight:
        case Int8Weight():
            return QuantizedNativeProduct(library, weight, pages, gated=gated)
        case Int4Weight():
            group = size // weight.scales.shape[1]
            return QuantizedNativeProduct(library, weight, pages, gated=gated) if group % _QUAD == 0 else None
        case Fp8Weight():
            return Fp8NativeProduct(library, weight, pages, gated=gated) if _fp8_fits(weight) else None


def _fp8_fits(weight: Fp8Weight) -> bool:
    """Whole steps in whole groups, and no NaN, which the kernels would take for a number."""
    size, group = weight.shape[1], weight.block[1]
    whole = weight.scales.shape[1] == 1 or (group % _FP8_STEP == 0 and size % group == 0)
    return size % _FP8_STEP == 0 and whole and not bool((weight.values.view(torch.uint8) & 0x7F == 0x7F).any())


def _pointer(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.data_ptr()


def _wide(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float()


def _same(weight: Tensor) -> Tensor:
    return weight


def _whole(weight: Tensor, *, rows: int, columns: int = 1) -> Tensor:
    """Zeros added up to multiples."""
    out, size = weight.shape
    return torch.nn.functional.pad(weight, (0, -size % columns, 0, -out % rows))


def _panels_of_bytes(values: Tensor) -> Tensor:
    """[out, in] uint8 → a view [out / 32, in / 64, 2, 16, 16, 4]."""
    values = _whole(values, rows=PANEL, columns=_STEP)
    out, size = values.shape
    return values.view(out // PANEL, 2, 16, size // _STEP, 16, _QUAD).permute(0, 3, 1, 4, 2, 5)


def _panels_of_nibbles(values: Tensor) -> Tensor:
    """[out, in / 2] as Int4Weight has them → [out / 32, in / 64, 16, 16, 4]: columns 0-15 of a panel low, 16-31 high."""
    panels = _panels_of_bytes(torch.stack((values & 15, values >> 4), dim=-1).flatten(1))
    return panels[:, :, 0] | panels[:, :, 1] << 4


def _panels_of_pairs(values: Tensor) -> Tensor:
    """[out, in] uint8 → a view [out / 32, in / 32, 2, 16, 16, 2]."""
    values = _whole(values, rows=PANEL)
    out, size = values.shape
    return values.view(out // PANEL, 2, 16, size // _FP8_STEP, 16, 2).permute(0, 3, 1, 4, 2, 5)


def _panels_of_scales(scales: Tensor) -> Tensor:
    """[out, groups] → [out / 32, groups, 32]."""
    scales = _whole(scales, rows=PANEL)
    return scales.view(-1, PANEL, scales.shape[1]).transpose(1, 2).contiguous()
