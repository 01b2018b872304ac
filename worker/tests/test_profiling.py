"""The profile of a decode step: whose a second is, and that the engine is left as it was."""

import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from random_checkpoint import VOCAB, small_engine

from pagoda_worker.offline import profiling
from pagoda_worker.offline.profiling import OVERHEAD, REST, PhaseTimer, Point, points_of


class Work:
    """Takes one second, calls what is inside, takes another."""

    def __init__(self, clock: list[float]) -> None:
        self.clock = clock

    def outer(self) -> None:
        self.clock[0] += 1
        self.inner()
        self.clock[0] += 1

    def inner(self) -> None:
        self.clock[0] += 10


@pytest.mark.parametrize(
    ("whole", "seconds"), [(False, {"outer": 2.0, "inner": 10.0}), (True, {"outer": 12.0})], ids=["without the inner", "whole"]
)
def test_a_phase_has_its_own_seconds(whole: bool, seconds: dict[str, float]):
    clock = [0.0]
    timer = PhaseTimer(lambda: clock[0])
    with timer.wrapped([Point(Work, "outer", "outer", whole=whole), Point(Work, "inner", "inner")]):
        Work(clock).outer()
    clock[0] += 100
    assert timer.seconds == seconds


def test_the_originals_come_back_whatever_happens(checkpoint: Callable[..., Path]):
    engine = small_engine(checkpoint())
    before = [vars(point.owner)[point.name] for point in points_of(engine)]
    timer = PhaseTimer(lambda: 0.0)

    def fail_within() -> None:
        with timer.wrapped(points_of(engine)):
            assert [vars(point.owner)[point.name] for point in points_of(engine)] != before
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_within()
    assert [vars(point.owner)[point.name] for point in points_of(engine)] == before


def test_a_job_is_told_by_phase_and_operator(checkpoint: Callable[..., Path], tmp_path: Path):
    trace = tmp_path / "trace.json.gz"
    job: dict[str, Any] = {"model_dir": str(checkpoint()), "sequences": 3, "prompt_tokens": 20, "steps": 2, "repeats": 2, "device": "cpu"}
    result = profiling.run_job({**job, "trace": str(trace), "kv_dtype": "int8"})
    assert result["kv_bytes_per_token"] == 2 * 2 * 2 * (16 + 2)
    assert len(result["step_s"]) == 2
    assert {REST, "schedule", "inputs", "attention", "matrix products", "output head", "sampling", "settle"} <= set(result["phases_s"])
    overhead = zip(*(result["phases_s"][phase] for phase in OVERHEAD if phase in result["phases_s"]), strict=True)
    assert result["overhead_s"] == pytest.approx([sum(each) for each in overhead])
    assert all(len(repeats) == 2 and min(repeats) > 0 for repeats in result["phases_s"].values())
    shares = [each["share"] for each in result["operators"]]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) <= 1.0001
    with gzip.open(trace, "rt") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {each["name"] for each in result["operators"]} <= names


def test_phases_are_told_of_a_step_that_is_one_call_too(checkpoint: Callable[..., Path]):
    folder = checkpoint("native", head_dim=32)
    job: dict[str, Any] = {"model_dir": str(folder), "sequences": 2, "prompt_tokens": 20, "steps": 2, "repeats": 1, "device": "cpu"}
    assert {"attention", "matrix products"} <= set(profiling.run_job({**job, "dtype": "bf16"})["phases_s"])


def test_a_field_that_a_job_has_not_is_refused_with_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps({"sequence": VOCAB})))
    assert profiling.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("profiling: unknown fields ['sequence']")
