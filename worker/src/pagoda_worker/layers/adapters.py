"""LoRA beside a linear: for a token of adapter s the product gains B_s (A_s x), where A and B have few rows. Several adapters in one batch.

Owns the layout that all kernels of it share and its torch reference. A `Linear` asks its `AdapterSide` after its own product; whoever runs
steps says once a step which adapter each token has. Knows neither names nor files: an adapter is a slot of the stacks.

    a      [S, P, R, in]    per slot and part of the product (q, k, v; gate, up; else one): A, rows past the slot's rank are not read
    b      [S, R, out]      per slot: B transposed, times alpha / rank; the columns of part p belong to its rows of a
    ranks  [S] int32        rows that count in this linear; 0: this adapter does not touch it
    slots  [T] int32        of the step's tokens; -1: the base model
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_RANK = 64


@dataclass(frozen=True, slots=True, eq=False)
class AdapterStack:
    """A and B of one linear for all slots."""

    a: Tensor
    b: Tensor
    ranks: Tensor
    parts: tuple[int, ...]
    """Output columns of each part, in order; they add up to `out`."""
    ends: Tensor
    """[P] int64 on the host: where each part's columns end."""
    pointers: tuple[int, int, int, int]
    """Of a, b, ranks and ends, for kernels that take addresses."""

    def __post_init__(self) -> None:
        assert self.a.shape[1] == len(self.parts)
        assert sum(self.parts) == self.b.shape[2]


@dataclass(slots=True, eq=False)
class AdapterRows:
    """Which adapter each token of the step has. One object for all linears of a model; its owner changes it between steps."""

    slots: Tensor | None = None
    """None: nobody in this step has one, and linears do nothing for them."""


Delta = Callable[[Tensor, Tensor, AdapterStack, AdapterRows], None]
"""(x [T, in], y [T, out], stack, rows): adds to y in place, for tokens whose slot is not -1. y's rows are contiguous; float32 within."""


def add_deltas_reference(x: Tensor, y: Tensor, stack: AdapterStack, rows: AdapterRows) -> None:
    """A `Delta` in plain torch: the rows of one adapter together."""
    assert rows.slots is not None
    for slot in torch.unique(rows.slots).tolist():
        rank = 0 if slot < 0 else int(stack.ranks[slot])
        if rank:
            at = (rows.slots == slot).nonzero()[:, 0]
            y.index_add_(0, at, delta_of(x.index_select(0, at), stack, slot, rank).to(y.dtype))


def delta_of(x: Tensor, stack: AdapterStack, slot: int, rank: int) -> Tensor:
    """[T, in] → [T, out] of tokens that all have this adapter, in x's dtype."""
    added = []
    for part, columns in enumerate(torch.split(stack.b[slot, :rank], list(stack.parts), dim=1)):
        added.append((x @ stack.a[slot, part, :rank].T) @ columns)
    return added[0] if len(added) == 1 else torch.cat(added, dim=1)


class AdapterSide:
    """What a Linear holds of adapters."""

    __slots__ = ("_add", "rows", "stack", "used")

    def __init__(self, stack: AdapterStack, rows: AdapterRows, add: Delta) -> None:
        self.stack = stack
        self.rows = rows
        self._add = add
        self.used = True
        """False: no adapter in a slot touches this linear."""

    @property
    def active(self) -> bool:
        return self.used and self.rows.slots is not None

    def add(self, x: Tensor, y: Tensor) -> None:
        """In place; `active` was asked first."""
        self._add(x, y, self.stack, self.rows)


def new_stack(
    *, size: int, parts: Sequence[int], slots: int, max_rank: int, empty: Callable[[tuple[int, ...]], Tensor], device: torch.device
) -> AdapterStack:
    """size: inputs of the linear. `empty` allocates; nothing that ranks do not cover is read."""
    a, b = empty((slots, len(parts), max_rank, size)), empty((slots, max_rank, sum(parts)))
    ranks, ends = torch.zeros(slots, dtype=torch.int32, device=device), torch.cumsum(torch.tensor(parts), 0)
    pointers = a.data_ptr(), b.data_ptr(), ranks.data_ptr(), ends.data_ptr()
    return AdapterStack(a, b, ranks, tuple(parts), ends, pointers)
