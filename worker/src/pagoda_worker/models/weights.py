"""Checkpoint → tensors that are already where the model wants them: which tensor goes where, and what is missing or too much.

Knows no architecture and no file format: models hand over destinations by checkpoint name and the linears whose weights may be quantized
(placing.py), files.py the tensors. One tensor, or the parts of one linear, at a time: loading never holds a second copy of the model.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pagoda_worker.errors import ModelError
from pagoda_worker.layers.parallel import Part
from pagoda_worker.models.base import FusedLinear, part_of
from pagoda_worker.models.files import Tensors
from pagoda_worker.models.formats.layout import Layout
from pagoda_worker.models.placing import WHOLE, Placement, place

Copied = Callable[[int, int], None]
"""(bytes read so far, bytes in all), called after every tensor."""


@dataclass(slots=True)
class _Plan:
    copies: dict[str, str] = field(default_factory=dict)
    """Stored name → destination."""
    parts: dict[str, dict[str, str]] = field(default_factory=dict)
    """Module of a linear without memory yet → part → stored name."""
    zeros: list[str] = field(default_factory=list)
    """Biases that the model does not have: they must be nothing."""


def load_weights(
    tensors: Tensors,
    destinations: Mapping[str, Tensor],
    linears: Sequence[FusedLinear] = (),
    placement: Placement | None = None,
    *,
    ignored_suffixes: Iterable[str] = (),
    optional_prefix: str = "",
    copied: Copied = lambda done, total: None,
) -> None:
    """Fills every destination and gives every one of `linears`, whose weights have no memory yet, its weight. Raises ModelError naming file
    and tensor when one is missing, unexpected, cut short or of another shape, before anything is copied where the headers tell."""
    layout, shares = (None, WHOLE) if placement is None else (placement.layout, placement.parts)
    plan = _plan(tensors, destinations, linears, layout, shares, tuple(ignored_suffixes), optional_prefix)
    total, done = sum(path.stat().st_size for path in {each.path for each in tensors.stored.values()}), 0

    def read(names: Iterable[str]) -> None:
        nonlocal done
        done += sum(tensors.stored[name].nbytes for name in names)
        copied(done, total)

    for name, target in plan.copies.items():
        if (part := shares.get(target)) is None:
            tensors.copy(name, destinations[target])
        else:
            whole = tensors.numbers(name)  # mapped: what is not copied is not read
            destinations[target].copy_(part.cut(whole))
            tensors.give_back(whole)
        read([name])
    for name in plan.zeros:
        if bool(tensors.read(name).any()):
            raise _no_place(tensors, name)
    for fused in linears:
        assert placement is not None, "linears without memory are loaded by a placement"
        place(fused, plan.parts, tensors, placement)
        read([name for module, _ in fused.modules for name in plan.parts[module].values()])


def check_whole(tensors: Tensors, destinations: Mapping[str, Tensor], ignored_suffixes: Iterable[str]) -> None:
    """A plain checkpoint has these tensors in these shapes, by its headers; nothing is read. Raises ModelError."""
    _plan(tensors, destinations, (), None, WHOLE, tuple(ignored_suffixes), "")


def _plan(
    tensors: Tensors,
    destinations: Mapping[str, Tensor],
    linears: Sequence[FusedLinear],
    layout: Layout | None,
    shares: Mapping[str, Part],
    ignored: tuple[str, ...],
    prefix: str,
) -> _Plan:
    plan = _Plan(parts={module: {} for fused in linears for module, _ in fused.modules})
    for name, stored in tensors.stored.items():
        target = name.removeprefix(prefix)
        module, _, part = target.rpartition(".")
        if target.endswith(ignored):
            continue
        if module in plan.parts and part != "bias" and (part == "weight" or (layout is not None and part in layout.used)):
            plan.parts[module][part] = name
        elif target in destinations:
            wanted, share = tuple(destinations[target].shape), shares.get(target)
            wanted = wanted if share is None else share.shape(wanted)
            if stored.shape != wanted:
                raise ModelError(f"{stored.path}: tensor {name!r} has shape {list(stored.shape)}, config.json asks for {list(wanted)}")
            plan.copies[name] = target
        elif module in plan.parts and part == "bias":
            plan.zeros.append(name)
        elif layout is None or part not in layout.unread:
            raise _no_place(tensors, name)
    missing = {name for name in destinations if name.rpartition(".")[0] not in plan.parts or name.endswith(".bias")}
    missing -= set(plan.copies.values())
    missing |= {f"{module}.weight" for module, parts in plan.parts.items() if not parts}
    if missing:
        first = min(missing)
        folder = next(iter(tensors.stored.values())).path.parent if tensors.stored else "the checkpoint"
        raise ModelError(f"{folder}: tensor {first!r} is missing ({len(missing)} missing in all)")
    return plan


def _no_place(tensors: Tensors, name: str) -> ModelError:
    return ModelError(f"{tensors.stored[name].path}: tensor {name!r} has no place in this architecture")


def fill_randomly(destinations: Mapping[str, Tensor], parts: Mapping[str, Part] = WHOLE, *, seed: int = 0) -> None:
    """Numbers for a model that is only timed: the same for the same seed and kind of device, made where they lie. The spread keeps
    activations finite and the best tokens apart. A part gets what it would have of the whole, which is made beside it, one at a time."""
    generators: dict[torch.device, torch.Generator] = {}
    for name, tensor in destinations.items():
        if tensor.device.type == "meta":
            continue
        if tensor.ndim == 1:
            tensor.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        generator = generators.get(tensor.device) or torch.Generator(tensor.device).manual_seed(seed)
        generators[tensor.device] = generator
        part = parts.get(name)
        whole = tensor if part is None else _empty_like(tensor, part.shape(tensor.shape))
        whole.normal_(0.0, 1.5 * whole.shape[-1] ** -0.5, generator=generator)
        if part is not None:
            tensor.copy_(part.cut(whole))


def _empty_like(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """With its order of dimensions in memory, which is the order in which random numbers are drawn."""
    return tensor.new_empty(shape) if tensor.is_contiguous() else tensor.new_empty(shape[::-1]).T


def fill_linears_randomly(linears: Sequence[FusedLinear], placement: Placement, *, seed: int = 1) -> None:
    """The same for those without memory, one by one, as `placement` has them rounded."""
    generator = torch.Generator(placement.device).manual_seed(seed)

    def module(fused: FusedLinear, name: str, outputs: int) -> Tensor:
        part, shape = part_of(fused, name, placement.parts), (outputs, fused.inputs)
        whole = torch.empty(shape if part is None else part.shape(shape), dtype=placement.dtype, device=placement.device)
        whole.normal_(0.0, 1.5 * whole.shape[-1] ** -0.5, generator=generator)
        return whole if part is None else part.cut(whole)

    for fused in linears:
        weight = fused.linear.weight
        if isinstance(weight, Tensor) and weight.device.type == "meta":
            plain = torch.cat([module(fused, name, outputs) for name, outputs in fused.modules])
            fused.linear.weight = placement.rounded(fused, plain) or plain
