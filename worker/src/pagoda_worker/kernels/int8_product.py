"""W8A8: rows of int8 times a weight of int8, summed in int32, scaled per row and output at the end. Called by layers/cuda_linear.py.

The sums are exact, so neither tiles nor splits change a bit of the result.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagoda_worker.kernels.launch import processors
from pagoda_worker.kernels.product_tiles import NEIGHBOURS, ProductTile, fitting_rows, join, partials, place, splits, tile_outputs

LEAST_INPUTS = 2048
"""Of a split."""
FEW_ROWS = 16
LONG = 4096
"""So many inputs keep the memory busy by themselves, however few the tiles; with fewer the tiles must."""


def int8_tile(rows: int, outputs: int, inputs: int, processor_count: int) -> ProductTile:
    """Few rows: long steps of two warps, whose loads are under way together. Many: tiles whose operands are read often from shared memory.
    Measured on an H200 (docs/kernels.md)."""
    block_rows = fitting_rows(rows, 64 if rows <= 64 else 128)
    if rows <= FEW_ROWS:
        outputs_each = 64 if inputs >= LONG else 32 if outputs >= LONG else 16
        return ProductTile(outputs_each, block_rows, 512, 2 if inputs >= 2 * LONG else 1, warps=2, stages=4)
    if rows <= 64:
        outputs_each = tile_outputs(rows, outputs, block_rows, (64, 32), processor_count)
        found = splits(rows, outputs, inputs, block_rows, outputs_each, least_inputs=LEAST_INPUTS, processor_count=processor_count)
        return ProductTile(outputs_each, block_rows, 256 if rows <= 32 else 128, found, warps=4, stages=4)
    outputs_each = tile_outputs(rows, outputs, block_rows, (128, 64), processor_count)
    return ProductTile(outputs_each, block_rows, 128, 1, warps=8 if outputs_each == 128 else 4, stages=3)


@triton.jit
def int8_kernel(
    x, row_scales, weight, output_scales, bias, out, rows, outputs, inputs, share,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr, SPLIT: tl.constexpr, BIASED: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
):  # fmt: skip
    """share: inputs of one split, a multiple of BLOCK_K. SPLIT: `out` is [splits, rows, outputs] int32."""
    n_tile, m_tile = place(tl.program_id(0), tl.cdiv(outputs, BLOCK_N), tl.cdiv(rows, BLOCK_M), NEIGHBOURS)
    split = tl.program_id(1)
    n, m = n_tile * BLOCK_N + tl.arange(0, BLOCK_N), m_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    begin = split * share
    end = tl.minimum(begin + share, inputs)
    # what lies past the end is the last row or output again, and is not stored
    w_at = weight + tl.minimum(n, outputs - 1).to(tl.int64)[:, None] * inputs + k[None, :]
    x_at = x + tl.minimum(m, rows - 1).to(tl.int64)[None, :] * inputs + k[:, None]
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.int32)
    for start in range(begin, end, BLOCK_K):
        if EVEN:
            w, xs = tl.load(w_at + start), tl.load(x_at + start)
        else:
            w = tl.load(w_at + start, mask=(k < end - start)[None, :], other=0)
            xs = tl.load(x_at + start, mask=(k < end - start)[:, None], other=0)
        total = tl.dot(w, xs, total, out_dtype=tl.int32)
    at = m.to(tl.int64)[None, :] * outputs + n[:, None]
    inside = (n < outputs)[:, None] & (m < rows)[None, :]
    if SPLIT:
        tl.store(out + split.to(tl.int64) * rows * outputs + at, total, mask=inside)
    else:
        result = total.to(tl.float32) * tl.load(output_scales + n, mask=n < outputs, other=0.0)[:, None]
        result = result * tl.load(row_scales + m, mask=m < rows, other=0.0)[None, :]
        if BIASED:
            result += tl.load(bias + n, mask=n < outputs, other=0.0).to(tl.float32)[:, None]
        tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)


def int8_product(
    x: Tensor, row_scales: Tensor, weight: Tensor, output_scales: Tensor, bias: Tensor | None, dtype: torch.dtype,
    tile: ProductTile | None = None,
) -> Tensor:  # fmt: skip
    """x [T, in] int8, row_scales [T] float32, weight [out, in] int8, output_scales [out] float32, bias [out]: all contiguous.

    Returns [T, out] in `dtype`. `tile`: None chooses by the sizes."""
    rows, inputs = x.shape
    outputs = len(weight)
    out = x.new_empty((rows, outputs), dtype=dtype)
    if not rows:
        return out
    tile = tile or int8_tile(rows, outputs, inputs, processors(x.device))
    target = partials(x, tile, outputs, torch.int32, out)
    share = triton.cdiv(triton.cdiv(inputs, tile.splits), tile.inputs) * tile.inputs
    grid = (triton.cdiv(outputs, tile.outputs) * triton.cdiv(rows, tile.rows), tile.splits)
    int8_kernel[grid](
        x, row_scales, weight, output_scales, target if bias is None else bias, target, rows, outputs, inputs, share,
        BLOCK_N=tile.outputs, BLOCK_M=tile.rows, BLOCK_K=tile.inputs, EVEN=inputs % tile.inputs == 0, SPLIT=tile.splits > 1,
        BIASED=bias is not None, NEIGHBOURS=NEIGHBOURS, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    if tile.splits > 1:
        join(target, out, bias, (row_scales, output_scales))
    return out


def int8_product_reference(
    x: Tensor, row_scales: Tensor, weight: Tensor, output_scales: Tensor, bias: Tensor | None, dtype: torch.dtype,
    tile: ProductTile | None = None,
) -> Tensor:  # fmt: skip
    """float64 holds every sum of int8 products exactly."""
    total = (x.double() @ weight.double().T).float() * output_scales * row_scales[:, None]
    return (total if bias is None else total + bias.float()).to(dtype)
