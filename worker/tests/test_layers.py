"""Layers against plain references: attention backends over every mixture of rows, rotation, packed products."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pagoda_worker.gpu_check.cases import attention_case
from pagoda_worker.layers.attention import Attend, AttentionShape, attend_eager, attend_sdpa, length_groups
from pagoda_worker.layers.linear import Linear, onednn_packs
from pagoda_worker.layers.norm import rms_norm
from pagoda_worker.layers.operators import Operators
from pagoda_worker.layers.rotary import rotary_table, rotate


@given(
    decodes=st.lists(st.integers(1, 70), max_size=6),
    chunks=st.lists(st.tuples(st.sampled_from([0, 0, 1, 15, 16, 17, 40]), st.integers(1, 40)), max_size=3),
    group=st.sampled_from([1, 2, 4]),
    kv_heads=st.sampled_from([1, 2]),
    dim=st.sampled_from([8, 64]),
    block=st.sampled_from([1, 4, 16]),
    window=st.sampled_from([None, None, 1, 2, 15, 16, 17, 40, 1000]),
    seed=st.integers(0, 99),
)
@settings(max_examples=120)
def test_sdpa_equals_the_readable_reference(
    decodes: list[int], chunks: list[tuple[int, int]], group: int, kv_heads: int, dim: int, block: int, window: int | None, seed: int
):
    if not decodes and not chunks:
        return
    query, key_value, cache, batch = attention_case(
        decodes, chunks, heads=group * kv_heads, kv_heads=kv_heads, dim=dim, block=block, seed=seed, dtype=torch.float32
    )
    shape = AttentionShape(dim**-0.5, window)
    fast = attend_sdpa(query, key_value, cache, batch, shape)
    slow = attend_eager(query, key_value, cache, batch, shape)
    torch.testing.assert_close(fast, slow, atol=2e-5, rtol=1e-4)


def test_sdpa_in_bf16_is_near_the_reference():
    """The reference accumulates in float32: the difference is bf16's own rounding of probabilities and results (2^-8)."""
    query, key_value, cache, batch = attention_case(
        [1, 30, 64], [(0, 20), (17, 5)], heads=4, kv_heads=2, dim=64, block=16, seed=0, dtype=torch.bfloat16
    )
    slow = attend_eager(query, key_value, cache.clone(), batch, AttentionShape(0.125))
    torch.testing.assert_close(attend_sdpa(query, key_value, cache, batch, AttentionShape(0.125)), slow, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("attend", [attend_sdpa, attend_eager])
@pytest.mark.parametrize("window", [1, 16, 20])
def test_what_lies_before_the_window_has_no_influence(attend: Attend, window: int):
    """The same tokens with only the last of them in the sequence at all: attention knows no positions but the order."""
    query, key_value, cache, batch = attention_case([50], [(40, 1)], heads=4, kv_heads=2, dim=8, block=4, seed=0, dtype=torch.float32)
    windowed = attend(query, key_value, cache, batch, AttentionShape(0.5, window))
    for at, length in enumerate((50, 41)):
        slots = [int(batch.block_table[at, p // 4]) * 4 + p % 4 for p in range(length - window, length)]
        keys, values = cache[:, :, slots].repeat_interleave(2, dim=1)
        weights = (torch.einsum("hd,hkd->hk", query[at], keys) * 0.5).softmax(dim=-1)
        torch.testing.assert_close(windowed[at], torch.einsum("hk,hkd->hd", weights, values).flatten())


def test_decoding_with_a_window_reads_only_the_pages_that_it_reaches():
    *_, batch = attention_case([500, 300, 30, 3], [], heads=2, kv_heads=1, dim=8, block=4, seed=0, dtype=torch.float32)
    pages = [len(group.blocks) // (group.stop - group.start) for group in batch.groups(16)]
    assert pages == [5, 2], "16 tokens lie in at most 5 blocks of 4"
    assert batch.groups(16) is batch.groups(16), "made once a step, used by every layer"


@given(st.lists(st.integers(1, 5000), max_size=40))
def test_length_groups_cover_all_rows_and_at_most_double_the_work(lengths: list[int]):
    ordered = sorted(lengths, reverse=True)
    groups = length_groups(ordered)
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
    if not onednn_packs(weight):
        pytest.skip("this CPU or torch has no packed bf16 products")
    x, b = torch.randn(rows, 64).bfloat16(), torch.randn(96).bfloat16() if bias else None
    linear = Linear(weight.clone(), b)
    linear.pack(Operators(attend_sdpa))
    assert linear.weight is None, "one copy of the weight"
    torch.testing.assert_close(linear(x), torch.nn.functional.linear(x, weight, b), atol=0.05, rtol=2**-7)


def test_float32_stays_plain():
    linear = Linear(torch.randn(4, 4))
    linear.pack(Operators(attend_sdpa))
    assert linear.weight is not None
