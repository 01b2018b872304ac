"""The engine offline, as a process: one job on its standard input, one result."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from random_checkpoint import VOCAB, kv_bytes

Checkpoint = Callable[..., Path]


def test_the_offline_process_times_a_job(checkpoint: Checkpoint):
    job = {
        "model_dir": str(checkpoint()),
        "device": "cpu",
        "random": {"count": 3, "prompt_tokens": 9, "vocab": VOCAB},
        "max_tokens": 5,
        "ignore_eos": True,
        "warmup": True,
    }
    done = subprocess.run(
        [sys.executable, "-m", "pagoda_worker.offline"], input=json.dumps(job), capture_output=True, text=True, check=True, timeout=100
    )
    result = json.loads(done.stdout)
    assert result["tokens"] == 15
    assert [len(ids) for ids in result["token_ids"]] == [5, 5, 5]
    assert 0 < result["ttft_p50_ms"] <= result["ttft_max_ms"] <= 1000 * result["seconds"]
    assert 0 < result["kv_in_use_mean_ratio"] <= result["kv_in_use_peak_ratio"] <= 1
    assert result["kv_bytes_per_token"] == kv_bytes(1, block_size=1)
    assert result["host_peak_bytes"] > 0


def test_the_offline_process_refuses_a_field_it_does_not_know(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    import io

    from pagoda_worker.offline import batch

    monkeypatch.setattr(sys, "stdin", io.StringIO('{"max_token": 3}'))
    assert batch.main() == 2
    assert "unknown fields ['max_token']" in capsys.readouterr().err
