"""Memory of the host for what is large: zeroed, and taken when it is written, for what fills slowly (KV caches, tables of rows); on huge pages
for weights that a CPU reads at every token."""

import contextlib
import math
import mmap
import weakref
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On CPU from calloc, so that memory is taken page by page as it is written; torch.zeros would write all of it at once."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)


class HugePages:
    """Copies of tensors, one after another in pieces of memory that ask for huge pages: a core of a virtual machine read weights half as fast
    again from those as from pages of 4 KiB (docs/log.md). A piece goes back when the last tensor in it does."""

    PIECE_BYTES = 64 << 20
    """Of several tensors: a small one has no huge page to itself. What no tensor has reached yet takes no memory."""
    PAGE_BYTES = 2 << 20
    LINE_BYTES = 64

    def __init__(self) -> None:
        self._latest: Callable[[], mmap.mmap | None] = lambda: None
        """A weak reference, so that the last piece goes back too."""
        self._at = 0
        """Bytes of it that are given away."""

    def copy(self, tensor: Tensor) -> Tensor:
        """A contiguous one, whatever order its values lie in now. tensor: not empty."""
        piece = self._latest()
        if piece is None or self._at + tensor.nbytes > len(piece):
            piece = _huge_piece(max(tensor.nbytes, self.PIECE_BYTES) + self.PAGE_BYTES)
            self._latest = weakref.ref(piece)
            self._at = -torch.frombuffer(piece, dtype=torch.uint8).data_ptr() % self.PAGE_BYTES
        place = torch.frombuffer(piece, dtype=torch.uint8, count=tensor.nbytes, offset=self._at)
        self._at += -(-tensor.nbytes // self.LINE_BYTES) * self.LINE_BYTES
        return place.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def _huge_piece(size: int) -> mmap.mmap:
    piece = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory, the default, has no huge pages
    with contextlib.suppress(OSError):  # a kernel without them
        piece.madvise(mmap.MADV_HUGEPAGE)
    return piece
