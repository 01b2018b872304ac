"""Rotary position embedding and the scalings that checkpoints name. Called by models; knows nothing of requests."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pagoda_worker.errors import ModelError, UnsupportedModel


@dataclass(frozen=True, slots=True)
class RotaryTable:
    """cos and sin of each position, [max_model_len, D]: both halves of the head carry the same angles, and the first half of sin is
    negated, so that one multiply-add per half rotates."""

    cos: Tensor
    sin: Tensor

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Gathered once a step: [T, 1, D] each."""
        return self.cos.index_select(0, positions).unsqueeze(1), self.sin.index_select(0, positions).unsqueeze(1)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """heads [T, H, D] → the same, each half-split pair (i, i + D/2) turned by its position's angle."""
    half = heads.shape[-1] // 2
    swapped = torch.cat((heads[..., half:], heads[..., :half]), dim=-1)
    return torch.addcmul(heads * cos, swapped, sin)


def rotary_table(
    head_dim: int, length: int, parameters: Mapping[str, Any], *, max_position: int, dtype: torch.dtype, device: torch.device
) -> RotaryTable:
    """`parameters`: rope_theta, rope_type and what the type needs, as transformers 5 writes them."""
    inverse = _inverse_frequencies(head_dim, parameters, max_position)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), inverse)
    cos, sin = angles.cos(), angles.sin()
    return RotaryTable(torch.cat((cos, cos), dim=-1).to(device, dtype), torch.cat((-sin, sin), dim=-1).to(device, dtype))


def _inverse_frequencies(head_dim: int, parameters: Mapping[str, Any], max_position: int) -> Tensor:
    theta = float(parameters.get("rope_theta", 10_000.0))
    inverse = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        return inverse
    if kind == "linear":
        return inverse / _number(parameters, "factor")
    if kind == "llama3":
        return _llama3(inverse, parameters, max_position)
    raise UnsupportedModel(f"config.json: rope_type {kind!r} is not supported; default, linear and llama3 are")


def _llama3(inverse: Tensor, parameters: Mapping[str, Any], max_position: int) -> Tensor:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended."""
    factor, low, high = (_number(parameters, name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    old_length = float(parameters.get("original_max_position_embeddings", max_position))
    wavelength = 2 * math.pi / inverse
    blend = ((old_length / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 - blend) * inverse / factor + blend * inverse


def _number(parameters: Mapping[str, Any], name: str) -> float:
    value = parameters.get(name)
    if not isinstance(value, int | float):
        raise ModelError(f"config.json: rope_parameters.{name} must be a number, it is {value!r}")
    return float(value)
