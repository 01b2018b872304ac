"""Adapters beside a linear in the layout of the CPU's own kernel (native/adapters.h). Made by layers/native.py where that applies.

An adapter takes the memory that its ranks and parts need, from when it is placed until its slot is another's; an empty slot takes three
numbers. Where the product is one of ours it adds the deltas itself: one call for both, and a gate that waits for them.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pagoda_worker.layers.adapters import AdapterRoom, AdapterRows, AdapterSide
from pagoda_worker.layers.allocation import HugePages
from pagoda_worker.layers.native_quantized import QuantizedNativeProduct
from pagoda_worker.layers.panels import PanelProduct
from pagoda_worker.native.library import Library

_LANES = 16
_QUAD = 4
_KINDS = {torch.float32: "f32", torch.bfloat16: "bf16"}


def fits(library: Library, room: AdapterRoom) -> bool:
    """The kernel takes whole vectors, and pairs of them where bf16 is multiplied in pairs."""
    least = _LANES * (1 + (room.dtype == torch.bfloat16))
    whole = room.size % least == 0 and not any(part % _LANES for part in room.parts)
    return room.dtype in _KINDS and room.device.type == "cpu" and whole and len(room.parts) <= library.constants["most_parts"]


class NativeSide(AdapterSide):
    __slots__ = ("_add", "_address", "_block", "_header", "_held", "_numbers", "_product")

    def __init__(self, library: Library, room: AdapterRoom, rows: AdapterRows, product: PanelProduct | None) -> None:
        """product: of the linear, which adds deltas itself from now on; None: `add` does."""
        super().__init__(rows)
        self.used = False
        self._add = library[f"add_deltas_{_KINDS[room.dtype]}"]
        self._block: Callable[[list[tuple[Tensor, Tensor]]], Tensor] = _in_rows
        if isinstance(product, QuantizedNativeProduct) and library.constants["adapters_in_bytes"]:
            self._block = _in_bytes
        elif library.isa != "avx2" and room.dtype == torch.bfloat16:
            self._block = partial(_in_pairs, past_the_end=library.constants["past_the_end"])
        self._held: list[Tensor | None] = [None] * room.slots
        # as native/adapters.h reads it: AdapterSide, then an InSlot for each slot
        self._header = 4 + library.constants["most_parts"]
        self._numbers = np.zeros(self._header + 3 * room.slots, np.int64)
        self._numbers[:4] = len(room.parts), room.slots, room.size, product is not None and product.gated
        self._numbers[4 : 4 + len(room.parts)] = np.cumsum(room.parts)
        self._address = self._numbers.ctypes.data
        self._product = product
        if product is not None:
            product.side = self

    @property
    def apart(self) -> bool:
        return self._product is None and self.active

    @property
    def address(self) -> int:
        """Of what kernels read of this; it stays. 0: no product adds deltas itself."""
        return 0 if self._product is None else self._address

    @property
    def pointers(self) -> tuple[int, int]:
        """For kernels: of this, and of the slots of the step's rows."""
        assert self.rows.slots is not None
        return self._address, self.rows.slots.data_ptr()

    @property
    def nbytes(self) -> int:
        """Of what lies in slots."""
        return sum(held.nbytes for held in self._held if held is not None)

    def place(self, slot: int, rank: int, touched: Mapping[int, tuple[Tensor, Tensor]], pages: HugePages | None = None) -> None:
        parts = sorted(touched)
        block = None
        if touched:
            block = self._block([touched[part] for part in parts])
            block = block if pages is None else pages.copy(block)
        address = 0 if block is None else block.data_ptr()
        self._held[slot] = block
        at = self._header + 3 * slot
        self._numbers[at : at + 3] = address, rank if touched else 0, sum(1 << part for part in parts)
        self.used = any(held is not None for held in self._held)

    def add(self, x: Tensor, y: Tensor) -> None:
        if x.stride(1) != 1:
            x = x.contiguous()
        self._add(*self.pointers, x.data_ptr(), y.data_ptr(), len(x), x.stride(0), y.stride(0))

    def release(self) -> None:
        if self._product is not None:
            self._product.side = None


def _in_rows(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """As in adapters.h."""
    return torch.cat([*(a.reshape(-1) for a, _ in pairs), *(b.reshape(-1) for _, b in pairs)])


def _in_pairs(pairs: list[tuple[Tensor, Tensor]], past_the_end: int) -> Tensor:
    """As in adapters_pairs.h. `past_the_end`: zeros that a tile may read beyond the block."""
    rank = len(pairs[0][0])
    filled = rank + rank % 2
    a = torch.cat([F.pad(a, (0, 0, 0, filled - rank)) for a, _ in pairs])
    a = F.pad(a, (0, 0, 0, -len(a) % _LANES))
    a = a.view(len(a), -1, 2).transpose(0, 1)
    columns = [F.pad(b, (0, 0, 0, filled - rank)).view(filled // 2, 2, -1, _LANES).permute(2, 0, 3, 1) for _, b in pairs]
    return torch.cat([each.reshape(-1) for each in (a, *columns, a.new_zeros(past_the_end))])


def _in_bytes(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """As in adapters_bytes.h."""
    rounded_a, blocks, scales = [], [], []
    for a, b in pairs:
        of_ranks = _scales(a.float(), dim=1)
        rounded_a.append(_filled(_bytes(a.float() / of_ranks), _QUAD))
        b = b.float() * of_ranks
        of_columns = _scales(b, dim=0)
        scales.append(of_columns.flatten().view(torch.uint8))
        blocks.append(_filled(_bytes(b / of_columns), _QUAD).view(-1, _QUAD, b.shape[1] // _LANES, _LANES).permute(2, 0, 3, 1))
    a = _filled(torch.cat(rounded_a), _LANES)
    a = a.view(-1, _LANES, a.shape[1] // _QUAD, _QUAD).transpose(1, 2)
    return torch.cat([each.reshape(-1) for each in (a, *blocks, *scales)])


def _scales(values: Tensor, dim: int) -> Tensor:
    """By which the largest become 127; 1 for zeros."""
    largest = values.abs().amax(dim, keepdim=True)
    return torch.where(largest > 0, largest / 127, 1.0)


def _bytes(values: Tensor) -> Tensor:
    return (values.round() + 128).to(torch.uint8)


def _filled(values: Tensor, rows: int) -> Tensor:
    """Rows of bytes that mean zero, up to a multiple."""
    return F.pad(values, (0, 0, 0, -len(values) % rows), value=128)
