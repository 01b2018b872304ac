"""Attention `flash` as far as a CPU shows it: what it refuses, which keys it lays before torch's kernel, and how it calls that. The kernel
itself needs a GPU: gpu_check."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.errors import ConfigError
from pagoda_worker.gpu_check.cases import attention_case
from pagoda_worker.gpu_check.shapes import TINY
from pagoda_worker.layers import flash, selection
from pagoda_worker.layers.attention import AttentionShape, attend_eager, key_ranges
from pagoda_worker.layers.selection import flash_refusal

CAN: dict[str, Any] = {
    "device_type": "cuda", "capability": 9, "dtype": torch.bfloat16, "head_dim": 128, "triton": True, "torch_has_it": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("without", "sentence"),
    [
        ({"device_type": "cpu", "capability": 0}, "needs a CUDA device (this one is cpu): leave attention at auto"),
        ({"torch_has_it": False}, "needs torch.nn.attention.varlen"),
        ({"triton": False}, "install them, or set attention to sdpa"),
        ({"capability": 7}, "compute capability 8.0 or newer (this one is 7.x)"),
        ({"dtype": torch.float32}, "in bf16 or fp16, not float32: set dtype to bf16"),
        ({"head_dim": 288}, "heads of up to 256 in multiples of 8, this model's have 288"),
        ({"head_dim": 100}, "heads of up to 256 in multiples of 8, this model's have 100"),
    ],
    ids=str,
)
def test_flash_is_refused_with_what_to_write_instead(without: dict[str, Any], sentence: str):
    assert sentence in (flash_refusal(**{**CAN, **without}) or "")


@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
def test_flash_takes_what_torchs_kernel_has(head_dim: int):
    assert flash_refusal(**{**CAN, "head_dim": head_dim}) is None


def test_without_a_c_compiler_triton_cannot_start_its_kernels_on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    assert selection.triton_refusal("cuda") is None
    monkeypatch.setattr(selection, "c_compiler", lambda: None)
    assert "install gcc, or set attention to sdpa" in (selection.triton_refusal("cuda") or "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_worker_on_a_cpu_refuses_flash(tmp_path: Path):
    TINY.write_config(tmp_path / "model")
    config = EngineConfig(model_dir=tmp_path / "model", random_weights=True, attention="flash", max_model_len=64, max_running=2)
    with pytest.raises(ConfigError, match="attention flash needs a CUDA device"):
        Engine(config)


@pytest.mark.parametrize(
    ("chunks", "window", "ranges"),
    [
        ([(5, 0)], None, [(0, 5)]),
        ([(5, 0), (3, 40)], None, [(0, 5), (0, 43)]),
        ([(3, 40)], 8, [(33, 10)]),  # the first query is position 40 and sees 33 … 40
        ([(3, 7), (3, 8)], 8, [(0, 10), (1, 10)]),
        ([(50, 0)], 8, [(0, 50)]),
    ],
)
def test_a_chunk_sees_the_keys_that_one_of_its_queries_does(chunks: list[tuple[int, int]], window: int | None, ranges: list[Any]):
    assert key_ranges(chunks, window) == ranges


def varlen_in_torch(
    query: Tensor, keys: Tensor, values: Tensor, query_starts: Tensor, starts: Tensor, max_q: int, max_k: int, *, scale: float,
    window_size: tuple[int, int], enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """What torch's documentation says of varlen_attn, one sequence at a time: queries stand at the end of their keys."""
    out, group, (left, right) = torch.empty_like(query), query.shape[1] // keys.shape[1], window_size
    assert enable_gqa or group == 1
    assert (max_q, max_k) == (int(query_starts.diff().max()), int(starts.diff().max()))
    for at, (begin, end) in enumerate(zip(query_starts[:-1].tolist(), query_starts[1:].tolist(), strict=True)):
        own = slice(int(starts[at]), int(starts[at + 1]))
        k, v = (each[own].float().repeat_interleave(group, dim=1) for each in (keys, values))
        behind = torch.arange(len(k) - (end - begin), len(k))[:, None] - torch.arange(len(k))
        seen = (behind >= -right) & ((behind <= left) if left >= 0 else True)
        scores = torch.einsum("qhd,khd->hqk", query[begin:end].float(), k) * scale
        out[begin:end] = torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, float("-inf")).softmax(dim=-1), v)
    return out


CHUNKS = [[(0, 37)], [(33, 18), (0, 5), (16, 1)], [(0, 1), (64, 20)]]


@pytest.mark.parametrize("window", [None, 1, 16, 33])
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_the_gathered_keys_give_the_readable_attention(chunks: list[tuple[int, int]], window: int | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(flash, "varlen_attn", varlen_in_torch)
    query, key_value, cache, batch = attention_case([], chunks, heads=6, kv_heads=2, dim=64, block=16, seed=5, dtype=torch.float32)
    shape = AttentionShape(0.125, window)
    ours = flash.attend_flash(query, key_value, cache, batch, shape)
    torch.testing.assert_close(ours, attend_eager(query, key_value, cache, batch, shape), atol=2e-5, rtol=1e-4)


def test_a_torch_that_shares_no_heads_gets_one_of_keys_for_each_of_queries(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(flash, "varlen_attn", varlen_in_torch)
    monkeypatch.setattr(flash, "TAKES_GROUPS", False)
    query, key_value, cache, batch = attention_case([], CHUNKS[1], heads=6, kv_heads=2, dim=64, block=16, seed=5, dtype=torch.float32)
    ours = flash.attend_flash(query, key_value, cache, batch, AttentionShape(0.125, None))
    torch.testing.assert_close(ours, attend_eager(query, key_value, cache, batch, AttentionShape(0.125, None)), atol=2e-5, rtol=1e-4)


def test_chunks_behind_decode_rows_are_counted_from_their_own_first():
    _, _, _, batch = attention_case([40, 9], [(16, 3), (0, 20)], heads=2, kv_heads=2, dim=64, block=16, seed=5, dtype=torch.float32)
    keys = batch.chunk_keys()
    assert keys.query_starts.tolist() == [0, 3, 23]
    assert keys.starts.tolist() == [0, 19, 39]
    assert keys.longest == 20
    assert keys.slots[16:19].tolist() == batch.slots[2:5].tolist(), "the newest keys are where this step writes them"
    assert {each.dtype for each in (keys.query_starts, keys.starts)} == {torch.int32}


@pytest.mark.parametrize("window", [None, 16])
def test_torchs_own_function_takes_what_it_is_given(window: int | None):
    """On tensors without numbers: names and types of its arguments, the rank and the dtype of what comes back."""
    query, key_value, cache, batch = attention_case(
        [], [(33, 18), (0, 5)], heads=6, kv_heads=2, dim=64, block=16, seed=5, dtype=torch.float16
    )
    batch.chunk_keys(window)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [mode.from_tensor(each) for each in (query, key_value, cache)]
        out = flash.attend_flash(*fake, batch, AttentionShape(0.125, window))
    assert (out.shape, out.dtype) == ((23, 6 * 64), torch.float16)
