"""AWQ checkpoints, as AutoAWQ writes them for its GEMM kernel (quant_method awq, version gemm). Pure; made by detection.py.

qweight [in, out / 8]      int32: eight outputs; from the lowest nibble on they are outputs 0, 2, 4, 6, 1, 3, 5, 7 of the eight
qzeros  [groups, out / 8]  int32: in the same order, as they are
scales  [groups, out]      float
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pagoda_worker.models.config_fields import ConfigFields
from pagoda_worker.models.formats.gptq import group_size
from pagoda_worker.models.formats.layout import PLACE, has_in_name
from pagoda_worker.models.formats.stored import ReadWeight, StoredModule, grouped_integers, unpacked

NIBBLE_OF_OUTPUT = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where each of eight outputs lies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Awq:
    group_size: int
    """-1: one group for all inputs."""
    plain: tuple[str, ...]
    """modules_to_not_convert."""

    title = "AWQ, 4 bits"
    used = frozenset({"qweight", "qzeros", "scales"})
    kept = True
    unread: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "Awq":
        """Raises ModelError, UnsupportedModel."""
        fields = ConfigFields(raw, PLACE, "an AWQ checkpoint")
        for name in ("bits", "w_bit"):
            fields.only(name, 4)
        fields.only("zero_point", True)
        if str(raw.get("version", "gemm")).lower() != "gemm":
            raise fields.unsupported(f"version {raw['version']!r}", "'gemm'")
        name = "q_group_size" if "q_group_size" in raw else "group_size"
        return cls(group_size=group_size(fields, name), plain=fields.names("modules_to_not_convert"))

    def quantizes(self, name: str, parts: frozenset[str]) -> bool:
        return "qweight" in parts

    def read(self, module: StoredModule) -> ReadWeight:
        out, size = module.shape
        if has_in_name(self.plain, module.name):
            raise module.wrong("qweight", "is quantized; modules_to_not_convert of config.json says that it is not")
        if out % 8 or size % 2:
            raise module.wrong("qweight", f"cannot be: {out} outputs are no multiple of 8, or {size} inputs of 2")
        groups = 1 if self.group_size == -1 else -(-size // self.group_size)
        values = _in_order(module.take("qweight", (size, out // 8), torch.int32)).T
        zeros = _in_order(module.take("qzeros", (groups, out // 8), torch.int32)).T
        scales = module.scales("scales", (groups, out)).T
        return grouped_integers(values, scales, zeros, bits=4, why=lambda what: module.wrong("scales", what))


def _in_order(words: Tensor) -> Tensor:
    """[rows, out / 8] int32 → [rows, out] uint8."""
    rows = words.shape[0]
    return unpacked(words, 4, 1).view(rows, -1, 8)[:, :, list(NIBBLE_OF_OUTPUT)].reshape(rows, -1)
