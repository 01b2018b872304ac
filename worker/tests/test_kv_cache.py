"""A quantized KV cache: what comes out of what went in, what it costs, and every attention backend over the same one."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pagoda_worker.gpu_check.cases import attention_case, meant_by, stored_as
from pagoda_worker.layers.attention import AttentionShape, attend_eager, attend_sdpa
from pagoda_worker.layers.invariant import attend_invariant
from pagoda_worker.layers.kv_cache import LARGEST, QUANTIZED, blocks_of, new_cache, quantize, row_bytes, rows_at, rows_of_blocks, write_rows
from pagoda_worker.layers.native import NativeOperators
from pagoda_worker.layers.operators import Operators
from pagoda_worker.native.build import library_path
from pagoda_worker.native.library import cpu_flags, load_library, usable

FORMS = list(QUANTIZED.values())
STEP = {torch.int8: 0.5 / 127, torch.float8_e4m3fn: 0.5**4}
"""Half of the distance between neighbours: int8's as a share of the row's largest magnitude, e4m3's of the value's own."""
CPU = torch.device("cpu")
ISAS = usable(cpu_flags())
natively = pytest.mark.skipif(
    not ISAS or not library_path(ISAS[0]).exists(), reason="no CPU kernels: Debian's g++ was missing at installation"
)


def cache_of(dtype: torch.dtype, *, dim: int = 64, blocks: int = 5, block_size: int = 16) -> Tensor:
    return new_cache(kv_heads=2, dim=dim, blocks=blocks, block_size=block_size, dtype=dtype, device=CPU)


@given(
    form=st.sampled_from(FORMS),
    size=st.sampled_from([1e-30, 1e-3, 1.0, 300.0, 1e30]),
    dim=st.sampled_from([2, 16, 64, 130]),
    block=st.sampled_from([1, 8, 16]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_what_is_written_is_read_again_within_half_a_step(form: torch.dtype, size: float, dim: int, block: int, seed: int):
    torch.manual_seed(seed)
    cache, slots = cache_of(form, dim=dim, block_size=block), torch.randperm(5 * block)[:4]
    rows = torch.randn(4, 4, dim) * size * torch.logspace(-2, 2, 4)[:, None]
    write_rows(rows, cache, slots, block)
    found = rows_at(cache, slots, block, torch.float32).flatten(0, 1).transpose(0, 1)
    largest = rows.abs().amax(-1, keepdim=True)
    error, least = (found - rows).abs(), STEP[form] * largest / (1 if form == torch.int8 else 64)
    allowed = least if form == torch.int8 else torch.maximum(least, STEP[form] * rows.abs())
    assert (error <= 1.01 * allowed).all()
    assert torch.equal(
        rows_of_blocks(cache, torch.arange(5), block, torch.float32)[:, :, slots], rows_at(cache, slots, block, torch.float32)
    )


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_rows_of_zeros_stay_zeros_and_broken_ones_come_out_broken(form: torch.dtype):
    rows = torch.randn(4, 4, 64)
    rows[1], rows[2, 0, 3], rows[3, 1, 5] = 0.0, float("nan"), float("-inf")
    cache = cache_of(form)
    write_rows(rows, cache, torch.arange(4), 16)
    found = rows_at(cache, torch.arange(4), 16, torch.float32).flatten(0, 1).transpose(0, 1)
    assert not found[1].any()
    assert [found[2, 0].isnan().any(), found[3, 1].isnan().any()] == [True, True]
    assert torch.cat([found[0], found[2, 1:]]).isfinite().all(), "and nothing else does"


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_one_row_is_written_and_nothing_beside_it(form: torch.dtype):
    cache = cache_of(form)
    write_rows(torch.randn(80, 4, 64), cache, torch.arange(80), 16)
    before = rows_at(cache, torch.arange(80), 16, torch.float32)
    write_rows(torch.full((1, 4, 64), 9.0), cache, torch.tensor([37]), 16)
    after = rows_at(cache, torch.arange(80), 16, torch.float32)
    others = torch.arange(80) != 37
    assert torch.equal(after[:, :, others], before[:, :, others])
    assert (after[:, :, 37] - 9.0).abs().max() < 0.1


@pytest.mark.parametrize("dim", [32, 64, 128, 256])
def test_a_cache_takes_at_most_55_percent_of_its_bf16_bytes(dim: int):
    plain = cache_of(torch.bfloat16, dim=dim).nbytes
    for form in FORMS:
        assert cache_of(form, dim=dim).nbytes == 2 * 2 * 5 * 16 * row_bytes(dim, form) <= 0.55 * plain


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_blocks_move_whole_and_are_zeros_once_zeroed(form: torch.dtype):
    cache = cache_of(form)
    write_rows(torch.randn(80, 4, 64), cache, torch.arange(80), 16)
    blocks, before = blocks_of(cache, 5), rows_at(cache, torch.arange(80), 16, torch.float32)
    blocks.index_copy_(1, torch.tensor([4]), blocks.index_select(1, torch.tensor([1])))
    blocks.index_fill_(1, torch.tensor([2]), 0)
    after = rows_at(cache, torch.arange(80), 16, torch.float32)
    assert torch.equal(after[:, :, 64:], before[:, :, 16:32])
    assert not after[:, :, 32:48].any()
    assert torch.equal(after[:, :, 48:64], before[:, :, 48:64])


BACKENDS = {"sdpa": attend_sdpa, "invariant": attend_invariant}
CASES: list[tuple[list[int], list[tuple[int, int]], int | None]] = [
    ([40, 17, 16, 1], [(0, 9), (16, 20), (30, 1)], None),
    ([70, 3], [(0, 80), (33, 40)], 21),
]


def close(dtype: torch.dtype) -> dict[str, float]:
    return {"atol": 0.02, "rtol": 2**-6} if dtype == torch.bfloat16 else {"atol": 2e-5, "rtol": 1e-4}


@pytest.mark.parametrize(("form", "dtype"), list(itertools.product(FORMS, (torch.float32, torch.bfloat16))), ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=["all seen", "a window"])
def test_backends_equal_the_readable_reference(form: torch.dtype, dtype: torch.dtype, backend: str, case: tuple[Any, Any, Any]):
    decodes, chunks, window = case
    query, key_value, cache, batch = attention_case(decodes, chunks, heads=6, kv_heads=2, dim=64, block=16, seed=2, dtype=dtype)
    stored, shape = stored_as(cache, 16, form), AttentionShape(0.125, window)
    ours = BACKENDS[backend](query, key_value, stored, batch, shape)
    torch.testing.assert_close(ours, attend_eager(query, key_value, stored, batch, shape), **close(dtype))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_reference_reads_what_the_cache_means_and_is_near_the_plain_one(form: torch.dtype):
    decodes, chunks, _ = CASES[0]
    query, key_value, cache, batch = attention_case(decodes, chunks, heads=6, kv_heads=2, dim=64, block=16, seed=2, dtype=torch.float32)
    stored, shape = stored_as(cache, 16, form), AttentionShape(0.125)
    ours = attend_eager(query, key_value, stored, batch, shape)
    assert torch.equal(ours, attend_eager(query, key_value, meant_by(stored, 16), batch, shape))
    error = (ours - attend_eager(query, key_value, cache, batch, shape)).square().mean().sqrt()
    assert error < {torch.int8: 0.01, torch.float8_e4m3fn: 0.03}[form], "of values whose spread is 1"


def operators_of(isa: str) -> NativeOperators:
    library = load_library(isa)
    assert library is not None
    library.use_threads(1)
    return NativeOperators(library)


@natively
@given(
    decodes=st.lists(st.integers(1, 300), min_size=1, max_size=5),
    chunks=st.lists(st.tuples(st.sampled_from([0, 1, 17, 100]), st.integers(1, 150)), max_size=2),
    group=st.sampled_from([1, 2, 3, 8]),
    dim=st.sampled_from([16, 64, 80, 256]),
    block=st.sampled_from([1, 16, 64]),
    window=st.sampled_from([None, 1, 13, 200]),
    isa=st.sampled_from(ISAS or ["none"]),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    form=st.sampled_from(FORMS),
)
@settings(max_examples=60)
def test_native_attention_equals_the_readable_reference(
    decodes: list[int],
    chunks: list[tuple[int, int]],
    group: int,
    dim: int,
    block: int,
    window: int | None,
    isa: str,
    seed: int,
    dtype: torch.dtype,
    form: torch.dtype,
):
    query, key_value, cache, batch = attention_case(
        decodes, chunks, heads=2 * group, kv_heads=2, dim=dim, block=block, seed=seed, dtype=dtype
    )
    stored, shape = stored_as(cache, block, form), AttentionShape(dim**-0.5, window)
    ours = operators_of(isa).attend(query, key_value, stored, batch, shape)
    torch.testing.assert_close(ours, attend_eager(query, key_value, stored, batch, shape), **close(dtype))


@natively
@pytest.mark.parametrize(("isa", "form", "dtype"), list(itertools.product(ISAS, FORMS, (torch.float32, torch.bfloat16))), ids=str)
@pytest.mark.parametrize("normed", [False, True])
def test_native_rotation_writes_what_torch_would(isa: str, form: torch.dtype, dtype: torch.dtype, normed: bool):
    """The same bits, of the rows that it turned itself. One row is broken, one all zeros, one of tiny numbers."""
    _, _, plain, batch = attention_case([5, 17], [(3, 9)], heads=6, kv_heads=2, dim=64, block=4, seed=1, dtype=dtype)
    cache = stored_as(plain, 4, form)
    heads = torch.randn(11, 10, 64).to(dtype)
    heads[3, 9, 7], heads[4, 8:], heads[5] = float("nan"), 0.0, heads[5] * 1e-20
    rotation = torch.randn(11, 1, 64).to(dtype), torch.randn(11, 1, 64).to(dtype)
    norms: Any = (torch.randn(64).to(dtype), torch.randn(64).to(dtype)) if normed else None
    theirs = cache.clone()
    operators_of(isa).rotate_and_store(heads, rotation, cache, batch, norms, 1e-6)
    Operators(attend_eager).store(heads[:, 6:], theirs, batch)
    ours, expected = (rows_at(each, batch.slots, 4, torch.float32) for each in (cache, theirs))
    assert torch.equal(ours.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert ours.isnan().any()
    untouched = [slot for slot in range(plain.shape[2]) if slot not in batch.slots.tolist()]
    assert torch.equal(*(rows_at(each, torch.tensor(untouched), 4, torch.float32) for each in (cache, theirs)))


@natively
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_native_kernels_round_every_number_as_torch_does(form: torch.dtype):
    """All of e4m3's range, its smallest numbers among them, and ties of both forms."""
    spread = torch.cat([torch.linspace(-1, 1, 4000), torch.logspace(-7, 0, 80), torch.arange(-127, 128) / 127 + 0.5 / 127])
    rows = torch.cat([spread, torch.zeros(-len(spread) % 62)]).view(-1, 62)
    heads = torch.cat([rows, torch.ones(len(rows), 1), -torch.ones(len(rows), 1)], dim=1)[:, None].repeat(1, 4, 1) * LARGEST[form]
    _, _, plain, batch = attention_case([], [(0, len(rows))], heads=2, kv_heads=1, dim=64, block=16, seed=1, dtype=torch.float32)
    ours, theirs = stored_as(plain, 16, form), stored_as(plain, 16, form)
    none = torch.ones(len(rows), 1, 64), torch.zeros(len(rows), 1, 64)
    for isa in ISAS:
        operators_of(isa).rotate_and_store(heads.contiguous(), none, ours, batch)
        write_rows(heads[:, 2:], theirs, batch.slots, 16)
        assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8)), isa


@natively
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_what_lies_past_a_sequences_end_is_not_read(form: torch.dtype):
    query, key_value, cache, batch = attention_case([33], [(5, 40)], heads=4, kv_heads=2, dim=64, block=16, seed=5, dtype=torch.bfloat16)
    own = [
        int(batch.block_table[sequence, position // 16]) * 16 + position % 16
        for sequence, length in enumerate(batch.context_lens.tolist())
        for position in range(length)
    ]
    poisoned = torch.full_like(cache, float("nan"))
    poisoned[:, :, own] = cache[:, :, own]
    shape, clean, bad = AttentionShape(0.125), stored_as(cache, 16, form), stored_as(poisoned, 16, form)
    for isa in ISAS:
        attend = operators_of(isa).attend
        assert torch.equal(attend(query, key_value, clean, batch, shape), attend(query, key_value, bad, batch, shape)), isa


def test_a_rows_scale_is_its_own():
    values, scales = quantize(torch.tensor([[1.0, -127.0], [0.5, 0.25]]), torch.int8)
    assert values.tolist() == [[1, -127], [127, 64]]
    assert scales.float().tolist() == pytest.approx([1.0, 0.5 / 127], rel=2**-8)
