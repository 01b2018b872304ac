"""Collectives of ranks on the CPUs of one machine, through memory that all of them map: native/meeting.h behind the methods of a group.

Sums and gathers of a step, which are many and small, take this way; what is rare or of another type goes through the group that the ranks
found each other with. Made by loading/rank.py; knows no model.
"""

import ctypes
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pagoda_worker.errors import RanksOutOfStep
from pagoda_worker.layers.parallel import Collectives
from pagoda_worker.native.library import Library

_KINDS = {torch.float32: "f32", torch.bfloat16: "bf16"}


def folder_in_memory() -> str | None:
    """A folder that is memory, where pages that ranks share are not written to a disk; None: there is none."""
    shared = "/dev/shm"  # noqa: S108  mkdtemp makes a folder of the process's own in it
    return shared if os.access(shared, os.W_OK) else None


class GroundCollectives:
    def __init__(self, library: Library, group: Collectives, file: Path, *, patience_s: float) -> None:
        """`file`: in a folder that only these ranks can write; it may be removed when all ranks are here. `patience_s`: how long others are
        waited for."""
        self.rank, self.size, self.name, self.patience_s = group.rank, group.size, "shared memory", patience_s
        self._library, self._group = library, group
        length = library.constants["ground_seats_bytes"] + self.size * library.constants["ground_rank_bytes"]
        if self.rank == 0:
            with file.open("xb") as made:
                made.truncate(length)
        group.broadcast(torch.zeros(1))  # the others come when the file is there
        with file.open("r+b") as shared:
            self._memory = mmap.mmap(shared.fileno(), length)
        self._came = ctypes.c_int64()
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._seat = (address, self.rank, self.size)

    def all_reduce(self, x: Tensor) -> Tensor:
        """Raises RanksOutOfStep when somebody does not come."""
        if (kind := _KINDS.get(x.dtype)) is None:
            return self._group.all_reduce(x)
        x = x.contiguous()
        self._library[f"all_reduce_{kind}"](*self._seat, int(self.patience_s), x.data_ptr(), x.numel(), ctypes.addressof(self._came))
        self._check()
        return x

    def gather(self, x: Tensor) -> Sequence[Tensor]:
        """Raises RanksOutOfStep when somebody does not come."""
        x = x.contiguous()
        parts = x.new_empty((self.size if self.rank == 0 else 0, *x.shape))
        self._library["gather"](*self._seat, int(self.patience_s), x.data_ptr(), parts.data_ptr(), x.nbytes, ctypes.addressof(self._came))
        self._check()
        return parts.unbind()

    def broadcast(self, x: Tensor) -> None:
        self._group.broadcast(x)

    def _check(self) -> None:
        if not self._came.value:
            raise RanksOutOfStep(f"a rank of {self.size} has not come to where they meet: it hangs, or was lost")
