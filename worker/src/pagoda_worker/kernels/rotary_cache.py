"""Turns queries and keys by their positions, after an optional norm of each head (as in Qwen3), and writes keys and values to the cache.

One pass over the fused projection instead of five operations. Called by layers/cuda.py.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagoda_worker.kernels.launch import power_of_two, quantized, scales_of

HEADS_PER_PROGRAM = 8


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """Root-mean-square norms of each query and each key head. Weights [D]."""

    query: Tensor
    key: Tensor
    eps: float


@triton.jit
def nearest(x, DROPPED: tl.constexpr):
    """float32 without its last DROPPED digits, ties to even. NOTE: what is converted to bf16 and e4m3 goes through here first, because
    Triton's interpreter cuts the one off and loses the carry of the other (as of 3.7)."""
    bits = x.to(tl.int32, bitcast=True)
    bits = (bits + ((1 << (DROPPED - 1)) - 1) + ((bits >> DROPPED) & 1)) >> DROPPED << DROPPED
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)


@triton.jit
def quantized_values(x, divisor, LARGEST: tl.constexpr):
    """x as shares of the row's scale, which int8 (whole numbers) or e4m3 hold exactly. Adding 1.5 * 2^23 units and taking them away rounds
    to the nearest unit, ties to even; e4m3's unit below 2^-6 is 2^-9."""
    shares = tl.div_rn(x, tl.broadcast_to(divisor, x.shape))
    shares = tl.minimum(tl.maximum(tl.where(shares == shares, shares, 0.0), -LARGEST), LARGEST)
    if LARGEST == 127.0:
        return (shares + 12582912.0) - 12582912.0
    return tl.where(tl.abs(shares) < 0.015625, (shares + 24576.0) - 24576.0, nearest(shares, 20))


