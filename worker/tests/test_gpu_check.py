"""The GPU check, dry-run on a CPU: what it says, what it needs, and that it would notice."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pagoda_worker.completions import Completion
from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.errors import ConfigError
from pagoda_worker.gpu_check import __main__ as command
from pagoda_worker.gpu_check import backends
from pagoda_worker.gpu_check.backends import SMALL_LAYER
from pagoda_worker.gpu_check.closeness import close_to
from pagoda_worker.gpu_check.gates import LEAST_TOKENS_PER_S, gate
from pagoda_worker.gpu_check.kernels import Worst
from pagoda_worker.gpu_check.product_speed import CONTENDERS, MANY_ROWS, layer_products
from pagoda_worker.gpu_check.report import Report
from pagoda_worker.gpu_check.roofline import DeviceSpeed, decode_step_s, prefill_s, product_s, workload_s
from pagoda_worker.gpu_check.run import Parts
from pagoda_worker.gpu_check.shapes import LLAMA_8B, QWEN3_06B, TINY, Shape
from pagoda_worker.gpu_check.speed import FULL, SMALL, Figure, NotMeasured, TimedModel
from pagoda_worker.gpu_check.truth import CHECKS, Trial, greedy, prefix_hit, quantized, two_ranks
from pagoda_worker.layers.attention import AttentionBatch, AttentionShape, attend_sdpa
from pagoda_worker.models.registry import footprint_of
from pagoda_worker.request import Finish, FinishReason, Timings, TokenLogprobs, Usage

ABSENT = (
    "grpc",
    "google",
    "msgspec",
    "prometheus_client",
    "uvicorn",
    "httpx2",
    "huggingface_hub",
    "obstore",
    "transformers",
    "pytest",
    "llguidance",
)
"""Of a bare GPU machine."""
KERNELS = ("decode_attention", "prefill_attention", "rotary_cache", "norm", "silu", "sample", "copy_blocks")
KERNELS += ("few_rows_product", "quantize_rows", "int8_product", "weight_only_product", "dequantize", "adapter_deltas")
SPEED = DeviceSpeed(bytes_per_s=4.3e12, flops_per_s=790e12)
"""An H200."""


@pytest.fixture
def report() -> Report:
    return Report(command="a test", hardware={}, path=None)


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What it printed and what it wrote, in a process without anything but torch, numpy and safetensors."""
    path = tmp_path_factory.mktemp("out") / "deeper" / "gpu-check.json"
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r}))\n"
        f"from pagoda_worker.gpu_check.__main__ import main\n"
        f"sys.exit(main(['--device', 'cpu', '--scale', 'small', '--output', {str(path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=290, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(path.read_text())


def test_a_dry_run_writes_the_format_of_all_result_files(dry_run: tuple[str, dict[str, Any]]):
    _, result = dry_run
    assert set(result) == {"benchmark", "commit", "date", "hardware", "command", "notes", "rows"}
    assert result["benchmark"] == "gpu-check"
    (skipped,) = result["notes"]
    assert skipped.startswith("skipped attention flash: attention flash needs a CUDA device")
    assert all(set(row) == {"case", "system", "metric", "value", "unit", "low", "high"} for row in result["rows"])


def test_a_dry_run_makes_every_check_and_meets_it(dry_run: tuple[str, dict[str, Any]]):
    _, result = dry_run
    checks = [row for row in result["rows"] if row["metric"] == "met"]
    assert [row["case"] for row in checks[: len(KERNELS)]] == [f"kernel {name}" for name in KERNELS], "in Triton's interpreter"
    assert [row["case"] for row in checks[-3:]] == [f"attention {name} as in float32" for name in ("triton", "sdpa", "eager")]
    assert len(checks) == len(KERNELS) + len(CHECKS) + 3
    assert all(row["value"] == 1.0 for row in checks)


def test_backends_of_attention_stand_in_one_table_with_time_and_error(dry_run: tuple[str, dict[str, Any]]):
    printed, result = dry_run
    rows = [row for row in result["rows"] if row["metric"] in ("layer_ms", "largest_error")]
    told = {(row["case"], row["system"], row["metric"]) for row in rows}
    cases = [f"attention {name}" for name, _, _ in SMALL_LAYER.loads]
    assert told == set(product(cases, ("triton", "sdpa", "eager"), ("layer_ms", "largest_error")))
    assert all(row["value"] > 0 for row in rows)
    assert "largest error" in printed


