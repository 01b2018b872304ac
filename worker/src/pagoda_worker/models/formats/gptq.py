"""GPTQ checkpoints, as AutoGPTQ and GPTQModel write them (quant_method gptq). Pure; made by detection.py.

qweight [in / 8, out]      int32: eight nibbles (or four bytes) along the inputs, the lowest bits first
qzeros  [groups, out / 8]  int32: the same along the outputs; version 1 stores each zero less one, gptq_v2 as it is
scales  [groups, out]      float
g_idx   [in]               int32: the group of each input; no longer in order with act-order (desc_act)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pagoda_worker.models.config_fields import ConfigFields
from pagoda_worker.models.formats.layout import PLACE
from pagoda_worker.models.formats.stored import ReadWeight, StoredModule, grouped_integers, unpacked


@dataclass(frozen=True, slots=True, kw_only=True)
class Gptq:
    """quantization_config, as far as it decides what the numbers mean. Which modules are quantized only the files tell."""

    bits: int
    group_size: int
    """-1: one group for all inputs."""
    zeros_less_one: bool
    """Version 1."""
    act_order: bool
    """desc_act: without g_idx the groups of a layer are not known."""
    symmetric: bool
    """Every zero is the middle of the range, which tells the versions apart."""

    used = frozenset({"qweight", "qzeros", "scales", "g_idx"})
    unread: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "Gptq":
        """Raises ModelError, UnsupportedModel."""
        fields = ConfigFields(raw, PLACE, "a GPTQ checkpoint")
        fields.only("bits", 4, 8)
        for name in ("checkpoint_format", "format"):
            fields.only(name, "gptq", "gptq_v2")
        if raw.get("dynamic"):
            raise fields.unsupported("`dynamic` settings by module", "one setting for all modules")
        kind = raw.get("checkpoint_format") or raw.get("format") or "gptq"
        return cls(
            bits=fields.integer("bits"),
            group_size=group_size(fields),
            zeros_less_one=kind == "gptq",
            act_order=fields.flag("desc_act"),
            symmetric=fields.flag("sym"),
        )

    @property
    def title(self) -> str:
        return f"GPTQ{'' if self.zeros_less_one else ' v2'}, {self.bits} bits"

    @property
    def kept(self) -> bool:
        return self.bits == 4 or self.group_size == -1

    def quantizes(self, name: str, parts: frozenset[str]) -> bool:
        return "qweight" in parts

    def read(self, module: StoredModule) -> ReadWeight:
        out, size = module.shape
        per_word = 32 // self.bits
        if size % per_word or out % per_word:
            raise module.wrong("qweight", f"cannot be: {out} outputs or {size} inputs are no multiple of {per_word}")
        groups = 1 if self.group_size == -1 else -(-size // self.group_size)
        values = unpacked(module.take("qweight", (size // per_word, out), torch.int32), self.bits, 0).T
        zeros = unpacked(module.take("qzeros", (groups, out // per_word), torch.int32), self.bits, 1).T
        middle = 1 << (self.bits - 1)
        if self.symmetric and bool((zeros == (middle if self.zeros_less_one else middle - 1)).all()):
            stored, said = ("gptq_v2", "gptq") if self.zeros_less_one else ("gptq", "gptq_v2")
            raise module.wrong("qzeros", f"holds zeros of checkpoint_format {stored}, and config.json says {said}: mend config.json")
        if self.zeros_less_one:  # the sum wraps, as in the format's own kernels
            zeros = (zeros + 1) & ((1 << self.bits) - 1)
        scales = module.scales("scales", (groups, out)).T
        ordered = "g_idx" in module.parts or (self.act_order and groups > 1)
        return grouped_integers(
            values,
            scales,
            zeros,
            bits=self.bits,
            group_of=module.take("g_idx", (size,), torch.int32, torch.int64).long() if ordered else None,
            why=lambda what: module.wrong("g_idx" if ordered else "scales", what),
        )


def group_size(fields: ConfigFields, name: str = "group_size") -> int:
    """At least 2, or -1. Raises ModelError, UnsupportedModel."""
    size = fields.integer(name, 128, least=-1)
    if size in (0, 1):
        raise fields.unsupported(f"{name} {size}", "-1, or 2 and more,")
    return size
