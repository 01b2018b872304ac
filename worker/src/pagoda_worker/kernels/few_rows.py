"""One row, or very few, times a plain weight: no matrix instructions, each weight is read once by the program that adds it up, and the gate
of an MLP comes with the product. cuBLAS cuts such products for more rows than there are. Called by layers/cuda_linear.py.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagoda_worker.kernels.launch import power_of_two

FEW_OUTPUTS = 2048
"""Up to so many cuBLAS has too few tiles for a GPU, also of up to MOST_ROWS rows."""
MANY_OUTPUTS = 16_384
MOST_ROWS = 4
"""Measured on an H200 (docs/kernels.md): beyond, matrix instructions win at every size."""


@dataclass(frozen=True, slots=True)
class FewRowsTile:
    outputs: int
    """Of one program."""
    inputs: int
    """Of one step of its loop."""
    warps: int


def takes(rows: int, outputs: int) -> bool:
    """Whether this kernel is the faster one."""
    return rows == 1 or (rows <= MOST_ROWS and outputs <= FEW_OUTPUTS)


def few_rows_tile(outputs: int) -> FewRowsTile:
    """Few outputs: small tiles, so that every processor has some. Many: what has to be added up across a program is shared by more."""
    if outputs <= FEW_OUTPUTS:
        return FewRowsTile(2, 1024, warps=2)
    return FewRowsTile(4, 512, warps=2) if outputs < MANY_OUTPUTS else FewRowsTile(8, 512, warps=4)


@triton.jit
def few_rows_kernel(
    x, weight, bias, out, rows, outputs, inputs, stride, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr, BIASED: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """GATED: weight is [2 * outputs, inputs], the gate's rows first."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    near_n = tl.minimum(n, outputs - 1)  # what lies past the end is the last output again, and is not stored
    m, k = tl.arange(0, ROWS), tl.arange(0, BLOCK_K)
    weight_at = weight + near_n.to(tl.int64)[:, None] * inputs + k[None, :]
    up_at = weight_at + outputs * inputs
    x_at = x + tl.minimum(m, rows - 1).to(tl.int64)[:, None] * stride + k[None, :]
    total = tl.zeros([ROWS, BLOCK_N, BLOCK_K], tl.float32)
    up = tl.zeros([ROWS, BLOCK_N, BLOCK_K], tl.float32)
    for start in tl.range(0, inputs, BLOCK_K, num_stages=3):
        if EVEN:
            w, xs = tl.load(weight_at + start), tl.load(x_at + start)
        else:
            w = tl.load(weight_at + start, mask=(k < inputs - start)[None, :], other=0.0)
            xs = tl.load(x_at + start, mask=(k < inputs - start)[None, :], other=0.0)
        wide = xs.to(tl.float32)[:, None, :]
        total += w.to(tl.float32)[None, :, :] * wide
        if GATED:
            if EVEN:
                w = tl.load(up_at + start)
            else:
                w = tl.load(up_at + start, mask=(k < inputs - start)[None, :], other=0.0)
            up += w.to(tl.float32)[None, :, :] * wide
    result = tl.sum(total, axis=2)
    if BIASED:
        result += tl.load(bias + near_n).to(tl.float32)[None, :]
    if GATED:
        other = tl.sum(up, axis=2)
        if BIASED:
            other += tl.load(bias + outputs + near_n).to(tl.float32)[None, :]
        result = result / (1.0 + tl.exp(-result)) * other
    inside = (n < outputs)[None, :] & (m < rows)[:, None]
    tl.store(out + m.to(tl.int64)[:, None] * outputs + n[None, :], result.to(out.dtype.element_ty), mask=inside)


def few_rows_product(x: Tensor, weight: Tensor, bias: Tensor | None, *, gated: bool = False) -> Tensor:
    """x [T, in] with rows of any stride, weight [out, in] contiguous, bias [out] → [T, out] in x's dtype; accumulates in float32. gated:
    [T, out / 2], silu of the first half times the second, rounded once."""
    rows, inputs = x.shape
    outputs = len(weight) // 2 if gated else len(weight)
    out = x.new_empty((rows, outputs))
    if not rows:
        return out
    tile = few_rows_tile(outputs)
    few_rows_kernel[(triton.cdiv(outputs, tile.outputs),)](
        x, weight, out if bias is None else bias, out, rows, outputs, inputs, x.stride(0), ROWS=power_of_two(rows), BLOCK_N=tile.outputs,
        BLOCK_K=tile.inputs, EVEN=inputs % tile.inputs == 0, BIASED=bias is not None, GATED=gated, num_warps=tile.warps,
    )  # fmt: skip
    return out


def few_rows_product_reference(x: Tensor, weight: Tensor, bias: Tensor | None, *, gated: bool = False) -> Tensor:
    both = torch.nn.functional.linear(x.float(), weight.float(), None if bias is None else bias.float())
    if gated:
        gate, up = both.chunk(2, dim=-1)
        both = torch.nn.functional.silu(gate) * up
    return both.to(x.dtype)
