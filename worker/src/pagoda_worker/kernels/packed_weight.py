"""Weights of int4 and e4m3 as kernels read them, and a kernel that makes 16 bits of them. Called by layers/cuda_linear.py.

Inputs come in chunks of 128. A word of 16 bits holds the values of 4 (int4) or 2 (e4m3) inputs that lie a part of a chunk apart, so that
one shift and one mask make a factor of a matrix product of a whole tile of words: nothing is interleaved. The words of a chunk for
neighbouring outputs lie side by side, so a tile is one run of memory.

    words   [chunks, out, 32 or 64] int16     int4 input 128 * chunk + 32 * part + j: bits 4 * part to 4 * part + 3 of word j
    scales  [groups, out / block] float32     of `group` inputs and `block` outputs each
    zeros   [groups, out] uint8               int4's zero points; None: 8 everywhere
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 128
DEQUANTIZED_OUTPUTS = 32
"""Of one program."""

# A bf16 of 128 to 255 has its units in its lowest bits, an fp16 of 1024 to 2047 too: a nibble put there is added. 0xEA: (a & b) | c.
_NIBBLES = "{{ .reg .b32 t; shr.u32 t, $1, {shift}; lop3.b32 $0, t, 0x000F000F, {base}, 0xEA; }}"
NIBBLES_BF16 = tl.constexpr(tuple(_NIBBLES.format(shift=4 * part, base="0x43004300") for part in range(4)))
NIBBLES_FP16 = tl.constexpr(tuple(_NIBBLES.format(shift=4 * part, base="0x64006400") for part in range(4)))

# The bits of e4m3 where exponents and mantissas of 16 bits begin are numbers too small by the difference of the exponents' biases.
_E4M3 = "{{ .reg .b32 t, s; shl.b32 t, $1, {up}; and.b32 s, t, 0x80008000; shr.u32 t, t, {down}; lop3.b32 $0, t, {mask}, s, 0xEA; }}"
E4M3_BF16 = tl.constexpr(tuple(_E4M3.format(up=up, down=4, mask="0x07F007F0") for up in (8, 0)))
E4M3_FP16 = tl.constexpr(tuple(_E4M3.format(up=up, down=1, mask="0x3F803F80") for up in (8, 0)))
E4M3_AS_BF16 = tl.constexpr(2.0**120)
E4M3_AS_FP16 = tl.constexpr(2.0**8)


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    words: Tensor
    scales: Tensor
    zeros: Tensor | None
    bits: int
    """4: int4; 8: e4m3."""
    inputs: int
    group: int
    """Inputs that share a scale: see `packable_group`."""
    block: int
    """Outputs that share a scale."""

    @property
    def outputs(self) -> int:
        return self.words.shape[1]

    @property
    def whole_group(self) -> int:
        """As kernels take it: 0 for all inputs."""
        return 0 if self.group >= self.inputs else self.group


def packable_group(group: int, bits: int, inputs: int) -> bool:
    """A group must hold whole chunks, or whole parts of one."""
    return group >= inputs or group % CHUNK == 0 or (CHUNK % group == 0 and group % (CHUNK * bits // 16) == 0)


def pack_words(values: Tensor, bits: int) -> Tensor:
    """values [out, in] uint8, one an input → words; inputs past the end become 0."""
    outputs, inputs = values.shape
    parts = 16 // bits
    padded = torch.nn.functional.pad(values, (0, -inputs % CHUNK)).view(outputs, -1, parts, CHUNK // parts)
    words = padded[:, :, 0].int()
    for part in range(1, parts):
        words |= padded[:, :, part].int() << (bits * part)
    return words.to(torch.int16).transpose(0, 1).contiguous()


def unpack_words(weight: PackedWeight) -> Tensor:
    """[out, in] uint8: what `pack_words` was given."""
    shifts = weight.bits * torch.arange(16 // weight.bits, dtype=torch.int32, device=weight.words.device)
    parts = (weight.words.int()[:, :, None, :] >> shifts[:, None]) & (2**weight.bits - 1)
    values: Tensor = parts.flatten(2).transpose(0, 1).flatten(1)[:, : weight.inputs].to(torch.uint8)
    return values


@triton.jit
def pairs(words, PART: tl.constexpr, BITS: tl.constexpr, dtype: tl.constexpr):
    """Two words in one instruction, where the compiler would take one after the other."""
    if dtype == tl.bfloat16:
        asm: tl.constexpr = NIBBLES_BF16[PART] if BITS == 4 else E4M3_BF16[PART]
        return tl.inline_asm_elementwise(asm, "=r,r", [words], dtype=tl.bfloat16, is_pure=True, pack=2)
    else:
        other: tl.constexpr = NIBBLES_FP16[PART] if BITS == 4 else E4M3_FP16[PART]
        return tl.inline_asm_elementwise(other, "=r,r", [words], dtype=tl.float16, is_pure=True, pack=2)


@triton.jit
def lift(dtype: tl.constexpr, PAIRED: tl.constexpr):
    """By how much `raised` has int4's values too large."""
    return (128.0 if dtype == tl.bfloat16 else 1024.0) if PAIRED else 0.0


