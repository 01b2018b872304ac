"""Triton's kernels over a quantized KV cache, in the interpreter: they read what it means, and write the bits that torch would."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pagoda_worker.config import Attention, EngineConfig, KvDType
from pagoda_worker.engine import Engine
from pagoda_worker.gpu_check.cases import attention_case, decode_case, meant_by, stored_as
from pagoda_worker.gpu_check.shapes import Shape, write_checkpoint
from pagoda_worker.kernels.decode_attention import paged_decode, paged_decode_reference
from pagoda_worker.kernels.prefill_attention import paged_prefill, paged_prefill_reference
from pagoda_worker.kernels.rotary_cache import HeadNorms, rotate_and_write
from pagoda_worker.layers.attention import AttentionShape, attend_eager
from pagoda_worker.layers.cuda import TritonOperators, attend_triton
from pagoda_worker.layers.kv_cache import LARGEST, QUANTIZED, new_cache, write_rows
from pagoda_worker.layers.rotary import rotary_table

SMALL = Shape(
    name="small", hidden=64, layers=1, heads=2, kv_heads=1, head_dim=32, intermediate=64, vocab=100, positions=64, dtype="float32"
)
FORMS = list(QUANTIZED.values())
TOLERANCE: dict[torch.dtype, Any] = {
    torch.float32: {"atol": 2e-5, "rtol": 1e-4},
    torch.float16: {"atol": 2e-3, "rtol": 4e-3},
    torch.bfloat16: {"atol": 1e-2, "rtol": 1e-2},
}
CASES = [
    (torch.int8, 64, 4, 16, None, torch.float32),
    (torch.float8_e4m3fn, 80, 1, 16, 17, torch.float32),
    (torch.float8_e4m3fn, 128, 2, 32, None, torch.bfloat16),
    (torch.int8, 64, 2, 16, 40, torch.float16),
]


@pytest.mark.parametrize(("form", "dim", "group", "page", "window", "dtype"), CASES, ids=str)
def test_decode_reads_what_the_cache_means(form: torch.dtype, dim: int, group: int, page: int, window: int | None, dtype: torch.dtype):
    query, cache, table, lengths = decode_case([0, 1, 16, 65], group=group, dim=dim, page=page, dtype=dtype)
    stored = stored_as(cache, page, form)
    common: dict[str, Any] = {"block_size": page, "scale": dim**-0.5, "window": window, "splits": 2}
    ours = paged_decode(query, stored, table, lengths, **common)
    torch.testing.assert_close(ours, paged_decode_reference(query, meant_by(stored, page), table, lengths, **common), **TOLERANCE[dtype])


@pytest.mark.parametrize(("form", "dim", "group", "page", "window", "dtype"), CASES, ids=str)
def test_prefill_reads_what_the_cache_means(form: torch.dtype, dim: int, group: int, page: int, window: int | None, dtype: torch.dtype):
    chunks = [(0, 21), (33, 18), (0, 1)]
    query, _, cache, batch = attention_case([9], chunks, heads=2 * group, kv_heads=2, dim=dim, block=page, seed=dim, dtype=dtype)
    stored = stored_as(cache, page, form)
    ours, theirs = torch.full_like(query, 7.0), torch.full_like(query, 7.0)
    inputs = (batch.block_table[1:], batch.query_starts[1:], batch.context_lens[1:])
    paged_prefill(query, stored, *inputs, ours, block_size=page, scale=dim**-0.5, window=window)
    paged_prefill_reference(query, meant_by(stored, page), *inputs, theirs, block_size=page, scale=dim**-0.5, window=window)
    torch.testing.assert_close(ours, theirs, **TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("form", "dtype", "normed"),
    [
        (torch.int8, torch.float32, True),
        (torch.int8, torch.bfloat16, False),
        (torch.float8_e4m3fn, torch.float32, False),
        (torch.float8_e4m3fn, torch.bfloat16, True),
    ],
    ids=str,
)
def test_rotation_writes_what_torch_would(form: torch.dtype, dtype: torch.dtype, normed: bool):
    """Of the turned keys as a plain cache has them. One row is broken, one all zeros, one of tiny numbers; slot -1 is padding."""
    torch.manual_seed(0)
    table = rotary_table(64, 100, {"rope_theta": 100.0}, max_position=100, dtype=dtype, device=torch.device("cpu"))
    cos, sin = table.at(torch.tensor([0, 3, 50, 99, 7]))
    slots = torch.tensor([5, -1, 0, 31, 30])
    weights = torch.randn(2, 64).to(dtype)
    norms = HeadNorms(weights[0], weights[1], 1e-6) if normed else None
    heads, plain = torch.randn(5, 10, 64).to(dtype), torch.randn(2, 2, 32, 64).to(dtype)
    heads[0, 9, 7], heads[2, 8:], heads[3] = float("nan"), 0.0, heads[3] * 1e-20
    cache = stored_as(plain, 16, form)
    expected = cache.clone()
    rotate_and_write(heads.clone(), cos, sin, plain, slots, norms=norms)
    rotate_and_write(heads, cos, sin, cache, slots, block_size=16, norms=norms)
    written = slots[slots >= 0]
    write_rows(plain[:, :, written].flatten(0, 1).transpose(0, 1), expected, written, 16)
    ours, theirs = meant_by(cache, 16), meant_by(expected, 16)
    assert torch.equal(ours.nan_to_num(7.0), theirs.nan_to_num(7.0))
    assert ours.isnan().any()


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_backend_equals_the_readable_one_and_writes_the_same_cache(form: torch.dtype):
    query, key_value, cache, batch = attention_case([33, 1], [(7, 19)], heads=4, kv_heads=2, dim=64, block=16, seed=1, dtype=torch.float32)
    ours, theirs, shape = stored_as(cache, 16, form), stored_as(cache, 16, form), AttentionShape(0.125)
    TritonOperators().store(key_value, ours, batch)
    write_rows(key_value, theirs, batch.slots, 16)
    assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))
    attended = attend_triton(query, key_value, ours, batch, shape)
    torch.testing.assert_close(attended, attend_eager(query, key_value, theirs, batch, shape), **TOLERANCE[torch.float32])


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_number_is_rounded_as_torch_rounds(form: torch.dtype):
    """All of e4m3's range, its smallest numbers among them, and ties of both forms."""
    spread = torch.cat([torch.linspace(-1, 1, 4000), torch.logspace(-7, 0, 80), torch.arange(-127, 128) / 127 + 0.5 / 127])
    rows = torch.cat([spread, torch.zeros(-len(spread) % 62)]).view(-1, 62)
    heads = torch.cat([rows, torch.ones(len(rows), 1), -torch.ones(len(rows), 1)], dim=1)[:, None].repeat(1, 3, 1) * LARGEST[form]
    ours = new_cache(kv_heads=1, dim=64, blocks=5, block_size=16, dtype=form, device=torch.device("cpu"))
    theirs, slots = ours.clone(), torch.arange(len(rows))
    rotate_and_write(heads.contiguous(), None, None, ours, slots, block_size=16)
    write_rows(heads[:, 1:], theirs, slots, 16)
    assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))


@pytest.mark.parametrize("kv_dtype", QUANTIZED)
def test_the_engines_tokens_are_those_of_the_readable_attention(tmp_path: Path, kv_dtype: KvDType):
    write_checkpoint(tmp_path / "model", SMALL)

    def tokens(attention: Attention) -> list[list[int]]:
        config = EngineConfig(
            model_dir=tmp_path / "model", device="cpu", attention=attention, kv_dtype=kv_dtype, max_running=4, max_batch_tokens=16
        )
        return [done.token_ids for done in Engine(config).generate([[5, 6, 7], list(range(20))], max_tokens=4, ignore_eos=True)]

    assert tokens("triton") == tokens("eager")
