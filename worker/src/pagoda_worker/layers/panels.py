"""What the CPU's own products have in common: weights in panels of outputs, and the ways to ask for a product. Used by native.py for bf16
weights and by native_quantized.py."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pagoda_worker.native.library import Library

PANEL = 32
"""Outputs."""
PLAIN, ADD, SILU_MUL = 0, 1, 2


class SideOfProduct(Protocol):
    """What a product must know of adapters (native_adapters.py)."""

    @property
    def active(self) -> bool: ...

    @property
    def pointers(self) -> tuple[int, int]: ...


WEIGHT_BF16, WEIGHT_INT8, WEIGHT_INT4, WEIGHT_FP8 = range(4)
"""WeightForm of native/llama.h."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight in panels, as native/llama.h reads one."""

    form: int
    values: Tensor
    scales: Tensor | None = None
    """[panels, groups, 32] float32; None: bf16 has none."""
    zeros: Tensor | None = None
    """[panels, groups, 32] uint8, of int4; None: 8 everywhere."""

    def numbers(self, bias: Tensor | None, side: int = 0) -> list[int]:
        """`PackedWeight` there. bias: in the order of the panels; side: where an AdapterSide lies, 0: nowhere."""
        groups = 1 if self.scales is None else self.scales.shape[1]
        return [self.form, self.values.data_ptr(), address(self.scales), address(self.zeros), groups, address(bias), side]


def address(tensor: Tensor | None) -> int:
    """Of its first value; 0: a null pointer."""
    return 0 if tensor is None else tensor.data_ptr()


class PanelProduct(ABC):
    """The ways to ask for a product whose panels, where the weight is gated, hold both halves in turns."""

    __slots__ = ("_library", "_out", "gated", "side")

    def __init__(self, library: Library, out: int, *, gated: bool) -> None:
        self._library, self._out, self.gated = library, out, gated
        self.side: SideOfProduct | None = None
        """What adapters add, for whoever takes it along."""

    @abstractmethod
    def takes_along(self, dtype: torch.dtype) -> bool:
        """What adapters add to inputs and outputs of this dtype, in the kernel's own call."""

    @property
    @abstractmethod
    def packed(self) -> Packed | None:
        """None: there is more to this product than its panels."""

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if not self.gated:
            return self._run(x, bias, None, self._out, PLAIN)
        both = self._run(x, None if bias is None else interleave(bias), None, self._out, PLAIN)
        return both.view(len(x), -1, 2, 16).transpose(1, 2).reshape(len(x), self._out)

    def add(self, x: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
        return self._run(x, bias, residual, self._out, ADD)

    def silu_mul(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self._run(x, None if bias is None else interleave(bias), None, self._out // 2, SILU_MUL)

    def _taken_along(self) -> tuple[int | None, int | None]:
        """The last two arguments of the kernel."""
        return self.side.pointers if self.side is not None and self.side.active else (None, None)

    @abstractmethod
    def _run(self, x: Tensor, bias: Tensor | None, residual: Tensor | None, columns: int, epilogue: int) -> Tensor: ...


def interleave(both: Tensor) -> Tensor:
    """Halves along the first axis → 16 of the first, 16 of the second, and so on: both are then in one panel."""
    halves = both.view(2, -1, 16, *both.shape[1:])
    return halves.transpose(0, 1).reshape(both.shape)
