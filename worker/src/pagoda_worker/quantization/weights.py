"""Quantized weights of a linear, as numbers and scales: the one form between what makes them and what multiplies them.

Checkpoint readers and quantizers make these; the device's packer lays them out as its kernels want. `dequantized` is what each form means:
the reference that readers, kernels and quantizers are tested against. Knows no file, model or kernel.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Int8Weight:
    """Symmetric, a scale per output channel."""

    values: Tensor
    """[out, in] int8, -127 to 127."""
    scales: Tensor
    """[out] float32."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """[out, in]."""
        return (self.values.float() * self.scales[:, None]).to(dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Int4Weight:
    """A scale and a zero point per output channel and group of inputs: (nibble - zero) * scale."""

    values: Tensor
    """[out, in / 2] uint8: input 2i in the low nibble, 2i + 1 in the high one."""
    scales: Tensor
    """[out, groups] float32; in / groups inputs each, in the order of `values`."""
    zeros: Tensor | None = None
    """[out, groups] uint8, 0 to 15. None: 8 everywhere."""
    order: Tensor | None = None
    """[in] int64: column i of `values` is for the product's input order[i] (act-order of GPTQ, with groups made contiguous). None: i."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], 2 * self.values.shape[1]

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """[out, in], columns in the product's order."""
        out, size = self.shape
        nibbles = torch.stack((self.values & 15, self.values >> 4), dim=-1).view(out, self.scales.shape[1], -1)
        zeros = 8.0 if self.zeros is None else self.zeros.float()[:, :, None]
        weight = ((nibbles.float() - zeros) * self.scales[:, :, None]).view(out, size)
        if self.order is not None:
            weight = torch.empty_like(weight).index_copy_(1, self.order, weight)
        return weight.to(dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Fp8Weight:
    """e4m3 with a scale per block: of the whole weight, of each output channel, or of squares."""

    values: Tensor
    """[out, in] float8_e4m3fn."""
    scales: Tensor
    """[ceil(out / block[0]), ceil(in / block[1])] float32."""
    block: tuple[int, int]
    """Outputs and inputs that share a scale."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """[out, in]."""
        out, size = self.shape
        scales = self.scales.repeat_interleave(self.block[0], 0)[:out].repeat_interleave(self.block[1], 1)[:, :size]
        return (self.values.float() * scales).to(dtype)


QuantizedWeight = Int8Weight | Int4Weight | Fp8Weight
