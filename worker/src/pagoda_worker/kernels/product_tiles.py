"""How a product with few or many rows is cut into programs, and the kernel that joins products whose inputs were split.

Every kernel of products computes tiles [outputs, rows]: the weight is the left factor, since a decode step has far more outputs than rows,
and tensor cores take what comes from registers on the left only. The cut depends on tensor sizes alone, so CUDA graphs may replay it.
Called by the files of those kernels.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagoda_worker.kernels.launch import power_of_two

MOST_SPLITS = 8
JOIN_BLOCK = 1024
NEIGHBOURS = 8
"""Tiles of rows that take the same outputs one after another: their weights are then in the L2 cache."""


@dataclass(frozen=True, slots=True)
class ProductTile:
    """How one program is built, and how many share the inputs of one tile."""

    outputs: int
    rows: int
    inputs: int
    """Of one step of the loop."""
    splits: int
    warps: int
    stages: int


def tile_outputs(rows: int, outputs: int, block_rows: int, candidates: tuple[int, ...], processor_count: int) -> int:
    """The largest tile that still gives one and a half programs to every processor, else the smallest."""
    enough = (n for n in candidates if 2 * _tiles(rows, outputs, block_rows, n) >= 3 * processor_count)
    return next(enough, candidates[-1])


def splits(
    rows: int, outputs: int, inputs: int, block_rows: int, block_outputs: int, *, least_inputs: int, processor_count: int, programs: int = 2
) -> int:
    """A power of two: as many as give every processor so many programs, while each has `least_inputs` to add up. Fewer do not repay
    joining."""
    wanted = programs * processor_count // _tiles(rows, outputs, block_rows, block_outputs)
    found = 1
    while 2 * found <= min(wanted, inputs // least_inputs, MOST_SPLITS):
        found *= 2
    return found


def _tiles(rows: int, outputs: int, block_rows: int, block_outputs: int) -> int:
    return -(-rows // block_rows) * -(-outputs // block_outputs)


def fitting_rows(rows: int, most: int) -> int:
    """Of a tile: 8 at least, which is what a matrix instruction takes on its right."""
    return max(8, min(most, power_of_two(max(rows, 1))))


@triton.jit
def place(program, output_tiles, row_tiles, NEIGHBOURS: tl.constexpr):
    """Program → (tile of outputs, tile of rows)."""
    band = program // (NEIGHBOURS * output_tiles)
    first = band * NEIGHBOURS
    height = tl.minimum(row_tiles - first, NEIGHBOURS)
    within = program - band * NEIGHBOURS * output_tiles
    return within // height, first + within % height


@triton.jit
def join_kernel(
    partial, row_scales, output_scales, bias, out, rows, outputs, SPLITS: tl.constexpr, SCALED: tl.constexpr, BIASED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of parts [SPLITS, rows, outputs] in one fixed order. SCALED: int32 sums, whose scales come after."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = n < outputs
    total = tl.load(partial + row * outputs + n, mask=inside, other=0)
    for split in tl.static_range(1, SPLITS):
        total += tl.load(partial + (split * rows + row) * outputs + n, mask=inside, other=0)
    result = total.to(tl.float32)
    if SCALED:
        result = result * tl.load(output_scales + n, mask=inside, other=0.0) * tl.load(row_scales + row)
    if BIASED:
        result += tl.load(bias + n, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * outputs + n, result.to(out.dtype.element_ty), mask=inside)


def join(partial: Tensor, out: Tensor, bias: Tensor | None, scales: tuple[Tensor, Tensor] | None = None) -> None:
    """partial [S, T, N] float32, or int32 with scales: of rows [T] and of outputs [N]. Fills out [T, N]."""
    parts, rows, outputs = partial.shape
    of_rows, of_outputs = scales or (partial, partial)
    join_kernel[(rows, triton.cdiv(outputs, JOIN_BLOCK))](
        partial, of_rows, of_outputs, partial if bias is None else bias, out, rows, outputs,
        SPLITS=parts, SCALED=scales is not None, BIASED=bias is not None, BLOCK=JOIN_BLOCK, num_warps=4,
    )  # fmt: skip


def join_reference(partial: Tensor, out: Tensor, bias: Tensor | None, scales: tuple[Tensor, Tensor] | None = None) -> None:
    total = partial.sum(0).float()
    if scales is not None:
        total = total * scales[1] * scales[0][:, None]
    out.copy_(total if bias is None else total + bias.float())


def partials(x: Tensor, tile: ProductTile, outputs: int, dtype: torch.dtype, out: Tensor) -> Tensor:
    """Where programs leave their sums: `out` itself when one program has all inputs of a tile."""
    return out if tile.splits == 1 else x.new_empty((tile.splits, len(x), outputs), dtype=dtype)
