"""Round to nearest: a plain weight as int8, int4 or fp8, with no calibration. What loading with `spec.engine.quantization` does, and the
baseline that calibrated quantizers are held against. Pure; knows no files.
"""

from typing import Literal

import torch
from torch import Tensor

from pagoda_worker.quantization.parts import joined
from pagoda_worker.quantization.weights import Fp8Weight, Int4Weight, Int8Weight, QuantizedWeight

Format = Literal["int8", "int4", "fp8"]
GROUP = 128
"""Inputs that share a scale in int4: what published checkpoints use."""
SMALLEST_GROUP = 32
FP8_MAX = 448.0
"""The largest number of e4m3."""
_VALUES_AT_ONCE = 1 << 23
_SMALLEST_SCALE = 1e-12
"""Of a row of zeros."""


def rounded(weight: Tensor, to: Format, *, group: int = GROUP) -> QuantizedWeight | None:
    """weight [out, in] on any device, some rows at a time: what rounding needs besides is small beside a large weight. None: it has no such
    form (int4 of inputs that are no multiple of 32)."""
    size = fitting_group(weight.shape[1], group)
    if to == "int4" and size is None:
        return None
    rows = max(_VALUES_AT_ONCE // weight.shape[1], 1)
    return joined([_rounded(part, to, size or 0) for part in torch.split(weight, rows)])


def _rounded(weight: Tensor, to: Format, group: int) -> QuantizedWeight:
    match to:
        case "int8":
            return int8(weight)
        case "int4":
            return int4(weight, group)
        case "fp8":
            return fp8(weight)


def fitting_group(inputs: int, wanted: int = GROUP) -> int | None:
    """The largest group of at most `wanted`, halved until whole ones fill the inputs."""
    while wanted >= SMALLEST_GROUP:
        if inputs % wanted == 0:
            return wanted
        wanted //= 2
    return None


def int8(weight: Tensor) -> Int8Weight:
    """A scale per output: each value is off by at most half of it."""
    wide = weight.float()
    scales = (wide.abs().amax(dim=1) / 127).clamp_(min=_SMALLEST_SCALE)
    return Int8Weight((wide / scales[:, None]).round_().clamp_(-127, 127).to(torch.int8), scales)


def int4(weight: Tensor, group: int, *, symmetric: bool = False) -> Int4Weight:
    """A scale per output and `group` inputs. With a zero point (the default) the 16 steps reach from the least to the largest value, zero
    always among them; symmetric has 15 around zero. Each value is off by at most half a scale."""
    out, size = weight.shape
    wide = weight.float().view(out, size // group, group)
    if symmetric:
        scales = (wide.abs().amax(dim=2) / 7).clamp_(min=_SMALLEST_SCALE)
        zeros = torch.full_like(scales, 8.0)
    else:
        low, high = wide.amin(dim=2).clamp_(max=0.0), wide.amax(dim=2).clamp_(min=0.0)
        scales = ((high - low) / 15).clamp_(min=_SMALLEST_SCALE)
        zeros = (-low / scales).round_().clamp_(0, 15)
    steps = ((wide / scales[:, :, None]).round_() + zeros[:, :, None]).clamp_(0, 15).to(torch.uint8).view(out, size // 2, 2)
    return Int4Weight(steps[:, :, 0] | steps[:, :, 1] << 4, scales, None if symmetric else zeros.to(torch.uint8))


def fp8(weight: Tensor) -> Fp8Weight:
    """A scale per output."""
    wide = weight.float()
    scales = (wide.abs().amax(dim=1, keepdim=True) / FP8_MAX).clamp_(min=_SMALLEST_SCALE)
    return Fp8Weight((wide / scales).clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn), scales, (1, weight.shape[1]))
