"""Attention of a flat batch over a paged cache. One signature, several backends; called by models once per layer.

    cache of one layer     [2, H_kv, N * P, D]     keys then values; slot = block * P + offset; layers/kv_cache.py has its quantized form
    query                  [T, H, D]               decode rows first (one token each), then prompt chunks one after another

A head's pages lie together, so gathering pages of B rows gives [H_kv, B, L, D]: a batch matrix product without a transpose, the H / H_kv
query heads of a group as its rows. Every token's key and value is written before any is read (the scheduler relies on that). Of a quantized
cache a query sees what was written, its own token included: where a prompt is cut, or found again, then changes nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from pagoda_worker.layers.kv_cache import is_quantized, rows_of_blocks, write_rows


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What one layer's attention is, beside the sizes of its tensors."""

    scale: float
    window: int | None = None
    """A query sees itself and the window - 1 tokens before it. None: all before it."""


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Rows start … stop of the batch, one token each, of similar length."""

    start: int
    stop: int
    blocks: Tensor
    """[B * M] int64: the M blocks that hold all that each row sees; where it sees less, any."""
    bias: Tensor
    """[H_kv * B, 1, M * P] in the batch's dtype: 0 for what the row sees, -inf for what lies before its window or past its end."""


@dataclass(frozen=True, slots=True)
class PrefillSpan:
    """Tokens start … stop of the batch: one chunk of one prompt, behind `prefix` tokens that are in the cache."""

    start: int
    stop: int
    prefix: int
    blocks: Tensor
    """[M] int64: the row's block table up to the end of the chunk."""


@dataclass(frozen=True, slots=True)
class ChunkKeys:
    """What all chunks of a step see, laid end to end: for backends that take them at once and read no pages."""

    slots: Tensor
    """[K] int64: where the keys and values lie in the cache."""
    starts: Tensor
    """[C + 1] int32: chunk i sees keys starts[i] … starts[i + 1]; its last query stands at the last of them."""
    query_starts: Tensor
    """[C + 1] int32: of its queries, counted from the first chunk's first."""
    longest: int
    """Keys of one chunk, at most."""


