"""Token ids and block tables of the running rows, where the step reads them. Called by the runner; knows neither models nor plans.

On a GPU both tables lie on the device: the host may not know the newest ids yet, so it only says where to read. On a CPU the host and the
"device" share the memory, and dozens of small tensor operations would cost more than the step's numpy: the same tables seen through numpy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pagoda_worker.layers.allocation import zeros
from pagoda_worker.sampling.row_tables import IntArray, to_device


@dataclass(frozen=True, slots=True)
class Layout:
    """The flat batch of one step, on the host: T tokens of S sequences, N of which sample."""

    rows: IntArray
    """[T], as `positions`."""
    positions: IntArray
    sequence_rows: IntArray
    """[S], as `contexts`."""
    contexts: IntArray
    query_starts: IntArray
    """[S + 1]."""
    sampled_at: IntArray
    """[N] indices of tokens."""
    sampled_rows: IntArray
    lengths: IntArray
    """[N]: where the sampled id goes in its row."""
    block_size: int

    @property
    def pages(self) -> int:
        return -(-int(self.contexts.max()) // self.block_size)


@dataclass(frozen=True, slots=True)
class RowInputs:
    """On the device; see AttentionBatch for the last four."""

    ids: Tensor
    positions: Tensor
    sampled_at: Tensor
    slots: Tensor
    query_starts: Tensor
    context_lens: Tensor
    block_table: Tensor
    keep: Callable[[Tensor], None]
    """Writes ids [N] of those that sampled where the next step reads them. A broken one (-1) becomes 0, a valid input: a step that is
    planned already may read it before its end is known."""


class Rows:
    """`columns`: tokens that a sequence can have. There is one column more, for the token that ends a sequence at that length, and one row
    more, which pads batches and which no sequence ever has."""

    def __init__(self, rows: int, columns: int, block_size: int, device: torch.device) -> None:
        self.tokens = zeros((rows + 1, columns + 1), torch.int32, device)
        self.tables = zeros((rows + 1, -(-columns // block_size)), torch.int32, device)
        self.padding_row = rows
        self._device = device

    def add_blocks(self, added: list[tuple[int, int, int]]) -> None:
        """(row, index in its table, block)."""
        rows, at, blocks = to_device(np.array(added, np.int64).T.copy(), self._device)
        self.tables[rows, at] = blocks.int()

    def open(self, row: int, tokens: list[int], blocks: list[int]) -> None:
        known = to_device(np.array([*tokens, *blocks], np.int32), self._device)
        self.tokens[row, : len(tokens)], self.tables[row, : len(blocks)] = torch.split(known, [len(tokens), len(blocks)])

    def put(self, rows: IntArray, positions: IntArray, ids: IntArray) -> None:
        """Tokens that the host knows and the device does not."""
        there, at, known = _send([rows, positions, ids], np.int64, self._device)
        self.tokens[there, at] = known.int()

    def keep(self, rows: IntArray, lengths: IntArray, ids: Tensor) -> None:
        rows_there, lengths_there = _send([rows, lengths], np.int64, self._device)
        self._keep(rows_there, lengths_there, ids)

    def _keep(self, rows: Tensor, lengths: Tensor, ids: Tensor) -> None:
        self.tokens[rows, lengths] = ids.clamp(min=0).int()

    def lay_out(self, step: Layout) -> RowInputs:
        parts = [step.positions, step.rows, step.sequence_rows, step.sampled_at, step.sampled_rows, step.lengths]
        positions, rows, owners, sampled_at, sampled_rows, lengths = _send(parts, np.int64, self._device)
        starts, contexts = _send([step.query_starts, step.contexts], np.int32, self._device)
        return RowInputs(
            ids=self.tokens[rows, positions].long(),
            positions=positions,
            sampled_at=sampled_at,
            slots=self.tables[rows, positions // step.block_size].long() * step.block_size + positions % step.block_size,
            query_starts=starts,
            context_lens=contexts,
            block_table=self.tables[:, : step.pages].index_select(0, owners),
            keep=lambda ids: self._keep(sampled_rows, lengths, ids),
        )


class HostRows(Rows):
    """The same where the device is the host."""

    def __init__(self, rows: int, columns: int, block_size: int) -> None:
        super().__init__(rows, columns, block_size, torch.device("cpu"))
        self._tokens: npt.NDArray[np.int32] = self.tokens.numpy()
        self._tables: npt.NDArray[np.int32] = self.tables.numpy()
        self._gathered: tuple[IntArray, int, Tensor] | None = None
        """Rows, pages and the block table made of them; None: a table has changed since."""

    def add_blocks(self, added: list[tuple[int, int, int]]) -> None:
        self._gathered = None
        for row, at, block in added:
            self._tables[row, at] = block

    def open(self, row: int, tokens: list[int], blocks: list[int]) -> None:
        self._gathered = None
        self._tokens[row, : len(tokens)] = tokens
        self._tables[row, : len(blocks)] = blocks

    def put(self, rows: IntArray, positions: IntArray, ids: IntArray) -> None:
        self._tokens[rows, positions] = ids

    def keep(self, rows: IntArray, lengths: IntArray, ids: Tensor) -> None:
        self._tokens[rows, lengths] = np.maximum(ids.numpy(), 0)

    def lay_out(self, step: Layout) -> RowInputs:
        pages_before, offsets = np.divmod(step.positions, step.block_size)
        return RowInputs(
            ids=_here(self._tokens[step.rows, step.positions], np.int64),
            positions=torch.from_numpy(step.positions),
            sampled_at=torch.from_numpy(step.sampled_at),
            slots=torch.from_numpy(self._tables[step.rows, pages_before] * np.int64(step.block_size) + offsets),
            query_starts=_here(step.query_starts, np.int32),
            context_lens=_here(step.contexts, np.int32),
            block_table=self._block_table(step.sequence_rows, step.pages),
            keep=lambda ids: self.keep(step.sampled_rows, step.lengths, ids),
        )

    def _block_table(self, rows: IntArray, pages: int) -> Tensor:
        """That of the step before where it still says the same."""
        if self._gathered is None or self._gathered[0] is not rows or self._gathered[1] != pages:
            self._gathered = rows, pages, torch.from_numpy(self._tables[rows, :pages])
        return self._gathered[2]


def rows_on(device: torch.device, *, rows: int, columns: int, block_size: int) -> Rows:
    return HostRows(rows, columns, block_size) if device.type == "cpu" else Rows(rows, columns, block_size, device)


def _here(values: npt.NDArray[Any], dtype: type[np.int64 | np.int32]) -> Tensor:
    return torch.from_numpy(values.astype(dtype))


def _send(parts: list[IntArray], dtype: type[np.int64 | np.int32], device: torch.device) -> tuple[Tensor, ...]:
    """One copy for all."""
    there = to_device(np.concatenate(parts).astype(dtype, copy=False), device)
    return torch.split(there, [len(part) for part in parts])
