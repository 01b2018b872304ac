"""Causal attention of chunks of prompts over pages that already hold their keys and values.

Called by layers/cuda.py. FlashAttention-2's loop (Dao, 2023) over a paged cache. A program takes a few queries with
all query heads of one key/value head as the rows of its products, and finds its chunk by bisection of query_starts: the host need not
know where chunks begin (the scheme of vLLM's unified attention).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagoda_worker.kernels.launch import LOG2_E, interpreted, power_of_two, quantized, scales_of, upcast


@dataclass(frozen=True, slots=True)
class PrefillTile:
    block_m: int
    """Queries times the heads of a group."""
    block_n: int
    block_d: int
    warps: int
    stages: int

    def queries(self, group: int) -> int:
        return self.block_m // group


def prefill_tile(head_dim: int, group: int, itemsize: int, *, scaled: bool = False) -> PrefillTile:
    """As large as registers hold: 128 x D accumulators of float32 over 8 warps are half of them at D = 128. docs/kernels.md has what they
    take. float32 multiplies without tensor cores and spills early: smaller. So are tiles of keys from a quantized cache (`scaled`), which
    pass through registers."""
    block_d = power_of_two(head_dim)
    if itemsize == 4:
        rows, keys, warps, stages = (32 if block_d > 128 else 64), (16 if block_d > 128 else 32), 8, 1
    elif block_d > 128:
        rows, keys, warps, stages = 64, 64, 8, 2
    else:
        rows, keys, warps, stages = 128, (32 if scaled else 64), 8, 3
    if interpreted():  # few queries a program would be fine there, but edges between tiles are what its tests are for
        rows, keys = 16, 16
    return PrefillTile(max(rows, power_of_two(group)), keys, block_d, warps, stages)


@triton.jit
def prefill_kernel(
    query, cache, scales, table, starts, lengths, out, scale, sequences, query_stride, table_stride, head_stride,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE: tl.constexpr, WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
    SCALED: tl.constexpr,
):  # fmt: skip
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the last queries of a prompt have the most keys: they begin first
    kv_head = tl.program_id(1)

    # Chunk i owns the tiles from (starts[i] - starts[0]) // BLOCK_Q + i on: at least as many as it needs, and known without a sum.
    origin = tl.load(starts)
    sequence = 0
    above = sequences
    while above - sequence > 1:
        middle = (sequence + above) // 2
        if (tl.load(starts + middle) - origin) // BLOCK_Q + middle <= tile:
            sequence = middle
        else:
            above = middle
    begin = tl.load(starts + sequence)
    count = tl.load(starts + sequence + 1) - begin
    asked = (tile - (begin - origin) // BLOCK_Q - sequence) * BLOCK_Q
    if asked >= count:
        return
    length = tl.load(lengths + sequence)
    offset = length - count  # position of the chunk's first query

    lines, dims, lanes = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    token = asked + lines // GROUP
    head = kv_head * GROUP + lines % GROUP
    inside = ((lines < BLOCK_Q * GROUP) & (token < count))[:, None] & (dims < HEAD_DIM)[None, :]
    line = query + (begin + token).to(tl.int64)[:, None] * query_stride
    q = tl.load(line + head[:, None] * HEAD_DIM + dims[None, :], mask=inside, other=0.0)
    q = q.to(tl.float32) if UPCAST else q
    key_base = cache + kv_head.to(tl.int64) * head_stride
    value_base = cache + (KV_HEADS + kv_head).to(tl.int64) * head_stride
    key_scales = scales + kv_head.to(tl.int64) * (head_stride // 2)
    value_scales = scales + (KV_HEADS + kv_head).to(tl.int64) * (head_stride // 2)
    position = offset + token
    first = tl.maximum(offset + asked - WINDOW + 1, 0) // BLOCK_N * BLOCK_N if WINDOW > 0 else 0
    end = offset + tl.minimum(asked + BLOCK_Q, count)

    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(first, end, BLOCK_N):
        keys = start + lanes
        known = keys < end
        block = tl.load(table + sequence * table_stride + keys // PAGE, mask=known, other=0)
        if SCALED:
            at = (block.to(tl.int64) * (PAGE * (HEAD_DIM + 2)) + keys % PAGE * HEAD_DIM)[:, None] + dims[None, :]
            scale_at = block.to(tl.int64) * (PAGE * (HEAD_DIM + 2) // 2) + PAGE * HEAD_DIM // 2 + keys % PAGE
            k_scale = tl.load(key_scales + scale_at, mask=known, other=0.0).to(tl.float32)
            v_scale = tl.load(value_scales + scale_at, mask=known, other=0.0).to(tl.float32)
        else:
            at = (block.to(tl.int64) * PAGE + keys % PAGE)[:, None] * HEAD_DIM + dims[None, :]
        wanted = known[:, None] & (dims < HEAD_DIM)[None, :]
        k = tl.load(key_base + at, mask=wanted, other=0.0)
        v = tl.load(value_base + at, mask=wanted, other=0.0)
        k, v = (k.to(tl.float32), v.to(tl.float32)) if UPCAST else (k, v)
        if SCALED:
            k, v = k.to(q.dtype), v.to(q.dtype)
            if q.dtype == tl.float16:  # whose range a weight times a scale would leave
                v, v_scale = (v.to(tl.float32) * v_scale[:, None]).to(tl.float16), tl.full([BLOCK_N], 1.0, tl.float32)
        seen = keys[None, :] <= position[:, None]
        if WINDOW > 0:
            seen = seen & (keys[None, :] > position[:, None] - WINDOW)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = scores * k_scale[None, :] if SCALED else scores
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, axis=1))
        level = tl.where(higher == float("-inf"), 0.0, higher)  # a window may begin behind this tile for some lines
        weights = tl.exp2(scores - level[:, None])
        fade = tl.exp2(peak - level)
        total = total * fade + tl.sum(weights, axis=1)
        weights = weights * v_scale[None, :] if SCALED else weights
        mixed = tl.dot(weights.to(v.dtype), v, mixed * fade[:, None], input_precision="ieee")
        peak = higher

    result = mixed / total[:, None]
    to = out + ((begin + token).to(tl.int64)[:, None] * (KV_HEADS * GROUP) + head[:, None]) * HEAD_DIM + dims[None, :]
    tl.store(to, result.to(out.dtype.element_ty), mask=inside)


def paged_prefill(
    query: Tensor, cache: Tensor, block_table: Tensor, query_starts: Tensor, context_lens: Tensor, out: Tensor, *, block_size: int,
    scale: float, window: int | None = None,
) -> None:  # fmt: skip
    """query [T, H, D], cache [2, H_kv, S, D] or quantized, block_table [C, M] int32, query_starts [C + 1] int32, context_lens [C]
    int32.

    Chunk i has the queries query_starts[i] … query_starts[i + 1] of the batch, which stand at the end of its context. Writes their lines of
    out [T, H, D] and no others. Accumulates in float32."""
    heads, dim = query.shape[1:]
    sequences, kv_heads = len(context_lens), cache.shape[1]
    group = heads // kv_heads
    tile = prefill_tile(dim, group, query.element_size(), scaled=quantized(cache))
    tiles = len(query) // tile.queries(group) + sequences
    prefill_kernel[(tiles, kv_heads)](
        query, cache, scales_of(cache), block_table, query_starts, context_lens, out, scale * LOG2_E, sequences,
        query.stride(0), block_table.stride(0), cache.stride(1),
        KV_HEADS=kv_heads, GROUP=group, HEAD_DIM=dim, PAGE=block_size, WINDOW=window or 0,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_D=tile.block_d, UPCAST=upcast(query.dtype),
        SCALED=quantized(cache),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def paged_prefill_reference(
    query: Tensor, cache: Tensor, block_table: Tensor, query_starts: Tensor, context_lens: Tensor, out: Tensor, *, block_size: int,
    scale: float, window: int | None = None,
) -> None:  # fmt: skip
    """The same of a plain cache, one chunk at a time in float32."""
    starts, group = query_starts.tolist(), query.shape[1] // cache.shape[1]
    for i, length in enumerate(context_lens.tolist()):
        begin, end = starts[i], starts[i + 1]
        positions = torch.arange(length, device=query.device)
        slots = block_table[i].long()[positions // block_size] * block_size + positions % block_size
        keys, values = cache[:, :, slots].float().repeat_interleave(group, dim=1)
        behind = positions[length - (end - begin) :, None] - positions
        seen = (behind >= 0) & (behind < (window or length))
        scores = torch.einsum("qhd,hkd->hqk", query[begin:end].float(), keys) * scale
        weights = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1)
        out[begin:end] = torch.einsum("hqk,hkd->qhd", weights, values).to(out.dtype)
