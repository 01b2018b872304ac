"""LoRA beside a linear: for a token of adapter s the product gains B_s (A_s x), where A and B have few rows. Several adapters in one batch.

Owns the layout that torch and GPUs compute with, and its torch reference; native_adapters.py has the CPU's own. A `Linear` holds an
`AdapterSide`; whoever runs steps says once a step which adapter each token has. Knows neither names nor files: an adapter is a slot.

    a      [S, P, R, in]    per slot and part of the product (q, k, v; gate, up; else one): A, rows past the slot's rank are not read
    b      [S, R, out]      per slot: B transposed, times alpha / rank; the columns of part p belong to its rows of a
    ranks  [S] int32        rows that count in this linear; 0: this adapter does not touch it
    slots  [T] int32        of the step's tokens; -1: the base model
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pagoda_worker.layers.allocation import HugePages, zeros

MAX_RANK = 64


@dataclass(slots=True, eq=False)
class AdapterRows:
    """Which adapter each token of the step has. One object for all linears of a model; its owner changes it between steps."""

    slots: Tensor | None = None
    """None: nobody in this step has one, and linears do nothing for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRoom:
    """What adapters of one linear may be."""

    size: int
    """Inputs of the linear."""
    parts: tuple[int, ...]
    """Output columns of each part, in order."""
    slots: int
    max_rank: int
    dtype: torch.dtype
    device: torch.device


class AdapterSide(ABC):
    """What a Linear holds of adapters."""

    __slots__ = ("rows", "used")

    def __init__(self, rows: AdapterRows) -> None:
        self.rows = rows
        self.used = True
        """False: no adapter in a slot touches this linear."""

    @property
    def active(self) -> bool:
        """Somebody in this step may have an adapter here."""
        return self.used and self.rows.slots is not None

    @property
    def apart(self) -> bool:
        """Active, and the linear's product does not see to it by itself: `add` comes after it."""
        return self.active

    @abstractmethod
    def place(self, slot: int, rank: int, touched: Mapping[int, tuple[Tensor, Tensor]], pages: HugePages | None = None) -> None:
        """An adapter into its slot, over whatever lay there. touched: by part, A [rank, in] and B transposed [rank, columns of the part]
        times the scale; what is copied out of them is this object's own. Empty: the adapter does not touch this linear.
        pages: of this adapter's alone, where a CPU's kernels find it."""

    @abstractmethod
    def add(self, x: Tensor, y: Tensor) -> None:
        """x [T, in], y [T, out], rows contiguous: adds to y in place, for tokens whose slot is not -1; float32 within."""

    @abstractmethod
    def release(self) -> None:
        """The linear computes without adapters from here on."""


@dataclass(frozen=True, slots=True, eq=False)
class AdapterStack:
    """A and B of one linear for all slots, at addresses that stay: captured graphs hold them."""

    a: Tensor
    b: Tensor
    ranks: Tensor
    parts: tuple[int, ...]

    @classmethod
    def of(cls, room: AdapterRoom) -> "AdapterStack":
        a = zeros((room.slots, len(room.parts), room.max_rank, room.size), room.dtype, room.device)
        b = zeros((room.slots, room.max_rank, sum(room.parts)), room.dtype, room.device)
        return cls(a, b, torch.zeros(room.slots, dtype=torch.int32, device=room.device), room.parts)


Delta = Callable[[Tensor, Tensor, AdapterStack, AdapterRows], None]
"""(x, y, stack, rows), as `AdapterSide.add` has them."""


class StackedSide(AdapterSide):
    __slots__ = ("_add", "stack")

    def __init__(self, stack: AdapterStack, rows: AdapterRows, add: Delta) -> None:
        super().__init__(rows)
        self.stack = stack
        self._add = add

    def place(self, slot: int, rank: int, touched: Mapping[int, tuple[Tensor, Tensor]], pages: HugePages | None = None) -> None:
        """A linear that this adapter touches in some of its parts only has zeros for the others."""
        stack = self.stack
        stack.ranks[slot] = rank if touched else 0
        if stack.ranks.device.type == "cpu":  # a captured graph has them all
            self.used = bool(stack.ranks.any())
        if touched:
            stack.a[slot, :, :rank].zero_()
            stack.b[slot, :rank].zero_()
        for part, (a, b) in touched.items():
            start = sum(stack.parts[:part])
            stack.a[slot, part, :rank].copy_(a, non_blocking=True)
            stack.b[slot, :rank, start : start + stack.parts[part]].copy_(b, non_blocking=True)

    def add(self, x: Tensor, y: Tensor) -> None:
        self._add(x, y, self.stack, self.rows)

    def release(self) -> None:
        return


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
