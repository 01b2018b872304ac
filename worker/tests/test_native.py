"""The CPU's own kernels against torch, for every instruction set that this machine has: values, edges, and that a row's result does not
depend on its batch."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pagoda_worker.gpu_check.cases import attention_case
from pagoda_worker.layers.attention import AttentionShape, attend_eager
from pagoda_worker.layers.linear import Linear
from pagoda_worker.layers.native import NativeOperators
from pagoda_worker.layers.operators import Operators
from pagoda_worker.native.build import library_path
from pagoda_worker.native.library import cpu_flags, load_library, usable

ISAS = usable(cpu_flags())
pytestmark = pytest.mark.skipif(
    not ISAS or not library_path(ISAS[0]).exists(),
    reason="no CPU kernels: Debian's g++ was missing at installation",
)


def operators_of(isa: str) -> NativeOperators:
    library = load_library(isa)
    assert library is not None
    library.use_threads(torch.get_num_threads())
    return NativeOperators(library)


def linear(operators: Operators, weight: Tensor, bias: Tensor | None = None, *, gated: bool = False) -> Linear:
    product = Linear(weight.clone(), bias, gated=gated)
    product.pack(operators)
    return product


SHAPES = [(96, 64), (1000, 256), (50, 32), (64, 2080)]
ROWS = [1, 2, 15, 16, 17, 33, 200, 530]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_equal_torchs(isa: str, shape: tuple[int, int]):
    torch.manual_seed(0)
    operators = operators_of(isa)
    out, size = shape
    weight, bias = torch.randn(out, size).bfloat16(), torch.randn(out).bfloat16()
    product = linear(operators, weight, bias)
    for rows in ROWS:
        x, residual = torch.randn(rows, size).bfloat16(), torch.randn(rows, out).bfloat16()
        exact = x.float() @ weight.float().T + bias.float()
        torch.testing.assert_close(product(x).float(), exact, atol=2e-2, rtol=2**-7)
        torch.testing.assert_close(product.add(x, residual).float(), exact + residual.float(), atol=2e-2, rtol=2**-7)
        wide = torch.randn(rows, size + 8).bfloat16()
        torch.testing.assert_close(product(wide[:, 4:-4]), product(wide[:, 4:-4].contiguous()), atol=0, rtol=0)


@pytest.mark.parametrize("isa", ISAS)
def test_a_gated_product_is_silu_of_one_half_times_the_other(isa: str):
    torch.manual_seed(0)
    weight, bias = torch.randn(192, 64).bfloat16() / 8, torch.randn(192).bfloat16()
    product = linear(operators_of(isa), weight, bias, gated=True)
    for rows in (1, 20, 600):
        x = torch.randn(rows, 64).bfloat16()
        first, second = (x.float() @ weight.float().T + bias.float()).chunk(2, dim=-1)
        torch.testing.assert_close(product.silu_mul(x).float(), F.silu(first) * second, atol=2e-2, rtol=2**-7)


@pytest.mark.parametrize("isa", ISAS)
def test_a_rows_product_does_not_depend_on_its_batch(isa: str):
    torch.manual_seed(0)
    product = linear(operators_of(isa), torch.randn(160, 1056).bfloat16())
    x = torch.randn(700, 1056).bfloat16()
    whole = product(x)
    for start, stop in ((0, 1), (5, 6), (3, 19), (40, 57), (100, 300), (699, 700)):
        assert torch.equal(product(x[start:stop]), whole[start:stop]), f"rows {start} to {stop} alone"


@pytest.mark.parametrize(("isa", "dtype"), list(itertools.product(ISAS, (torch.float32, torch.bfloat16))), ids=str)
def test_the_norm_equals_torchs(isa: str, dtype: torch.dtype):
    torch.manual_seed(0)
    x, weight = (torch.randn(11, 96) * 30).to(dtype), torch.randn(96).to(dtype)
    ours = operators_of(isa).rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(ours, torch.rms_norm(x, (96,), weight, 1e-5), atol=1e-5, rtol=2**-7 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize(("isa", "dtype"), list(itertools.product(ISAS, (torch.float32, torch.bfloat16))), ids=str)
@pytest.mark.parametrize("normed", [False, True])
def test_rotation_writes_heads_and_cache_as_torch_does(isa: str, dtype: torch.dtype, normed: bool):
    _, _, cache, batch = attention_case([5, 17], [(3, 9)], heads=6, kv_heads=2, dim=64, block=4, seed=1, dtype=dtype)
    heads = torch.randn(11, 10, 64).to(dtype)
    rotation = torch.randn(11, 1, 64).to(dtype), torch.randn(11, 1, 64).to(dtype)
    norms: Any = (torch.randn(64).to(dtype), torch.randn(64).to(dtype)) if normed else None
    ours, theirs, our_cache, their_cache = heads.clone(), heads.clone(), cache.clone(), cache.clone()
    operators_of(isa).rotate_and_store(ours, rotation, our_cache, batch, norms, 1e-6)
    Operators(attend_eager).rotate_and_store(theirs, rotation, their_cache, batch, norms, 1e-6)
    tolerance = {"atol": 0.05, "rtol": 2**-6} if dtype == torch.bfloat16 else {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(ours, theirs, **tolerance)
    torch.testing.assert_close(our_cache, their_cache, **tolerance)


@given(
    decodes=st.lists(st.integers(1, 300), min_size=1, max_size=6),
    chunks=st.lists(st.tuples(st.sampled_from([0, 1, 17, 100]), st.integers(1, 150)), max_size=2),
    group=st.sampled_from([1, 2, 3, 7, 8, 16]),
    kv_heads=st.sampled_from([1, 2]),
    dim=st.sampled_from([16, 64, 80, 256]),
    block=st.sampled_from([1, 16, 64]),
    window=st.sampled_from([None, 1, 13, 64, 200]),
    isa=st.sampled_from(ISAS or ["none"]),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=60)
def test_attention_equals_the_readable_reference(
    decodes: list[int],
    chunks: list[tuple[int, int]],
    group: int,
    kv_heads: int,
    dim: int,
    block: int,
    window: int | None,
    isa: str,
    seed: int,
    dtype: torch.dtype,
):
    query, key_value, cache, batch = attention_case(
        decodes, chunks, heads=group * kv_heads, kv_heads=kv_heads, dim=dim, block=block, seed=seed, dtype=dtype
    )
    shape = AttentionShape(dim**-0.5, window)
    operators = operators_of(isa)
    ours = operators.attend(query, key_value, cache, batch, shape)
    tolerance = {"atol": 0.02, "rtol": 2**-6} if dtype == torch.bfloat16 else {"atol": 2e-5, "rtol": 1e-4}
    torch.testing.assert_close(ours, attend_eager(query, key_value, cache, batch, shape), **tolerance)


@pytest.mark.parametrize("isa", ISAS)
def test_a_rows_attention_does_not_depend_on_its_batch(isa: str):
    query, key_value, cache, batch = attention_case(
        [300, 130, 64, 1], [], heads=4, kv_heads=2, dim=64, block=16, seed=3, dtype=torch.bfloat16
    )
    operators, shape = operators_of(isa), AttentionShape(0.125)
    together = operators.attend(query, key_value, cache, batch, shape)
    for row in range(4):
        alone = type(batch)(
            **{
                **{name: getattr(batch, name) for name in ("block_size", "kv_heads", "dtype")},
                "slots": batch.slots[row : row + 1],
                "query_starts": batch.query_starts[:2],
                "context_lens": batch.context_lens[row : row + 1],
                "block_table": batch.block_table[row : row + 1],
                "decode_lens": batch.decode_lens[row : row + 1],
            }
        )
        assert torch.equal(operators.attend(query[row : row + 1], key_value[row : row + 1], cache, alone, shape)[0], together[row])


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("isa", ISAS)
def test_a_prompts_attention_does_not_depend_on_where_it_was_cut(isa: str, dtype: torch.dtype, window: int | None):
    operators, shape = operators_of(isa), AttentionShape(0.125, window)
    whole = attention_case([], [(0, 200)], heads=6, kv_heads=2, dim=64, block=16, seed=4, dtype=dtype)
    query, key_value, cache, batch = whole
    together = operators.attend(query, key_value, cache, batch, shape)
    for cut in (1, 63, 64, 130):
        for start, stop in ((0, cut), (cut, 200)):
            chunk = replace(
                batch,
                query_starts=torch.tensor([0, stop - start], dtype=torch.int32),
                context_lens=torch.tensor([stop], dtype=torch.int32),
                chunks=[(stop - start, start)],
            )
            part = operators.attend(query[start:stop], key_value[start:stop], cache, chunk, shape)
            assert torch.equal(part, together[start:stop])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("isa", ISAS)
def test_what_lies_past_a_sequences_end_is_not_read(isa: str, dtype: torch.dtype):
    query, key_value, cache, batch = attention_case([33], [(5, 40)], heads=4, kv_heads=2, dim=64, block=16, seed=5, dtype=dtype)
    operators, shape = operators_of(isa), AttentionShape(0.125)
    clean = operators.attend(query, key_value, cache, batch, shape)
    own = [
        int(batch.block_table[sequence, position // 16]) * 16 + position % 16
        for sequence, length in enumerate(batch.context_lens.tolist())
        for position in range(length)
    ]
    poisoned = torch.full_like(cache, float("nan"))
    poisoned[:, :, own] = cache[:, :, own]
    assert torch.equal(operators.attend(query, key_value, poisoned, batch, shape), clean)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"avx2", "fma"}, ["avx2"]),
        ({"avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512dq"}, ["avx512", "avx2"]),
        ({"avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"}, ["avx512_vnni", "avx512", "avx2"]),
        ({"sse4_2"}, []),
    ],
    ids=str,
)
def test_the_best_instruction_set_comes_first(flags: set[str], expected: list[str]):
    assert usable(frozenset(flags)) == expected
