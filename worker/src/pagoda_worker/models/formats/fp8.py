"""FP8 checkpoints with a scale per block or tensor (quant_method fp8: DeepSeek, Qwen, AutoFP8) or channel (fbgemm_fp8).

Pure; made by detection.py.

weight            [out, in]                  float8_e4m3fn
weight_scale_inv  [out / 128, in / 128]      float: blocks, whatever weight_block_size says; the value is times it, despite its name
weight_scale      [] or [1], or [out, 1]     float: of the tensor, or of each channel
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pagoda_worker.errors import ModelError
from pagoda_worker.models.config_fields import ConfigFields
from pagoda_worker.models.formats.layout import PLACE, has_in_name
from pagoda_worker.models.formats.stored import ReadWeight, StoredModule
from pagoda_worker.quantization.weights import Fp8Weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8:
    block: tuple[int, int] | None
    """Outputs and inputs that share a scale. None: a scale per tensor or channel."""
    plain: tuple[str, ...]

    title = "FP8"
    used = frozenset({"weight", "weight_scale", "weight_scale_inv"})
    kept = True
    unread = frozenset({"input_scale", "input_scale_ub"})

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "Fp8":
        """Raises ModelError, UnsupportedModel."""
        fields = ConfigFields(raw, PLACE, "an FP8 checkpoint")
        fields.only("fmt", "e4m3", "float8_e4m3fn")
        return cls(
            block=block_of(raw.get("weight_block_size"), "weight_block_size"),
            plain=(*fields.names("modules_to_not_convert"), *fields.names("ignored_layers")),
        )

    def quantizes(self, name: str, parts: frozenset[str]) -> bool:
        """Published ones do not list their head."""
        return not parts.isdisjoint({"weight_scale", "weight_scale_inv"})

    def read(self, module: StoredModule) -> ReadWeight:
        if has_in_name(self.plain, module.name):
            raise module.wrong("weight", "has scales; config.json lists its module among those that are not quantized")
        values = module.take("weight", module.shape, torch.float8_e4m3fn)
        if self.block is not None:
            return blockwise(module, values, "weight_scale_inv", self.block)
        return by_tensor_or_channel(module, values)


def blockwise(module: StoredModule, values: torch.Tensor, part: str, block: tuple[int, int]) -> Fp8Weight:
    out, size = module.shape
    return Fp8Weight(values, module.scales(part, (-(-out // block[0]), -(-size // block[1]))), block)


def by_tensor_or_channel(module: StoredModule, values: torch.Tensor) -> Fp8Weight:
    out, size = module.shape
    scales = module.scales("weight_scale", (), (1,), (1, 1), (out,), (out, 1)).reshape(-1, 1)
    return Fp8Weight(values, scales, (1 if len(scales) == out else out, size))


def block_of(value: object, name: str) -> tuple[int, int] | None:
    """Raises ModelError."""
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(each, int) and each > 0 for each in value):
        raise ModelError(f"{PLACE}: {name} must be two positive integers, it is {value!r}")
    return value[0], value[1]
