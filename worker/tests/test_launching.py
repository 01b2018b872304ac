"""A step that fails in the model: one request pays, everyone else's tokens are those they would have had."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from random_checkpoint import small_engine

from pagoda_worker.engine import Engine
from pagoda_worker.execution.launching import MAX_LAUNCHES
from pagoda_worker.execution.runner import InFlight
from pagoda_worker.request import Finish, FinishReason, PromptLogprobs, Request
from pagoda_worker.scheduling.plan import StepPlan

Checkpoint = Callable[..., Path]
PROMPTS = {"long": [5] * 90, "short": [3, 1, 4], "n": [7] * 20, "prefix": [5] * 40}


def outcome(engine: Engine, names: list[str]) -> dict[tuple[str, int], tuple[list[int], Finish]]:
    for name in names:
        engine.submit(Request(request_id=name, prompt_ids=PROMPTS[name], max_tokens=6, ignore_eos=True, n=2 if name == "n" else 1))
    tokens: dict[tuple[str, int], list[int]] = {}
    finishes: dict[tuple[str, int], Finish] = {}
    while engine.has_work:
        for update in engine.step().updates:
            key = update.request_id, update.sequence
            tokens.setdefault(key, []).extend(update.token_ids)
            if update.finish:
                finishes[key] = update.finish
        engine.check_integrity()
    return {key: (tokens[key], finish) for key, finish in finishes.items()}


@pytest.fixture(params=[False, True], ids=["in step", "ahead"])
def engine(checkpoint: Checkpoint, request: pytest.FixtureRequest) -> Engine:
    return small_engine(checkpoint(), async_scheduling=request.param)


def fail(engine: Engine, monkeypatch: pytest.MonkeyPatch, when: Callable[[StepPlan], bool], error: Exception) -> list[StepPlan]:
    """`launch` computes first and raises then, as a device does that runs out in the last layer."""
    launch, failed = engine.runner.launch, []

    def failing(plan: StepPlan) -> InFlight:
        pending = launch(plan)
        if when(plan):
            failed.append(plan)
            raise error
        return pending

    monkeypatch.setattr(engine.runner, "launch", failing)
    return failed


ERRORS = [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: not enough memory"), ValueError("a bad kernel")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_the_request_that_cannot_be_computed_ends_and_the_others_do_not_notice(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    names = ["short", "long", "prefix", "n"]
    expected = {name: outcome(engine, [name]) for name in names}
    engine.scheduler.residency.forget_prefixes()
    failed = fail(engine, monkeypatch, lambda plan: any(c.count >= 50 for c in plan.chunks), error)
    got = outcome(engine, names)
    assert len(failed) >= 2, "the whole step, then its halves"
    _, finish = got.pop(("long", 0))
    assert finish.reason is FinishReason.ENGINE_ERROR
    assert ("no memory to compute 90 tokens" in finish.detail) == (not isinstance(error, ValueError))
    for (name, index), (tokens, _) in got.items():
        assert tokens == expected[name][name, index][0]
    assert len(got) == 4
    monkeypatch.undo()
    assert outcome(engine, ["long"])["long", 0][0] == expected["long"]["long", 0][0], "nothing half computed is shared"


def test_a_step_too_large_for_the_memory_is_computed_in_two(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    expected = outcome(engine, list(PROMPTS))
    engine.scheduler.residency.forget_prefixes()
    failed = fail(engine, monkeypatch, lambda plan: plan.tokens > 100, torch.OutOfMemoryError("CUDA out of memory"))
    got = outcome(engine, list(PROMPTS))
    assert failed
    assert {key: tokens for key, (tokens, _) in got.items()} == {key: tokens for key, (tokens, _) in expected.items()}


def test_a_step_that_fails_behind_a_prompts_last_chunk_costs_none_of_its_logprobs(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    def told() -> list[PromptLogprobs]:
        engine.submit(Request(request_id="p", prompt_ids=[*range(5, 95)], max_tokens=6, ignore_eos=True, prompt_logprobs=2))
        engine.submit(Request(request_id="other", prompt_ids=[4, 5, 6], max_tokens=12, ignore_eos=True, use_prefix_cache=False))
        updates = []
        while engine.has_work:
            updates += engine.step().updates
        return [update.prompt_logprobs for update in updates if update.prompt_logprobs]

    engine.scheduler.limits = replace(engine.scheduler.limits, max_batch_tokens=40)
    (expected,) = told()
    engine.scheduler.residency.forget_prefixes()
    failed = fail(engine, monkeypatch, lambda plan: plan.sequences > 1, torch.OutOfMemoryError("CUDA out of memory"))
    (got,) = told()
    assert any(chunk.start and chunk.sequences for plan in failed for chunk in plan.chunks), "the last of several chunks"
    assert got.top_ids == expected.top_ids
    assert got.own == pytest.approx(expected.own, abs=1e-4)


def test_one_alone_without_memory_ends_without_taking_the_engine_along(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    fail(engine, monkeypatch, lambda plan: True, torch.OutOfMemoryError("CUDA out of memory"))
    ((_, finish),) = outcome(engine, ["short"]).values()
    assert finish.reason is FinishReason.ENGINE_ERROR


def test_a_device_that_fails_at_everything_is_given_up_after_a_bounded_number_of_tries(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    failed = fail(engine, monkeypatch, lambda plan: True, RuntimeError("an illegal memory access"))
    for i in range(16):
        engine.submit(Request(request_id=str(i), prompt_ids=[3 + i], max_tokens=4))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        engine.step()
    assert len(failed) <= MAX_LAUNCHES
    engine.abandon("the device failed")
    while engine.has_work:
        engine.step()
    engine.check_integrity()
