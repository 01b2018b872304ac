"""The whole engine on Triton's kernels, in the interpreter: prompts and decode steps of one small model give the tokens of plain torch."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from random_adapter import write_adapter

from pagoda_worker.completions import Completion
from pagoda_worker.config import Attention, EngineConfig, Quantization
from pagoda_worker.engine import Engine
from pagoda_worker.execution.decode_graphs import DecodeGraphs
from pagoda_worker.gpu_check.shapes import Shape, write_checkpoint
from pagoda_worker.gpu_check.truth import DRIFT_TOLERANCE, TOP, close_to, drift
from pagoda_worker.kernels import adapter_deltas, norm, silu
from pagoda_worker.layers import selection
from pagoda_worker.layers.cuda import TritonOperators
from pagoda_worker.request import Request, Sampling

SMALL = Shape(
    name="small", hidden=64, layers=1, heads=2, kv_heads=1, head_dim=32, intermediate=64, vocab=100, positions=64, dtype="float32"
)


def test_the_engines_tokens_are_those_of_the_readable_attention(tmp_path: Path):
    write_checkpoint(tmp_path / "model", SMALL)

    def tokens(attention: Attention) -> list[list[int]]:
        engine = Engine(EngineConfig(model_dir=tmp_path / "model", device="cpu", attention=attention, max_running=4, max_batch_tokens=16))
        return [done.token_ids for done in engine.generate([[5, 6, 7], list(range(20))], max_tokens=4, ignore_eos=True)]

    assert tokens("triton") == tokens("eager")


def test_padded_decode_steps_over_static_buffers_give_the_same_tokens(tmp_path: Path):
    """What a GPU captures as graphs, run as it is."""
    write_checkpoint(tmp_path / "model", SMALL)
    engine = Engine(EngineConfig(model_dir=tmp_path / "model", device="cpu", attention="triton", max_running=4, max_batch_tokens=16))
    prompts = [[5, 6, 7], list(range(20)), [9]]
    expected = [done.token_ids for done in engine.generate(prompts, max_tokens=4, ignore_eos=True)]
    engine.runner.graphs = DecodeGraphs(engine.runner, [4], lambda compute: compute)
    engine.scheduler.residency.forget_prefixes()
    assert [done.token_ids for done in engine.generate(prompts, max_tokens=4, ignore_eos=True)] == expected


SAMPLINGS = [
    Sampling(),
    Sampling(temperature=1.0, top_p=0.8, seed=1),
    Sampling(temperature=0.8, top_k=5, seed=2),
    Sampling(temperature=1.2, min_p=0.1, presence_penalty=0.5, seed=3),
]


def tokens(engine: Engine) -> list[tuple[str, int, list[int]]]:
    """Of a mixture of greedy and random requests, the last one with three sequences, which share a block until they write to it."""
    lines: dict[tuple[str, int], list[int]] = {}
    for i, sampling in enumerate(SAMPLINGS):
        common: dict[str, Any] = {"prompt_ids": list(range(3, 9 + i)), "max_tokens": 6, "ignore_eos": True}
        engine.submit(Request(request_id=str(i), sampling=sampling, n=3 if i == 3 else 1, **common))
    while engine.has_work:
        for update in engine.step().updates:
            lines.setdefault((update.request_id, update.sequence), []).extend(update.token_ids)
    engine.check_integrity()
    return sorted((request, sequence, ids) for (request, sequence), ids in lines.items())


def count_in(calls: Counter[str], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def counting(*inputs: Any) -> Any:
        calls[name] += 1
        return function(*inputs)

    return counting


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each of the kernels is called that torch's operators do without."""
    calls: Counter[str] = Counter()

    monkeypatch.setattr(norm, "add_rms_norm", count_in(calls, "add_rms_norm", norm.add_rms_norm))
    monkeypatch.setattr(silu, "silu_mul", count_in(calls, "silu_mul", silu.silu_mul))
    for name in ("choose", "copy_blocks"):
        monkeypatch.setattr(TritonOperators, name, staticmethod(count_in(calls, name, getattr(TritonOperators, name))))
    return calls


