"""The stages of the tour on the real engine: the same tokens whatever is switched off, impossible switches refused, jobs line by line."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from random_checkpoint import kv_bytes

from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.errors import ConfigError
from pagoda_worker.offline import batch
from pagoda_worker.offline.replay import Arrival, replay

Checkpoint = Callable[..., Path]

OFF: dict[str, Any] = {"prefix_caching": False, "chunked_prefill": False, "paged_kv": False}
STAGES: dict[str, dict[str, Any]] = {
    "minimal": {**OFF, "kv_cache": False, "max_running": 1},
    "minimal, several at once": {**OFF, "kv_cache": False},
    "kv cache": {**OFF, "max_running": 1},
    "static": {**OFF, "batching": "static"},
    "dynamic": {**OFF, "batching": "dynamic", "batch_window_s": 0.0},
    "continuous": OFF,
    "paged": {**OFF, "paged_kv": True},
    "prefix": {"chunked_prefill": False},
    "full": {"max_batch_tokens": 16},
    "one step ahead": {"max_batch_tokens": 16, "async_scheduling": True},
}


def engine_with(folder: Path, **fields: Any) -> Engine:
    settings = {"max_running": 4, "max_model_len": 64, "block_size": 4, "max_batch_tokens": 80, **fields}
    return Engine(EngineConfig(model_dir=folder, device="cpu", dtype="fp32", **settings))


def arrivals() -> list[Arrival]:
    shared = [5, 9, 2, 7, 11, 3, 8, 4, 6]
    return [Arrival(prompt_ids=[*shared, *range(12 + i, 16 + 3 * i)], max_tokens=2 + 5 * (i % 4)) for i in range(8)]


@pytest.fixture(scope="module")
def minimal(checkpoint: Checkpoint) -> dict[str, Any]:
    return replay(engine_with(checkpoint(), **STAGES["minimal"]), arrivals())


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_writes_the_tokens_of_the_minimal_loop(stage: str, minimal: dict[str, Any], checkpoint: Checkpoint):
    engine = engine_with(checkpoint(), **STAGES[stage])
    answer = replay(engine, arrivals())
    assert answer["token_ids"] == minimal["token_ids"]
    assert [len(ids) for ids in answer["token_ids"]] == [arrival.max_tokens for arrival in arrivals()]
    engine.check_integrity()


def test_the_minimal_loop_computes_each_sequence_anew_for_each_token(minimal: dict[str, Any], checkpoint: Checkpoint):
    anew = sum(len(arrival.prompt_ids) + made for arrival in arrivals() for made in range(arrival.max_tokens))
    once = sum(len(arrival.prompt_ids) + arrival.max_tokens - 1 for arrival in arrivals())
    assert minimal["computed_tokens"] == anew
    assert replay(engine_with(checkpoint(), **STAGES["kv cache"]), arrivals())["computed_tokens"] == once


def test_the_last_of_a_static_batch_that_nobody_completes_waits_and_then_runs(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pagoda_worker.scheduling.batching.STATIC_PATIENCE_S", 0.0)
    answer = replay(engine_with(checkpoint(), **STAGES["static"]), arrivals()[:5])
    assert [len(ids) for ids in answer["token_ids"]] == [2, 7, 12, 17, 2]


def test_times_count_from_when_a_request_was_due(checkpoint: Checkpoint):
    late = [Arrival(prompt_ids=[4, 5, 6], max_tokens=3), Arrival(prompt_ids=[4, 5, 7], max_tokens=3, at_s=0.2)]
    answer = replay(engine_with(checkpoint()), late)
    assert answer["seconds"] > 0.2
    assert 0 < answer["ttft_p50_ms"] < 1000 * answer["seconds"] - 100
    assert 0 < answer["kv_filled_ratio"] <= 1


def test_pages_are_written_where_contiguous_stretches_are_only_held(checkpoint: Checkpoint):
    few_blocks = {"kv_cache_bytes": kv_bytes(32, 4)}
    paged = replay(engine_with(checkpoint(), **STAGES["paged"], **few_blocks), arrivals())
    contiguous = replay(engine_with(checkpoint(), **STAGES["continuous"], **few_blocks), arrivals())
    assert paged["kv_written_of_held_at_load_ratio"] > 2 * contiguous["kv_written_of_held_at_load_ratio"]
    assert 0 < paged["kv_held_of_capacity_saturated_ratio"] <= 1
    assert paged["kv_capacity_tokens"] == contiguous["kv_capacity_tokens"] < 4 * 64, "somebody waits for memory"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"paged_kv": False}, "prefix_caching shares pages"),
        ({"kv_cache": False, "prefix_caching": False, "batching": "static"}, "every step is a batch of its own"),
        ({"kv_cache": False, "prefix_caching": False, "async_scheduling": True}, "every step begins with all tokens known"),
        ({"chunked_prefill": False, "max_batch_tokens": 66}, "raise it to 67"),
        ({"batch_window_s": -1.0}, "at least 0"),
    ],
)
def test_switches_that_cannot_go_together_stop_the_engine(fields: dict[str, Any], sentence: str, checkpoint: Checkpoint):
    with pytest.raises(ConfigError, match=sentence):
        engine_with(checkpoint(), **fields)


def test_jobs_come_a_line_each_and_share_nothing(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    requests = [{"prompt_ids": list(range(2, 40)), "max_tokens": 2}]
    job = {"model_dir": str(checkpoint()), "device": "cpu", "dtype": "fp32", "max_model_len": 64, "requests": requests, "warmup": True}
    monkeypatch.setattr(sys, "argv", ["offline", "--lines"])
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{json.dumps(job)}\n{json.dumps({**job, 'max_running': 1})}\n"))
    assert batch.main() == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["token_ids"] == second["token_ids"]
    assert (first["prefix_hit_tokens"], second["prefix_hit_tokens"]) == (0, 0)
