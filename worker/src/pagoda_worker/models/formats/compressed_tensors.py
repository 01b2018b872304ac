"""Checkpoints in the layouts of compressed-tensors, as llm-compressor and `pagoda quantize` write them. Pure; made by detection.py.

A scheme per group of modules, told apart by targets and ignore lists. Integers are stored as unsigned with half the range added:

    pack-quantized   weight_packed [out, in * bits / 32] int32 along the inputs, lowest bits first; weight_shape [2];
                     weight_scale [out, groups]; weight_zero_point [out * bits / 32, groups] int32 along the outputs; weight_g_idx [in]
    int-quantized    weight [out, in] int8; weight_scale [1] or [out, groups]; weight_zero_point the same in int8
    float-quantized  weight [out, in] float8_e4m3fn; weight_scale [1], [out, 1] or by block
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pagoda_worker.errors import ModelError
from pagoda_worker.models.config_fields import ConfigFields
from pagoda_worker.models.formats.fp8 import block_of, blockwise, by_tensor_or_channel
from pagoda_worker.models.formats.layout import PLACE, is_targeted
from pagoda_worker.models.formats.stored import ReadWeight, StoredModule, grouped_integers, unpacked

PACKED, INTEGERS, FLOATS, BY_WIDTH = "pack-quantized", "int-quantized", "float-quantized", "naive-quantized"
SUBJECT = "a compressed-tensors checkpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """Of one group of modules."""

    targets: tuple[str, ...]
    format: str
    """PACKED, INTEGERS or FLOATS."""
    bits: int
    strategy: str
    group_size: int
    symmetric: bool
    block: tuple[int, int] | None

    def groups(self, size: int) -> int:
        return -(-size // self.group_size) if self.strategy == "group" else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedTensors:
    schemes: tuple[Scheme, ...]
    ignore: tuple[str, ...]

    used = frozenset({"weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"})
    unread = frozenset({"input_scale", "input_zero_point", "output_scale", "output_zero_point", "k_scale", "v_scale", "q_scale"})

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "CompressedTensors":
        """Raises ModelError, UnsupportedModel."""
        fields = ConfigFields(raw, PLACE, SUBJECT)
        fields.only("quantization_status", "compressed", "frozen")
        sparsity = fields.mapping("sparsity_config") or {}
        ConfigFields(sparsity, f"{PLACE}.sparsity_config", SUBJECT).only("format", "dense")
        transforms = fields.mapping("transform_config") or {}
        if transforms.get("config_groups"):
            raise fields.unsupported("transform_config", "one without transforms")
        groups = fields.mapping("config_groups")
        if not groups:
            raise ModelError(f"{PLACE}: config_groups must say what is quantized")
        schemes = tuple(_scheme(name, group, str(raw.get("format", ""))) for name, group in groups.items())
        return cls(schemes=schemes, ignore=fields.names("ignore"))

    @property
    def title(self) -> str:
        return "compressed-tensors, " + ", ".join(sorted({f"{each.format} {each.bits} bits" for each in self.schemes}))

    @property
    def kept(self) -> bool:
        return all(each.format == FLOATS or each.bits == 4 or (each.symmetric and each.strategy != "group") for each in self.schemes)

    def scheme_of(self, name: str) -> Scheme | None:
        """None: the module is plain."""
        if is_targeted(self.ignore, name):
            return None
        return next((each for each in self.schemes if is_targeted(each.targets, name)), None)

    def quantizes(self, name: str, parts: frozenset[str]) -> bool:
        return self.scheme_of(name) is not None

    def read(self, module: StoredModule) -> ReadWeight:
        scheme = self.scheme_of(module.name)
        assert scheme is not None, "only modules that it quantizes are asked for"
        if scheme.format == PACKED:
            return _read_packed(module, scheme)
        if scheme.format == INTEGERS:
            return _read_integers(module, scheme)
        values = module.take("weight", module.shape, torch.float8_e4m3fn)
        return by_tensor_or_channel(module, values) if scheme.block is None else blockwise(module, values, "weight_scale", scheme.block)


def _scheme(name: str, group: object, general_format: str) -> Scheme:
    if not isinstance(group, Mapping):
        raise ModelError(f"{PLACE}.config_groups: {name} must be an object, it is {group!r}")
    fields = ConfigFields(group, f"{PLACE}.config_groups.{name}", SUBJECT)
    weights = ConfigFields(fields.mapping("weights") or {}, f"{fields.place}.weights", SUBJECT)
    weights.only("type", "int", "float")
    weights.only("num_bits", 4, 8)
    weights.only("dynamic", False)
    weights.only("strategy", "tensor", "channel", "group", "block")
    bits, is_float = weights.integer("num_bits", 8), weights.raw.get("type", "int") == "float"
    format_ = str(group.get("format") or general_format)
    if format_ == BY_WIDTH:
        format_ = FLOATS if is_float else INTEGERS
    if format_ not in (PACKED, INTEGERS, FLOATS):
        raise fields.unsupported(f"format {format_!r}", f"{PACKED}, {INTEGERS}, {FLOATS} or {BY_WIDTH}")
    if is_float != (format_ == FLOATS) or (bits == 4) > (format_ == PACKED):
        raise fields.unsupported(f"{bits} bits of {'float' if is_float else 'int'} as {format_}", "4 or 8 bits of int, or 8 of float,")
    group_size = weights.integer("group_size", -1, least=-1)
    strategy = weights.raw.get("strategy") or ("group" if group_size > 0 else "tensor")
    if strategy == "group" and group_size < 1:
        raise ModelError(f"{weights.place}: group_size must be a positive integer, it is {group_size}")
    if (strategy == "block" and not is_float) or (strategy == "group" and is_float):
        raise weights.unsupported(
            f"strategy {strategy!r} for {'float' if is_float else 'int'}", "tensor, channel, group of int or block of float"
        )
    block = block_of(weights.raw.get("block_structure"), "block_structure") if strategy == "block" else None
    if strategy == "block" and block is None:
        raise ModelError(f"{weights.place}: block_structure must be two positive integers, it is missing")
    symmetric = weights.flag("symmetric", True)
    return Scheme(
        targets=fields.names("targets"),
        format=format_,
        bits=bits,
        strategy=strategy,
        group_size=group_size,
        symmetric=symmetric,
        block=block,
    )


def _read_packed(module: StoredModule, scheme: Scheme) -> ReadWeight:
    out, size = module.shape
    per_word, groups = 32 // scheme.bits, scheme.groups(size)
    if size % 2:
        raise module.wrong("weight_packed", f"cannot be: {size} inputs are no multiple of 2")
    if "weight_shape" in module.parts:
        shape = module.take("weight_shape", (2,), torch.int64, torch.int32).tolist()
        if shape != [out, size]:
            raise module.wrong("weight_shape", f"says {shape}, config.json asks for {[out, size]}")
    words = module.take("weight_packed", (out, -(-size // per_word)), torch.int32)
    scales = _scales(module, scheme)
    zeros = None
    if not scheme.symmetric:
        zeros = unpacked(module.take("weight_zero_point", (-(-out // per_word), groups), torch.int32), scheme.bits, 0)[:out]
    ordered = "weight_g_idx" in module.parts
    group_of = module.take("weight_g_idx", (size,), torch.int32, torch.int64).long() if ordered else None
    if group_of is not None and bool((group_of == -1).all()):  # compressed-tensors' own mark of no order
        group_of = None
    return grouped_integers(
        unpacked(words, scheme.bits, 1)[:, :size],
        scales,
        zeros,
        bits=scheme.bits,
        group_of=group_of,
        why=lambda what: module.wrong("weight_g_idx" if ordered else "weight_scale", what),
    )


def _read_integers(module: StoredModule, scheme: Scheme) -> ReadWeight:
    values = module.take("weight", module.shape, torch.int8)
    zeros: Tensor | None = None
    scales = _scales(module, scheme)
    if not scheme.symmetric:
        shapes = ((), (1,), (1, 1), tuple(scales.shape)) if scheme.strategy == "tensor" else (tuple(scales.shape),)
        zeros = module.take_any("weight_zero_point", shapes, torch.int8).to(torch.int16).reshape(-1, scales.shape[1])
        zeros = (zeros + 128).to(torch.uint8).expand(scales.shape)
    unsigned = (values.to(torch.int16) + 128).to(torch.uint8)
    return grouped_integers(unsigned, scales, zeros, bits=8, why=lambda what: module.wrong("weight_scale", what))


def _scales(module: StoredModule, scheme: Scheme) -> Tensor:
    """[out, groups]."""
    out, size = module.shape
    groups = scheme.groups(size)
    if scheme.strategy == "tensor":
        return module.scales("weight_scale", (), (1,), (1, 1)).reshape(1, 1).expand(out, 1)
    shapes = ((out, 1), (out,)) if scheme.strategy == "channel" else ((out, groups),)
    return module.scales("weight_scale", *shapes).reshape(out, groups)
