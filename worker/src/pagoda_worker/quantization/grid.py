"""The numbers that a quantized weight can hold, and rounding to them: what round to nearest, AWQ and GPTQ have in common. Pure.

Scales are those that will be stored: rounded to the checkpoint's dtype before anything is rounded to them, so that a quantizer that
corrects its errors corrects that one too.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pagoda_worker.quantization.rounding import FP8_MAX, Format
from pagoda_worker.quantization.weights import Fp8Weight, Int4Weight, Int8Weight, QuantizedWeight

_SMALLEST_SCALE = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a weight becomes."""

    to: Format
    group_size: int | None
    """Inputs that share a scale, of int4; None: all of an output."""
    symmetric: bool
    """No zero points."""
    scale_dtype: torch.dtype

    def groups(self, inputs: int) -> int:
        """`group_size` divides `inputs`."""
        return 1 if self.group_size is None else inputs // self.group_size


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Of int8 and int4: steps times scale, the zero point at nothing."""

    scales: Tensor
    """[out, groups] float32."""
    zeros: Tensor
    """[out, groups] float32: the step that means zero."""
    lowest: int
    highest: int

    @classmethod
    def of(cls, weight: Tensor, recipe: Recipe) -> "Grid":
        """From the least to the largest value of each group; weight [out, in] float32."""
        grouped = weight.reshape(len(weight), recipe.groups(weight.shape[1]), -1)
        lowest, highest = (-127, 127) if recipe.to == "int8" else (0, 15)
        if recipe.symmetric:
            reach = grouped.abs().amax(dim=2)
            zeros = torch.full_like(reach, 0.0 if recipe.to == "int8" else 8.0)
            scales = reach / (127 if recipe.to == "int8" else 7)
        else:
            low, high = grouped.amin(dim=2).clamp(max=0.0), grouped.amax(dim=2).clamp(min=0.0)
            scales = (high - low) / 15
            zeros = torch.zeros_like(scales)
        scales = scales.clamp(min=_SMALLEST_SCALE).to(recipe.scale_dtype).float()
        if not recipe.symmetric:
            zeros = (-low / scales).round().clamp(0, 15)
        return cls(scales, zeros, lowest, highest)

    def steps(self, column: Tensor, group: int) -> Tensor:
        """column [out] of one input → the nearest steps, in float."""
        return ((column / self.scales[:, group]).round() + self.zeros[:, group]).clamp(self.lowest, self.highest)

    def meaning(self, steps: Tensor, group: int) -> Tensor:
        return (steps - self.zeros[:, group]) * self.scales[:, group]

    def nearest(self, weight: Tensor) -> Tensor:
        """weight [out, in] → its steps [out, in]."""
        grouped = weight.reshape(len(weight), self.scales.shape[1], -1)
        steps = (grouped / self.scales[:, :, None]).round() + self.zeros[:, :, None]
        return steps.clamp_(self.lowest, self.highest).view(weight.shape)

    def weight(self, steps: Tensor) -> QuantizedWeight:
        """steps [out, in] as they are held."""
        if self.highest == 127:
            return Int8Weight(steps.to(torch.int8), self.scales[:, 0].contiguous())
        nibbles = steps.to(torch.uint8)
        zeros = None if bool((self.zeros == 8).all()) else self.zeros.to(torch.uint8)
        return Int4Weight(nibbles[:, ::2] | nibbles[:, 1::2] << 4, self.scales, zeros)


def nearest(weight: Tensor, recipe: Recipe) -> QuantizedWeight:
    """Round to nearest; weight [out, in] float32."""
    if recipe.to != "fp8":
        grid = Grid.of(weight, recipe)
        return grid.weight(grid.nearest(weight))
    scales = (weight.abs().amax(dim=1, keepdim=True) / FP8_MAX).clamp(min=_SMALLEST_SCALE).to(recipe.scale_dtype).float()
    return Fp8Weight((weight / scales).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn), scales, (1, weight.shape[1]))
