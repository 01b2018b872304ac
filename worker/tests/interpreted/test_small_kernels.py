"""Norms, rotation with the cache's write, gated SiLU and copies in the interpreter against their references, and those against torch."""

import pytest
import torch

from pagoda_worker.kernels.copy_blocks import copy_blocks, copy_blocks_reference
from pagoda_worker.kernels.norm import add_rms_norm, add_rms_norm_reference, rms_norm, rms_norm_reference
from pagoda_worker.kernels.rotary_cache import HeadNorms, rotate_and_write, rotate_and_write_reference
from pagoda_worker.kernels.silu import silu_mul, silu_mul_reference
from pagoda_worker.layers.rotary import rotary_table, rotate

TYPES = [torch.float32, torch.float16, torch.bfloat16]


def near(dtype: torch.dtype) -> dict[str, float]:
    """One rounding of the result may fall to the other side. NOTE: the interpreter cuts bf16 off instead of rounding: one more place."""
    return {"atol": 1e-5, "rtol": {torch.float32: 1e-5, torch.float16: 2**-10, torch.bfloat16: 2**-6}[dtype]}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("width", [64, 100])
def test_norms(width: int, dtype: torch.dtype):
    torch.manual_seed(width)
    wider, weight = 30 * torch.randn(3, width + 8).to(dtype), torch.randn(width).to(dtype)
    x = wider[:, :width]
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), rms_norm_reference(x, weight, 1e-5), **near(dtype))
    torch.testing.assert_close(rms_norm_reference(x, weight, 1e-5), torch.rms_norm(x, (width,), weight, 1e-5), **near(dtype))
    ours = torch.randn(3, width).to(dtype)
    theirs = ours.clone()
    normed = add_rms_norm_reference(x, theirs, weight, 1e-5)
    torch.testing.assert_close(add_rms_norm(x, ours, weight, 1e-5), normed, **{**near(dtype), "rtol": 2 * near(dtype)["rtol"]})
    torch.testing.assert_close(ours, theirs, **near(dtype))


def test_no_rows_are_no_launch():
    nothing = torch.empty(0, 64)
    assert rms_norm(nothing, torch.ones(64), 1e-5).shape == (0, 64)
    assert silu_mul(nothing).shape == (0, 32)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("width", [64, 1100])
def test_silu_mul(width: int, dtype: torch.dtype):
    torch.manual_seed(width)
    gate_up = 8 * torch.randn(3, 2 * width).to(dtype)
    torch.testing.assert_close(silu_mul(gate_up), silu_mul_reference(gate_up), **near(dtype))
    gate, up = gate_up.float().split(width, dim=-1)
    torch.testing.assert_close(silu_mul_reference(gate_up), (gate * gate.sigmoid() * up).to(dtype), **near(dtype))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("dim", "heads", "kv_heads"), [(64, 2, 2), (80, 6, 2), (96, 7, 1), (128, 16, 8), (256, 4, 1)])
@pytest.mark.parametrize("normed", [False, True])
def test_rotation_and_the_caches_write(dim: int, heads: int, kv_heads: int, normed: bool, dtype: torch.dtype):
    torch.manual_seed(dim)
    tokens = 4
    fused = torch.randn(tokens, heads + 2 * kv_heads, dim).to(dtype)
    table = rotary_table(dim, 100, {"rope_theta": 100.0}, max_position=100, dtype=dtype, device=torch.device("cpu"))
    cos, sin = table.at(torch.tensor([0, 3, 50, 99]))
    norms = HeadNorms(torch.randn(dim).to(dtype), torch.randn(dim).to(dtype), 1e-6) if normed else None
    slots = torch.tensor([5, -1, 0, 31])
    ours, theirs = fused.clone(), fused.clone()
    cache = torch.randn(2, kv_heads, 32, dim).to(dtype)
    other = cache.clone()
    rotate_and_write(ours, cos, sin, cache, slots, norms=norms)
    rotate_and_write_reference(theirs, cos, sin, other, slots, norms=norms)
    close = {"atol": {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}[dtype], "rtol": near(dtype)["rtol"]}
    torch.testing.assert_close(ours[:, :heads], theirs[:, :heads], **close)
    torch.testing.assert_close(cache, other, **close)
    assert torch.equal(cache[1, :, 5], fused[0, heads + kv_heads :]), "values go as they are"
    free = torch.ones(32, dtype=torch.bool)
    free[[5, 0, 31]] = False
    assert torch.equal(cache[:, :, free], other[:, :, free]), "padding writes nothing"


def test_without_tables_keys_and_values_only_move():
    fused, cache = torch.randn(3, 6, 64), torch.zeros(2, 2, 8, 64)
    before = fused.clone()
    rotate_and_write(fused, None, None, cache, torch.tensor([1, -1, 7]))
    assert torch.equal(fused, before)
    assert torch.equal(cache[0, :, 7], fused[2, 2:4])
    assert torch.equal(cache[1, :, 1], fused[0, 4:])
    assert not cache[:, :, [0, 2, 3, 4, 5, 6]].any()


def test_the_rotations_reference_is_the_models_rotation():
    fused, cache = torch.randn(3, 6, 64), torch.zeros(2, 2, 8, 64)
    table = rotary_table(64, 10, {"rope_theta": 100.0}, max_position=10, dtype=torch.float32, device=torch.device("cpu"))
    cos, sin = table.at(torch.tensor([1, 5, 9]))
    expected = rotate(fused[:, :4], cos, sin)
    rotate_and_write_reference(fused, cos, sin, cache, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(fused[:, :2], expected[:, :2])
    torch.testing.assert_close(cache[0, :, :3].transpose(0, 1), expected[:, 2:])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_blocks_are_copied_within_a_cache_and_to_memory_of_another_layout(dtype: torch.dtype):
    cache, slots = torch.randn(4, 6, 16 * 64).to(dtype), torch.randn(3, 4, 16 * 64).to(dtype).transpose(0, 1)
    other = cache.clone()
    copy_blocks(cache, cache, torch.tensor([0, 3]), torch.tensor([5, 1]))
    copy_blocks_reference(other, other, torch.tensor([0, 3]), torch.tensor([5, 1]))
    assert torch.equal(cache, other)
    assert torch.equal(cache[:, 5], cache[:, 0])
    copy_blocks(cache, slots, torch.tensor([4]), torch.tensor([2]))
    assert torch.equal(slots[:, 2], cache[:, 4])
    copy_blocks(cache, slots, torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64))
