"""A matrix product with the weight in the layout the device multiplies fastest. Called by models.

`pack` is where the device gets its say: our own kernels' panels on a CPU that has them (native/), else oneDNN's blocks for bf16, else the
plain weight. The plain copy is dropped layer by layer, so packing costs no memory. Quantized weights that the device has no product for
are multiplied by what they mean (quantization/weights.py): slow, right, and no larger in memory than they are.
"""

from typing import Any, Protocol, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from pagoda_worker.layers.adapters import AdapterSide
from pagoda_worker.quantization.weights import QuantizedWeight

Weight = Tensor | QuantizedWeight
"""[out, in]."""

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

    def pack(self, weight: Weight, *, gated: bool) -> Product | None:
        """weight [out, in]; gated: its halves are those of silu_mul. None: torch serves as well, see `torch_product`."""
        ...


class Linear:
    __slots__ = ("_gated", "_product", "adapters", "bias", "weight")

    def __init__(self, weight: Weight | None, bias: Tensor | None = None, *, gated: bool = False) -> None:
        """weight [out, in], bias [out]: filled, or set, by the loader before `pack`. gated: two products side by side, for silu_mul."""
        self.weight: Weight | tuple[QuantizedWeight, ...] | None = weight
        """Several: parts along the outputs that cannot be one (quantization/parts.py)."""
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
        weight, self.weight = self.weight, None
        assert weight is not None, "a weight is packed once"
        if isinstance(weight, tuple):
            self._product = SideBySide([packer.pack(part, gated=False) or torch_product(part) for part in weight])
        elif (product := packer.pack(weight, gated=self._gated)) is not None:
            self._product = product
        elif isinstance(weight, Tensor):
            self.weight = weight
        else:
            self._product = torch_product(weight)

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] → [T, out]."""
        return self._adapted(x, self._multiply(x))

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """[T, in] and [T, out] → [T, out]."""
        if self._product is not None:
            return self._adapted(x, self._product.add(x, self.bias, residual))
        return residual + self(x)

    def silu_mul(self, x: Tensor) -> Tensor:
        """[T, in] → [T, out / 2]. What adapters add comes before the silu: unless the product adds it, product
        and gate are two then."""
        assert self._gated
        if self._product is not None and not (self.adapters is not None and self.adapters.apart):
            return self._product.silu_mul(x, self.bias)
        return gate(self(x))

    def _multiply(self, x: Tensor) -> Tensor:
        if self._product is not None:
            return self._product(x, self.bias)
        assert isinstance(self.weight, Tensor), "quantized weights are packed before they are used"
        return F.linear(x, self.weight, self.bias)

    def _adapted(self, x: Tensor, y: Tensor) -> Tensor:
        if self.adapters is not None and self.adapters.apart:
            self.adapters.add(x, y)
        return y


def gate(both: Tensor) -> Tensor:
    """[T, 2 * I] → [T, I]."""
    first, second = both.chunk(2, dim=-1)
    return F.silu(first) * second


class PlainProduct:
    """The additions and the gate apart, by torch: what every product may inherit until it has its own."""

    __slots__ = ()

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def add(self, x: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
        return residual + self(x, bias)

    def silu_mul(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return gate(self(x, bias))


class TorchProduct(PlainProduct):
    """By the plain weight. Of a quantized one that is made anew for every call: memory holds no second copy of the model."""

    __slots__ = ("_weight",)

    def __init__(self, weight: Weight) -> None:
        self._weight = weight

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        weight = self._weight if isinstance(self._weight, Tensor) else self._weight.dequantized(x.dtype)
        return F.linear(x, weight, bias)


def torch_product(weight: Weight) -> Product:
    return TorchProduct(weight)


class SideBySide(PlainProduct):
    """Products whose outputs stand one after another."""

    __slots__ = ("_parts",)

    def __init__(self, parts: list[Product]) -> None:
        self._parts = parts

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        both = torch.cat([part(x, None) for part in self._parts], dim=-1)
        return both if bias is None else both + bias


class OneDnnProduct(PlainProduct):
    """bf16 in the blocks oneDNN chose: packing once at load instead of at each call makes a product with few rows faster (docs/log.md)."""

    __slots__ = ("_packed",)

    def __init__(self, weight: Tensor) -> None:
        self._packed: Any = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, bias, "none", [], "")
        return product


def onednn_packs(weight: Weight) -> TypeGuard[Tensor]:
    return (
        isinstance(weight, Tensor)
        and weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
