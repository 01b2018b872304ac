"""Host memory that holds KV blocks beside the device: preempted sequences and evicted prefixes. Owns the bytes, pinned next to a GPU.

Called by the runner with what a plan says; knows neither sequences nor hashes. Copies run on the stream of the step, in the plan's order,
so a block that is copied out may be written again by the same step. On a CPU the "device" is the same memory: allowed, gains nothing.
"""

import itertools
import time
from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor

from pagoda_worker.layers.operators import CopyBlocks
from pagoda_worker.sampling.row_tables import to_device

GROUP = 32
"""Blocks that pass through device memory of their own together: 64 MB for an 8B model."""
MEASURED_BLOCKS = 32

Pairs = Seq[tuple[int, int]]
"""(block, host slot)."""


class HostMemory:
    """`pages`: each layer's cache as [2 x kv heads, blocks, whatever a block is]; `slots` is what fits beside them on the host; `copy`
    moves blocks straight between the two, where the device has such a kernel."""

    def __init__(self, pages: list[Tensor], slots: int, copy: CopyBlocks | None = None) -> None:
        self._pages = pages
        self._copy = copy
        heads, self._blocks, width = pages[0].shape
        shape = (slots, len(pages), heads, width)
        if pages[0].is_cuda:
            self._slots = torch.empty(shape, dtype=pages[0].dtype, pin_memory=True)
        else:
            # From calloc: memory is taken page by page as slots are used.
            count = int(np.prod(shape)) * pages[0].dtype.itemsize
            self._slots = torch.from_numpy(np.zeros(count, np.uint8)).view(pages[0].dtype).view(shape)
        self.slot_bytes = self._slots[0].nbytes
        self.copy_bytes_per_s = self._measure()

    def copy_out(self, pairs: Pairs) -> None:
        if self._copy is not None:
            blocks, slots = self._indices(pairs)
            for number, layer in enumerate(self._pages):
                self._copy(layer, self._slots[:, number].transpose(0, 1), blocks, slots)
            return
        for group in _groups(pairs):
            blocks = self._index([block for block, _ in group])
            # One layout for a block in all layers, so that neighbouring slots are one plain copy.
            moved = torch.stack([layer.index_select(1, blocks).transpose(0, 1) for layer in self._pages], dim=1)
            for at, first, count in _runs([slot for _, slot in group]):
                self._slots[first : first + count].copy_(moved[at : at + count], non_blocking=True)

    def copy_in(self, pairs: Pairs) -> None:
        if self._copy is not None:
            blocks, slots = self._indices(pairs)
            for number, layer in enumerate(self._pages):
                self._copy(self._slots[:, number].transpose(0, 1), layer, slots, blocks)
            return
        for group in _groups(pairs):
            blocks = self._index([block for block, _ in group])
            parts = [
                self._slots[first : first + count].to(blocks.device, non_blocking=True) for _, first, count in _runs([s for _, s in group])
            ]
            moved = torch.cat(parts)
            for number, layer in enumerate(self._pages):
                layer.index_copy_(1, blocks, moved[:, number].transpose(0, 1))

    def _measure(self) -> float:
        """Bytes per second of a round trip. The blocks keep what they hold."""
        pairs = [(each, each) for each in range(min(MEASURED_BLOCKS, self._blocks, len(self._slots)))]
        seconds = float("inf")
        for _ in range(3):  # the first one also takes the memory
            began = time.monotonic()
            self.copy_out(pairs)
            self.copy_in(pairs)
            if self._pages[0].is_cuda:
                torch.cuda.synchronize(self._pages[0].device)
            seconds = min(seconds, time.monotonic() - began)
        return 2 * len(pairs) * self.slot_bytes / max(seconds, 1e-9)

    def _indices(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        blocks, slots = to_device(np.array(pairs, np.int64).T.copy(), self._pages[0].device)
        return blocks, slots

    def _index(self, values: list[int]) -> Tensor:
        return to_device(np.array(values, np.int64), self._pages[0].device)


def _groups(pairs: Pairs) -> list[Pairs]:
    return [pairs[at : at + GROUP] for at in range(0, len(pairs), GROUP)]


def _runs(slots: list[int]) -> list[tuple[int, int, int]]:
    """(index of the first, its slot, how many) of slots that follow each other in memory."""
    runs = []
    for _, members in itertools.groupby(enumerate(slots), key=lambda each: each[1] - each[0]):
        run = list(members)
        runs.append((*run[0], len(run)))
    return runs
