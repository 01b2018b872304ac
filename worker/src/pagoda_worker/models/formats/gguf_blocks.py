"""Blocks of ggml's types → numbers, as ggml-quants.c defines them. Pure: bytes in, float32 out.

A block holds 32 or 256 values of one row with its own scales. Only Q4_0 is held as it is (the one form of int4 in groups of 32); the others
have scales of scales or minima that are no whole steps.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pagoda_worker.quantization.weights import Int4Weight


def dequantized(name: str, blocks: Tensor) -> Tensor:
    """`name`: the type's; blocks [N, bytes of a block] uint8 → [N, values of a block] float32."""
    return _READERS[name](blocks)


def q4_0(blocks: Tensor) -> Int4Weight:
    """blocks [out, in / 32, 18] uint8 as they are in the file, exactly. A block has its first 16 values in low nibbles."""
    out = blocks.shape[0]
    nibbles = torch.cat((blocks[..., 2:] & 15, blocks[..., 2:] >> 4), dim=-1)
    return Int4Weight((nibbles[..., ::2] | nibbles[..., 1::2] << 4).reshape(out, -1), _half(blocks, 0)[..., 0])


def _half(blocks: Tensor, at: int) -> Tensor:
    """[…, 1] float32."""
    return blocks[..., at : at + 2].contiguous().view(torch.float16).float()


def _low_then_high(packed: Tensor) -> Tensor:
    """[N, B] → [N, 2 * B]: low nibbles, then high ones."""
    return torch.cat((packed & 15, packed >> 4), dim=-1)


def _q4_0(blocks: Tensor) -> Tensor:
    return (_low_then_high(blocks[:, 2:]).float() - 8) * _half(blocks, 0)


def _q4_1(blocks: Tensor) -> Tensor:
    return _low_then_high(blocks[:, 4:]).float() * _half(blocks, 0) + _half(blocks, 2)


def _fifth_bits(packed: Tensor) -> Tensor:
    """[N, 4] → [N, 32]: each bit as 0 or 16."""
    return (packed[:, :, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten(1) << 4


def _q5_0(blocks: Tensor) -> Tensor:
    return ((_low_then_high(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])).float() - 16) * _half(blocks, 0)


def _q5_1(blocks: Tensor) -> Tensor:
    return (_low_then_high(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])).float() * _half(blocks, 0) + _half(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].view(torch.int8).float() * _half(blocks, 0)


def _pairs_of_bits(packed: Tensor) -> Tensor:
    """[N, 32 * k] → [N, 128 * k]: of each 32 bytes the lowest two bits of all, then the next."""
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8)[:, None]
    return (packed.reshape(len(packed), -1, 1, 32) >> shifts & 3).flatten(1)


def _q2_k(blocks: Tensor) -> Tensor:
    scales, values = blocks[:, :16], _pairs_of_bits(blocks[:, 16:80]).float().view(-1, 16, 16)
    factor, offset = _half(blocks, 80) * (scales & 15).float(), _half(blocks, 82) * (scales >> 4).float()
    return (values * factor[:, :, None] - offset[:, :, None]).flatten(1)


def _q3_k(blocks: Tensor) -> Tensor:
    high, low, packed = blocks[:, :32], _pairs_of_bits(blocks[:, 32:96]), blocks[:, 96:108]
    third = (high[:, None, :] >> torch.arange(8, dtype=torch.uint8)[:, None] & 1).flatten(1) << 2
    values = ((low | third).float() - 4).view(-1, 16, 16)
    lows, highs = _low_then_high(packed[:, :8]), packed[:, None, 8:] >> torch.arange(0, 8, 2, dtype=torch.uint8)[:, None] & 3
    scales = (lows | highs.flatten(1) << 4).float() - 32
    return (values * (_half(blocks, 108) * scales)[:, :, None]).flatten(1)


def _scales_and_minima(packed: Tensor) -> tuple[Tensor, Tensor]:
    """[N, 12] → [N, 8] each, 0 to 63: the first four of both whole, the others' upper bits in the first ones' spare bits."""
    first, second, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat((first & 63, rest & 15 | first >> 6 << 4), dim=1)
    return scales.float(), torch.cat((second & 63, rest >> 4 | second >> 6 << 4), dim=1).float()


def _with_minima(blocks: Tensor, values: Tensor) -> Tensor:
    """values [N, 256]; Q4_K and Q5_K begin alike."""
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    factor, offset = _half(blocks, 0) * scales, _half(blocks, 2) * minima
    return (values.float().view(-1, 8, 32) * factor[:, :, None] - offset[:, :, None]).flatten(1)


def _q4_k(blocks: Tensor) -> Tensor:
    return _with_minima(blocks, _low_then_high(blocks[:, 16:].reshape(-1, 4, 32)).flatten(1))


def _q5_k(blocks: Tensor) -> Tensor:
    fifth = blocks[:, None, 16:48] >> torch.arange(8, dtype=torch.uint8)[:, None] & 1
    return _with_minima(blocks, _low_then_high(blocks[:, 48:].reshape(-1, 4, 32)).flatten(1) | fifth.flatten(1) << 4)


def _q6_k(blocks: Tensor) -> Tensor:
    low = blocks[:, :128].reshape(-1, 2, 64)
    values = _low_then_high(low).flatten(1) | _pairs_of_bits(blocks[:, 128:192]) << 4
    scales = blocks[:, 192:208].contiguous().view(torch.int8).float() * _half(blocks, 208)
    return ((values.float() - 32).view(-1, 16, 16) * scales[:, :, None]).flatten(1)


_READERS: dict[str, Callable[[Tensor], Tensor]] = {
    "F32": lambda blocks: blocks.view(torch.float32),
    "F16": lambda blocks: blocks.view(torch.float16).float(),
    "BF16": lambda blocks: blocks.view(torch.bfloat16).float(),
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
