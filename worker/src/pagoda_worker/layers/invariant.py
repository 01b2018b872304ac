"""Layers whose result for a token is the same bits whatever else is in the step: docs/batch-invariance.md says what that takes and costs.

Our own CPU kernels add up every row alone: products stay as they are, and all tokens take the attention of prompts. Else products are made
of one shape only, whatever the number of rows, and attention adds keys up in blocks of one size, from the first key on.
Chosen by the loader in place of the usual operators; knows no models.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pagoda_worker.layers.attention import AttentionBatch, AttentionShape, length_groups
from pagoda_worker.layers.kv_cache import rows_at
from pagoda_worker.layers.linear import PlainProduct, Product, Weight, torch_product
from pagoda_worker.layers.native import NativeOperators
from pagoda_worker.layers.operators import Operators
from pagoda_worker.layers.panels import PanelProduct
from pagoda_worker.native.library import Library

ROWS = 32
"""Of every product with a weight. oneDNN and MKL choose another order of addition for few rows than for many."""
QUERIES = 4
"""Of every product of queries and keys; more would waste more on decode rows, which have one."""
KEYS = 64
"""Keys added up at once."""
LOWEST = -1e30
"""Instead of -inf for the largest score so far: a first block that is masked whole must not make NaN of it."""


class FixedRows(PlainProduct):
    """A `Product` that multiplies ROWS rows at a time, the last ones with zeros below them."""

    __slots__ = ("_product",)

    def __init__(self, product: Callable[[Tensor, Tensor | None], Tensor]) -> None:
        self._product = product

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        rows = len(x)
        padded = F.pad(x, (0, 0, 0, -rows % ROWS))
        parts = [self._product(block, bias) for block in torch.split(padded, ROWS)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts))[:rows]


def fixed(weight: Weight, product: Product | None) -> Product:
    """`product` None: torch serves. Our own kernels add up each row alone, in one order; they stay."""
    if isinstance(product, PanelProduct):
        return product
    return FixedRows(product or torch_product(weight))


class InvariantOperators(Operators):
    name = "torch, batch-invariant"

    def __init__(self) -> None:
        super().__init__(attend_invariant)

    def pack(self, weight: Weight, *, gated: bool) -> Product:
        return fixed(weight, super().pack(weight, gated=gated))


class InvariantNativeOperators(NativeOperators):
    def __init__(self, library: Library) -> None:
        super().__init__(library, invariant=True)
        self._attend = attend_invariant  # for heads that the kernels do not take
        self.name = f"{self.name}, batch-invariant"

    def pack(self, weight: Weight, *, gated: bool) -> Product:
        return fixed(weight, super().pack(weight, gated=gated))


def attend_invariant(query: Tensor, key_value: Tensor, cache: Tensor, batch: AttentionBatch, shape: AttentionShape) -> Tensor:
    """An `Attend`; float32 within."""
    out = torch.empty_like(query)
    size, decodes = batch.block_size, len(batch.decode_lens)
    for start, stop in length_groups(batch.decode_lens):
        pages = batch.block_table[start:stop, : -(-batch.decode_lens[start] // size)].long()
        at = batch.context_lens[start:stop].long()[:, None] - 1
        out[start:stop] = _attend(query[start:stop, None], at, cache, pages, size, shape)[:, 0]
    start = decodes
    for row, (count, prefix) in enumerate(batch.chunks, start=decodes):
        pages = batch.block_table[row : row + 1, : -(-(prefix + count) // size)].long()
        blocks = -(-count // QUERIES)
        at = prefix + torch.arange(blocks * QUERIES, device=query.device).clamp(max=count - 1).view(blocks, QUERIES)
        padded = F.pad(query[start : start + count], (0, 0, 0, 0, 0, -count % QUERIES)).view(blocks, QUERIES, *query.shape[1:])
        out[start : start + count] = _attend(padded, at, cache, pages, size, shape).flatten(0, 1)[:count]
        start += count
    return out.flatten(1)


def _attend(query: Tensor, at: Tensor, cache: Tensor, pages: Tensor, block_size: int, shape: AttentionShape) -> Tensor:
    """query [N, Q, H, D] at positions `at` [N, Q]; pages [N or 1, M] of their keys. Returns [N, Q, H, D]. Running softmax over key
    blocks: one that a query does not see adds exactly nothing, so later keys of a longer neighbour change no bit."""
    n, queries, heads, dim = query.shape
    kv_heads = cache.shape[1]
    per_head = heads // kv_heads
    grouped = F.pad(query, (0, 0, 0, 0, 0, QUERIES - queries)).view(n, QUERIES, kv_heads, per_head, dim)
    rows = grouped.permute(0, 2, 1, 3, 4).reshape(n * kv_heads, QUERIES * per_head, dim).float() * shape.scale
    positions = F.pad(at, (0, QUERIES - queries))[:, None, :, None].expand(-1, kv_heads, -1, per_head).reshape(n * kv_heads, -1, 1)
    best = torch.full((*rows.shape[:2], 1), LOWEST, device=query.device)
    total, mixed = torch.zeros_like(best), torch.zeros_like(rows)
    for start in range(0, pages.shape[1] * block_size, KEYS):
        keys, values = _block(cache, pages, block_size, start, n)
        column = torch.arange(start, start + KEYS, device=query.device)
        seen = column <= positions
        if shape.window is not None:
            seen &= column > positions - shape.window
        scores = torch.bmm(rows, keys.transpose(1, 2)).masked_fill_(~seen, float("-inf"))
        higher = torch.maximum(best, scores.amax(dim=-1, keepdim=True))
        weights, kept = (scores - higher).exp_(), (best - higher).exp_()
        total = total * kept + weights.sum(dim=-1, keepdim=True)
        mixed = mixed * kept + torch.bmm(weights, values)
        best = higher
    mixed = (mixed / total).view(n, kv_heads, QUERIES, per_head, dim).permute(0, 2, 1, 3, 4)
    return mixed.reshape(n, QUERIES, heads, dim)[:, :queries].to(query.dtype)


def _block(cache: Tensor, pages: Tensor, block_size: int, start: int, n: int) -> tuple[Tensor, Tensor]:
    """Keys and values start … start + KEYS, each [N * H_kv, KEYS, D] float32; zeros past the last page."""
    kv_heads = cache.shape[1]
    slots = torch.arange(start, min(start + KEYS, pages.shape[1] * block_size), device=cache.device)
    index = pages[:, slots // block_size] * block_size + slots % block_size
    rows = rows_at(cache, index.flatten(), block_size, torch.float32).float()
    dim = rows.shape[-1]
    found = rows.view(2, kv_heads, len(pages), len(slots), dim).transpose(1, 2)
    padded = F.pad(found, (0, 0, 0, KEYS - len(slots)))
    keys, values = padded.expand(-1, n, -1, -1, -1).reshape(2, n * kv_heads, KEYS, dim)
    return keys, values
