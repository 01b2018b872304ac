"""W4A16 and W8A16: rows of 16 bits times a weight of int4 or e4m3, which becomes 16 bits in registers only.

packed_weight.py has the layout. Splits of the inputs: after SplitK (Hoque et al., arXiv 2402.00025), but joined in a fixed order instead of
by atomic additions. Called by layers/cuda_linear.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagoda_worker.kernels.launch import paired, processors, upcast
from pagoda_worker.kernels.packed_weight import CHUNK, PackedWeight, dequantize_reference, factor, lift, raised, scale_at
from pagoda_worker.kernels.product_tiles import NEIGHBOURS, ProductTile, fitting_rows, join, partials, place, splits, tile_outputs

LEAST_INPUTS = 1024
"""Of a split."""
FEW_ROWS = 16
"""A product with so few waits for memory alone: many small programs of two warps keep it busiest."""


def weight_only_tile(rows: int, outputs: int, inputs: int, processor_count: int, *, bits: int = 4, itemsize: int = 2) -> ProductTile:
    """At most a warp to every 16 outputs: more would make the same factors twice. Few rows: splits keep the memory busy. Many: each would
    write and read more sums than it has weights. `itemsize`: of the inputs; four stages of many rows in float32 are more than an H200 has
    shared memory for. Measured on an H200 (docs/kernels.md)."""
    block_rows = fitting_rows(rows, 64 if rows <= 64 else 128)
    stages = 4 if itemsize == 2 else 2
    if rows <= FEW_ROWS:
        outputs_each, least_inputs, programs = (64, CHUNK, 8) if bits == 4 else (64, LEAST_INPUTS, 4)
    else:
        outputs_each, least_inputs, programs = tile_outputs(rows, outputs, block_rows, (128, 64), processor_count), LEAST_INPUTS, 2
    found = 1
    if rows <= 64:
        sizes = rows, outputs, inputs, block_rows, outputs_each
        found = splits(*sizes, least_inputs=least_inputs, processor_count=processor_count, programs=programs)
    warps = 2 if rows <= FEW_ROWS and bits == 4 else outputs_each // 16
    return ProductTile(outputs_each, block_rows, CHUNK, found, warps=warps, stages=stages)


@triton.jit
def weight_only_kernel(
    x, words, scales, zeros, bias, out, rows, outputs, inputs, chunks, share, stride, n_scales,
    BITS: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, HAS_ZEROS: tl.constexpr, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr, EVEN: tl.constexpr, SPLIT: tl.constexpr, BIASED: tl.constexpr, NEIGHBOURS: tl.constexpr, PAIRED: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """share: chunks of one split. GROUP 0: all inputs. SPLIT: `out` is [splits, rows, outputs] float32.

    SUMMED, for few rows of int4: zero points are not taken from every factor but, times the sum of a group's inputs, from the product; a
    product with ones makes that sum where it is needed."""
    PARTS: tl.constexpr = 16 // BITS
    WORDS: tl.constexpr = CHUNK // PARTS
    GROUP_STEP: tl.constexpr = min(GROUP, CHUNK)
    SUMMED: tl.constexpr = BITS == 4 and GROUP > 0 and BLOCK_M <= 8
    dtype: tl.constexpr = tl.float32 if UPCAST else x.dtype.element_ty
    n_tile, m_tile = place(tl.program_id(0), tl.cdiv(outputs, BLOCK_N), tl.cdiv(rows, BLOCK_M), NEIGHBOURS)
    split = tl.program_id(1)
    n, m = n_tile * BLOCK_N + tl.arange(0, BLOCK_N), m_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.arange(0, WORDS)
    near_n = tl.minimum(n, outputs - 1)  # what lies past the end is the last row or output again, and is not stored
    words_at = words + near_n.to(tl.int64)[:, None] * WORDS + j[None, :]
    x_at = x + tl.minimum(m, rows - 1).to(tl.int64)[None, :] * stride + j[:, None]
    scale, zero = scale_at(scales, zeros, 0, near_n, n_scales, outputs, BLOCK, HAS_ZEROS)
    ones = tl.full([BLOCK_N, WORDS], 1.0, dtype)
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for chunk in range(split * share, tl.minimum((split + 1) * share, chunks)):
        tile = tl.load(words_at + chunk * outputs * WORDS)
        if GROUP >= CHUNK:
            scale, zero = scale_at(scales, zeros, chunk // (GROUP // CHUNK), near_n, n_scales, outputs, BLOCK, HAS_ZEROS)
        part_sum = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        sums = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for part in tl.static_range(PARTS):
            first = chunk * CHUNK + part * WORDS
            if EVEN:
                xs = tl.load(x_at + first)
            else:
                xs = tl.load(x_at + first, mask=(j < inputs - first)[:, None], other=0.0)
            if GROUP > 0 and GROUP < CHUNK:
                group = tl.minimum(first, inputs - 1) // GROUP
                scale, zero = scale_at(scales, zeros, group, near_n, n_scales, outputs, BLOCK, HAS_ZEROS)
            xs = xs.to(dtype)
            if SUMMED:
                w = raised(tile, part, BITS, dtype, PAIRED)
                sums = tl.dot(ones, xs, sums, input_precision="ieee")
            else:
                w = factor(tile, zero[:, None], part, BITS, dtype, PAIRED)
            if GROUP == 0:
                total = tl.dot(w, xs, total, input_precision="ieee")
            else:
                part_sum = tl.dot(w, xs, part_sum, input_precision="ieee")
            if GROUP > 0 and ((part + 1) * WORDS) % GROUP_STEP == 0:
                total += (part_sum - (zero + lift(dtype, PAIRED))[:, None] * sums if SUMMED else part_sum) * scale[:, None]
                part_sum, sums = tl.zeros_like(part_sum), tl.zeros_like(sums)
    if GROUP == 0:
        total *= scale[:, None]
    at = m.to(tl.int64)[None, :] * outputs + n[:, None]
    inside = (n < outputs)[:, None] & (m < rows)[None, :]
    if SPLIT:
        tl.store(out + split.to(tl.int64) * rows * outputs + at, total, mask=inside)
    else:
        if BIASED:
            total += tl.load(bias + near_n).to(tl.float32)[:, None]
        tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


def weight_only_product(x: Tensor, weight: PackedWeight, bias: Tensor | None, tile: ProductTile | None = None) -> Tensor:
    """x [T, in] with rows of any stride, bias [out] → [T, out] in x's dtype; accumulates in float32. `tile`: None chooses by the sizes."""
    rows, inputs = x.shape
    outputs, chunks = weight.outputs, len(weight.words)
    out = x.new_empty((rows, outputs))
    if not rows:
        return out
    tile = tile or weight_only_tile(rows, outputs, inputs, processors(x.device), bits=weight.bits, itemsize=x.element_size())
    target = partials(x, tile, outputs, torch.float32, out)
    grid = (triton.cdiv(outputs, tile.outputs) * triton.cdiv(rows, tile.rows), tile.splits)
    weight_only_kernel[grid](
        x, weight.words, weight.scales, weight.words if weight.zeros is None else weight.zeros, out if bias is None else bias, target,
        rows, outputs, inputs, chunks, triton.cdiv(chunks, tile.splits), x.stride(0), weight.scales.shape[1],
        BITS=weight.bits, GROUP=weight.whole_group, BLOCK=weight.block, HAS_ZEROS=weight.zeros is not None,
        CHUNK=CHUNK, BLOCK_N=tile.outputs, BLOCK_M=tile.rows, EVEN=inputs % CHUNK == 0, SPLIT=tile.splits > 1, BIASED=bias is not None,
        NEIGHBOURS=NEIGHBOURS, PAIRED=paired(x.dtype), UPCAST=upcast(x.dtype), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    if tile.splits > 1:
        join(target, out, bias)
    return out


def weight_only_product_reference(x: Tensor, weight: PackedWeight, bias: Tensor | None, tile: ProductTile | None = None) -> Tensor:
    total = x.float() @ dequantize_reference(weight, torch.float32).T
    return (total if bias is None else total + bias.float()).to(x.dtype)