def test_every_speed_stands_beside_its_roofline(dry_run: tuple[str, dict[str, Any]]):
    printed, result = dry_run
    speeds = [row for row in result["rows"] if row["unit"] == "tokens/s"]
    ours, limits = ([row["case"] for row in speeds if row["system"] == system] for system in ("pagoda", "roofline"))
    assert ours == limits
    assert len(ours) == len(SMALL.batches) + 2 + 4, "and four of other ways to run decode steps"
    assert ours[-4] == "tiny int8 decode b=2 ctx=48"
    assert ours[-2:] == ["tiny without graphs decode b=2 ctx=48", "tiny KV int8 decode b=2 ctx=48"]
    assert printed.count("reached") == len(ours)


def test_products_of_every_form_stand_beside_torchs_bf16(dry_run: tuple[str, dict[str, Any]]):
    printed, result = dry_run
    rows = [row for row in result["rows"] if row["case"].startswith("products of a layer of tiny")]
    metrics = ("layer_us", "weights_read", "operations", "of_roofline", "over_bf16")
    forms = [each.name for each in (*CONTENDERS, MANY_ROWS)]
    assert [(row["system"], row["metric"]) for row in rows] == list(product(forms, metrics))
    assert all(row["value"] > 0 for row in rows)
    assert printed.count("x bf16") == len(forms)


# ---------------------------------------------------------------- where nothing can be checked


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_cuda_one_line_says_that_nothing_was_checked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("OUT", str(tmp_path))
    assert command.main([]) == 0
    assert capsys.readouterr().out == "gpu-check: torch sees no CUDA device here, so nothing was checked\n"
    assert not list(tmp_path.iterdir())


