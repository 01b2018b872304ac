"""The modules of a checkpoint → the weight of one linear of the model: quantized as they are stored, or plain.

One linear at a time, its parts joined; called by weights.py. Knows the files only through their tensors.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from pagoda_worker.errors import ConfigError
from pagoda_worker.layers.parallel import Part
from pagoda_worker.models.base import FusedLinear, part_of
from pagoda_worker.models.files import Tensors
from pagoda_worker.models.formats.layout import Layout
from pagoda_worker.models.formats.stored import ReadWeight, StoredModule
from pagoda_worker.quantization.parts import inputs_of, joined, outputs_of
from pagoda_worker.quantization.weights import Fp8Weight, Int4Weight, Int8Weight, QuantizedWeight

log = logging.getLogger(__name__)

WHOLE: Mapping[str, Part] = MappingProxyType({})
"""Of an engine with one rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """How the linears without memory come to theirs."""

    layout: Layout | None
    """None: all are stored plain."""
    dtype: torch.dtype
    """Of plain weights."""
    device: torch.device
    rounded: Callable[[FusedLinear, Tensor], QuantizedWeight | None] = lambda fused, weight: None
    """A linear's plain weight [out, in] as it is to be held; None: plain."""
    parts: Mapping[str, Part] = field(default_factory=lambda: WHOLE)
    """By the names of destinations, those of which only part is held."""


def place(fused: FusedLinear, parts: Mapping[str, Mapping[str, str]], tensors: Tensors, placement: Placement) -> None:
    """`parts`: of each module, part → stored name. Raises ModelError."""
    weights = [_read(name, outputs, fused, parts[name], tensors, placement) for name, outputs in fused.modules]
    quantized = [weight for weight in weights if not isinstance(weight, Tensor)]
    if len(quantized) == len(weights):
        one = joined(quantized)
        fused.linear.weight = _moved(one, placement.device) if one is not None else tuple(_moved(q, placement.device) for q in quantized)
        return
    if quantized:
        log.info("%s and its neighbours are held plain: they are one product, and not all are stored quantized", fused.modules[0][0])
    plain = [weight if isinstance(weight, Tensor) else weight.dequantized(placement.dtype) for weight in weights]
    whole = torch.empty(sum(len(each) for each in plain), plain[0].shape[1], dtype=placement.dtype, device=placement.device)
    torch.cat([each.to(placement.device, placement.dtype) for each in plain], out=whole)
    again = placement.rounded(fused, whole)
    fused.linear.weight = whole if again is None else again


def _read(name: str, outputs: int, fused: FusedLinear, parts: Mapping[str, str], tensors: Tensors, placement: Placement) -> ReadWeight:
    seen: list[Tensor] = []

    def read(whole: str) -> Tensor:
        seen.append(tensors.read(parts[whole.rpartition(".")[2]]))
        return seen[-1]

    def file_of(whole: str) -> str:
        stored = parts.get(whole.rpartition(".")[2]) or next(iter(parts.values()))
        return str(tensors.stored[stored].path)

    part = part_of(fused, name, placement.parts)
    rows, columns = (outputs, fused.inputs) if part is None else part.shape((outputs, fused.inputs))
    shape = (rows, columns)
    module = StoredModule(name, shape, frozenset(parts), read, file_of)
    layout = placement.layout
    if layout is not None and layout.quantizes(name, module.parts):
        weight = layout.read(module)
        weight = weight if part is None else _cut(weight, part, name)
    else:
        weight = _plain(module, fused, placement.dtype, part)
    weight = _apart(weight, seen)
    for tensor in seen:
        tensors.give_back(tensor)
    return weight


def _plain(module: StoredModule, fused: FusedLinear, dtype: torch.dtype, part: Part | None) -> Tensor:
    if extra := sorted(module.parts - {"weight"}):
        raise module.wrong(extra[0], "is of a quantized layer; config.json says that this one is plain")
    shape = module.shape[::-1] if fused.transposed else module.shape
    stored = module.take("weight", shape, torch.float16, torch.bfloat16, torch.float32, torch.float64)
    plain = stored.T if fused.transposed else stored
    return (plain if part is None else part.cut(plain)).to(dtype, copy=True)


def _cut(weight: ReadWeight, part: Part, name: str) -> ReadWeight:
    """Raises ConfigError where a rank's inputs are not whole groups of the format."""
    if isinstance(weight, Tensor):
        return part.cut(weight).contiguous()
    ((start, stop),) = part.ranges  # several only in architectures that are never stored quantized
    try:
        return outputs_of(weight, start, stop) if part.dim == 0 else inputs_of(weight, start, stop)
    except ValueError as error:
        raise ConfigError(f"{name} cannot be divided among ranks: {error}; lower tensorParallel, or quantize in other groups") from error


def _apart(weight: ReadWeight, seen: list[Tensor]) -> ReadWeight:
    """In memory of its own: what the file's mapping holds is given back."""
    mapped = {tensor.untyped_storage().data_ptr() for tensor in seen}

    def own(tensor: Tensor) -> Tensor:
        return tensor.clone() if tensor.untyped_storage().data_ptr() in mapped else tensor

    return own(weight) if isinstance(weight, Tensor) else _each_tensor(weight, own)


def _moved(weight: QuantizedWeight, device: torch.device) -> QuantizedWeight:
    return _each_tensor(weight, lambda tensor: tensor.to(device))


def _each_tensor(weight: QuantizedWeight, change: Callable[[Tensor], Tensor]) -> QuantizedWeight:
    match weight:
        case Int8Weight():
            return Int8Weight(change(weight.values), change(weight.scales))
        case Int4Weight():
            zeros, order = (None if each is None else change(each) for each in (weight.zeros, weight.order))
            return Int4Weight(change(weight.values), change(weight.scales), zeros, order)
        case Fp8Weight():
            return Fp8Weight(change(weight.values), change(weight.scales), weight.block)
