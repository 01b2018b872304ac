"""Copies whole blocks of one layer's cache: within it (copy on write), or between it and pinned memory of the host (swap).

Called by whoever moves blocks. NOTE: a kernel reads pinned memory through the device's address of it; pageable memory it cannot.
"""

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048


@triton.jit
def copy_kernel(source, target, sources, targets, source_stride, target_stride, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """One program per pair of blocks, head and BLOCK values of it."""
    pair, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    at = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = at < SIZE
    read = tl.load(sources + pair).to(tl.int64) * SIZE
    written = tl.load(targets + pair).to(tl.int64) * SIZE
    values = tl.load(source + head * source_stride + read + at, mask=inside)
    tl.store(target + head * target_stride + written + at, values, mask=inside)


def copy_blocks(source: Tensor, target: Tensor, sources: Tensor, targets: Tensor, *, block_size: int) -> None:
    """source [2, H_kv, S, D] and target [2, H_kv, S', D] of one dtype, maybe the same tensor; sources, targets [C] int on the device.

    Block sources[i] of `source` becomes block targets[i] of `target`. No block may be written twice, or both read and written."""
    size = block_size * source.shape[3]
    if len(sources):
        copy_kernel[(len(sources), 2 * source.shape[1], triton.cdiv(size, BLOCK))](
            source, target, sources, targets, source.stride(1), target.stride(1), SIZE=size, BLOCK=BLOCK, num_warps=4
        )


def copy_blocks_reference(source: Tensor, target: Tensor, sources: Tensor, targets: Tensor, *, block_size: int) -> None:
    size = block_size * source.shape[3]
    pages, others = source.view(2 * source.shape[1], -1, size), target.view(2 * target.shape[1], -1, size)
    others[:, targets.long()] = pages[:, sources.long()]