def test_a_python_without_torch_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert command.main([]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert sys.executable in line
    assert "nothing was checked" in line


# ---------------------------------------------------------------- the budget


def test_a_part_that_would_not_fit_is_skipped_with_a_line(report: Report):
    now = [0.0]
    parts = Parts(report, 10.0, clock=lambda: now[0])
    ran: list[str] = []

    def first() -> None:
        ran.append("first")
        now[0] = 8.0

    parts.run("first", 9.0, first)
    parts.run("second", 3.0, lambda: ran.append("second"))
    parts.run("third", 1.0, lambda: ran.append("third"))
    assert ran == ["first", "third"]
    assert report.notes == ["skipped second: it may need 3 s and 2 s are left"]
    assert report.failures == []


def test_a_part_that_raises_costs_its_own_figure_only(report: Report):
    parts = Parts(report, 10.0)
    ran: list[str] = []
    parts.run("bad", 1.0, lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    parts.run("good", 1.0, lambda: ran.append("good"))
    assert ran == ["good"]
    assert report.failures == ["bad"]
    assert report.notes == ["failed bad: ZeroDivisionError: division by zero"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TimedModel:
    return TimedModel(TINY, SMALL, SPEED, folder=tmp_path_factory.mktemp("shape") / "tiny", device="cpu")


def test_figures_that_time_or_room_do_not_allow_are_not_made_up_and_leave_an_empty_engine(model: TimedModel):
    for measure in (lambda: model.decode(2, 0.0), lambda: model.prefill(0.0), lambda: model.mixture(0.0)):
        with pytest.raises(NotMeasured, match="time was over"):
            measure()
    with pytest.raises(NotMeasured, match="room for"):
        model.decode(15, float("inf"))
    model._engine.check_integrity()
    assert not model._engine.has_work


# ---------------------------------------------------------------- the roofline


@pytest.mark.parametrize(
    ("shape", "batch", "context", "tokens_per_s"),
    [
        (LLAMA_8B, 1, 512, 285),
        (LLAMA_8B, 64, 512, 14_200),
        (LLAMA_8B, 256, 512, 28_700),
        (LLAMA_8B, 64, 2048, 8500),
        (QWEN3_06B, 1, 512, 3434),
        (QWEN3_06B, 64, 512, 54_700),
        (QWEN3_06B, 256, 512, 64_700),
    ],
    ids=str,
)
def test_the_decode_roofline_is_the_one_reckoned_by_hand(shape: Shape, batch: int, context: int, tokens_per_s: float):
    step_s = decode_step_s(shape, SPEED, batch=batch, context_tokens=batch * context)
    assert batch / step_s == pytest.approx(tokens_per_s, rel=0.03)


def test_a_step_on_quantized_weights_reads_fewer_bytes_of_them():
    plain, int8, int4 = (
        decode_step_s(LLAMA_8B, SPEED, batch=1, context_tokens=0, quantization=form)
        for form in ("none", "int8", "int4")  # type: ignore[arg-type]
    )
    assert plain / int8 == pytest.approx(2)
    assert 3.5 < plain / int4 < 4, "its head has eight bits"


def test_shapes_have_the_parameters_of_the_models_they_are_named_after():
    assert LLAMA_8B.matmul_parameters == pytest.approx(7.5e9, rel=0.01)
    assert QWEN3_06B.matmul_parameters == pytest.approx(0.596e9, rel=0.01)
    assert footprint_of(QWEN3_06B.config()).parameters == 596_049_920, "the published model's"
    assert (LLAMA_8B.kv_bytes_per_token, QWEN3_06B.kv_bytes_per_token) == (128 << 10, 112 << 10)


def test_a_workload_of_one_request_is_its_prompt_and_its_steps():
    steps = sum(decode_step_s(TINY, SPEED, batch=1, context_tokens=10 + i) for i in (1, 2))
    assert workload_s(TINY, SPEED, [(10, 3)]) == pytest.approx(prefill_s(TINY, SPEED, 10) + steps)


def test_products_are_bound_by_their_bytes_where_rows_are_few_and_by_operations_where_they_are_many():
    sizes = layer_products(LLAMA_8B)
    weights = sum(outputs * inputs for outputs, inputs in sizes)
    assert weights * LLAMA_8B.layers + LLAMA_8B.head_parameters == LLAMA_8B.matmul_parameters
    assert product_s(sizes, SPEED, rows=1, bits=4, speedup=1) == pytest.approx(weights / 2 / SPEED.bytes_per_s)
    assert product_s(sizes, SPEED, rows=8192, bits=8, speedup=2) == pytest.approx(weights * 8192 / SPEED.flops_per_s)


# ---------------------------------------------------------------- it would notice


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(tmp_path / "truth", "cpu", 3)


def test_one_wrong_token_is_noticed(trial: Trial, report: Report):
    trial.expected[7].token_ids[1] += 1
    check = greedy(trial)
    assert not check.met
    assert check.detail == "15 of 16 sequences equal"
    report.add_check(check)
    assert report.failures == [check.name]


def test_a_prefix_cache_that_is_never_hit_is_noticed(trial: Trial, monkeypatch: pytest.MonkeyPatch):
    build = Trial.engine
    monkeypatch.setattr(Trial, "engine", lambda self, **settings: build(self, prefix_caching=False, **settings))
    assert not prefix_hit(trial).met


def completion(*tokens: int, top: list[int]) -> Completion:
    """Every position's most likely tokens are `top`."""
    logprobs = [TokenLogprobs(-1.0, [(other, -1.0) for other in top]) for _ in tokens]
    finish = Finish(FinishReason.LENGTH, Usage(1, 0, len(tokens)), Timings(0, 0, 0, 0, 0, 0, []))
    return Completion(prompt=0, sequence=0, token_ids=list(tokens), logprobs=logprobs, finish=finish)


@pytest.mark.parametrize(
    ("ours", "theirs", "close"),
    [
        (completion(1, 2, top=[1, 2]), completion(1, 2, top=[1, 2]), True),
        (completion(1, 2, top=[1, 2, 3]), completion(1, 3, top=[3, 2]), True),
        (completion(2, 9, top=[1, 2]), completion(1, 3, top=[1, 2]), True),
        (completion(1, 2, top=[1, 2, 3]), completion(1, 3, top=[3, 4]), False),
        (completion(1, 2, top=[1, 2]), completion(1, 3, top=[2, 3]), False),
    ],
    ids=["equal", "each likely to the other", "after the first difference all goes", "ours unlikely to them", "theirs unlikely to us"],
)
def test_bf16_is_close_when_each_choice_is_likely_to_the_other(ours: Completion, theirs: Completion, close: bool):
    assert close_to(ours, theirs) is close


def test_wrong_weights_are_noticed(trial: Trial, monkeypatch: pytest.MonkeyPatch):
    assert quantized(trial).met
    build = Trial.engine

    def engine(self: Trial, **settings: Any) -> Engine:
        wrong = {"int8": "int4"} if "attention" not in settings else {}
        return build(self, **{**settings, "quantization": wrong.get(settings["quantization"], settings["quantization"])})

    monkeypatch.setattr(Trial, "engine", engine)
    check = quantized(trial)
    assert not check.met
    assert check.detail.startswith("int8: ")


@pytest.mark.parametrize("broken", [float("nan"), 1.1])
def test_one_wrong_number_of_a_kernel_is_noticed(broken: float):
    worst, right = Worst(), torch.ones(3, 5)
    worst.add("right", right + 1e-6, right, (1e-5, 0.0))
    assert worst.check("norm").met
    wrong = right.clone()
    wrong[1, 2] = broken
    worst.add("wrong", wrong, right, (1e-5, 0.0))
    check = worst.check("norm")
    assert not check.met
    assert check.detail.startswith("2 cases")
    assert check.detail.endswith("(wrong)")


def test_a_backend_that_forgets_the_newest_key_is_noticed(report: Report, monkeypatch: pytest.MonkeyPatch):
    def forgetful(query: Tensor, key_value: Tensor, cache: Tensor, batch: AttentionBatch, shape: AttentionShape) -> Tensor:
        return attend_sdpa(query, key_value, cache.index_fill(2, batch.slots, 0), batch, shape)

    monkeypatch.setattr(backends, "usable", lambda device, head_dim, report: {"sdpa": attend_sdpa, "forgetful": forgetful})
    backends.compare(SMALL_LAYER, torch.device("cpu"), report)
    assert report.failures == ["attention forgetful as in float32"]


# ---------------------------------------------------------------- random weights


@pytest.mark.parametrize("shape", [TINY, replace(TINY, qk_norm=True)], ids=["llama", "qwen3"])
def test_an_engine_with_random_weights_needs_no_tensors_and_repeats_itself(shape: Shape, tmp_path: Path):
    shape.write_config(tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["config.json"]

    def tokens() -> list[list[int]]:
        engine = Engine(EngineConfig(model_dir=tmp_path / "model", random_weights=True, device="cpu", max_running=4, max_model_len=64))
        return [done.token_ids for done in engine.generate([[5, 6, 7], [8]], max_tokens=12, ignore_eos=True)]

    first = tokens()
    assert first == tokens()
    assert len(set(first[0])) > 3, "the model does not say one token for ever"


# ---------------------------------------------------------------- gates


def figure(case: str, value: float, roofline: float = 50_000.0) -> Figure:
    return Figure(case=case, metric="m", unit="tokens/s", value=value, low=None, high=None, roofline=roofline)


@pytest.mark.parametrize(
    ("case", "value", "met"),
    [
        ("llama-8b decode b=64 ctx=512", 10_500, True),
        ("llama-8b decode b=64 ctx=512", 10_499, False),
        ("llama-8b prefill 8192", 30_000, True),
        ("llama-8b prefill 8192", 29_000, False),
    ],
)
def test_a_gate_says_met_or_not(case: str, value: float, met: bool):
    check = gate(figure(case, value), "NVIDIA H200")
    assert check is not None
    assert check.met is met


def test_gates_are_of_one_device_and_of_named_figures():
    assert gate(figure("llama-8b decode b=64 ctx=512", 1), "NVIDIA L4") is None
    assert gate(figure("tiny decode b=1 ctx=48", 1), "NVIDIA H200") is None


def test_every_gate_is_of_a_figure_that_is_measured():
    low, high = FULL.lengths
    measured = {f"{shape.name} decode b={batch} ctx={FULL.context}" for shape in (LLAMA_8B, QWEN3_06B) for batch in FULL.batches}
    measured |= {f"{shape.name} {FULL.requests} requests {low}-{high} in and out" for shape in (LLAMA_8B, QWEN3_06B)}
    assert set(LEAST_TOKENS_PER_S) <= measured


def test_two_ranks_are_skipped_where_there_is_one_gpu(monkeypatch: pytest.MonkeyPatch, trial: Trial):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(NotMeasured, match="two ranks have a GPU each, and there is 1"):
        two_ranks(trial)


def test_a_run_of_some_parts_keeps_what_the_file_has_of_others(tmp_path: Path):
    path, ran = tmp_path / "gpu-check.json", list[str]()
    first = Report(command="a test", hardware={"device": "H200"}, path=path)
    for case in ("one", "two"):
        first.add_row(case, "pagoda", "rate", 1.0, "tokens/s")
    again = Report(command="a test", hardware={"device": "H200"}, path=path)
    again.keep_others(["two"])
    parts = Parts(again, 10.0, only=["two"])
    for name in ("part one", "part two"):
        parts.run(name, 0.0, lambda name=name: ran.append(name))  # type: ignore[misc]
    again.add_row("two", "pagoda", "rate", 2.0, "tokens/s")
    assert ran == ["part two"]
    assert {row["case"]: row["value"] for row in json.loads(path.read_text())["rows"]} == {"one": 1.0, "two": 2.0}
    with pytest.raises(ConfigError, match="give --output"):
        Report(command="a test", hardware={"device": "another"}, path=path).keep_others(["two"])
