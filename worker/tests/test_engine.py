"""The engine as its callers see it: requests in, updates out, nothing held at the end."""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import random_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from random_checkpoint import VOCAB, kv_bytes, small_engine

from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.errors import ContextTooLong, RequestRefused
from pagoda_worker.request import FinishReason, Request, Sampling, SequenceUpdate

Checkpoint = Callable[..., Path]


def ask(request_id: str = "a", prompt: list[int] | None = None, **fields: Any) -> Request:
    return Request(request_id=request_id, prompt_ids=prompt or [3, 1, 4, 1, 5], **{"max_tokens": 8, "ignore_eos": True, **fields})


def run(engine: Engine) -> dict[tuple[str, int], list[SequenceUpdate]]:
    updates: dict[tuple[str, int], list[SequenceUpdate]] = {}
    while engine.has_work:
        for update in engine.step().updates:
            updates.setdefault((update.request_id, update.sequence), []).append(update)
    engine.check_integrity()
    return updates


def tokens(updates: list[SequenceUpdate]) -> list[int]:
    return [token for update in updates for token in update.token_ids]


@pytest.fixture(scope="module", autouse=True, params=[False, True], ids=["in step", "ahead"])
def ahead(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether engines launch the next step before one is settled."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (random_checkpoint, sys.modules[__name__]):
            patch.setattr(module, "EngineConfig", partial(EngineConfig, async_scheduling=request.param))
        yield request.param


@pytest.fixture
def engine(checkpoint: Checkpoint) -> Engine:
    return small_engine(checkpoint())


def test_each_step_reports_one_token_and_the_last_one_the_end(engine: Engine):
    engine.submit(ask(max_tokens=3))
    (updates,) = run(engine).values()
    assert [len(update.token_ids) for update in updates] == [1, 1, 1]
    assert [update.started for update in updates] == [True, False, False]
    finish = updates[-1].finish
    assert finish is not None
    assert (finish.reason, finish.usage.prompt_tokens, finish.usage.completion_tokens) == (FinishReason.LENGTH, 5, 3)
    assert all(update.finish is None for update in updates[:-1])


def test_timings_are_ordered_and_count_steps(checkpoint: Checkpoint):
    ticks = iter(range(10_000))
    engine = Engine(EngineConfig(model_dir=checkpoint(), device="cpu", max_running=4), clock=lambda: float(next(ticks)))
    engine.submit(ask(max_tokens=4, want_timings=True))
    engine.submit(ask("b", max_tokens=2))
    finish = run(engine)["a", 0][-1].finish
    assert finish is not None
    t = finish.timings
    assert 0 <= t.accepted_mono_us < t.first_scheduled_mono_us < t.first_token_mono_us < t.last_token_mono_us
    assert (t.steps, t.batches, t.preemptions) == (4, [(2, 2), (1, 2)], 0)


def test_a_step_tells_its_sequences_tokens_and_time(checkpoint: Checkpoint, ahead: bool):
    ticks = iter(range(10_000))
    engine = Engine(EngineConfig(model_dir=checkpoint(), device="cpu", max_running=4), clock=lambda: float(next(ticks)))
    engine.submit(ask(max_tokens=3))
    engine.submit(ask("b", max_tokens=2, n=2))
    told = []
    while engine.has_work:
        output = engine.step()
        told.append((output.sequences, output.tokens, output.duration_us))
    took = (1 + ahead) * 1_000_000  # the clock is read at each launch and at each end
    assert told == [(3, 10, took), (3, 3, took), (1, 1, took)], "siblings share their prompt's tokens"
    assert engine.facts.gpu_uuids == []


def test_an_idle_step_changes_nothing_and_the_state_is_readable_without_one(engine: Engine):
    assert not engine.has_work
    output = engine.step()
    assert output.updates == []
    assert output.state.step == engine.idle_state().step == 0
    assert engine.idle_state().kv_free_tokens == engine.facts.kv_capacity_tokens


def test_the_state_tells_what_waits_runs_and_is_free(checkpoint: Checkpoint, ahead: bool):
    engine = small_engine(checkpoint(), max_running=1, max_batch_tokens=8)
    engine.submit(ask("a", [5] * 20))
    engine.submit(ask("b", [6] * 30))
    state = engine.step().state
    assert (state.num_running, state.num_waiting, state.queued_prefill_tokens) == (1, 1, 12 - 8 * ahead + 30)
    assert state.kv_free_tokens == state.kv_capacity_tokens - 32
    run(engine)
    state = engine.idle_state()
    assert (state.num_running, state.num_waiting, state.queued_prefill_tokens) == (0, 0, 0)
    assert (state.prompt_tokens_total, state.generation_tokens_total) == (50, 16)
    assert state.prefill_tokens_per_s > 0
    assert state.decode_step_ms > 0


@pytest.mark.parametrize("when", ["waiting", "prefilling", "decoding"])
def test_a_cancel_frees_its_blocks_before_the_next_step(checkpoint: Checkpoint, when: str):
    engine = small_engine(checkpoint(), max_batch_tokens=16)
    engine.submit(ask("a", [5] * 30))
    for _ in range(("waiting", "prefilling", "decoding").index(when)):
        engine.step()
    engine.cancel("a")
    assert engine.idle_state().kv_free_tokens == engine.facts.kv_capacity_tokens
    (update,) = engine.step().updates
    assert update.finish is not None
    assert update.finish.reason is FinishReason.CANCELLED
    assert not engine.has_work
    engine.check_integrity()


def test_eos_ends_without_being_reported(checkpoint: Checkpoint):
    engine = small_engine(checkpoint())
    engine.submit(ask(ignore_eos=False, sampling=Sampling(logit_bias={1: 100.0})))
    ((update,),) = run(engine).values()
    assert update.token_ids == []
    assert update.finish is not None
    assert (update.finish.reason, update.finish.stop_token_id, update.finish.usage.completion_tokens) == (FinishReason.STOP, 1, 1)


def test_min_tokens_holds_eos_and_stop_ids_back(engine: Engine):
    engine.submit(ask(ignore_eos=False, min_tokens=4, stop_token_ids=[9], sampling=Sampling(logit_bias={1: 100.0, 9: 99.0})))
    (updates,) = run(engine).values()
    assert len(tokens(updates)) == 4
    assert not {1, 9} & set(tokens(updates))


def test_logprobs_come_with_each_token_that_asked(engine: Engine):
    engine.submit(ask("k", top_logprobs=3, max_tokens=2))
    engine.submit(ask("own", top_logprobs=0, max_tokens=2))
    engine.submit(ask("none", max_tokens=2))
    updates = run(engine)
    for update in updates["k", 0]:
        assert update.logprobs is not None
        (logprobs,) = update.logprobs
        assert len(logprobs.top) == 3
        assert logprobs.top[0] == (update.token_ids[0], logprobs.sampled), "greedy: the sampled one leads"
        assert logprobs.top[0][1] >= logprobs.top[1][1] >= logprobs.top[2][1]
    assert all(update.logprobs is not None and update.logprobs[0].top == [] for update in updates["own", 0])
    assert all(update.logprobs is None for update in updates["none", 0])


def test_a_seed_fixes_the_tokens_and_n_sequences_use_the_next_ones(checkpoint: Checkpoint):
    def sampled(engine: Engine, seed: int | None, n: int = 1) -> list[list[int]]:
        return [c.token_ids for c in engine.generate([[3, 1, 4]], Sampling(temperature=3.0, seed=seed), 8, n=n, ignore_eos=True)]

    engine = small_engine(checkpoint())
    together = sampled(engine, 20, n=3)
    assert together == [sampled(engine, 20 + i)[0] for i in range(3)]
    assert len({tuple(line) for line in together}) == 3
    assert sampled(engine, None) != sampled(engine, None), "without a seed the engine draws one"
    assert sampled(small_engine(checkpoint()), None) == sampled(small_engine(checkpoint()), None), "from its own, for repeatable runs"


def test_a_seeded_request_is_the_same_beside_others_and_after_a_resume(checkpoint: Checkpoint):
    engine = small_engine(checkpoint())
    seeded = ask("seeded", sampling=Sampling(temperature=2.0, seed=9, presence_penalty=0.5, top_p=0.9))
    engine.submit(seeded)
    alone = tokens(run(engine)["seeded", 0])
    for i in range(5):
        engine.submit(ask(f"other {i}", [7 + i] * (3 * i + 1), sampling=Sampling(temperature=1.0)))
    engine.submit(seeded)
    assert tokens(run(engine)["seeded", 0]) == alone
    engine.submit(ask("seeded", sampling=seeded.sampling, resume_ids=alone[:3]))
    updates = run(engine)["seeded", 0]
    assert tokens(updates) == alone[3:]
    assert updates[-1].finish is not None
    assert updates[-1].finish.usage.completion_tokens == 8


def test_a_deadline_that_has_passed_ends_the_request(checkpoint: Checkpoint):
    now = [0.0]
    engine = Engine(EngineConfig(model_dir=checkpoint(), device="cpu", max_running=4), clock=lambda: now[0])
    engine.submit(ask(max_tokens=50, deadline_s=2.0))
    engine.step()
    now[0] = 3.0
    (update,) = engine.step().updates
    assert update.finish is not None
    assert update.finish.reason is FinishReason.DEADLINE
    engine.check_integrity()


def test_numbers_that_are_not_finite_end_one_request_and_poison_nobody(checkpoint: Checkpoint):
    engine = small_engine(checkpoint(), kv_cache_bytes=kv_bytes(8, 8), block_size=8, max_model_len=64)
    reference = engine.generate([[3] * 9], max_tokens=20, ignore_eos=True)[0].token_ids
    embedding = engine.runner.model.destinations()["model.embed_tokens.weight"]
    embedding[150] = float("nan")
    engine.submit(ask("bad", [150] * 20))
    engine.submit(ask("good", [3] * 9, max_tokens=20))
    updates = run(engine)
    finish = updates["bad", 0][-1].finish
    assert finish is not None
    assert finish.reason is FinishReason.ENGINE_ERROR
    assert "not finite" in finish.detail
    assert tokens(updates["good", 0]) == reference
    for _ in range(3):  # through the blocks that held NaN
        assert engine.generate([[3] * 9], max_tokens=20, ignore_eos=True)[0].token_ids == reference
    assert all(cache.isfinite().all() for cache in engine.runner.caches)


BROKEN_TOKEN = 150
LEFT_HALFWAY: dict[str, tuple[list[int], dict[int, float], int]] = {
    **{f"prompt, step {steps}": ([BROKEN_TOKEN] * 36, {}, steps) for steps in (1, 3)},
    "the token that fills a block, in flight": ([3] * 15, {BROKEN_TOKEN: 100.0}, 1),
    "a token in flight": ([3] * 12, {BROKEN_TOKEN: 100.0}, 1),
}
"""Prompt, bias, and the step after which it is cancelled."""


@pytest.mark.parametrize(("prompt", "bias", "steps"), LEFT_HALFWAY.values(), ids=LEFT_HALFWAY)
def test_numbers_that_are_not_finite_of_a_request_cancelled_before_anyone_knew_poison_nobody(
    checkpoint: Checkpoint, prompt: list[int], bias: dict[int, float], steps: int
):
    """Pages that are gathered whole are read past a row's end, where 0 x NaN would be NaN."""
    cache = {"kv_cache_bytes": kv_bytes(6, 8), "block_size": 8, "max_model_len": 48, "max_batch_tokens": 10}
    engine = small_engine(checkpoint(), attention="sdpa", **cache)
    reference = engine.generate([[3] * 9], max_tokens=39, ignore_eos=True)[0].token_ids
    engine.scheduler.residency.forget_prefixes()
    engine.runner.model.destinations()["model.embed_tokens.weight"][BROKEN_TOKEN] = float("nan")
    engine.submit(ask("bad", prompt, max_tokens=8, sampling=Sampling(logit_bias=bias)))
    for _ in range(steps):
        engine.step()
    engine.cancel("bad")
    engine.submit(ask("good", [3] * 9, max_tokens=39))
    updates = run(engine)
    assert tokens(updates["good", 0]) == reference


def test_after_abandoning_the_engine_is_clean(engine: Engine):
    engine.submit(ask("a", n=2))
    engine.submit(ask("b"))
    engine.step()
    engine.abandon("the device failed")
    updates = run(engine)
    assert {key for key, list_ in updates.items() if list_[-1].finish and list_[-1].finish.reason is FinishReason.ENGINE_ERROR} == {
        ("a", 0),
        ("a", 1),
        ("b", 0),
    }


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("fields", "param", "sentence"),
    [
        ({"prompt_ids": []}, "prompt_ids", "prompt_ids is empty; a prompt needs at least one token"),
        ({"prompt_ids": [3, VOCAB]}, "prompt_ids", f"holding token {VOCAB}; this model has ids 0 to {VOCAB - 1}"),
        ({"adapter": "sql"}, "adapter", "there is no adapter 'sql'; there is: none"),
        ({"stop_token_ids": [-1]}, "stop_token_ids", "this model has ids"),
        ({"n": 0}, "n", "n is 0; it must be 1 to 128"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens is 0; it must be at least 1"),
        ({"min_tokens": 9}, "min_tokens", "min_tokens is 9; it must be 0 to max_tokens"),
        ({"top_logprobs": 21}, "top_logprobs", "top_logprobs is 21; it must be 0 to 20"),
        ({"resume_ids": [1], "n": 2}, "resume_ids", "only one sequence can resume"),
        ({"resume_ids": [1] * 8}, "resume_ids", "resume_ids holds 8 tokens and max_tokens is 8"),
        ({"sampling": Sampling(temperature=-1.0)}, "temperature", "temperature is -1.0; it must be 0 to 100"),
        ({"sampling": Sampling(temperature=float("nan"))}, "temperature", "temperature is nan"),
        ({"sampling": Sampling(top_p=0.0)}, "top_p", "top_p is 0.0; it must be over 0, at most 1"),
        ({"sampling": Sampling(top_k=-1)}, "top_k", "top_k is -1"),
        ({"sampling": Sampling(min_p=2.0)}, "min_p", "min_p is 2.0"),
        ({"sampling": Sampling(frequency_penalty=3.0)}, "frequency_penalty", "frequency_penalty is 3.0; it must be -2 to 2"),
        ({"sampling": Sampling(repetition_penalty=0.0)}, "repetition_penalty", "repetition_penalty is 0.0"),
        ({"sampling": Sampling(logit_bias={VOCAB: 1.0})}, "logit_bias", f"holding token {VOCAB}"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_request_that_can_never_run_is_refused_naming_its_field(engine: Engine, fields: dict[str, Any], param: str, sentence: str):
    with pytest.raises(RequestRefused, match=sentence) as refusal:
        engine.submit(Request(**{"request_id": "a", "prompt_ids": [1], "max_tokens": 8, **fields}))
    assert refusal.value.param == param
    assert not engine.has_work


def test_a_prompt_over_the_context_is_refused_with_both_numbers(checkpoint: Checkpoint):
    engine = small_engine(checkpoint(), max_model_len=32)
    with pytest.raises(ContextTooLong, match=r"the prompt has 40 tokens; this model takes 32 in all"):
        engine.submit(ask(prompt=[1] * 40))


# ---------------------------------------------------------------- any mixture


@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.integers(1, 12), st.integers(1, 3), st.booleans(), st.integers(0, 12)),
        min_size=1,
        max_size=6,
    ),
    st.integers(3, 40),
)
@settings(max_examples=15)
def test_any_mixture_ends_with_nothing_held(
    mixed_engine: Callable[[int], Engine], mixture: list[tuple[int, int, int, bool, int]], max_batch_tokens: int
):
    engine = mixed_engine(max_batch_tokens)
    for i, (length, max_tokens, n, random, _) in enumerate(mixture):
        sampling = Sampling(temperature=1.0, seed=i, top_k=5) if random else Sampling()
        engine.submit(ask(f"r{i}", [2 + (i * j) % 90 for j in range(length)], max_tokens=max_tokens, n=n, sampling=sampling))
    cancels = {i: step for i, (*_, step) in enumerate(mixture) if step}
    step, finished = 0, 0
    while engine.has_work:
        step += 1
        for i, at in cancels.items():
            if at == step:
                engine.cancel(f"r{i}")
        finished += sum(update.finish is not None for update in engine.step().updates)
    assert finished == sum(n for _, _, n, *_ in mixture)
    engine.check_integrity()


@pytest.fixture(scope="module")
def mixed_engine(checkpoint: Checkpoint, ahead: bool) -> Callable[[int], Engine]:
    """One engine for all mixtures, its cache small enough to preempt."""
    engine = small_engine(checkpoint(), kv_cache_bytes=kv_bytes(18, 4), block_size=4, max_model_len=64, max_running=5)

    def with_budget(max_batch_tokens: int) -> Engine:
        from dataclasses import replace

        engine.scheduler.limits = replace(engine.scheduler.limits, max_batch_tokens=max_batch_tokens)
        return engine

    return with_budget
