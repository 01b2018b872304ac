"""Adapters on the device: beside each of the model's linears, which slot each row has, and which each token of a step.

Owns that memory; called by the runner with what a plan says. Copies run on the stream of the step, in the plan's order, so that a slot may
be written again by the step after the last one that reads it. Knows no names.
"""

import numpy as np
import torch
from torch import Tensor

from pagoda_worker.layers.adapters import AdapterRoom, AdapterRows
from pagoda_worker.layers.allocation import HugePages
from pagoda_worker.loading.peft import AdapterWeights
from pagoda_worker.models.base import FusedLinear, Model, adaptable, part_of
from pagoda_worker.sampling.row_tables import IntArray, to_device


class DeviceAdapters:
    def __init__(self, model: Model, *, slots: int, max_rank: int, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        """`rows`: of the runner, the padding row included."""
        self._device = device
        self._rows = AdapterRows()
        self._adapted = adaptable(model.linears())
        self._parts = model.parts()
        self._slot_of_row: IntArray = np.full(rows, -1, np.int64)
        self._slot_of_row_there = torch.full((rows,), -1, dtype=torch.int32, device=device)
        for each in self._adapted:
            parts = tuple(columns for _, columns in each.modules)
            room = AdapterRoom(size=each.inputs, parts=parts, slots=slots, max_rank=max_rank, dtype=dtype, device=device)
            each.linear.adapters = model.operators.adapter_side(each.linear, room, self._rows)

    def detach(self) -> None:
        """The model computes without adapters from here on."""
        for each in self._adapted:
            if each.linear.adapters is not None:
                each.linear.adapters.release()
            each.linear.adapters = None

    def place(self, slot: int, weights: AdapterWeights) -> None:
        pages = HugePages()  # of its own, so that they go with it
        for each in self._adapted:
            assert each.linear.adapters is not None
            named = enumerate(name for name, _ in each.modules)
            touched = {part: self._own(each, name, *weights.tensors[name]) for part, name in named if name in weights.tensors}
            each.linear.adapters.place(slot, weights.rank, touched, pages)

    def _own(self, each: FusedLinear, name: str, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """What this rank has of them."""
        part = part_of(each, name, self._parts)
        return (a, b) if part is None else part.cut_adapter(a, b)

    def open_row(self, row: int, slot: int) -> None:
        if self._slot_of_row[row] != slot:
            self._slot_of_row[row] = slot
            self._slot_of_row_there[row] = slot

    def begin_step(self, rows: IntArray) -> None:
        """`rows` [T] of the step's tokens. Without adapters among them linears do nothing for any."""
        slots = self._slot_of_row[rows]
        self._rows.slots = None if slots.max() < 0 else to_device(slots.astype(np.int32), self._device)

    @property
    def slots(self) -> Tensor | None:
        """Of the step's tokens, as `begin_step` laid them out."""
        return self._rows.slots

    def take(self, slots: Tensor | None) -> None:
        """In place of `begin_step`: as rank 0 laid them out."""
        self._rows.slots = slots

    def any_in(self, rows: IntArray) -> bool:
        return bool(self._slot_of_row[rows].max() >= 0)

    def begin_graph(self, rows: Tensor | None) -> None:
        """While a graph is captured: `rows` [B] on the device, whose slots each replay reads anew. None: a graph without adapters."""
        self._rows.slots = None if rows is None else self._slot_of_row_there[rows]
