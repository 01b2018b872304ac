"""What an engine holds possible at each place of given text, by both paths, against transformers; bytes; questions of scoring.py."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_checkpoint import VOCAB, small_engine
from transformers import AutoModelForCausalLM

from pagoda_worker.engine import Engine
from pagoda_worker.native.library import load_library
from pagoda_worker.offline import scoring
from pagoda_worker.offline.given_text import compute, count_places
from pagoda_worker.offline.weighing import bytes_held, weigh

Checkpoint = Callable[..., Path]
DOCUMENTS = [[(7 * i + 3 * each * each) % VOCAB for i in range(length)] for each, length in enumerate((45, 2, 33, 17, 64, 5))]
"""Ends (id 1) among them, as in text of several turns."""
TOLERANCE = 5e-5


def engine_for_text(folder: Path) -> Engine:
    return small_engine(folder, max_running=2, max_batch_tokens=8, prefix_caching=False)


@pytest.fixture(scope="module")
def truth(checkpoint: Checkpoint) -> np.ndarray[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(checkpoint(), dtype=torch.float32).eval()
    with torch.inference_mode():
        parts = [model(torch.tensor([document])).logits[0, :-1].log_softmax(-1) for document in DOCUMENTS]
    return torch.cat(parts).numpy()


@pytest.mark.parametrize("path", ["prefill", "decode"])
def test_every_place_has_the_distribution_of_transformers(checkpoint: Checkpoint, truth: Any, path: Any):
    engine = engine_for_text(checkpoint())
    found = np.full((count_places(DOCUMENTS), VOCAB), np.nan, np.float32)
    compute(engine, DOCUMENTS, path, found)
    np.testing.assert_allclose(found, truth, atol=TOLERANCE)
    engine.check_integrity()


@pytest.mark.skipif(load_library() is None, reason="no native kernels for this machine")
@pytest.mark.parametrize("path", ["prefill", "decode"])
def test_an_engine_whose_steps_are_one_call_is_heard_too(checkpoint: Checkpoint, path: Any):
    base = checkpoint("heard", hidden_size=128, intermediate_size=256, head_dim=32)
    found = []
    for at_once in (True, False):
        engine = small_engine(base, dtype="bf16", max_running=2, max_batch_tokens=8, prefix_caching=False)
        assert engine.runner.native is not None
        if not at_once:
            engine.runner.native = None
        found.append(np.full((count_places(DOCUMENTS), VOCAB), np.nan, np.float32))
        compute(engine, DOCUMENTS, path, found[-1])
    np.testing.assert_array_equal(*found)


def test_an_engine_serves_afterwards_as_before(checkpoint: Checkpoint):
    engine = engine_for_text(checkpoint())
    (before,) = engine.generate([[5, 9, 2]], max_tokens=8, ignore_eos=True)
    for path in ("prefill", "decode"):
        compute(engine, DOCUMENTS[:2], path, np.empty((count_places(DOCUMENTS[:2]), VOCAB), np.float32))  # type: ignore[arg-type]
    (after,) = engine.generate([[5, 9, 2]], max_tokens=8, ignore_eos=True)
    assert after.token_ids == before.token_ids


def test_weights_and_cache_weigh_what_their_sizes_say(checkpoint: Checkpoint):
    engine = small_engine(checkpoint(), dtype="fp32")
    found = weigh(engine)
    attention, feed_forward, layers = 64 * (64 + 2 * 32) + 64 * 64, 64 * 96 * 3, 2
    assert found.linear_bytes == 4 * layers * (attention + feed_forward)
    assert found.model_bytes == found.linear_bytes + 4 * (2 * VOCAB * 64 + 64 * (2 * layers + 1))
    assert found.kv_bytes_per_token == 4 * layers * 2 * 2 * 16


def test_a_storage_that_two_views_share_counts_once():
    whole = torch.zeros(8, 4)
    assert bytes_held([whole, whole[2:], {"again": (whole.T,)}]) == whole.nbytes


def answers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *questions: object) -> list[dict[str, Any]]:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{json.dumps(question)}\n" for question in questions)))
    assert scoring.main() == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_questions_are_answered_line_by_line(
    checkpoint: Checkpoint, truth: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    file = str(tmp_path / "places.npy")
    opened, told, replied = answers(
        monkeypatch,
        capsys,
        {"open": {"model_dir": str(checkpoint()), "engine": {"dtype": "fp32"}, "given_text": True, "device": "cpu"}},
        {"distributions": {"documents": DOCUMENTS, "path": "decode", "file": file}},
        {"answers": {"prompts": [[5, 9, 2], [4]], "max_tokens": 3, "ignore_eos": True}},
    )
    assert (opened["dtype"], opened["vocab_size"]) == ("fp32", VOCAB)
    assert told == {"places": len(truth)}
    np.testing.assert_allclose(np.load(file), truth, atol=TOLERANCE)
    assert [len(ids) for ids in replied["token_ids"]] == [3, 3]


@pytest.mark.parametrize(
    ("question", "error"),
    [
        ({"open": {"model_dir": "nowhere"}}, "nowhere"),
        ({"open": {"model_dir": "x", "engine": {"dtype": "int3"}}}, "PAGODA_ENGINE.dtype"),
        ({"answers": {"prompts": [[1]], "max_tokens": 1}}, "open a model first"),
        ({"weather": {}}, "open, distributions or answers"),
        ({"distributions": {"path": "prefill"}}, "documents"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_answered_is_one_line_and_not_the_end(
    question: object, error: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    first, second = answers(monkeypatch, capsys, question, question)
    assert error in first["error"]
    assert first == second
