"""The KV cache of one layer as memory: its forms, how a key or value gets in, and how it comes out. Knows no sequences and no attention.

    plain        [2, H_kv, N * P, D]         what is computed in; keys then values; slot = block * P + offset
    quantized    [2, H_kv, N, P * (D + 2)]   bytes: of each block P rows of D values, then the P scales of those rows in bf16

A quantized row, one token's key or value in one head, is values times scale; the scale is the row's largest magnitude over that of its
values' type, so that a row is written alone, once, whatever its neighbours. The tensor's dtype says which form it has. A block with its
scales is one piece, so whatever moves blocks moves them as they are; zero bytes are zeros. See docs/decisions/quantized-kv-cache.md.
"""

import torch
from torch import Tensor

from pagoda_worker.layers.allocation import zeros

QUANTIZED = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
"""By the name that the settings have."""
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
SCALE = torch.bfloat16
"""The range of float32, in which rows of any size have a scale, at half of its bytes; values are rounded against the rounded scale, so its
few digits cost nothing."""


def is_quantized(cache: Tensor) -> bool:
    return cache.dtype in LARGEST


def row_bytes(dim: int, dtype: torch.dtype) -> int:
    """Of one key or value of one head in a cache of this dtype."""
    return dim * dtype.itemsize + (SCALE.itemsize if dtype in LARGEST else 0)


def new_cache(*, kv_heads: int, dim: int, blocks: int, block_size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, not empty: what lies past a row's end is multiplied by 0, which only helps when it is finite."""
    if dtype in LARGEST:
        return zeros((2, kv_heads, blocks, block_size * row_bytes(dim, dtype)), torch.uint8, device).view(dtype)
    return zeros((2, kv_heads, blocks * block_size, dim), dtype, device)


def blocks_of(cache: Tensor, block_count: int) -> Tensor:
    """[2 * H_kv, N, whatever a block is]: for copies and for zeroing."""
    whole = cache.view(torch.uint8) if is_quantized(cache) else cache
    return whole.view(2 * cache.shape[1], block_count, -1)


def slot_count(cache: Tensor, block_size: int) -> int:
    return cache.shape[2] * block_size if is_quantized(cache) else cache.shape[2]


def quantize(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """rows [..., D] → values [..., D] of dtype, scales [...] bf16. int8: -127 to 127, ties to even; e4m3 as torch rounds. A row that is not
    finite gets a scale that is not, and so comes out as NaN: what is broken stays visible."""
    wide, largest = rows.float(), LARGEST[dtype]
    scales = (wide.abs().amax(dim=-1, keepdim=True) / largest).to(SCALE)
    divisor = scales.float()
    shares = torch.where(divisor.isfinite() & (divisor > 0), wide / divisor, 0.0).clamp(-largest, largest)
    values = (shares.round() if dtype == torch.int8 else shares).to(dtype)
    return values, scales.squeeze(-1)


def dequantize(values: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    return (values.float() * scales.float()[..., None]).to(dtype)


def write_rows(rows: Tensor, cache: Tensor, slots: Tensor, block_size: int) -> None:
    """rows [T, 2 * H_kv, D] go to slots [T] int64."""
    if not is_quantized(cache):
        cache.flatten(0, 1).index_copy_(1, slots, rows.transpose(0, 1))
        return
    values, scales = quantize(rows.transpose(0, 1), cache.dtype)
    where, within = slots // block_size, slots % block_size
    all_values, all_scales = _parts(cache.flatten(0, 1), block_size)
    all_values[:, where, within] = values.view(torch.uint8)
    all_scales[:, where, within] = scales


def rows_of_blocks(cache: Tensor, blocks: Tensor, block_size: int, dtype: torch.dtype) -> Tensor:
    """[2, H_kv, len(blocks) * P, D], a quantized cache's in dtype, a plain one's as they are."""
    heads, count = cache.shape[1], len(blocks)
    if not is_quantized(cache):
        dim = cache.shape[3]
        return cache.view(2 * heads, -1, block_size * dim).index_select(1, blocks).view(2, heads, -1, dim)
    found = cache.view(torch.uint8).flatten(0, 1).index_select(1, blocks).view(cache.dtype)
    values, scales = _parts(found, block_size)
    return dequantize(values.view(cache.dtype), scales, dtype).view(2, heads, count * block_size, -1)


def rows_at(cache: Tensor, slots: Tensor, block_size: int, dtype: torch.dtype) -> Tensor:
    """[2, H_kv, len(slots), D], as rows_of_blocks."""
    if not is_quantized(cache):
        return cache.index_select(2, slots)
    where, within = slots // block_size, slots % block_size
    values, scales = _parts(cache.flatten(0, 1), block_size)
    found = dequantize(values[:, where, within].view(cache.dtype), scales[:, where, within], dtype)
    return found.view(2, -1, *found.shape[1:])


def _parts(cache: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """Views of a quantized cache's [H, N, P * (D + 2)]: values as bytes [H, N, P, D], scales [H, N, P]."""
    bytes_, dim = cache.view(torch.uint8), cache.shape[-1] // block_size - SCALE.itemsize
    values = bytes_[..., : block_size * dim].view(*cache.shape[:-1], block_size, dim)
    return values, cache.view(SCALE)[..., -block_size:]
