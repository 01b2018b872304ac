"""What the CPU's own products have in common: weights in panels of outputs, and the ways to ask for a product. Used by native.py for bf16
weights and by native_quantized.py."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pagoda_worker.native.library import Library

PANEL = 32
"""Outputs."""
PLAIN, ADD, SILU_MUL = 0, 1, 2


class PanelProduct(ABC):
    """The ways to ask for a product whose panels, where the weight is gated, hold both halves in turns."""

    __slots__ = ("_gated", "_library", "_out")

    def __init__(self, library: Library, out: int, *, gated: bool) -> None:
        self._library, self._out, self._gated = library, out, gated

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if not self._gated:
            return self._run(x, bias, None, self._out, PLAIN)
        return self.interleaved(x, bias).view(len(x), -1, 2, 16).transpose(1, 2).reshape(len(x), self._out)

    def interleaved(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Of a gated weight, [T, out]: 16 columns of the first half, 16 of the second, and so on."""
        return self._run(x, None if bias is None else interleave(bias), None, self._out, PLAIN)

    def gate(self, both: Tensor) -> Tensor:
        """`interleaved`'s [T, out] → [T, out / 2], in bf16 or float32."""
        out = both.new_empty((len(both), self._out // 2))
        kind = "bf16" if both.dtype == torch.bfloat16 else "f32"
        self._library[f"gate_halves_{kind}"](both.data_ptr(), out.data_ptr(), len(both), self._out // 2)
        return out

    def add(self, x: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
        return self._run(x, bias, residual, self._out, ADD)

    def silu_mul(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self._run(x, None if bias is None else interleave(bias), None, self._out // 2, SILU_MUL)

    @abstractmethod
    def _run(self, x: Tensor, bias: Tensor | None, residual: Tensor | None, columns: int, epilogue: int) -> Tensor: ...


def interleave(both: Tensor) -> Tensor:
    """Halves along the first axis → 16 of the first, 16 of the second, and so on: both are then in one panel."""
    halves = both.view(2, -1, 16, *both.shape[1:])
    return halves.transpose(0, 1).reshape(both.shape)