@triton.jit
def rotary_cache_kernel(
    heads, cos, sin, cache, scales, slots, query_norm, key_norm, eps, token_stride, cos_stride, slot_stride, head_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, ROTATED: tl.constexpr, NORMED: tl.constexpr,
    PAGE: tl.constexpr, LARGEST: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program per token and BLOCK_H of its heads; both halves of a head in one program, so that it may write in place."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    dims = tl.arange(0, BLOCK_D)
    half: tl.constexpr = HEAD_DIM // 2
    is_query, is_value = head < HEADS, head >= HEADS + KV_HEADS
    inside = (head < HEADS + 2 * KV_HEADS)[:, None] & (dims < half)[None, :]
    at = heads + token * token_stride + head[:, None] * HEAD_DIM + dims[None, :]
    low = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(at + half, mask=inside, other=0.0).to(tl.float32)
    if NORMED:
        size = tl.rsqrt((tl.sum(low * low, axis=1) + tl.sum(high * high, axis=1)) / HEAD_DIM + eps)[:, None]
        choose = is_query[:, None] & (dims < half)[None, :]
        other = (~is_query & ~is_value)[:, None] & (dims < half)[None, :]
        low_weight = tl.load(query_norm + dims[None, :], mask=choose, other=0.0) + tl.load(key_norm + dims[None, :], mask=other, other=0.0)
        high_at = half + dims[None, :]
        high_weight = tl.load(query_norm + high_at, mask=choose, other=0.0) + tl.load(key_norm + high_at, mask=other, other=0.0)
        kept = is_value[:, None]
        # Rounded where the torch operations round: between the norm and the rotation.
        dtype = heads.dtype.element_ty
        low = tl.where(kept, low, (low * size * low_weight.to(tl.float32)).to(dtype).to(tl.float32))
        high = tl.where(kept, high, (high * size * high_weight.to(tl.float32)).to(dtype).to(tl.float32))
    if ROTATED:
        c = tl.load(cos + token * cos_stride + dims, mask=dims < half, other=1.0).to(tl.float32)[None, :]
        s = tl.load(sin + token * cos_stride + half + dims, mask=dims < half, other=0.0).to(tl.float32)[None, :]
        turned_low, turned_high = low * c - high * s, high * c + low * s
        low, high = tl.where(is_value[:, None], low, turned_low), tl.where(is_value[:, None], high, turned_high)
    if ROTATED or NORMED:
        mine = inside & is_query[:, None]
        tl.store(at, low.to(heads.dtype.element_ty), mask=mine)
        tl.store(at + half, high.to(heads.dtype.element_ty), mask=mine)
    slot = tl.load(slots + token * slot_stride).to(tl.int64)
    written = inside & (~is_query)[:, None] & (slot >= 0)
    side = (head - HEADS).to(tl.int64)
    if LARGEST > 0:
        # From what a plain cache would hold. NaN and infinity make a scale of NaN: a maximum might forget the one, the sum does not.
        low, high = low.to(heads.dtype.element_ty).to(tl.float32), high.to(heads.dtype.element_ty).to(tl.float32)
        most = tl.maximum(tl.max(tl.abs(low), axis=1), tl.max(tl.abs(high), axis=1))
        stored = nearest(tl.div_rn(most, tl.full([BLOCK_H], LARGEST, tl.float32)) + tl.sum(low * 0.0 + high * 0.0, axis=1), 16)
        divisor = tl.where(stored > 0, stored, float("inf"))[:, None]
        low, high = quantized_values(low, divisor, LARGEST), quantized_values(high, divisor, LARGEST)
        block = slot // PAGE
        within = slot % PAGE
        to = cache + side[:, None] * head_stride + block * (PAGE * (HEAD_DIM + 2)) + within * HEAD_DIM + dims[None, :]
        scale_at = side * (head_stride // 2) + block * (PAGE * (HEAD_DIM + 2) // 2) + PAGE * HEAD_DIM // 2 + within
        tl.store(scales + scale_at, stored.to(tl.bfloat16), mask=(head < HEADS + 2 * KV_HEADS) & ~is_query & (slot >= 0))
    else:
        to = cache + side[:, None] * head_stride + slot * HEAD_DIM + dims[None, :]
    tl.store(to, low.to(cache.dtype.element_ty), mask=written)
    tl.store(to + half, high.to(cache.dtype.element_ty), mask=written)


def rotate_and_write(
    heads: Tensor, cos: Tensor | None, sin: Tensor | None, cache: Tensor, slots: Tensor, *, block_size: int = 0,
    norms: HeadNorms | None = None,
) -> None:  # fmt: skip
    """heads [T, H + 2 * H_kv, D]: queries, keys, values; cos, sin [T, 1, D] of RotaryTable.at (None: no rotation); cache [2, H_kv, S, D],
    or quantized, in blocks of block_size; slots [T] int, -1 for padding.

    Queries are normed and turned in place; keys likewise and values as they are go to the cache (the keys in `heads` stay as they were).
    Computes in float32."""
    tokens, total, dim = heads.shape
    kv_heads = cache.shape[1]
    if not tokens:
        return
    assert not quantized(cache) or block_size, "its rows are found by block"
    query_norm, key_norm, eps = (norms.query, norms.key, norms.eps) if norms else (heads, heads, 0.0)
    rotated = cos is not None
    rotary_cache_kernel[(tokens, triton.cdiv(total, HEADS_PER_PROGRAM))](
        heads, cos if rotated else heads, sin if rotated else heads, cache, scales_of(cache), slots, query_norm, key_norm, eps,
        heads.stride(0), cos.stride(0) if cos is not None else 0, slots.stride(0), cache.stride(1),
        HEADS=total - 2 * kv_heads, KV_HEADS=kv_heads, HEAD_DIM=dim, ROTATED=rotated, NORMED=norms is not None,
        PAGE=block_size, LARGEST=_largest(cache.dtype) if quantized(cache) else 0.0,
        BLOCK_H=HEADS_PER_PROGRAM, BLOCK_D=power_of_two(dim // 2), num_warps=4,
    )  # fmt: skip


def _largest(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).max if dtype.is_floating_point else float(torch.iinfo(dtype).max)


def rotate_and_write_reference(
    heads: Tensor, cos: Tensor | None, sin: Tensor | None, cache: Tensor, slots: Tensor, *, norms: HeadNorms | None = None
) -> None:
    """The same into a plain cache, in torch's operations, in float32 between roundings."""
    kv_heads, dim = cache.shape[1], heads.shape[2]
    count = heads.shape[1] - 2 * kv_heads
    turned = heads[:, : count + kv_heads].clone()
    if norms is not None:
        turned[:, :count] = torch.rms_norm(turned[:, :count], (dim,), norms.query, norms.eps)
        turned[:, count:] = torch.rms_norm(turned[:, count:], (dim,), norms.key, norms.eps)
    if cos is not None and sin is not None:
        wide = turned.float()
        swapped = torch.cat((wide[..., dim // 2 :], wide[..., : dim // 2]), dim=-1)
        turned = (wide * cos.float() + swapped * sin.float()).to(heads.dtype)
    heads[:, :count] = turned[:, :count]
    real = slots >= 0
    new = torch.cat((turned[:, count:], heads[:, count + kv_heads :]), dim=1)[real]
    cache.flatten(0, 1)[:, slots[real].long()] = new.transpose(0, 1).to(cache.dtype)
