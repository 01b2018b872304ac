"""Attention `flash`: chunks of prompts by the FlashAttention that torch brings (torch.nn.attention.varlen), all else as in layers/cuda.py.

Decode rows go through our paged kernel. The FlashAttention inside torch's wheel reads no pages (its block tables need one that is installed
beside torch), so the keys and values that the chunks see are gathered in every layer, a quantized cache's as the numbers they mean; that
costs what contexts are long, not their square.
Chosen by layers/selection.py, which has checked device, dtype and head size.
"""

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from pagoda_worker.layers.attention import AttentionBatch, AttentionShape
from pagoda_worker.layers.cuda import TritonOperators, decode_rows
from pagoda_worker.layers.kv_cache import rows_at

TAKES_GROUPS = "enable_gqa" in inspect.signature(varlen_attn).parameters
"""Of queries to one head of keys and values. torch before 2.13 wants a head of keys for each of queries."""


class FlashOperators(TritonOperators):
    name = "flash"

    def __init__(self) -> None:
        super().__init__(attend_flash)


def attend_flash(query: Tensor, key_value: Tensor, cache: Tensor, batch: AttentionBatch, shape: AttentionShape) -> Tensor:
    """An `Attend` that reads the cache; key_value is not looked at."""
    decodes = len(batch.decode_lens)
    mixed = [decode_rows(query[:decodes], cache, batch, shape)] if decodes else []
    if batch.chunks:
        chunk_keys = batch.chunk_keys(shape.window)
        found = rows_at(cache, chunk_keys.slots, batch.block_size, batch.dtype).transpose(1, 2)  # [2, K, H_kv, D], a token's heads apart
        if not TAKES_GROUPS:
            found = found.repeat_interleave(query.shape[1] // batch.kv_heads, 2)
        keys, values = found
        grouped: dict[str, Any] = {"enable_gqa": True} if TAKES_GROUPS else {}
        mixed.append(
            _attended(
                varlen_attn(
                    query[decodes:],
                    keys,
                    values,
                    chunk_keys.query_starts,
                    chunk_keys.starts,
                    batch.max_query,
                    chunk_keys.longest,
                    scale=shape.scale,
                    # (left, right) of a query, which stands at the end of its keys: none after it.
                    window_size=(-1 if shape.window is None else shape.window - 1, 0),
                    **grouped,
                )
            )
        )
    return (mixed[0] if len(mixed) == 1 else torch.cat(mixed)).flatten(1)


def _attended(result: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    assert isinstance(result, Tensor), "no log-sum-exp was asked for"
    return result
