"""Turns queries and keys by their positions, after an optional norm of each head (as in Qwen3), and writes keys and values to the cache.

One pass over the fused projection instead of five operations. Called by layers/cuda.py.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagoda_worker.kernels.launch import power_of_two

HEADS_PER_PROGRAM = 8


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """Root-mean-square norms of each query and each key head. Weights [D]."""

    query: Tensor
    key: Tensor
    eps: float


@triton.jit
def rotary_cache_kernel(
    heads, cos, sin, cache, slots, query_norm, key_norm, eps, token_stride, cos_stride, slot_stride, head_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, ROTATED: tl.constexpr, NORMED: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
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
    to = cache + (head - HEADS).to(tl.int64)[:, None] * head_stride + slot * HEAD_DIM + dims[None, :]
    tl.store(to, low.to(cache.dtype.element_ty), mask=written)
    tl.store(to + half, high.to(cache.dtype.element_ty), mask=written)


def rotate_and_write(
    heads: Tensor, cos: Tensor | None, sin: Tensor | None, cache: Tensor, slots: Tensor, *, norms: HeadNorms | None = None
) -> None:
    """heads [T, H + 2 * H_kv, D]: queries, keys, values; cos, sin [T, 1, D] of RotaryTable.at (None: no rotation); cache [2, H_kv, S, D];
    slots [T] int, -1 for padding.

    Queries are normed and turned in place; keys likewise and values as they are go to the cache (the keys in `heads` stay as they were).
    Computes in float32."""
    tokens, total, dim = heads.shape
    kv_heads = cache.shape[1]
    if not tokens:
        return
    query_norm, key_norm, eps = (norms.query, norms.key, norms.eps) if norms else (heads, heads, 0.0)
    rotated = cos is not None
    rotary_cache_kernel[(tokens, triton.cdiv(total, HEADS_PER_PROGRAM))](
        heads, cos if rotated else heads, sin if rotated else heads, cache, slots, query_norm, key_norm, eps, heads.stride(0),
        cos.stride(0) if cos is not None else 0, slots.stride(0), cache.stride(1),
        HEADS=total - 2 * kv_heads, KV_HEADS=kv_heads, HEAD_DIM=dim, ROTATED=rotated, NORMED=norms is not None,
        BLOCK_H=HEADS_PER_PROGRAM, BLOCK_D=power_of_two(dim // 2), num_warps=4,
    )  # fmt: skip


def rotate_and_write_reference(
    heads: Tensor, cos: Tensor | None, sin: Tensor | None, cache: Tensor, slots: Tensor, *, norms: HeadNorms | None = None
) -> None:
    """The same in torch's operations, in float32 between roundings."""
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
