"""Attention of a flat batch over a paged cache. One signature, several backends; called by models once per layer.

    cache of one layer     [2, H_kv, N * P, D]     keys then values; slot = block * P + offset
    query                  [T, H, D]               decode rows first (one token each), then prompt chunks one after another

A head's pages lie together, so gathering pages of B rows gives [H_kv, B, L, D]: a batch matrix product without a transpose, the H / H_kv
query heads of a group as its rows. Every token's key and value is written before any is read (the scheduler relies on that).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Rows start … stop of the batch, one token each, of similar length."""

    start: int
    stop: int
    blocks: Tensor
    """[B * M] int64: each row's block table, padded with any block."""
    bias: Tensor
    """[H_kv * B, 1, M * P] in the cache's dtype: 0 within the row's context, -inf past its end."""


@dataclass(frozen=True, slots=True)
class PrefillSpan:
    """Tokens start … stop of the batch: one chunk of one prompt, behind `prefix` tokens that are in the cache."""

    start: int
    stop: int
    prefix: int
    blocks: Tensor
    """[M] int64: the row's block table up to the end of the chunk."""


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """Where the step's tokens go and what they may see. Built once a step, used by every layer."""

    slots: Tensor
    """[T] int64."""
    block_size: int
    decodes: list[DecodeGroup] = field(default_factory=list)
    prefills: list[PrefillSpan] = field(default_factory=list)


Attend = Callable[[Tensor, Tensor, Tensor, AttentionBatch, float], Tensor]
"""(query [T, H, D], new keys and values [T, 2 * H_kv, D], cache, batch, scale) → [T, H * D]. Writes the cache."""


def write_cache(key_value: Tensor, cache: Tensor, batch: AttentionBatch) -> None:
    cache.flatten(0, 1).index_copy_(1, batch.slots, key_value.transpose(0, 1))


def attend_sdpa(query: Tensor, key_value: Tensor, cache: Tensor, batch: AttentionBatch, scale: float) -> Tensor:
    write_cache(key_value, cache, batch)
    out = torch.empty_like(query)
    for group in batch.decodes:
        out[group.start : group.stop] = _decode(query[group.start : group.stop], cache, group, batch.block_size, scale)
    for span in batch.prefills:
        out[span.start : span.stop] = _prefill(query[span.start : span.stop], key_value[span.start : span.stop], cache, span, batch, scale)
    return out.flatten(1)


def _gather(cache: Tensor, blocks: Tensor, block_size: int) -> Tensor:
    """[2, H_kv, len(blocks) * P, D]."""
    heads, dim = cache.shape[1], cache.shape[3]
    pages = cache.view(2 * heads, -1, block_size * dim).index_select(1, blocks)
    return pages.view(2, heads, -1, dim)


def _decode(query: Tensor, cache: Tensor, group: DecodeGroup, block_size: int, scale: float) -> Tensor:
    rows, heads, dim = query.shape
    kv_heads = cache.shape[1]
    keys, values = _gather(cache, group.blocks, block_size).view(2, kv_heads * rows, -1, dim)
    packed = query.view(rows, kv_heads, heads // kv_heads, dim).transpose(0, 1).reshape(kv_heads * rows, -1, dim)
    scores = torch.baddbmm(group.bias, packed, keys.transpose(1, 2), alpha=scale)
    mixed = torch.bmm(torch.softmax(scores, dim=-1), values)
    return mixed.view(kv_heads, rows, -1, dim).transpose(0, 1).reshape(rows, heads, dim)


def _prefill(query: Tensor, key_value: Tensor, cache: Tensor, span: PrefillSpan, batch: AttentionBatch, scale: float) -> Tensor:
    kv_heads = cache.shape[1]
    heads_first = query.transpose(0, 1).unsqueeze(0)
    if span.prefix == 0:
        keys, values = torch.split(key_value.transpose(0, 1).unsqueeze(0), kv_heads, dim=1)
        mixed = F.scaled_dot_product_attention(heads_first, keys, values, is_causal=True, scale=scale, enable_gqa=True)
    else:
        length = span.prefix + span.stop - span.start
        keys, values = _gather(cache, span.blocks, batch.block_size)[:, :, :length].unsqueeze(1)
        seen = torch.ones(span.stop - span.start, length, dtype=torch.bool, device=query.device).tril(span.prefix)
        mixed = F.scaled_dot_product_attention(heads_first, keys, values, attn_mask=seen, scale=scale, enable_gqa=True)
    return mixed[0].transpose(0, 1)


def attend_eager(query: Tensor, key_value: Tensor, cache: Tensor, batch: AttentionBatch, scale: float) -> Tensor:
    """The readable reference: one sequence at a time, float32 throughout."""
    write_cache(key_value, cache, batch)
    out = torch.empty_like(query)
    for group in batch.decodes:
        for i, blocks in enumerate(group.blocks.view(group.stop - group.start, -1)):
            length = int((group.bias[i, 0] == 0).sum())
            at = group.start + i
            out[at] = _eager(query[at : at + 1], cache, blocks, batch.block_size, length, scale)[0]
    for span in batch.prefills:
        length = span.prefix + span.stop - span.start
        out[span.start : span.stop] = _eager(query[span.start : span.stop], cache, span.blocks, batch.block_size, length, scale)
    return out.flatten(1)


def _eager(query: Tensor, cache: Tensor, blocks: Tensor, block_size: int, length: int, scale: float) -> Tensor:
    """The last query stands at position length - 1."""
    keys, values = _gather(cache, blocks, block_size)[:, :, :length].float().repeat_interleave(query.shape[1] // cache.shape[1], dim=1)
    scores = torch.einsum("qhd,hkd->hqk", query.float(), keys) * scale
    seen = torch.ones(query.shape[0], length, dtype=torch.bool, device=query.device).tril(length - query.shape[0])
    weights = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1)
    return torch.einsum("hqk,hkd->qhd", weights, values).to(query.dtype)


BACKENDS: dict[str, Attend] = {"sdpa": attend_sdpa, "eager": attend_eager}
