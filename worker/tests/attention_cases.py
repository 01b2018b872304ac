"""Batches of every mixture of rows for attention backends, over a cache whose blocks are scattered."""

import torch
from torch import Tensor

from pagoda_worker.layers.attention import AttentionBatch, write_cache


def attention_case(
    decodes: list[int], chunks: list[tuple[int, int]], *, heads: int, kv_heads: int, dim: int, block: int, seed: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, AttentionBatch]:
    """decodes: context lengths; chunks: (prefix, count). Blocks are scattered over the cache, which is full of other numbers
    where the sequences' own are not."""
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
    query = torch.randn(sum(counts), heads, dim).to(dtype)
    key_value = torch.randn(sum(counts), 2 * kv_heads, dim).to(dtype)
    cache = torch.randn(2, kv_heads, (sum(needed) + 3) * block, dim).to(dtype)
    batch = AttentionBatch(
        slots=torch.tensor(slots),
        query_starts=torch.tensor([0, *counts]).cumsum(0).int(),
        context_lens=torch.tensor(lengths, dtype=torch.int32),
        block_table=torch.tensor(padded, dtype=torch.int32),
        block_size=block,
        kv_heads=kv_heads,
        dtype=dtype,
        decode_lens=contexts,
        chunks=[(count, prefix) for prefix, count in chunks],
    )
    write_cache(key_value, cache, batch)
    return query, key_value, cache, batch
