"""When is an engine hung? Tokens stand still for longer than they may; a long prefill is not a hang."""

from dataclasses import replace

import pytest

from pagoda_worker.front.progress import Backoff, ProgressClock
from pagoda_worker.request import EngineState

IDLE = EngineState(
    step=0,
    at_mono_us=0,
    num_running=0,
    num_waiting=0,
    queued_prefill_tokens=0,
    kv_capacity_tokens=1024,
    kv_free_tokens=1024,
    preemptions_total=0,
    prefix_queries_total=0,
    prefix_hits_total=0,
    prompt_tokens_total=0,
    generation_tokens_total=0,
    prefill_tokens_per_s=0.0,
    decode_step_ms=0.0,
)
DECODING = replace(IDLE, num_running=1)


@pytest.fixture
def clock() -> ProgressClock:
    return ProgressClock(stall_s=20.0, max_batch_tokens=8192, now=0.0)


def test_an_idle_engine_that_answers_is_well(clock: ProgressClock):
    for now in range(0, 1000, 10):
        clock.heard(IDLE, float(now))
        assert clock.stalled_reason(now + 15.0) is None


def test_an_idle_engine_that_does_not_answer_is_stalled(clock: ProgressClock):
    clock.heard(IDLE, 0.0)
    assert clock.stalled_reason(21.0) == "the idle engine has not answered for 21 s"


def test_steps_without_tokens_are_no_progress(clock: ProgressClock):
    for now in range(22):
        clock.heard(DECODING, float(now))
    assert clock.stalled_reason(21.0) == "the engine has work and no token moved for 21 s"


def test_moving_tokens_are_progress(clock: ProgressClock):
    for now in range(100):
        clock.heard(replace(DECODING, generation_tokens_total=now), float(now))
        assert clock.stalled_reason(now + 19.0) is None


def test_a_prefill_may_take_what_its_measured_rate_says(clock: ProgressClock):
    clock.heard(replace(IDLE, prefill_tokens_per_s=100.0), 0.0)
    clock.submitted(2000)
    assert clock.stalled_reason(79.0) is None
    assert clock.stalled_reason(81.0) is not None


def test_a_step_computes_no_more_than_its_budget(clock: ProgressClock):
    clock.heard(replace(IDLE, prefill_tokens_per_s=8192.0), 0.0)
    clock.submitted(10_000_000)
    assert clock.stalled_reason(21.0) is not None


def test_the_first_prefill_has_more_time(clock: ProgressClock):
    clock.heard(IDLE, 0.0)
    clock.submitted(10)
    assert clock.stalled_reason(199.0) is None
    assert clock.stalled_reason(201.0) == "the engine has work and no token moved for 201 s"


def test_an_engine_that_moves_its_weights_is_not_hung_until_it_takes_forever(clock: ProgressClock):
    clock.heard(IDLE, 0.0)
    clock.moves_weights(10.0)
    assert clock.stalled_reason(609.0) is None
    assert clock.stalled_reason(611.0) == "the engine falls asleep or wakes and has said nothing for 601 s"
    clock.heard(IDLE, 611.0)
    assert clock.stalled_reason(632.0) == "the idle engine has not answered for 21 s"


def test_no_step_takes_forever(clock: ProgressClock):
    clock.heard(replace(IDLE, prefill_tokens_per_s=0.01), 0.0)
    clock.submitted(8000)
    assert clock.stalled_reason(601.0) is not None


def test_a_restart_comes_later_each_time_until_the_engine_was_well_for_a_minute():
    backoff = Backoff()
    assert [backoff.after(1.0) for _ in range(8)] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert backoff.after(61.0) == 0.5
    assert backoff.after(1.0) == 1.0
