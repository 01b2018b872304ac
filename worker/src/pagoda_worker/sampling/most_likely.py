"""The largest value of each row, and where it is. Called by the sampler; plain arithmetic.

On a CPU torch compares numbers one by one, which over a large vocabulary is a visible part of a step. Numbers of one sign are in the order
of their bits read as integers, which numpy compares many at a time.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

_BITS: dict[torch.dtype, tuple[torch.dtype, type[np.unsignedinteger[Any]], int]] = {
    torch.bfloat16: (torch.int16, np.uint16, 0x7F80),
    torch.float16: (torch.int16, np.uint16, 0x7C00),
    torch.float32: (torch.int32, np.uint32, 0x7F800000),
}
"""As signed and unsigned integers, and infinity."""


def most_likely(values: Tensor) -> tuple[Tensor, Tensor]:
    """values [S, V] → ids [S] int64, the first one among equals, and whether the row's largest value is finite: -inf elsewhere is no harm,
    a NaN anywhere is. Without that an id means nothing."""
    if values.device.type != "cpu" or values.dtype not in _BITS or not values.is_contiguous() or not values.numel():
        best, ids = values.max(dim=-1)
        return ids, best.isfinite()
    signed, unsigned, infinity = _BITS[values.dtype]
    bits, rows = values.view(signed).numpy(), np.arange(len(values))
    ids_here = bits.argmax(-1)
    below_zero = bits[rows, ids_here] < 0
    if below_zero.any():  # all of the row: there the smallest bits are the largest number
        ids_here[below_zero] = bits[below_zero].argmin(-1)
    sign = 1 << 8 * bits.itemsize - 1
    magnitudes = bits[rows, ids_here].view(unsigned) & (sign - 1)
    # NaNs with a sign are the largest unsigned numbers of all, those without the largest signed ones.
    no_nan = bits.view(unsigned).max(-1) <= infinity | sign
    finite, ids = torch.from_numpy(no_nan & (magnitudes < infinity)), torch.from_numpy(ids_here)
    if not magnitudes.all():  # 0 and -0 are equal, their bits are not
        zero = torch.from_numpy(np.flatnonzero(magnitudes == 0))
        ids[zero] = values[zero].max(dim=-1).indices
    return ids, finite
