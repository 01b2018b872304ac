"""Adapters on the device: the stacks beside the model's linears, which slot each row has, and which each token of a step.

Owns that memory; called by the runner with what a plan says. Copies run on the stream of the step, in the plan's order, so that a slot may
be written again by the step after the last one that reads it. Knows no names.
"""

import numpy as np
import torch
from torch import Tensor

from pagoda_worker.layers.adapters import AdapterRows, AdapterSide, AdapterStack, new_stack
from pagoda_worker.layers.allocation import zeros
from pagoda_worker.layers.parallel import Part
from pagoda_worker.loading.peft import AdapterWeights
from pagoda_worker.models.base import Model, adaptable, part_of
from pagoda_worker.sampling.row_tables import IntArray, to_device


class DeviceAdapters:
    def __init__(self, model: Model, *, slots: int, max_rank: int, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        """`rows`: of the runner, the padding row included."""
        self._device = device
        self._model = model
        self._rows = AdapterRows()
        self._sides: list[AdapterSide] = []
        self._stacks: dict[str, tuple[AdapterStack, int]] = {}
        """By checkpoint name: its stack and which part of it."""
        self._shares: dict[str, Part] = {}
        """By checkpoint name, of a rank that has part of a weight."""
        self._slot_of_row: IntArray = np.full(rows, -1, np.int64)
        self._slot_of_row_there = torch.full((rows,), -1, dtype=torch.int32, device=device)
        for each in adaptable(model.linears()):
            stack = new_stack(
                size=each.inputs,
                parts=[columns for _, columns in each.modules],
                slots=slots,
                max_rank=max_rank,
                empty=lambda shape: zeros(shape, dtype, device),
                device=device,
            )
            each.linear.adapters = AdapterSide(stack, self._rows, model.operators.add_deltas)
            self._sides.append(each.linear.adapters)
            self._stacks |= {name: (stack, part) for part, (name, _) in enumerate(each.modules)}
            shares = {name: part_of(each, name, model.parts()) for name, _ in each.modules}
            self._shares |= {name: share for name, share in shares.items() if share is not None}

    def detach(self) -> None:
        """The model computes without adapters from here on."""
        for each in adaptable(self._model.linears()):
            each.linear.adapters = None

    def place(self, slot: int, weights: AdapterWeights) -> None:
        """A linear that this adapter touches in some of its parts only has zeros for the others."""
        rank = weights.rank
        touched = {id(stack): stack for name in weights.tensors for stack, _ in [self._stacks[name]]}
        for side in self._sides:
            side.stack.ranks[slot] = rank if id(side.stack) in touched else 0
            if self._device.type == "cpu":  # a captured graph has them all
                side.used = bool(side.stack.ranks.any())
        for stack in touched.values():
            stack.a[slot, :, :rank].zero_()
            stack.b[slot, :rank].zero_()
        for name, (a, b) in weights.tensors.items():
            stack, part = self._stacks[name]
            start = sum(stack.parts[:part])
            if (share := self._shares.get(name)) is not None:
                a, b = share.cut_adapter(a, b)
            stack.a[slot, part, :rank].copy_(a, non_blocking=True)
            stack.b[slot, :rank, start : start + stack.parts[part]].copy_(b, non_blocking=True)

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
