"""Root-mean-square norm of rows, alone or after adding to the residual stream in place. Called by layers/cuda.py."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagoda_worker.kernels.launch import power_of_two


@triton.jit
def norm_kernel(x, residual, weight, out, eps, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ADDED: tl.constexpr):
    """One program per row."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < WIDTH
    wide = tl.load(x + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    if ADDED:
        wide += tl.load(residual + row * WIDTH + at, mask=inside, other=0.0).to(tl.float32)
        rounded = wide.to(residual.dtype.element_ty)
        tl.store(residual + row * WIDTH + at, rounded, mask=inside)
        wide = rounded.to(tl.float32)  # what the next layer adds to is what is normed here
    size = tl.rsqrt(tl.sum(wide * wide, axis=0) / WIDTH + eps)
    scaled = wide * size * tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + at, scaled.to(out.dtype.element_ty), mask=inside)


def warps(width: int) -> int:
    """About 16 values a thread."""
    return max(1, min(16, power_of_two(width) // 512))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [T, E] with rows of any stride, weight [E]. Returns [T, E] in x's dtype; computes in float32 and rounds once."""
    out = x.new_empty(x.shape)
    if len(x):
        _launch(x, x, weight, out, eps, added=False)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """residual [T, E] contiguous += x [T, E]; returns the norm of the sum as it was rounded."""
    out = torch.empty_like(residual)
    if len(x):
        _launch(x, residual, weight, out, eps, added=True)
    return out


def _launch(x: Tensor, residual: Tensor, weight: Tensor, out: Tensor, eps: float, *, added: bool) -> None:
    width = x.shape[1]
    norm_kernel[(len(x),)](
        x, residual, weight, out, eps, x.stride(0), WIDTH=width, BLOCK=power_of_two(width), ADDED=added, num_warps=warps(width)
    )


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)


def add_rms_norm_reference(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    residual += x
    return rms_norm_reference(residual, weight, eps)
