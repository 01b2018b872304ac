"""What a checkpoint holds of one quantized module, and what readers of every layout share: checked tensors, and integers out of words.

A reader is a pure function of these; it knows no file. models/placing.py makes a StoredModule of files, tests make one of a dict.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pagoda_worker.errors import ModelError
from pagoda_worker.quantization.weights import Int4Weight, Int8Weight, QuantizedWeight

ReadWeight = QuantizedWeight | Tensor
"""A layout that none of the forms holds exactly is dequantized where it is read: [out, in] float32."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True, slots=True)
class StoredModule:
    """One linear layer in a checkpoint."""

    name: str
    """`model.layers.0.mlp.down_proj`."""
    shape: tuple[int, int]
    """[out, in], as config.json has it."""
    parts: frozenset[str]
    """What follows the name in the names of its tensors: `qweight`, `scales`."""
    read: Callable[[str], Tensor]
    """A tensor by its whole name."""
    file_of: Callable[[str], str]

    @classmethod
    def of(cls, name: str, shape: tuple[int, int], tensors: Mapping[str, Tensor], file: str) -> "StoredModule":
        """`tensors` by part."""
        whole = {f"{name}.{part}": tensor for part, tensor in tensors.items()}
        return cls(name, shape, frozenset(tensors), whole.__getitem__, lambda _: file)

    def take(self, part: str, shape: tuple[int, ...], *dtypes: torch.dtype) -> Tensor:
        """The tensor, of this shape and one of these dtypes. Raises ModelError."""
        return self.take_any(part, (shape,), *dtypes)

    def take_any(self, part: str, shapes: tuple[tuple[int, ...], ...], *dtypes: torch.dtype) -> Tensor:
        if part not in self.parts:
            raise self.wrong(part, f"is missing; the layer has {', '.join(sorted(self.parts)) or 'nothing'}")
        tensor = self.read(f"{self.name}.{part}")
        if tuple(tensor.shape) not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in shapes)
            raise self.wrong(part, f"has shape {list(tensor.shape)}, config.json asks for {wanted}")
        if tensor.dtype not in dtypes:
            raise self.wrong(part, f"is {dtype_word(tensor.dtype)}, it must be {' or '.join(map(dtype_word, dtypes))}")
        return tensor

    def scales(self, part: str, *shapes: tuple[int, ...]) -> Tensor:
        """Finite, in float32."""
        scales = self.take_any(part, shapes, *FLOATS).float()
        if not bool(torch.isfinite(scales).all()):
            raise self.wrong(part, "holds a scale that is no finite number: the file is damaged")
        return scales

    def wrong(self, part: str, what: str) -> ModelError:
        name = f"{self.name}.{part}"
        return ModelError(f"{self.file_of(name)}: tensor {name!r} {what}")


def dtype_word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def unpacked(words: Tensor, bits: int, dim: int) -> Tensor:
    """int32 words that hold 32 / bits unsigned integers each, the lowest bits first, one after the other along `dim` → uint8."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    spread = (words.unsqueeze(dim + 1) >> shifts.view([-1 if i == dim + 1 else 1 for i in range(words.ndim + 1)])) & ((1 << bits) - 1)
    return spread.to(torch.uint8).flatten(dim, dim + 1)


def as_nibbles(values: Tensor) -> Tensor:
    """[out, in] uint8 below 16 → [out, in / 2], the form's own packing."""
    return values[:, ::2] | (values[:, 1::2] << 4)


def grouped_integers(
    values: Tensor, scales: Tensor, zeros: Tensor | None, *, bits: int, group_of: Tensor | None = None, why: Callable[[str], ModelError]
) -> ReadWeight:
    """The one form of (values - zeros) * scales. values [out, in] uint8, scales [out, groups] float32, zeros [out, groups] uint8 (None: the
    middle of the range); `group_of` [in] int64: which group each input is in, None: neighbours, evenly. Raises `why(what is wrong)`."""
    out, size = values.shape
    groups, order = scales.shape[1], None
    middle = 1 << (bits - 1)
    if group_of is not None:
        order = _order(group_of, groups, why)
    if size % groups:
        raise why(f"has {groups} groups, which do not share {size} inputs evenly")
    if order is not None:
        values = values[:, order]
    if zeros is not None and bool((zeros == middle).all()):
        zeros = None
    if bits == 4:
        return Int4Weight(as_nibbles(values), scales.contiguous(), None if zeros is None else zeros.contiguous(), order)
    if groups == 1 and zeros is None:
        return Int8Weight((values.to(torch.int16) - middle).to(torch.int8), scales[:, 0].contiguous())
    centre = float(middle) if zeros is None else zeros.float()[:, :, None]
    weight = ((values.view(out, groups, -1).float() - centre) * scales[:, :, None]).view(out, size)
    return weight if order is None else torch.empty_like(weight).index_copy_(1, order, weight)


def _order(group_of: Tensor, groups: int, why: Callable[[str], ModelError]) -> Tensor | None:
    """Inputs by group; None: they are in order already."""
    counts = torch.bincount(group_of.clamp(min=0), minlength=groups)
    if int(group_of.min()) < 0 or len(counts) != groups or bool((counts != counts[0]).any()):
        raise why(f"must give each of {groups} groups as many inputs")
    order = torch.argsort(group_of, stable=True)
    return None if bool((order == torch.arange(len(order))).all()) else order
