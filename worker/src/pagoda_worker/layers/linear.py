"""A matrix product with the weight in the layout the device multiplies fastest. Called by models.

On CPU in bf16, oneDNN reads a weight in blocks of its own; packing once at load instead of at each call makes a product with few rows
faster (docs/log.md). The plain copy is dropped, so packing costs no memory.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS_HINT = 32
"""oneDNN picks the blocks for about this many rows; measured good from 1 row on."""


class Linear:
    __slots__ = ("_packed", "bias", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """weight [out, in], bias [out]: filled by the loader before `pack`."""
        self.weight: Tensor | None = weight
        self.bias = bias
        self._packed: Any = None

    def pack(self) -> None:
        """After loading: the weight moves into the device's layout where there is one."""
        if self.weight is not None and packs(self.weight):
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, _ROWS_HINT)
            self.weight = None

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] → [T, out]."""
        if self.weight is not None:
            return F.linear(x, self.weight, self.bias)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return product


def packs(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
