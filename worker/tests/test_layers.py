"""Layers against plain references: attention backends over every mixture of rows, rotation, packed products."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pagoda_worker.layers.attention import AttentionBatch, DecodeGroup, PrefillSpan, attend_eager, attend_sdpa
from pagoda_worker.layers.linear import Linear, packs
from pagoda_worker.layers.norm import rms_norm
from pagoda_worker.layers.rotary import rotary_table, rotate
from pagoda_worker.runner import length_groups


def attention_case(
    decodes: list[int], chunks: list[tuple[int, int]], *, heads: int, kv_heads: int, dim: int, block: int, seed: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, AttentionBatch]:
    """decodes: context lengths; chunks: (prefix, count). Blocks are scattered over the cache, which is full of other numbers."""
    torch.manual_seed(seed)
    contexts = sorted(decodes, reverse=True)
    lengths = [*contexts, *(prefix + count for prefix, count in chunks)]
    needed = [-(-length // block) for length in lengths]
    order = torch.randperm(sum(needed) + 3).tolist()
    tables = [[order.pop() for _ in range(n)] for n in needed]
    slots: list[int] = []
    for length, table, count in zip(lengths, tables, [1] * len(contexts) + [c for _, c in chunks], strict=True):
        slots += [table[p // block] * block + p % block for p in range(length - count, length)]
    groups = []
    for a, b in length_groups(torch.tensor(contexts, dtype=torch.int64).numpy()):
        width = needed[a]
        blocks = [block_id for table in tables[a:b] for block_id in [*table, *[0] * (width - len(table))]]
        past = torch.arange(width * block) >= torch.tensor(contexts[a:b])[:, None]
        bias = torch.zeros(past.shape, dtype=dtype).masked_fill(past, float("-inf")).repeat(kv_heads, 1)[:, None]
        groups.append(DecodeGroup(a, b, torch.tensor(blocks), bias))
    spans, at = [], len(contexts)
    for (prefix, count), table in zip(chunks, tables[len(contexts) :], strict=True):
        spans.append(PrefillSpan(at, at + count, prefix, torch.tensor(table)))
        at += count
    query = torch.randn(at, heads, dim).to(dtype)
    key_value = torch.randn(at, 2 * kv_heads, dim).to(dtype)
    cache = torch.randn(2, kv_heads, (sum(needed) + 3) * block, dim).to(dtype)
    return query, key_value, cache, AttentionBatch(torch.tensor(slots), block, groups, spans)


@given(
    decodes=st.lists(st.integers(1, 70), max_size=6),
    chunks=st.lists(st.tuples(st.sampled_from([0, 0, 1, 15, 16, 17, 40]), st.integers(1, 40)), max_size=3),
    group=st.sampled_from([1, 2, 4]),
    kv_heads=st.sampled_from([1, 2]),
    dim=st.sampled_from([8, 64]),
    block=st.sampled_from([1, 4, 16]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_sdpa_equals_the_readable_reference(
    decodes: list[int], chunks: list[tuple[int, int]], group: int, kv_heads: int, dim: int, block: int, seed: int
):
    if not decodes and not chunks:
        return
    query, key_value, cache, batch = attention_case(
        decodes, chunks, heads=group * kv_heads, kv_heads=kv_heads, dim=dim, block=block, seed=seed, dtype=torch.float32
    )
    other = cache.clone()
    fast = attend_sdpa(query, key_value, cache, batch, dim**-0.5)
    slow = attend_eager(query, key_value, other, batch, dim**-0.5)
    torch.testing.assert_close(fast, slow, atol=2e-5, rtol=1e-4)
    assert torch.equal(cache, other), "both wrote the same cache"


def test_sdpa_in_bf16_is_near_the_reference():
    """The reference accumulates in float32: the difference is bf16's own rounding of probabilities and results (2^-8)."""
    query, key_value, cache, batch = attention_case(
        [1, 30, 64], [(0, 20), (17, 5)], heads=4, kv_heads=2, dim=64, block=16, seed=0, dtype=torch.bfloat16
    )
    slow = attend_eager(query, key_value, cache.clone(), batch, 0.125)
    torch.testing.assert_close(attend_sdpa(query, key_value, cache, batch, 0.125), slow, atol=2e-2, rtol=2e-2)


@given(st.lists(st.integers(1, 5000), max_size=40))
def test_length_groups_cover_all_rows_and_at_most_double_the_work(lengths: list[int]):
    ordered = sorted(lengths, reverse=True)
    groups = length_groups(torch.tensor(ordered, dtype=torch.int64).numpy())
    assert [i for a, b in groups for i in range(a, b)] == list(range(len(ordered)))
    assert all(2 * ordered[b - 1] >= ordered[a] for a, b in groups)


def test_rotation_turns_each_pair_by_its_positions_angle():
    table = rotary_table(8, 10, {"rope_theta": 100.0}, max_position=10, dtype=torch.float32, device=torch.device("cpu"))
    heads = torch.randn(3, 2, 8)
    positions = torch.tensor([0, 4, 9])
    turned = rotate(heads, *table.at(positions))
    frequencies = 100.0 ** -(torch.arange(4) / 4)
    pairs = torch.complex(heads[..., :4], heads[..., 4:]) * torch.polar(torch.ones(3, 1, 4), positions[:, None, None] * frequencies)
    torch.testing.assert_close(turned, torch.cat((pairs.real, pairs.imag), dim=-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_computes_wide_and_rounds_once(dtype: torch.dtype):
    x, weight = torch.randn(5, 64).to(dtype) * 100, torch.randn(64).to(dtype)
    wide = x.double()
    expected = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5) * weight.double()
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), expected.to(dtype), atol=1e-5, rtol=2**-7 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("rows", [1, 3, 32, 130])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_product_is_the_plain_one(rows: int, bias: bool):
    torch.manual_seed(0)
    weight = torch.randn(96, 64).bfloat16()
    if not packs(weight):
        pytest.skip("this CPU or torch has no packed bf16 products")
    x, b = torch.randn(rows, 64).bfloat16(), torch.randn(96).bfloat16() if bias else None
    linear = Linear(weight.clone(), b)
    linear.pack()
    assert linear.weight is None, "one copy of the weight"
    torch.testing.assert_close(linear(x), torch.nn.functional.linear(x, weight, b), atol=0.05, rtol=2**-7)


def test_float32_stays_plain():
    linear = Linear(torch.randn(4, 4))
    linear.pack()
    assert linear.weight is not None
