"""A small Llama's guesses by one call of the CPU's own kernels (native/drafting.h), where all of it is of the forms that those take.

Called by execution/drafter.py, which else goes operation by operation.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pagoda_worker.models.base import ForwardPass
from pagoda_worker.models.native_llama import Int64, NativeLlama, native_llama


@dataclass(frozen=True, slots=True)
class Guesses:
    """Of each member, in the order in which they were asked for."""

    ids: npt.NDArray[np.int32]
    """[members, most]."""
    chances: npt.NDArray[np.float32]
    """[members, most]: how likely the model thinks this guess and all before it."""
    made: Int64
    """[members]: guesses that stand there."""


class NativeDrafting:
    def __init__(self, model: NativeLlama) -> None:
        """As `native_drafting`."""
        self._model = model
        self._call = model.library["draft"]

    def read(self, chunks: Int64) -> None:
        """As `NativeLlama.read`."""
        self._model.read(chunks)

    def guess(self, unread: tuple[Int64, Int64], ends: Int64, rows: Int64, at: Int64, wanted: Int64, *, least: float) -> Guesses:
        """`unread`: rows and positions of the tokens to read first, among them, at `ends`, each member's newest, which stands at `at` of
        `rows`. A member guesses at most `wanted` tokens, none with a chance below `least`; they are written into its row's tokens."""
        count, most = len(rows), int(wanted.max())
        ids, chances = np.zeros((count, most), np.int32), np.zeros((count, most), np.float32)
        made = np.zeros(count, np.int64)
        asked = [each.ctypes.data for each in (ends, rows, at, wanted)]
        read = (unread[0].ctypes.data, unread[1].ctypes.data, len(unread[0]))
        found = (ids.ctypes.data, chances.ctypes.data, made.ctypes.data)
        self._call(self._model.address, *self._model.shape, *read, *asked, count, most, least, *found)
        return Guesses(ids, chances, made)


def native_drafting(model: ForwardPass, caches: list[Tensor], tokens: Tensor, tables: Tensor, block_size: int) -> NativeDrafting | None:
    """As `native_llama`."""
    laid_out = native_llama(model, caches, tokens, tables, block_size)
    return None if laid_out is None else NativeDrafting(laid_out)
