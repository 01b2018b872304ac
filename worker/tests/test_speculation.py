"""Speculation changes no token: whatever is guessed, rightly or wrongly, every request gets what it gets without."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_runs import Outcome, run_all
from random_checkpoint import kv_bytes, small_engine
from scripted_proposer import speculate

from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.request import Request, Sampling, StructuredOutput, TokenLogprobs
from pagoda_worker.settings.sources import BUILTIN_DIR

ENGINES: dict[str, dict[str, Any]] = {
    "plain": {},
    "ahead": {"async_scheduling": True},
    "chunked": {"max_batch_tokens": 24, "block_size": 4},
    "preempting": {"kv_cache_bytes": kv_bytes(14, 8), "block_size": 8},
    "preempting to the host": {"kv_cache_bytes": kv_bytes(14, 8), "block_size": 8, "swap_bytes": kv_bytes(20, 8)},
    "without prefix cache": {"prefix_caching": False},
}


def corpus() -> list[Request]:
    """Every way a token can be chosen, some of it twice with one prompt, so that the prefix cache is read."""
    ways: list[dict[str, Any]] = [
        {},
        {"sampling": Sampling(temperature=1.0, seed=3)},
        {"sampling": Sampling(temperature=0.8, top_p=0.9, seed=4)},
        {"sampling": Sampling(temperature=1.2, top_k=20, min_p=0.02, seed=5), "n": 2},
        {"sampling": Sampling(repetition_penalty=1.3, frequency_penalty=0.4)},
        {"sampling": Sampling(temperature=0.9, presence_penalty=1.0, seed=6)},
        {"sampling": Sampling(logit_bias={7: 4.0, 9: -50.0})},
        {"sampling": Sampling(allowed_token_ids=list(range(2, 60)))},
        {"sampling": Sampling(temperature=1.0, seed=8, bad_words=[[11], [20, 21]])},
        {"min_tokens": 12, "stop_token_ids": list(range(2, 40)), "ignore_eos": False},
        {"stop_token_ids": list(range(2, 12))},
        {"top_logprobs": 3},
        {"sampling": Sampling(temperature=1.0, seed=9), "top_logprobs": 2, "prompt_logprobs": 1},
        {"runs_alone": True},
    ]
    return [
        Request(
            request_id=f"{i}-{length}",
            prompt_ids=[2 + (i // 3 + 5 * j) % 150 for j in range(length)],
            **{"ignore_eos": True, "max_tokens": 24, **way},
        )
        for i, way in enumerate(ways)
        for length in (5, 21)
    ]


def tokens_of(outcomes: dict[tuple[str, int], Outcome]) -> dict[tuple[str, int], list[int]]:
    return {key: outcome.tokens for key, outcome in outcomes.items()}


@pytest.mark.parametrize("settings", ENGINES.values(), ids=ENGINES)
def test_every_request_gets_the_same_tokens_and_the_same_end(settings: dict[str, Any], checkpoint: Callable[..., Path]):
    alone = run_all(small_engine(checkpoint()), *corpus())
    engine = small_engine(checkpoint(), **settings)
    speculation = speculate(engine, tokens_of(alone))
    guessed = run_all(engine, *corpus())
    assert tokens_of(guessed) == tokens_of(alone)
    assert {key: outcome.reason for key, outcome in guessed.items()} == {key: outcome.reason for key, outcome in alone.items()}
    assert speculation.accepted_by_place[2] > 0, "several drafts of one step were accepted"
    assert sum(speculation.accepted_by_place) < speculation.draft_tokens, "and some were not"
    assert (engine.scheduler.totals.preemptions > 0) == ("kv_cache_bytes" in settings)
    finish = guessed["0-21", 0].finish
    assert finish is not None
    assert 0 < finish.usage.accepted_draft_tokens < finish.usage.draft_tokens


def logprobs_of(engine: Engine, *requests: Request) -> dict[str, list[TokenLogprobs]]:
    told: dict[str, list[TokenLogprobs]] = {}
    for request in requests:
        engine.submit(request)
    while engine.has_work:
        for update in engine.step().updates:
            told.setdefault(update.request_id, []).extend(update.logprobs or [])
    return told


def test_logprobs_of_accepted_drafts_are_those_of_a_step_of_their_own(checkpoint: Callable[..., Path]):
    requests = [each for each in corpus() if each.top_logprobs is not None]
    engine = small_engine(checkpoint())
    alone = logprobs_of(engine, *requests)
    speculate(engine, tokens_of(run_all(engine, *requests)))
    guessed = logprobs_of(engine, *requests)
    for name, lines in alone.items():
        assert len(guessed[name]) == len(lines)
        for one, other in zip(guessed[name], lines, strict=True):
            assert one.sampled == pytest.approx(other.sampled, abs=1e-4)
            assert [token for token, _ in one.top] == [token for token, _ in other.top]


@pytest.fixture(scope="module")
def tiny() -> Engine:
    return Engine(EngineConfig(model_dir=BUILTIN_DIR / "tiny", device="cpu", dtype="fp32", max_running=8, max_model_len=512))


SCHEMA = '{"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["name", "age"]}'
STRUCTURES = {
    "json": {"structured": StructuredOutput(kind="json_object")},
    "schema": {"structured": StructuredOutput(kind="json_schema", text=SCHEMA)},
    "schema, sampled": {"structured": StructuredOutput(kind="json_schema", text=SCHEMA), "sampling": Sampling(temperature=1.0, seed=2)},
    "regex": {"structured": StructuredOutput(kind="regex", text="[a-z]{3,12}( [a-z]+){2}")},
    "choice": {"structured": StructuredOutput(kind="choice", choices=("a long answer", "a longer answer", "no"))},
    "with a stop id": {"structured": StructuredOutput(kind="regex", text="[a-z ]+"), "stop_token_ids": [100, 200, 300, 400]},
    "with logprobs": {"structured": StructuredOutput(kind="json_object"), "top_logprobs": 1, "min_tokens": 9},
}


def test_structured_output_stays_what_it_is_and_is_speculated_on(tiny: Engine):
    requests = [Request(request_id=name, prompt_ids=[5, 6, 7, 40, 41], max_tokens=40, **each) for name, each in STRUCTURES.items()]
    alone = run_all(tiny, *requests)
    try:
        for seed in range(3):
            speculation = speculate(tiny, tokens_of(alone), seed=seed)
            guessed = run_all(tiny, *requests)
            assert tokens_of(guessed) == tokens_of(alone)
            assert {name: each.reason for name, each in guessed.items()} == {name: each.reason for name, each in alone.items()}
            assert speculation.accepted_by_place[2] > 0
    finally:
        tiny.speculation = None


def test_drafts_are_cut_where_the_grammar_would_stop_them(tiny: Engine):
    request = Request(request_id="a", prompt_ids=[5, 6], max_tokens=8, structured=StructuredOutput(kind="json_object"))
    right = run_all(tiny, request)["a", 0].tokens
    tiny.submit(request)
    while not tiny.scheduler.running:
        tiny.step()
    (sequence,) = tiny.scheduler.running
    rest = right[len(sequence.tokens) - sequence.output_start :]
    impossible = next(token for token in range(3, 1024) if tiny.constraints.longest_possible(sequence, [token]) == [])
    assert tiny.constraints.longest_possible(sequence, [*rest[:2], impossible, *rest[2:]]) == rest[:2]
    tiny.cancel("a")
    tiny.step()
