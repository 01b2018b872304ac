"""Attention of one new token per row over its pages, the keys of a row split over several programs.

Called by layers/cuda.py. After flash-decoding (Dao et al., 2023): a program walks its share of a row's keys with an
online softmax for all query heads of one key/value head, which are the rows of its matrix products; a second kernel joins the shares. The
grid depends on tensor sizes only, so a CUDA graph stays valid while contexts grow. Of a quantized cache the keys' scales multiply the
scores, those of the values the weights.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagoda_worker.kernels.launch import LOG2_E, power_of_two, processors, quantized, scales_of, upcast

MAX_SPLITS = 16
KEYS_PER_SPLIT = 256
"""Fewer do not repay the second kernel."""
LEAST_ROWS = 16
"""Of a matrix product; a smaller group is padded."""


@dataclass(frozen=True, slots=True)
class DecodeTile:
    """How one program is built."""

    block_m: int
    block_n: int
    block_d: int
    warps: int
    stages: int


def decode_tile(head_dim: int, group: int, itemsize: int) -> DecodeTile:
    """Key and value tiles of 16 KiB each, three under way: several programs fit beside each other on a processor."""
    block_d = power_of_two(head_dim)
    block_n = max(16, min(128, (16 << 10) // (block_d * itemsize)))
    return DecodeTile(max(LEAST_ROWS, power_of_two(group)), block_n, block_d, warps=4, stages=3)


def decode_splits(rows: int, kv_heads: int, max_context: int, processor_count: int) -> int:
    """A power of two: as many as give every processor two programs, while each has KEYS_PER_SPLIT keys in the longest row possible."""
    wanted = -(-2 * processor_count // max(rows * kv_heads, 1))
    return min(power_of_two(max(wanted, 1)), MAX_SPLITS, power_of_two(max(max_context // KEYS_PER_SPLIT, 1)))


@triton.jit
def decode_kernel(
    query, cache, scales, table, lengths, out, shares, peaks, sums, scale, query_stride, table_stride, head_stride,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE: tl.constexpr, WINDOW: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
    SCALED: tl.constexpr,
):  # fmt: skip
    row, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + row)
    first = tl.maximum(length - WINDOW, 0) if WINDOW > 0 else 0
    first_tile = first // BLOCK_N
    share = tl.cdiv(tl.cdiv(length, BLOCK_N) - first_tile, SPLITS) * BLOCK_N
    begin = first_tile * BLOCK_N + split * share
    end = tl.minimum(begin + share, length)

    member, dims, lanes = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    head = kv_head * GROUP + member
    inside = (member < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    q = tl.load(query + row.to(tl.int64) * query_stride + head[:, None] * HEAD_DIM + dims[None, :], mask=inside, other=0.0)
    q = q.to(tl.float32) if UPCAST else q
    key_base = cache + kv_head.to(tl.int64) * head_stride
    value_base = cache + (KV_HEADS + kv_head).to(tl.int64) * head_stride
    key_scales = scales + kv_head.to(tl.int64) * (head_stride // 2)
    value_scales = scales + (KV_HEADS + kv_head).to(tl.int64) * (head_stride // 2)

    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(begin, end, BLOCK_N):
        keys = start + lanes
        seen = (keys < end) & (keys >= first)  # every tile has one: no peak stays -inf
        block = tl.load(table + row * table_stride + keys // PAGE, mask=seen, other=0)
        if SCALED:
            at = (block.to(tl.int64) * (PAGE * (HEAD_DIM + 2)) + keys % PAGE * HEAD_DIM)[:, None] + dims[None, :]
            scale_at = block.to(tl.int64) * (PAGE * (HEAD_DIM + 2) // 2) + PAGE * HEAD_DIM // 2 + keys % PAGE
            k_scale = tl.load(key_scales + scale_at, mask=seen, other=0.0).to(tl.float32)
            v_scale = tl.load(value_scales + scale_at, mask=seen, other=0.0).to(tl.float32)
        else:
            at = (block.to(tl.int64) * PAGE + keys % PAGE)[:, None] * HEAD_DIM + dims[None, :]
        wanted = seen[:, None] & (dims < HEAD_DIM)[None, :]  # unseen values are 0: what a stale page holds cannot become 0 x NaN
        k = tl.load(key_base + at, mask=wanted, other=0.0)
        v = tl.load(value_base + at, mask=wanted, other=0.0)
        k, v = (k.to(tl.float32), v.to(tl.float32)) if UPCAST else (k, v)
        if SCALED:
            k, v = k.to(q.dtype), v.to(q.dtype)
            if q.dtype == tl.float16:  # whose range a weight times a scale would leave
                v, v_scale = (v.to(tl.float32) * v_scale[:, None]).to(tl.float16), tl.full([BLOCK_N], 1.0, tl.float32)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = scores * k_scale[None, :] if SCALED else scores
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, axis=1))
        weights = tl.exp2(scores - higher[:, None])
        fade = tl.exp2(peak - higher)
        total = total * fade + tl.sum(weights, axis=1)
        weights = weights * v_scale[None, :] if SCALED else weights
        mixed = tl.dot(weights.to(v.dtype), v, mixed * fade[:, None], input_precision="ieee")
        peak = higher

    flat = (row * KV_HEADS * GROUP + head).to(tl.int64)
    if SPLITS == 1:
        result = mixed / tl.where(total > 0, total, 1.0)[:, None]  # without keys: zeros
        tl.store(out + flat[:, None] * HEAD_DIM + dims[None, :], result.to(out.dtype.element_ty), mask=inside)
    else:
        flat = flat * SPLITS + split
        tl.store(shares + flat[:, None] * HEAD_DIM + dims[None, :], mixed, mask=inside)
        tl.store(peaks + flat, peak, mask=member < GROUP)
        tl.store(sums + flat, total, mask=member < GROUP)


@triton.jit
def join_kernel(shares, peaks, sums, out, HEAD_DIM: tl.constexpr, SPLITS: tl.constexpr, BLOCK_D: tl.constexpr):
    """One program per row and query head. A share without keys has the sum 0 and the peak -inf."""
    flat = tl.program_id(0).to(tl.int64)
    splits, dims = tl.arange(0, SPLITS), tl.arange(0, BLOCK_D)
    peak, total = tl.load(peaks + flat * SPLITS + splits), tl.load(sums + flat * SPLITS + splits)
    highest = tl.max(peak, axis=0)
    weight = tl.exp2(peak - tl.where(highest == float("-inf"), 0.0, highest))
    inside = (dims < HEAD_DIM)[None, :]
    mixed = tl.load(shares + (flat * SPLITS + splits)[:, None] * HEAD_DIM + dims[None, :], mask=inside, other=0.0)
    whole = tl.sum(total * weight, axis=0)
    result = tl.sum(mixed * weight[:, None], axis=0) / tl.where(whole > 0, whole, 1.0)
    tl.store(out + flat * HEAD_DIM + dims, result.to(out.dtype.element_ty), mask=dims < HEAD_DIM)


def paged_decode(
    query: Tensor, cache: Tensor, block_table: Tensor, context_lens: Tensor, *, block_size: int, scale: float, window: int | None = None,
    splits: int | None = None,
) -> Tensor:  # fmt: skip
    """query [B, H, D] (rows may be a part of wider ones), cache [2, H_kv, S, D] or quantized, block_table [B, M] int32, context_lens [B]
    int32 ≥ 0.

    Returns [B, H, D] in query's dtype; zeros where the context is 0. Accumulates in float32. `splits`: None chooses by the sizes."""
    rows, heads, dim = query.shape
    kv_heads = cache.shape[1]
    tile = decode_tile(dim, heads // kv_heads, query.element_size())
    if splits is None:
        splits = decode_splits(rows, kv_heads, min(block_table.shape[1] * block_size, window or 1 << 30), processors(query.device))
    out = query.new_empty(rows, heads, dim)
    if not rows:
        return out
    if splits == 1:
        shares = peaks = sums = out  # not touched
    else:
        shares = query.new_empty((rows, heads, splits, dim), dtype=torch.float32)
        peaks, sums = query.new_empty((2, rows, heads, splits), dtype=torch.float32)
    decode_kernel[(rows, kv_heads, splits)](
        query, cache, scales_of(cache), block_table, context_lens, out, shares, peaks, sums, scale * LOG2_E,
        query.stride(0), block_table.stride(0), cache.stride(1),
        KV_HEADS=kv_heads, GROUP=heads // kv_heads, HEAD_DIM=dim, PAGE=block_size, WINDOW=window or 0, SPLITS=splits,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_D=tile.block_d, UPCAST=upcast(query.dtype),
        SCALED=quantized(cache),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    if splits > 1:
        join_kernel[(rows * heads,)](shares, peaks, sums, out, HEAD_DIM=dim, SPLITS=splits, BLOCK_D=tile.block_d, num_warps=4)
    return out


def paged_decode_reference(
    query: Tensor, cache: Tensor, block_table: Tensor, context_lens: Tensor, *, block_size: int, scale: float, window: int | None = None,
    splits: int | None = None,
) -> Tensor:  # fmt: skip
    """The same of a plain cache, one row at a time in float32."""
    out = torch.zeros_like(query)
    group = query.shape[1] // cache.shape[1]
    for row, length in enumerate(context_lens.tolist()):
        if length == 0:
            continue
        positions = torch.arange(max(0, length - (window or length)), length, device=query.device)
        slots = block_table[row].long()[positions // block_size] * block_size + positions % block_size
        keys, values = cache[:, :, slots].float().repeat_interleave(group, dim=1)
        weights = (torch.einsum("hd,hkd->hk", query[row].float(), keys) * scale).softmax(dim=-1)
        out[row] = torch.einsum("hk,hkd->hd", weights, values).to(query.dtype)
    return out
