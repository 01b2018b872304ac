"""What rank 0 tells the other ranks of an engine, and their answers; a step's batch as bytes. Framed as in framing.py, in one order.

Whatever rank 0's runner asks of model or cache is one message, so that followers know neither scheduling nor sampling.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import msgspec
import numpy as np
import torch
from torch import Tensor

from pagoda_worker.config import EngineConfig
from pagoda_worker.errors import RanksOutOfStep
from pagoda_worker.execution.runner import RunnerShape
from pagoda_worker.framing import LENGTH, decode_path
from pagoda_worker.layers.attention import AttentionBatch
from pagoda_worker.loading.peft import AdapterWeights
from pagoda_worker.scheduling.adapters import Adapter
from pagoda_worker.scheduling.plan import StepPlan

Message = TypeVar("Message")

# ---- from rank 0


class Join(msgspec.Struct, tag=1, array_like=True):
    """The first message. The rank reads its part of the model, unless `load` is lazy; answered by Counted."""

    config: EngineConfig
    index: int
    count: int
    meeting: Path
    apart: bool


class Agreed(msgspec.Struct, tag=2, array_like=True):
    """KV blocks that every rank has memory for."""

    blocks: int


class Allocate(msgspec.Struct, tag=3, array_like=True):
    """The KV cache, after weights that sleep or were not read yet; answered by Done."""

    shape: RunnerShape


class SentTensor(msgspec.Struct, array_like=True):
    dtype: str
    shape: list[int]
    data: bytearray

    @classmethod
    def of(cls, tensor: Tensor) -> "SentTensor":
        flat = tensor.detach().cpu().contiguous().view(-1)
        return cls(_name(tensor.dtype), list(tensor.shape), bytearray(flat.view(torch.uint8).numpy().tobytes()))

    def here(self) -> Tensor:
        return torch.from_numpy(np.frombuffer(self.data, np.uint8)).view(getattr(torch, self.dtype)).view(self.shape)


class SentAdapter(msgspec.Struct, array_like=True):
    """Whole: each rank takes its part."""

    slot: int
    rank: int
    tensors: dict[str, tuple[SentTensor, SentTensor]]

    @classmethod
    def of(cls, slot: int, weights: AdapterWeights) -> "SentAdapter":
        tensors = {name: (SentTensor.of(a), SentTensor.of(b)) for name, (a, b) in weights.tensors.items()}
        return cls(slot, weights.rank, tensors)

    def here(self) -> tuple[int, Adapter]:
        tensors = {name: (a.here(), b.here()) for name, (a, b) in self.tensors.items()}
        return self.slot, Adapter("", "", AdapterWeights(self.rank, "", 0, tensors))


class Change(msgspec.Struct, tag=4, array_like=True):
    """Blocks to move and to zero, adapters to put into slots; see StepPlan."""

    scrubs: list[int]
    copies: list[tuple[int, int]]
    swap_out: list[tuple[int, int]]
    swap_in: list[tuple[int, int]]
    adapters: list[SentAdapter]

    @classmethod
    def of(cls, plan: StepPlan) -> "Change":
        adapters = [SentAdapter.of(slot, cast(AdapterWeights, adapter.weights)) for slot, adapter in plan.adapters]
        return cls(plan.scrubs, plan.copies, plan.swap_out, plan.swap_in, adapters)

    def here(self) -> StepPlan:
        return StepPlan(
            scrubs=self.scrubs,
            copies=self.copies,
            swap_out=self.swap_out,
            swap_in=self.swap_in,
            adapters=[each.here() for each in self.adapters],
        )


class Forward(msgspec.Struct, tag=5, array_like=True):
    """A forward pass: token ids, positions, slots of adapters where some have one, and the fields of AttentionBatch."""

    tensors: list[tuple[str, str, list[int]]]
    """Name, dtype, shape; in the order of their bytes."""
    plain: dict[str, Any]
    dtypes: dict[str, str]
    data: bytearray
    """Empty: a broadcast from rank 0's device follows."""


