"""What LoRA adapters add to a product, several in one batch: a token's inputs times its adapter's A, and those few numbers times its B.

After SGMV and BGMV (Chen et al., Punica, 2023), without sorting: a program is for one adapter and a run of tokens, takes those of the run
that have this adapter, and ends at once where none has. So the grid follows from tensor sizes alone, and a CUDA graph stays valid whatever
adapters its rows have. layers/adapters.py has the layout of the stacks. Called by layers/cuda.py.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagoda_worker.kernels.launch import power_of_two, upcast

MOST_PARTS = 3
"""Of one product: queries, keys and values."""
BLOCK_INPUTS = 128
INPUTS_PER_SPLIT = 512
MOST_SPLITS = 16
BLOCK_OUTPUTS = 128


@dataclass(frozen=True, slots=True)
class DeltaTile:
    tokens: int
    ranks: int
    """A matrix instruction takes 16 at least."""
    share: int
    """Inputs of one split."""
    splits: int


def delta_tile(rows: int, inputs: int, max_rank: int) -> DeltaTile:
    """Runs are short where rows decode, each with an adapter of its own; tokens of a prompt all have the same."""
    share = BLOCK_INPUTS * -(-max(INPUTS_PER_SPLIT, -(-inputs // MOST_SPLITS)) // BLOCK_INPUTS)
    return DeltaTile(16 if rows <= 256 else 64, max(16, power_of_two(max_rank)), share, -(-inputs // share))


@triton.jit
def shrink_kernel(
    x, a, ranks, slots, shrunk, rows, inputs, stride, PARTS: tl.constexpr, MAX_RANK: tl.constexpr, SHARE: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """shrunk [splits, T, PARTS, MAX_RANK] float32: sums of SHARE inputs each, of tokens with an adapter; zeros past its rank."""
    slot, part, split = tl.program_id(1), tl.program_id(2) % PARTS, tl.program_id(2) // PARTS
    t, r, k = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_K)
    mine = tl.load(slots + t, mask=t < rows, other=-1) == slot
    rank = tl.load(ranks + slot)
    if (tl.max(mine.to(tl.int32), axis=0) > 0) & (rank > 0):
        x_at = x + t.to(tl.int64)[:, None] * stride
        a_at = a + ((slot.to(tl.int64) * PARTS + part) * MAX_RANK + r)[None, :] * inputs
        total = tl.zeros([BLOCK_T, BLOCK_R], tl.float32)
        for start in range(split * SHARE, tl.minimum((split + 1) * SHARE, inputs), BLOCK_K):
            at = start + k
            xs = tl.load(x_at + at[None, :], mask=mine[:, None] & (at < inputs)[None, :], other=0.0)
            w = tl.load(a_at + at[:, None], mask=(r < rank)[None, :] & (at < inputs)[:, None], other=0.0)
            xs, w = (xs.to(tl.float32), w.to(tl.float32)) if UPCAST else (xs, w)
            total = tl.dot(xs, w, total, input_precision="ieee")
        to = shrunk + ((split * rows + t.to(tl.int64)) * PARTS + part)[:, None] * MAX_RANK + r[None, :]
        tl.store(to, total, mask=mine[:, None] & (r < MAX_RANK)[None, :])


@triton.jit
def expand_kernel(
    shrunk, b, ranks, slots, y, rows, outputs, end_0, end_1, PARTS: tl.constexpr, MAX_RANK: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """end_0, end_1: where the columns of the first and the second part end."""
    slot = tl.program_id(1)
    t, r = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_R)
    n = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    mine = tl.load(slots + t, mask=t < rows, other=-1) == slot
    rank = tl.load(ranks + slot)
    if (tl.max(mine.to(tl.int32), axis=0) > 0) & (rank > 0):
        inside = mine[:, None] & (n < outputs)[None, :]
        y_at = y + t.to(tl.int64)[:, None] * outputs + n[None, :]
        total = tl.load(y_at, mask=inside, other=0.0).to(tl.float32)
        part_of_n = (n >= end_0).to(tl.int32) + (n >= end_1).to(tl.int32)
        w = tl.load(
            b + (slot.to(tl.int64) * MAX_RANK + r)[:, None] * outputs + n[None, :],
            mask=(r < rank)[:, None] & (n < outputs)[None, :], other=0.0,
        )  # fmt: skip
        w = w.to(tl.float32) if UPCAST else w
        for part in tl.static_range(PARTS):
            if tl.max((part_of_n == part).to(tl.int32), axis=0) > 0:
                few = tl.zeros([BLOCK_T, BLOCK_R], tl.float32)
                for split in tl.static_range(SPLITS):
                    from_at = shrunk + ((split * rows + t.to(tl.int64)) * PARTS + part)[:, None] * MAX_RANK + r[None, :]
                    few += tl.load(from_at, mask=mine[:, None] & (r < MAX_RANK)[None, :], other=0.0)
                own = tl.where((part_of_n == part)[None, :], w, 0.0)
                total += tl.dot(few.to(own.dtype), own, input_precision="ieee")
        tl.store(y_at, total.to(y.dtype.element_ty), mask=inside)


def add_deltas(x: Tensor, y: Tensor, a: Tensor, b: Tensor, ranks: Tensor, slots: Tensor, parts: tuple[int, ...]) -> None:
    """x [T, in] with rows of any stride, y [T, out] contiguous: adds to y of every token what its adapter makes of x. a [S, P, R, in],
    b [S, R, out], ranks [S] int32 (rows past them are not read), slots [T] int32 (-1: none), parts: their output columns, at most three.

    Accumulates in float32; the few numbers between A and B are rounded to y's dtype."""
    rows, inputs = x.shape
    count, _, max_rank, _ = a.shape
    if not rows:
        return
    tile = delta_tile(rows, inputs, max_rank)
    shrunk = x.new_empty((tile.splits, rows, len(parts), max_rank), dtype=torch.float32)
    blocks = triton.cdiv(rows, tile.tokens)
    common = {"PARTS": len(parts), "MAX_RANK": max_rank, "BLOCK_T": tile.tokens, "BLOCK_R": tile.ranks, "UPCAST": upcast(x.dtype)}
    shrink_kernel[(blocks, count, len(parts) * tile.splits)](
        x, a, ranks, slots, shrunk, rows, inputs, x.stride(0), SHARE=tile.share, BLOCK_K=BLOCK_INPUTS, num_warps=4, num_stages=3, **common
    )
    ends = [sum(parts[: i + 1]) for i in range(MOST_PARTS - 1)]
    expand_kernel[(blocks, count, triton.cdiv(y.shape[1], BLOCK_OUTPUTS))](
        shrunk, b, ranks, slots, y, rows, y.shape[1], ends[0], ends[1], SPLITS=tile.splits, BLOCK_N=BLOCK_OUTPUTS, num_warps=4, **common
    )


def add_deltas_reference(x: Tensor, y: Tensor, a: Tensor, b: Tensor, ranks: Tensor, slots: Tensor, parts: tuple[int, ...]) -> None:
    for slot, rank in enumerate(ranks.tolist()):
        at = (slots == slot).nonzero()[:, 0]
        start = 0
        for part, width in enumerate(parts if rank and len(at) else ()):
            few = (x[at].float() @ a[slot, part, :rank].float().T).to(x.dtype).float()
            columns = slice(start, start + width)
            y[at, columns] = (y[at, columns].float() + few @ b[slot, :rank, columns].float()).to(y.dtype)
            start += width