@triton.jit
def raised(words, PART: tl.constexpr, BITS: tl.constexpr, dtype: tl.constexpr, PAIRED: tl.constexpr):
    """Words [N, W] → the PART-th values that they hold, in dtype, exactly; int4's too large by `lift`. PAIRED: by PTX, of 16 bits only."""
    if PAIRED:
        found = pairs(words, PART, BITS, dtype)
        return found if BITS == 4 else found * tl.full([], E4M3_AS_BF16 if dtype == tl.bfloat16 else E4M3_AS_FP16, dtype)
    elif BITS == 4:
        return ((words >> (4 * PART)) & 15).to(dtype)
    else:
        high = words if PART == 1 else words << 8
        bits = ((high >> 1) & 0x3F80) | (high & -32768)
        return (bits.to(tl.float16, bitcast=True).to(tl.float32) * E4M3_AS_FP16).to(dtype)


@triton.jit
def factor(words, zero, PART: tl.constexpr, BITS: tl.constexpr, dtype: tl.constexpr, PAIRED: tl.constexpr):
    """The same, with zero [N, 1] float32 taken away from int4's, exactly too."""
    found = raised(words, PART, BITS, dtype, PAIRED)
    return found - (zero + lift(dtype, PAIRED)).to(dtype) if BITS == 4 else found


@triton.jit
def scale_at(scales, zeros, group, n, n_scales, outputs, BLOCK: tl.constexpr, HAS_ZEROS: tl.constexpr):
    """Scale and zero point [N] of a group of inputs."""
    scale = tl.load(scales + group * n_scales + n // BLOCK)
    zero = tl.load(zeros + group * outputs + n).to(tl.float32) if HAS_ZEROS else tl.full([n.shape[0]], 8.0, tl.float32)
    return scale, zero


@triton.jit
def dequantize_kernel(
    words, scales, zeros, out, first, stop, outputs, inputs, n_scales, BITS: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
    HAS_ZEROS: tl.constexpr, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program per chunk and BLOCK_N outputs from `first` on."""
    PARTS: tl.constexpr = 16 // BITS
    WORDS: tl.constexpr = CHUNK // PARTS
    chunk = tl.program_id(0)
    row = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    j = tl.arange(0, WORDS)
    n = tl.minimum(first + row, outputs - 1)
    tile = tl.load(words + (chunk.to(tl.int64) * outputs + n)[:, None] * WORDS + j[None, :])
    for part in tl.static_range(PARTS):
        k = chunk * CHUNK + part * WORDS
        group = tl.minimum(k, inputs - 1) // GROUP if GROUP > 0 else 0
        scale, zero = scale_at(scales, zeros, group, n, n_scales, outputs, BLOCK, HAS_ZEROS)
        wide = factor(tile, zero[:, None], part, BITS, tl.float32, False) * scale[:, None]
        inside = (first + row < stop)[:, None] & (k + j < inputs)[None, :]
        tl.store(out + row.to(tl.int64)[:, None] * inputs + k + j[None, :], wide.to(out.dtype.element_ty), mask=inside)


def dequantize(weight: PackedWeight, dtype: torch.dtype, first: int = 0, stop: int | None = None) -> Tensor:
    """[stop - first, in] of `dtype`: outputs first to stop, all by default."""
    stop = weight.outputs if stop is None else stop
    out = torch.empty((stop - first, weight.inputs), dtype=dtype, device=weight.words.device)
    dequantize_kernel[(len(weight.words), triton.cdiv(stop - first, DEQUANTIZED_OUTPUTS))](
        weight.words, weight.scales, weight.words if weight.zeros is None else weight.zeros, out, first, stop, weight.outputs,
        weight.inputs, weight.scales.shape[1], BITS=weight.bits, GROUP=weight.whole_group, BLOCK=weight.block,
        HAS_ZEROS=weight.zeros is not None, CHUNK=CHUNK, BLOCK_N=DEQUANTIZED_OUTPUTS, num_warps=4,
    )  # fmt: skip
    return out


def dequantize_reference(weight: PackedWeight, dtype: torch.dtype, first: int = 0, stop: int | None = None) -> Tensor:
    values = unpack_words(weight)
    if weight.bits == 4:
        wide = values.float()
        zeros = 8.0 if weight.zeros is None else _spread(weight.zeros.float(), weight, 1)
        wide = wide - zeros
    else:
        wide = values.view(torch.float8_e4m3fn).float()
    return (wide * _spread(weight.scales, weight, weight.block))[first:stop].to(dtype)


def _spread(per_group: Tensor, weight: PackedWeight, block: int) -> Tensor:
    """[groups, out / block] → [out, in]."""
    wide = per_group.repeat_interleave(block, 1)[:, : weight.outputs]
    return wide.repeat_interleave(weight.group, 0)[: weight.inputs].T