def test_fused_kernels_take_the_place_of_torchs_operators_and_choose_the_same_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of a Qwen3, whose heads are normed too; without that: the tests beside this one."""
    write_checkpoint(tmp_path / "model", replace(SMALL, layers=2, qk_norm=True))
    settings: dict[str, Any] = {"model_dir": tmp_path / "model", "device": "cpu", "max_running": 6, "max_batch_tokens": 16}
    monkeypatch.setattr(selection, "load_library", lambda: None)  # the CPU's own kernels would take their place
    plain = Engine(EngineConfig(attention="sdpa", **settings))
    assert plain.runner.model.operators.name == "torch"
    expected = tokens(plain)
    calls = counted(monkeypatch)
    fused = Engine(EngineConfig(attention="triton", **settings))
    assert tokens(fused) == expected
    steps = calls["silu_mul"] // 2
    assert calls["add_rms_norm"] == 2 * calls["silu_mul"] == 4 * steps, "in each of two layers, and nothing besides"
    assert 0 < calls["choose"] <= steps
    assert calls["copy_blocks"] >= 2, "blocks that three sequences share are copied in every layer"


def test_blocks_are_swapped_by_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_checkpoint(tmp_path / "model", SMALL)
    settings: dict[str, Any] = {"model_dir": tmp_path / "model", "device": "cpu", "max_running": 4, "max_model_len": 32, "block_size": 4}
    prompts = [[3 + i] * 6 for i in range(3)]
    roomy = Engine(EngineConfig(attention="sdpa", **settings))
    expected = [done.token_ids for done in roomy.generate(prompts, max_tokens=10, ignore_eos=True)]
    block_bytes = 4 * 2 * 32 * 4
    calls = counted(monkeypatch)
    engine = Engine(
        EngineConfig(attention="triton", kv_cache_bytes=9 * block_bytes, swap_bytes=12 * block_bytes, prefix_caching=False, **settings)
    )
    assert engine.runner.host is not None
    engine.runner.host.copy_bytes_per_s = 1e18  # whatever was measured, copies pay
    measured = calls["copy_blocks"]
    assert [done.token_ids for done in engine.generate(prompts, max_tokens=10, ignore_eos=True)] == expected
    assert engine.idle_state().swaps_total > 0
    assert calls["copy_blocks"] > measured


def test_adapters_of_one_batch_are_those_of_the_readable_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Beside the base model and in padded decode steps, which read slots anew."""
    base = tmp_path / "model"
    write_checkpoint(base, SMALL)
    folders = {name: write_adapter(tmp_path / name, base, seed=seed, rank=rank) for seed, (name, rank) in enumerate((("a", 4), ("b", 2)))}
    prompts, names = [[5, 6, 7], list(range(20)), [9], [11, 12]], ["a", "", "b", "a"]

    def answers(engine: Engine) -> list[list[int]]:
        return [done.token_ids for done in engine.generate(prompts, max_tokens=3, ignore_eos=True, adapters=names)]

    settings: dict[str, Any] = {"model_dir": base, "device": "cpu", "max_running": 4, "max_batch_tokens": 16, "adapters": folders}
    expected = answers(Engine(EngineConfig(attention="eager", **settings)))
    calls: Counter[str] = Counter()
    monkeypatch.setattr(adapter_deltas, "add_deltas", count_in(calls, "add_deltas", adapter_deltas.add_deltas))
    engine = Engine(EngineConfig(attention="triton", **settings))
    assert answers(engine) == expected
    assert calls["add_deltas"] > 0
    engine.runner.graphs = DecodeGraphs(engine.runner, [4], lambda compute: compute)
    engine.scheduler.residency.forget_prefixes()
    assert answers(engine) == expected


@pytest.mark.parametrize("form", ["int8", "int4", "fp8"])
def test_quantized_engines_are_close_to_what_their_weights_mean(form: Quantization, tmp_path: Path):
    """int8 rounds activations, and so does the head of every form: a token may then be another of those most likely."""
    write_checkpoint(tmp_path / "model", SMALL)

    def answers(attention: Attention) -> list[Completion]:
        config = EngineConfig(model_dir=tmp_path / "model", device="cpu", attention=attention, max_running=4, quantization=form)
        return Engine(config).generate([[5, 6, 7], list(range(20))], max_tokens=3, ignore_eos=True, top_logprobs=TOP)

    for ours, theirs in zip(answers("triton"), answers("eager"), strict=True):
        assert close_to(ours, theirs)
        assert drift(ours, theirs) < DRIFT_TOLERANCE[form]
