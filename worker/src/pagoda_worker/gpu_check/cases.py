"""Inputs of attention over a cache whose blocks are scattered: whole batches of every mixture, and decode rows with ragged contexts.

Knows no engine. Called by the check's parts and by the tests of kernels and backends.
"""

import torch
from torch import Tensor

from pagoda_worker.layers.attention import AttentionBatch, write_cache
from pagoda_worker.layers.kv_cache import is_quantized, new_cache, rows_at, slot_count, write_rows

CPU = torch.device("cpu")


def attention_case(
    decodes: list[int], chunks: list[tuple[int, int]], *, heads: int, kv_heads: int, dim: int, block: int, seed: int, dtype: torch.dtype,
    device: torch.device = CPU,
) -> tuple[Tensor, Tensor, Tensor, AttentionBatch]:  # fmt: skip
    """decodes: context lengths; chunks: (prefix, count). The cache is full of other numbers where the sequences' own are not. Returns
    query, key_value, cache and batch of an `Attend`."""
    torch.manual_seed(seed)
    contexts = sorted(decodes, reverse=True)
    lengths = [*contexts, *(prefix + count for prefix, count in chunks)]
    counts = [1] * len(contexts) + [count for _, count in chunks]
    needed = [-(-length // block) for length in lengths]
    order = torch.randperm(sum(needed) + 3).tolist()
    tables = [[order.pop() for _ in range(n)] for n in needed]
    slots: list[int] = []
    for length, table, count in zip(lengths, tables, counts, strict=True):
        slots += [table[p // block] * block + p % block for p in range(length - count, length)]
    padded = [[*table, *[0] * (max(needed) - len(table))] for table in tables]
    query = torch.randn(sum(counts), heads, dim, device=device).to(dtype)
    key_value = torch.randn(sum(counts), 2 * kv_heads, dim, device=device).to(dtype)
    cache = torch.randn(2, kv_heads, (sum(needed) + 3) * block, dim, device=device).to(dtype)
    batch = AttentionBatch(
        slots=torch.tensor(slots, device=device),
        query_starts=torch.tensor([0, *counts], device=device).cumsum(0).int(),
        context_lens=torch.tensor(lengths, dtype=torch.int32, device=device),
        block_table=torch.tensor(padded, dtype=torch.int32, device=device),
        block_size=block,
        kv_heads=kv_heads,
        dtype=dtype,
        decode_lens=contexts,
        chunks=[(count, prefix) for prefix, count in chunks],
    )
    write_cache(key_value, cache, batch)
    return query, key_value, cache, batch


def stored_as(cache: Tensor, block_size: int, dtype: torch.dtype) -> Tensor:
    """What a plain cache holds, in a quantized one of this dtype."""
    _, kv_heads, slots, dim = cache.shape
    stored = new_cache(kv_heads=kv_heads, dim=dim, blocks=slots // block_size, block_size=block_size, dtype=dtype, device=cache.device)
    write_rows(cache.flatten(0, 1).transpose(0, 1), stored, torch.arange(slots, device=cache.device), block_size)
    return stored


def meant_by(cache: Tensor, block_size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The plain cache [2, H_kv, S, D] that a quantized one stands for."""
    assert is_quantized(cache)
    return rows_at(cache, torch.arange(slot_count(cache, block_size), device=cache.device), block_size, dtype)


def decode_case(
    lengths: list[int], *, group: int, dim: int, page: int, dtype: torch.dtype, device: torch.device = CPU
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, cache, block table and context lengths. Queries are a part of wider rows; free blocks hold NaN, as does what lies past a row's
    end."""
    torch.manual_seed(len(lengths) + dim)
    kv_heads = 2
    needed = [-(-length // page) for length in lengths]
    order = torch.randperm(sum(needed) + 2).tolist()
    cache = torch.full((2, kv_heads, len(order) * page, dim), float("nan"), dtype=dtype, device=device)
    table = torch.full((len(lengths), max(max(needed), 1)), order[0], dtype=torch.int32)
    for row, (length, count) in enumerate(zip(lengths, needed, strict=True)):
        blocks = [order.pop() for _ in range(count)]
        table[row, :count] = torch.tensor(blocks, dtype=torch.int32)
        slots = torch.tensor([blocks[i // page] * page + i % page for i in range(length)], dtype=torch.int64, device=device)
        cache[:, :, slots] = torch.randn(2, kv_heads, length, dim, device=device).to(dtype)
    heads = group * kv_heads
    query = torch.randn(len(lengths), heads + 2 * kv_heads, dim, device=device).to(dtype)[:, :heads]
    return query, cache, table.to(device), torch.tensor(lengths, dtype=torch.int32, device=device)
