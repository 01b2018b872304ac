"""Paged attention in the interpreter against the references: head sizes, groups, pages, windows, splits, ragged lengths with 0 and 1."""

from typing import Any

import pytest
import torch

from pagoda_worker.gpu_check.cases import attention_case, decode_case
from pagoda_worker.kernels.decode_attention import paged_decode, paged_decode_reference
from pagoda_worker.kernels.prefill_attention import paged_prefill, paged_prefill_reference
from pagoda_worker.layers.attention import AttentionShape, attend_eager, write_cache
from pagoda_worker.layers.cuda import TritonOperators, attend_triton

TOLERANCE = {
    torch.float32: {"atol": 2e-5, "rtol": 1e-4},
    torch.float16: {"atol": 2e-3, "rtol": 4e-3},  # probabilities are rounded to 11 bits before they weigh values
    torch.bfloat16: {"atol": 1e-2, "rtol": 1e-2},  # the result's own rounding: the arithmetic is float32 here
}
Cases = list[Any]


DECODES: Cases = [
    *[(dim, group, 16, None, 1, torch.float32) for dim, group in ((64, 4), (80, 1), (96, 7), (128, 2), (256, 1))],
    (64, 16, 16, None, 2, torch.float32),
    *[(64, 2, page, None, 4, torch.float32) for page in (32, 64)],
    *[(64, 2, 16, window, splits, torch.float32) for window, splits in ((1, 1), (17, 4), (100, 8))],
    (128, 4, 16, None, 2, torch.float16),
    (128, 4, 16, 40, 2, torch.bfloat16),
]


@pytest.mark.parametrize(("dim", "group", "page", "window", "splits", "dtype"), DECODES, ids=str)
def test_decode_is_the_references(dim: int, group: int, page: int, window: int | None, splits: int, dtype: torch.dtype):
    query, cache, table, lengths = decode_case([0, 1, 16, 65, 150], group=group, dim=dim, page=page, dtype=dtype)
    common: dict[str, Any] = {"block_size": page, "scale": dim**-0.5, "window": window, "splits": splits}
    ours = paged_decode(query, cache, table, lengths, **common)
    torch.testing.assert_close(ours, paged_decode_reference(query, cache, table, lengths, **common), **TOLERANCE[dtype])
    assert torch.equal(ours[0], torch.zeros_like(ours[0])), "a row without a context is padding"


def test_a_batch_of_padding_alone_is_zeros():
    query, cache, table, lengths = decode_case([0, 0], group=2, dim=64, page=16, dtype=torch.float32)
    assert not paged_decode(query, cache, table, lengths, block_size=16, scale=1.0, splits=4).any()
    assert not paged_decode(query, cache, table, lengths, block_size=16, scale=1.0, splits=1).any()


PREFILLS: Cases = [
    *[(dim, group, 16, None, torch.float32) for dim, group in ((64, 2), (80, 1), (96, 7), (128, 2), (256, 1))],
    (64, 16, 16, None, torch.float32),
    (64, 2, 64, None, torch.float32),
    *[(64, 2, 16, window, torch.float32) for window in (1, 16, 33)],
    (128, 4, 16, None, torch.float16),
    (128, 4, 16, 20, torch.bfloat16),
]


@pytest.mark.parametrize(("dim", "group", "page", "window", "dtype"), PREFILLS, ids=str)
def test_prefill_is_the_references(dim: int, group: int, page: int, window: int | None, dtype: torch.dtype):
    """Behind two decode rows, whose lines of the result stay as they are; whole prompts, a later chunk, one token, no token at all."""
    chunks = [(0, 37), (33, 18), (5, 1), (4, 0), (0, 1)]
    query, _, cache, batch = attention_case([9, 3], chunks, heads=2 * group, kv_heads=2, dim=dim, block=page, seed=dim, dtype=dtype)
    ours, theirs = torch.full_like(query, 7.0), torch.full_like(query, 7.0)
    inputs = (query, cache, batch.block_table[2:], batch.query_starts[2:], batch.context_lens[2:])
    paged_prefill(*inputs, ours, block_size=page, scale=dim**-0.5, window=window)
    paged_prefill_reference(*inputs, theirs, block_size=page, scale=dim**-0.5, window=window)
    torch.testing.assert_close(ours, theirs, **TOLERANCE[dtype])


def test_the_references_are_plain_attention():
    """Eager's, which is compared with transformers."""
    decodes, chunks = [50, 17, 16, 1], [(0, 9), (16, 20)]
    query, key_value, cache, batch = attention_case(decodes, chunks, heads=6, kv_heads=2, dim=64, block=16, seed=3, dtype=torch.float32)
    write_cache(key_value, cache, batch)
    plain = attend_eager(query, key_value, cache, batch, AttentionShape(0.125)).view_as(query)
    out = paged_decode_reference(query[:4], cache, batch.block_table, batch.context_lens[:4], block_size=16, scale=0.125)
    torch.testing.assert_close(out, plain[:4], atol=1e-6, rtol=1e-5)
    rest = torch.empty_like(query)
    chunk = batch.block_table[4:], batch.query_starts[4:], batch.context_lens[4:]
    paged_prefill_reference(query, cache, *chunk, rest, block_size=16, scale=0.125)
    torch.testing.assert_close(rest[4:], plain[4:], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("decodes", "chunks"), [([40, 8], []), ([], [(0, 20), (16, 3)]), ([33, 1], [(7, 19)])], ids=str)
def test_the_backend_equals_the_readable_one_and_writes_the_same_cache(decodes: list[int], chunks: list[tuple[int, int]]):
    query, key_value, cache, batch = attention_case(decodes, chunks, heads=4, kv_heads=2, dim=64, block=16, seed=1, dtype=torch.float32)
    other = cache.clone()
    TritonOperators().store(key_value, cache, batch)
    write_cache(key_value, other, batch)
    ours = attend_triton(query, key_value, cache, batch, AttentionShape(0.125))
    torch.testing.assert_close(ours, attend_eager(query, key_value, other, batch, AttentionShape(0.125)), **TOLERANCE[torch.float32])
    assert torch.equal(cache, other)
