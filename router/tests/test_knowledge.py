"""What a link learns within a session, and when it stops believing it."""

import pytest

from pagoda_router.backends.knowledge import FRESH_S, WorkerKnowledge
from pagoda_router.wire import worker_pb2 as wire


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


BUSY = wire.WorkerState(num_running=4)


def decoding(knowledge: WorkerKnowledge, steps: int, rows: int, step_us: int, state: wire.WorkerState = BUSY, first: int = 1) -> None:
    for step in range(first, first + steps):
        knowledge.heard(wire.Frame(step=step, at_mono_us=step * step_us, request_ids=[1] * rows), state)


def test_an_idle_workers_step_is_believed_for_a_while_and_then_forgotten():
    clock = Clock()
    knowledge = WorkerKnowledge(clock)
    knowledge.rates.told(1000.0, 26.0)
    clock.now_s += FRESH_S
    assert knowledge.step_ms(0) == 0
    decoding(knowledge, 3, 4, 26_000)
    assert knowledge.step_ms(0) == 26
    clock.now_s += FRESH_S
    assert (knowledge.step_ms(0), knowledge.step_ms_per_sequence(0)) == (0, None)
    assert knowledge.step_ms(1) == 26, "one that runs is measured as it does"


def test_steps_are_timed_between_frames_that_follow_each_other_and_only_decoded():
    knowledge = WorkerKnowledge(Clock())
    for first, rows in ((1, 2), (101, 8)):
        decoding(knowledge, 40, rows, 1000 * (4 + rows), wire.WorkerState(num_running=rows), first)
    decoding(knowledge, 40, 8, 90_000, wire.WorkerState(num_running=8, queued_prefill_tokens=9), 201)
    assert knowledge.rates.steps.at(8) == pytest.approx(12, rel=0.05)
    assert knowledge.rates.steps.at(2) == pytest.approx(6, rel=0.05)


def test_silence_counts_from_the_last_frame_or_the_first_request_after_a_pause():
    clock = Clock()
    knowledge = WorkerKnowledge(clock)
    clock.now_s += 7
    assert knowledge.silent_s() == 7
    knowledge.woken()
    assert knowledge.silent_s() == 0