@dataclass(frozen=True)
class AttentionBatch:
    """Where the step's tokens go and what they may see. Built once a step, used by every layer.

    The S sequences stand in the order of their tokens: first those that decode, longest first, then chunks of prompts."""

    slots: Tensor
    """[T] int64: where each token's key and value go."""
    query_starts: Tensor
    """[S + 1] int32: sequence i has tokens query_starts[i] … query_starts[i + 1]."""
    context_lens: Tensor
    """[S] int32: tokens of the sequence in the cache once this step's are written; its last query stands at context_lens - 1."""
    block_table: Tensor
    """[S, M] int32: the sequence's blocks, then any."""
    block_size: int
    kv_heads: int
    dtype: torch.dtype
    """What is computed in, and what a cache holds that is not quantized."""
    decode_lens: list[int]
    """Context lengths of the sequences that decode, on the host."""
    chunks: list[tuple[int, int]] = field(default_factory=list)
    """(count, prefix) of each chunk: its tokens in this step, and those before it."""

    @property
    def max_query(self) -> int:
        return max((count for count, _ in self.chunks), default=1)

    @property
    def max_context(self) -> int:
        return max([*self.decode_lens[:1], *(count + prefix for count, prefix in self.chunks)])

    def groups(self, window: int | None = None) -> list[DecodeGroup]:
        """Those that decode, for backends that gather pages: with a window, only those pages that it reaches."""
        if window not in self._groups:
            seen = [min(length, window or length) for length in self.decode_lens]
            self._groups[window] = [self._group(start, stop, seen[start], window) for start, stop in length_groups(seen)]
        return self._groups[window]

    @cached_property
    def _groups(self) -> dict[int | None, list[DecodeGroup]]:
        """By window: layers of one kind share theirs."""
        return {}

    def _group(self, start: int, stop: int, seen: int, window: int | None) -> DecodeGroup:
        """`seen`: tokens, at most, that a row of the group sees."""
        size, table = self.block_size, self.block_table[start:stop]
        ends = self.context_lens[start:stop, None].long()
        begins = torch.zeros_like(ends) if window is None else (ends - window).clamp(min=0)
        # A window may begin within a block, and then reaches into one more.
        pages = min(-(-seen // size) + (window is not None), table.shape[1])
        columns = begins // size + torch.arange(pages, device=ends.device)
        positions = (columns[:, :, None] * size + torch.arange(size, device=ends.device)).flatten(1)
        unseen = (positions < begins) | (positions >= ends)
        bias = torch.zeros(unseen.shape, dtype=self.dtype, device=ends.device).masked_fill_(unseen, float("-inf"))
        blocks = table.gather(1, columns.clamp(max=table.shape[1] - 1)).flatten().long()
        return DecodeGroup(start, stop, blocks, bias.repeat(self.kv_heads, 1)[:, None])

    @cached_property
    def spans(self) -> list[PrefillSpan]:
        """The chunks, for backends that take one after the other."""
        spans, start = [], len(self.decode_lens)
        for i, (count, prefix) in enumerate(self.chunks, start=len(self.decode_lens)):
            pages = -(-(prefix + count) // self.block_size)
            spans.append(PrefillSpan(start, start + count, prefix, self.block_table[i, :pages].long()))
            start += count
        return spans

    def chunk_keys(self, window: int | None = None) -> ChunkKeys:
        """With a window, only keys that one of the chunk's queries sees."""
        if window not in self._chunk_keys:
            self._chunk_keys[window] = self._lay_out_keys(key_ranges(self.chunks, window), window)
        return self._chunk_keys[window]

    @cached_property
    def _chunk_keys(self) -> dict[int | None, ChunkKeys]:
        return {}

    def _lay_out_keys(self, ranges: list[tuple[int, int]], window: int | None) -> ChunkKeys:
        """On the device, with sizes that the host knows: nothing waits."""
        decodes, size = len(self.decode_lens), self.block_size
        query_starts, ends = self.query_starts[decodes:] - decodes, self.context_lens[decodes:]
        firsts = torch.zeros_like(ends) if window is None else (ends - query_starts.diff() - window + 1).clamp(min=0)
        starts = F.pad((ends - firsts).cumsum(0), (1, 0)).int()
        total = sum(count for _, count in ranges)
        owners = torch.repeat_interleave(ends - firsts, output_size=total)
        at = torch.arange(total, device=ends.device) - starts[owners] + firsts[owners]
        slots = self.block_table[decodes + owners, at // size].long() * size + at % size
        return ChunkKeys(slots, starts, query_starts, max(count for _, count in ranges))


def key_ranges(chunks: list[tuple[int, int]], window: int | None) -> list[tuple[int, int]]:
    """(first key, how many) that the queries of each chunk (count, prefix) see between them."""
    firsts = [0 if window is None else max(prefix - window + 1, 0) for _, prefix in chunks]
    return [(first, prefix + count - first) for first, (count, prefix) in zip(firsts, chunks, strict=True)]


def length_groups(lengths: list[int]) -> list[tuple[int, int]]:
    """Splits rows (longest first) so that padding to a group's longest at most doubles its work: a new group where the length halves."""
    cuts = [0]
    for i, length in enumerate(lengths):
        if 2 * length < lengths[cuts[-1]]:
            cuts.append(i)
    return list(pairwise([*cuts, len(lengths)])) if lengths else []


Attend = Callable[[Tensor, Tensor, Tensor, AttentionBatch, AttentionShape], Tensor]
"""(query [T, H, D], new keys and values [T, 2 * H_kv, D], cache, batch, shape) → [T, H * D]. The new ones are in
the cache already."""


def write_cache(key_value: Tensor, cache: Tensor, batch: AttentionBatch) -> None:
    write_rows(key_value, cache, batch.slots, batch.block_size)


def attend_sdpa(query: Tensor, key_value: Tensor, cache: Tensor, batch: AttentionBatch, shape: AttentionShape) -> Tensor:
    out = torch.empty_like(query)
    for group in batch.groups(shape.window):
        out[group.start : group.stop] = _decode(query[group.start : group.stop], cache, group, batch, shape.scale)
    for span in batch.spans:
        rows = slice(span.start, span.stop)
        out[rows] = _prefill(query[rows], key_value[rows], cache, span, batch, shape)
    return out.flatten(1)


def _decode(query: Tensor, cache: Tensor, group: DecodeGroup, batch: AttentionBatch, scale: float) -> Tensor:
    rows, heads, dim = query.shape
    kv_heads = cache.shape[1]
    keys, values = rows_of_blocks(cache, group.blocks, batch.block_size, batch.dtype).view(2, kv_heads * rows, -1, dim)
    packed = query.view(rows, kv_heads, heads // kv_heads, dim).transpose(0, 1).reshape(kv_heads * rows, -1, dim)
    scores = torch.baddbmm(group.bias, packed, keys.transpose(1, 2), alpha=scale)
    mixed = torch.bmm(torch.softmax(scores, dim=-1), values)
    return mixed.view(kv_heads, rows, -1, dim).transpose(0, 1).reshape(rows, heads, dim)


def _prefill(query: Tensor, key_value: Tensor, cache: Tensor, span: PrefillSpan, batch: AttentionBatch, shape: AttentionShape) -> Tensor:
    kv_heads, count = cache.shape[1], span.stop - span.start
    heads_first = query.transpose(0, 1).unsqueeze(0)
    if span.prefix == 0 and (shape.window is None or count <= shape.window) and not is_quantized(cache):
        keys, values = torch.split(key_value.transpose(0, 1).unsqueeze(0), kv_heads, dim=1)
        mixed = F.scaled_dot_product_attention(heads_first, keys, values, is_causal=True, scale=shape.scale, enable_gqa=True)
    else:
        first = 0 if shape.window is None else max(span.prefix - shape.window + 1, 0) // batch.block_size
        before = span.prefix - first * batch.block_size
        found = rows_of_blocks(cache, span.blocks[first:], batch.block_size, batch.dtype)
        keys, values = found[:, :, : before + count].unsqueeze(1)
        seen = _seen(count, before, shape.window, query.device)
        mixed = F.scaled_dot_product_attention(heads_first, keys, values, attn_mask=seen, scale=shape.scale, enable_gqa=True)
    return mixed[0].transpose(0, 1)


def _seen(count: int, before: int, window: int | None, device: torch.device) -> Tensor:
    """[count, before + count] bool: query i is the key before + i, and sees itself, those before it, and none before its window."""
    seen = torch.ones(count, before + count, dtype=torch.bool, device=device).tril(before)
    return seen if window is None else seen.triu(before - window + 1)


def attend_eager(query: Tensor, key_value: Tensor, cache: Tensor, batch: AttentionBatch, shape: AttentionShape) -> Tensor:
    """The readable reference: one sequence at a time, float32 throughout."""
    out = torch.empty_like(query)
    for group in batch.groups():
        for i, blocks in enumerate(group.blocks.view(group.stop - group.start, -1)):
            at = group.start + i
            length = batch.decode_lens[at]
            out[at] = _eager(query[at : at + 1], cache, blocks, batch.block_size, length, shape)[0]
    for span in batch.spans:
        length = span.prefix + span.stop - span.start
        out[span.start : span.stop] = _eager(query[span.start : span.stop], cache, span.blocks, batch.block_size, length, shape)
    return out.flatten(1)


def _eager(query: Tensor, cache: Tensor, blocks: Tensor, block_size: int, length: int, shape: AttentionShape) -> Tensor:
    """The last query stands at position length - 1."""
    found = rows_of_blocks(cache, blocks, block_size, torch.float32)[:, :, :length].float()
    keys, values = found.repeat_interleave(query.shape[1] // cache.shape[1], dim=1)
    scores = torch.einsum("qhd,hkd->hqk", query.float(), keys) * shape.scale
    seen = _seen(query.shape[0], length - query.shape[0], shape.window, query.device)
    weights = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1)
    return torch.einsum("hqk,hkd->qhd", weights, values).to(query.dtype)


BACKENDS: dict[str, Attend] = {"sdpa": attend_sdpa, "eager": attend_eager}
