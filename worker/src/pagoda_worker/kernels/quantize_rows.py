"""Rows of activations to int8 with a scale each, by their largest value. Called by layers/cuda_linear.py before every W8A8 product."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagoda_worker.kernels.launch import power_of_two

LIMIT = 127.0
SMALLEST_SCALE = 1e-12
"""Of a row of zeros."""


@triton.jit
def quantize_kernel(x, values, scales, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr, SMALLEST: tl.constexpr):
    """One program per row."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < WIDTH
    wide = tl.load(x + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.div_rn(tl.max(tl.abs(wide), axis=0), 127.0), SMALLEST)
    # 1.5 * 2**23 leaves no bits for a fraction: adding it rounds halves to even, as torch.round does
    whole = (tl.div_rn(wide, scale) + 12582912.0) - 12582912.0
    tl.store(values + row * WIDTH + at, whole.to(tl.int8), mask=inside)
    tl.store(scales + row, scale)


def warps(width: int) -> int:
    """About 16 values a thread."""
    return max(1, min(16, power_of_two(width) // 512))


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [T, E] with rows of any stride → [T, E] int8, -127 to 127, and [T] float32: x is about their product."""
    rows, width = x.shape
    values, scales = x.new_empty((rows, width), dtype=torch.int8), x.new_empty((rows,), dtype=torch.float32)
    if rows:
        quantize_kernel[(rows,)](
            x, values, scales, x.stride(0), WIDTH=width, BLOCK=power_of_two(width), SMALLEST=SMALLEST_SCALE, num_warps=warps(width)
        )
    return values, scales


def quantize_rows_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    wide = x.float()
    scales = (wide.abs().amax(dim=1) / LIMIT).clamp_(min=SMALLEST_SCALE)
    return (wide / scales[:, None]).round_().to(torch.int8), scales
