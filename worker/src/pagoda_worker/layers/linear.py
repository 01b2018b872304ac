"""A matrix product with the weight in the layout the device multiplies fastest. Called by models.

`pack` is where the device gets its say: our own kernels' panels on a CPU that has them (native/), else oneDNN's blocks for bf16, else the
plain weight. The plain copy is dropped layer by layer, so packing costs no memory.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pagoda_worker.layers.adapters import AdapterSide

_ROWS_HINT = 32
"""oneDNN picks the blocks for about this many rows; measured good from 1 row on."""


class Product(Protocol):
    """A packed weight."""

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """[T, in] → [T, out], columns in the weight's order also where it was packed as gated."""
        ...

    def add(self, x: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
        """The product and residual [T, out] in one."""
        ...

    def silu_mul(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """[T, in] → [T, out / 2]: silu of the first half times the second; of a weight that was packed as gated only."""
        ...


class Packer(Protocol):
    """What makes products of weights on this device."""

    def pack(self, weight: Tensor, *, gated: bool) -> Product | None:
        """weight [out, in]; gated: its halves are those of silu_mul. None: the plain weight serves better."""
        ...


class Linear:
    __slots__ = ("_gated", "_product", "adapters", "bias", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, gated: bool = False) -> None:
        """weight [out, in], bias [out]: filled by the loader before `pack`. gated: two products side by side, for silu_mul."""
        self.weight: Tensor | None = weight
        self.bias = bias
        self._gated = gated
        self._product: Product | None = None
        self.adapters: AdapterSide | None = None
        """What some tokens' adapters add to the product; None: this engine takes none."""

    @property
    def product(self) -> Product | None:
        """None: the plain weight."""
        return self._product

    def pack(self, packer: Packer) -> None:
        """After loading: the weight moves into the device's layout where there is one."""
        if self.weight is not None and (product := packer.pack(self.weight, gated=self._gated)) is not None:
            self._product = product
            self.weight = None

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] → [T, out]."""
        return self._adapted(x, self._multiply(x))

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """[T, in] and [T, out] → [T, out]."""
        if self._product is not None:
            return self._adapted(x, self._product.add(x, self.bias, residual))
        return residual + self(x)

    def silu_mul(self, x: Tensor) -> Tensor:
        """[T, in] → [T, out / 2]. What adapters add comes before the silu, so with one in the step product and gate are two."""
        assert self._gated
        if self._product is not None and not (self.adapters is not None and self.adapters.active):
            return self._product.silu_mul(x, self.bias)
        return gate(self(x))

    def _multiply(self, x: Tensor) -> Tensor:
        if self._product is not None:
            return self._product(x, self.bias)
        assert self.weight is not None
        return F.linear(x, self.weight, self.bias)

    def _adapted(self, x: Tensor, y: Tensor) -> Tensor:
        if self.adapters is not None and self.adapters.active:
            self.adapters.add(x, y)
        return y


def gate(both: Tensor) -> Tensor:
    """[T, 2 * I] → [T, I]."""
    first, second = both.chunk(2, dim=-1)
    return F.silu(first) * second


class OneDnnProduct:
    """bf16 in the blocks oneDNN chose: packing once at load instead of at each call makes a product with few rows faster (docs/log.md)."""

    __slots__ = ("_packed",)

    def __init__(self, weight: Tensor) -> None:
        self._packed: Any = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, bias, "none", [], "")
        return product

    def add(self, x: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
        return residual + self(x, bias)

    def silu_mul(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return gate(self(x, bias))


def onednn_packs(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