class Logits(msgspec.Struct, tag=6, array_like=True):
    rows: int | None
    """None: of all hidden states of the last forward pass. Else of so many, which are broadcast."""


class Sleep(msgspec.Struct, tag=7, array_like=True):
    """Answered by Done."""

    level: int


class Wake(msgspec.Struct, tag=8, array_like=True):
    """Weights may be read again; an Allocate follows."""


Down = Join | Agreed | Allocate | Change | Forward | Logits | Sleep | Wake

# ---- to rank 0


class Counted(msgspec.Struct, tag=1, array_like=True):
    """The weights are there."""

    blocks: int


class Done(msgspec.Struct, tag=2, array_like=True):
    pass


class Failed(msgspec.Struct, tag=3, array_like=True):
    """Of an order that is answered; the rank goes on where that makes sense."""

    message: str
    reason: str


Up = Counted | Done | Failed

decode_down: Callable[[bytes], Down] = msgspec.msgpack.Decoder[Down](Down, dec_hook=decode_path).decode
decode_up: Callable[[bytes], Up] = msgspec.msgpack.Decoder[Up](Up).decode


def read_frame(stream: BinaryIO) -> bytes | None:
    """None: the other end is closed."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    payload = stream.read(length)
    return payload if len(payload) == length else None


# ---- a step's batch


@dataclass(frozen=True, slots=True)
class Received:
    ids: Tensor
    positions: Tensor
    batch: AttentionBatch
    adapter_slots: Tensor | None


def pack_batch(ids: Tensor, positions: Tensor, batch: AttentionBatch, adapter_slots: Tensor | None = None) -> tuple[Forward, Tensor | None]:
    """The message, and on a GPU the bytes to broadcast after it. Every field of the batch travels, also those that later versions have."""
    tensors, plain, dtypes = {"ids": ids, "positions": positions}, {}, {}
    if adapter_slots is not None:
        tensors["adapter_slots"] = adapter_slots
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            tensors[field.name] = value
        elif isinstance(value, torch.dtype):
            dtypes[field.name] = _name(value)
        else:
            plain[field.name] = value
    ordered = sorted(tensors.items(), key=lambda each: -each[1].itemsize)  # a view needs an offset of whole values
    told = [(name, _name(tensor.dtype), list(tensor.shape)) for name, tensor in ordered]
    if ids.device.type == "cpu":
        data = bytearray().join(tensor.numpy().tobytes() for _, tensor in ordered)
        return Forward(told, plain, dtypes, data), None
    return Forward(told, plain, dtypes, bytearray()), torch.cat([tensor.contiguous().view(-1).view(torch.uint8) for _, tensor in ordered])


def unpack_batch(message: Forward, data: Tensor) -> Received:
    """`data`: the bytes, on the rank's device. Views of it."""
    fields: dict[str, Any] = dict(message.plain)
    fields |= {name: getattr(torch, dtype_name) for name, dtype_name in message.dtypes.items()}
    at = 0
    for name, dtype_name, shape in message.tensors:
        dtype = getattr(torch, dtype_name)
        end = at + byte_count(shape, dtype)
        fields[name] = data[at:end].view(dtype).view(shape)
        at = end
    ids, positions, adapter_slots = fields.pop("ids"), fields.pop("positions"), fields.pop("adapter_slots", None)
    return Received(ids, positions, AttentionBatch(**fields), adapter_slots)


def data_of(message: Forward) -> Tensor | None:
    """Of a message that brought its bytes."""
    return torch.from_numpy(np.frombuffer(message.data, np.uint8)) if message.data else None


def total_bytes(message: Forward) -> int:
    return sum(byte_count(shape, getattr(torch, dtype)) for _, dtype, shape in message.tensors)


def byte_count(shape: list[int], dtype: torch.dtype) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def expect(message: object, kind: type[Message]) -> Message:
    """An answer of another kind says that the two no longer speak of the same thing."""
    if not isinstance(message, kind):
        raise RanksOutOfStep(f"a rank answered {type(message).__name__} instead of {kind.__name__}")
    return message
