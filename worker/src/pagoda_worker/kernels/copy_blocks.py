"""Copies whole blocks of one layer's cache: within it (copy on write), or between it and pinned memory of the host (swap).

Called by runner.py and host_memory.py through layers/operators.py. NOTE: a kernel reads pinned memory through the device's address of it;
pageable memory it cannot.
"""

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048


@triton.jit
def copy_kernel(
    source, target, sources, targets, source_head_stride, source_block_stride, target_head_stride, target_block_stride,
    SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per pair of blocks, head and BLOCK values of it."""
    pair, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    at = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = at < SIZE
    read = tl.load(sources + pair).to(tl.int64) * source_block_stride
    written = tl.load(targets + pair).to(tl.int64) * target_block_stride
    values = tl.load(source + head * source_head_stride + read + at, mask=inside)
    tl.store(target + head * target_head_stride + written + at, values, mask=inside)


def copy_blocks(source: Tensor, target: Tensor, sources: Tensor, targets: Tensor) -> None:
    """source [H, N, W] and target [H, M, W] of one dtype, maybe the same tensor, a block's values side by side; sources, targets [C] int on
    the device.

    Block sources[i] of `source` becomes block targets[i] of `target`. No block may be written twice, or both read and written."""
    heads, _, size = source.shape
    if len(sources):
        copy_kernel[(len(sources), heads, triton.cdiv(size, BLOCK))](
            source, target, sources, targets, *source.stride()[:2], *target.stride()[:2], SIZE=size, BLOCK=BLOCK, num_warps=4
        )


def copy_blocks_reference(source: Tensor, target: Tensor, sources: Tensor, targets: Tensor) -> None:
    target[:, targets.long()] = source[:, sources.long()]
