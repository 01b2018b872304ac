"""The stamps of a sequence's way through the worker, on injected clocks: ordered, with shared boundaries, nothing left over."""

import logging
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from scripted_engine import FACTS
from simulated_device import VOCAB, expected_output, simulated
from test_front_progress import IDLE

from pagoda_worker.front.metrics import WorkerMetrics
from pagoda_worker.front.session import Outgoing
from pagoda_worker.front.switchboard import Switchboard
from pagoda_worker.front.validation import trace_id
from pagoda_worker.request import Request, StepOutput
from pagoda_worker.scheduling.plan import StepPlan
from pagoda_worker.scheduling.sampled import Sampled
from pagoda_worker.scheduling.sequence import MAX_BATCH_RUNS, Sequence
from pagoda_worker.wire import worker_pb2 as pb

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Clock:
    """Microseconds that both processes read. Moves by itself at every reading when given strides."""

    def __init__(self, strides_us: list[int] | None = None) -> None:
        self.now_us = 1_000
        self._strides_us = strides_us or [0]
        self._readings = 0

    def __call__(self) -> float:
        self._readings += 1
        self.now_us += self._strides_us[self._readings % len(self._strides_us)]
        return (self.now_us + 0.5) / 1e6  # in the middle, so that no rounding moves a microsecond


class Worker:
    """A switchboard over the real scheduler and a simulated device. Neither the engine's turn nor a write to the stream comes by itself."""

    def __init__(self, clock: Clock, *, ahead: bool = False, **limits: Any) -> None:
        """`ahead`: each step is planned and run before the one before it is settled."""
        self.clock = clock
        self.ahead = ahead
        self._flight: tuple[float, StepPlan, Sampled] | None = None
        self.scheduler, self.device = simulated(**limits)
        self.metrics = WorkerMetrics("chat", CollectorRegistry())
        self.switchboard = Switchboard("chat", "worker-1", self, self.metrics, clock=clock)
        self.switchboard.engine_ready(replace(FACTS, vocab_size=VOCAB, max_model_len=200), IDLE)
        self.session = self.switchboard.open("router-1")
        self.finishes: dict[tuple[int, int], pb.Finish] = {}
        self.started: dict[int, pb.Started] = {}
        self._arrived: list[Request] = []

    def ask(self, request_id: int, prompt_ids: list[int], max_tokens: int, **fields: Any) -> None:
        submit = pb.Submit(request_id=request_id, model="chat", prompt_ids=prompt_ids, max_tokens=max_tokens, **fields)
        submit.sampling.CopyFrom(pb.Sampling(top_p=1.0, seed=0))
        self.switchboard.submit(self.session, submit)

    # ---- an EngineControl

    def submit(self, request: Request) -> None:
        self._arrived.append(request)

    def cancel(self, request_id: str, sequence: int | None = None) -> None:
        self.take()
        self.scheduler.cancel(request_id, sequence)

    def draft(self, request_id: str, sequence: int, position: int, token_ids: list[int]) -> None:
        pass

    # ---- the engine's turn

    def take(self) -> None:
        for request in self._arrived:
            self.scheduler.submit(request, now=self.clock(), seed=0)
        self._arrived.clear()

    def step(self, took_us: int = 0) -> None:
        self.take()
        flight = self._flight or self._launch(took_us)
        following = self._launch(0) if self.ahead else None
        self._flight = following if following and not following[1].empty else None
        began, plan, sampled = flight
        ended = self.clock()
        updates = self.scheduler.settle(plan, sampled, ended)
        state = replace(IDLE, at_mono_us=int(ended * 1e6))
        self.switchboard.engine_stepped(StepOutput(updates, state, plan.sequences, plan.tokens, int((ended - began) * 1e6)))

    def _launch(self, took_us: int) -> tuple[float, StepPlan, Sampled]:
        began = self.clock()
        plan = self.scheduler.schedule(began)
        sampled = self.device.run(plan)
        self.clock.now_us += took_us
        return began, plan, sampled

    @property
    def busy(self) -> bool:
        return self.scheduler.has_work or bool(self._arrived) or self._flight is not None

    # ---- the stream

    def write(self, most: int = 1_000_000) -> None:
        while most > 0 and not self.session.outbox.empty():
            most -= 1
            outgoing = self.session.outbox.get_nowait()
            assert isinstance(outgoing, Outgoing)
            frame = outgoing.leaves(self.switchboard.now_us()).frame
            self.started |= {started.request_id: started for started in frame.started}
            self.finishes |= {(finish.request_id, finish.sequence): finish for finish in frame.finishes}

    def metric(self, name: str) -> float:
        families = text_string_to_metric_families(self.metrics.expose().decode())
        [value] = [sample.value for family in families for sample in family.samples if sample.name == name]
        return value


def test_each_stamp_is_of_the_moment_when_its_thing_was_done():
    clock = Clock()
    worker = Worker(clock, max_batch_tokens=4)
    worker.ask(1, [2, 3, 4, 5, 6], 2, ignore_eos=True, trace=pb.TraceContext(want_timings=True))
    clock.now_us = 1_500
    worker.take()
    clock.now_us = 2_000
    worker.step(took_us=700)  # the budget cuts the prompt in two
    clock.now_us = 3_000
    worker.step(took_us=2_000)  # the first token
    clock.now_us = 5_200
    worker.write()
    clock.now_us = 5_300
    worker.step(took_us=1_000)  # the last one
    clock.now_us = 7_777
    worker.write()
    timings = worker.finishes[1, 0].timings
    assert timings == pb.Timings(
        received_mono_us=1_000,
        handed_mono_us=1_000,
        accepted_mono_us=1_500,
        first_scheduled_mono_us=2_000,
        first_token_mono_us=5_000,
        first_sent_mono_us=5_200,
        last_token_mono_us=6_300,
        last_sent_mono_us=7_777,
        steps=3,
        batch_sizes=[1],
        batch_steps=[3],
    )
    assert worker.started[1].queue_us == 1_000
    sums = {phase: worker.metric(f"vllm:request_{phase}_time_seconds_sum") for phase in ("queue", "prefill", "decode", "inference")}
    assert sums == pytest.approx({"queue": 0.001, "prefill": 0.003, "decode": 0.0013, "inference": 0.0043})
    assert worker.metric("vllm:e2e_request_latency_seconds_sum") == pytest.approx(sums["queue"] + sums["prefill"] + sums["decode"])
    assert worker.metric("vllm:time_to_first_token_seconds_sum") == pytest.approx(0.004)
    assert worker.metric("vllm:request_time_per_output_token_seconds_sum") == pytest.approx(0.0013)
    assert worker.metric("vllm:iteration_tokens_total_sum") == 6


def test_an_eos_as_the_first_token_leaves_with_its_finish():
    first = expected_output(Request(request_id="x", prompt_ids=[2, 3], max_tokens=1, ignore_eos=True), 0)[0]
    clock = Clock()
    worker = Worker(clock)
    worker.ask(1, [2, 3], 5, stop_token_ids=[first])
    worker.step(took_us=100)
    clock.now_us = 2_000
    worker.write()
    timings = worker.finishes[1, 0].timings
    assert (timings.first_token_mono_us, timings.last_token_mono_us) == (1_100, 1_100)
    assert (timings.first_sent_mono_us, timings.last_sent_mono_us) == (2_000, 2_000)
    assert worker.metric("vllm:time_to_first_token_seconds_count") == 1


def test_a_request_that_never_ran_has_no_phases_but_its_ends():
    clock = Clock()
    worker = Worker(clock)
    worker.ask(1, [2, 3], 5)
    worker.switchboard.cancel(worker.session, pb.Cancel(request_id=1))
    clock.now_us = 3_000
    worker.step()
    worker.write()
    timings = worker.finishes[1, 0].timings
    assert (timings.received_mono_us, timings.accepted_mono_us, timings.last_sent_mono_us) == (1_000, 1_000, 3_000)
    assert (timings.first_scheduled_mono_us, timings.first_token_mono_us, timings.first_sent_mono_us, timings.steps) == (0, 0, 0, 0)
    assert worker.metric("vllm:request_queue_time_seconds_count") == 0


def test_an_engine_that_dies_leaves_what_the_front_has_seen(caplog: pytest.LogCaptureFixture):
    clock = Clock()
    worker = Worker(clock)
    worker.ask(1, [2, 3], 50, ignore_eos=True, trace=pb.TraceContext(traceparent=TRACEPARENT))
    clock.now_us = 2_000
    worker.step(took_us=500)
    worker.write()
    worker.step(took_us=500)
    clock.now_us = 4_000
    with caplog.at_level(logging.WARNING):
        worker.switchboard.engine_down("the engine died")
    worker.write()
    timings = worker.finishes[1, 0].timings
    assert (timings.received_mono_us, timings.first_scheduled_mono_us) == (1_000, 2_000)
    assert (timings.first_token_mono_us, timings.first_sent_mono_us) == (2_500, 2_500)
    assert (timings.last_token_mono_us, timings.last_sent_mono_us) == (3_000, 4_000)
    assert "traces 0af7651916cd43dd8448eb211c80319c" in caplog.text, "the log leads to the trace"


ACTIONS = st.one_of(
    st.tuples(st.just("ask"), st.integers(1, 18), st.integers(1, 3), st.integers(1, 8), st.booleans()),
    st.tuples(st.just("step"), st.integers(1, 3)),
    st.tuples(st.just("write"), st.integers(1, 2)),
    st.tuples(st.just("cancel"), st.integers(1, 8)),
)


@given(
    actions=st.lists(ACTIONS, min_size=1, max_size=25),
    strides_us=st.lists(st.integers(0, 5_000), min_size=1, max_size=7),
    blocks=st.integers(8, 14),
    max_batch_tokens=st.integers(3, 24),
    ahead=st.booleans(),
)
def test_in_any_order_of_events_stamps_are_ordered_and_phases_add_up(
    actions: list[tuple[Any, ...]], strides_us: list[int], blocks: int, max_batch_tokens: int, ahead: bool
):
    worker = Worker(Clock(strides_us), ahead=ahead, blocks=blocks, max_running=4, max_batch_tokens=max_batch_tokens)
    asked: dict[int, tuple[int, bool]] = {}
    for action, *values in actions:
        if action == "ask":
            length, n, max_tokens, want_timings = values
            asked[len(asked) + 1] = n, want_timings
            trace = pb.TraceContext(want_timings=want_timings)
            worker.ask(len(asked), [2 + (each * 7) % 40 for each in range(length)], max_tokens, n=n, trace=trace)
        elif action == "step":
            for _ in range(values[0]):
                worker.step()
        elif action == "write":
            worker.write(values[0])
        else:
            worker.switchboard.cancel(worker.session, pb.Cancel(request_id=values[0]))
    while worker.busy:
        worker.step()
    worker.write()
    assert set(worker.finishes) == {(request_id, sequence) for request_id, (n, _) in asked.items() for sequence in range(n)}
    for (request_id, _), finish in worker.finishes.items():
        check(finish, want_timings=asked[request_id][1])


def check(finish: pb.Finish, *, want_timings: bool) -> None:
    t = finish.timings
    assert 0 < t.received_mono_us <= t.handed_mono_us <= t.accepted_mono_us <= t.last_sent_mono_us
    assert sum(t.batch_steps) == (t.steps if want_timings else 0)
    assert len(t.batch_steps) == len(t.batch_sizes)
    if t.first_scheduled_mono_us:
        assert t.accepted_mono_us <= t.first_scheduled_mono_us <= t.last_sent_mono_us
    if not t.first_token_mono_us:
        assert (t.last_token_mono_us, t.first_sent_mono_us) == (0, 0)
        return
    assert t.first_token_mono_us <= t.first_sent_mono_us <= t.last_sent_mono_us
    edges = [t.received_mono_us, t.first_scheduled_mono_us, t.first_token_mono_us, t.last_token_mono_us, t.last_sent_mono_us]
    phases = [later - earlier for earlier, later in pairwise(edges)]
    assert all(phase >= 0 for phase in phases), f"a phase runs backwards: {edges}"
    assert sum(phases) == t.last_sent_mono_us - t.received_mono_us


@given(st.lists(st.integers(1, 4), max_size=40), st.integers(1, 30))
def test_batch_sizes_are_told_in_runs_that_add_up_and_end(sizes: list[int], times: int):
    request = Request(request_id="a", prompt_ids=[1], want_timings=True)
    sequence = Sequence(request, 0, arrival=0, accepted=0.0, limit=2, seed=0, root=b"")
    told = sizes * times
    for size in told:
        sequence.note_batch(size)
    runs = sequence.timings().batches
    assert sum(steps for _, steps in runs) == len(told)
    assert len(runs) <= MAX_BATCH_RUNS + 1
    exact = [size for size, steps in runs if size for _ in range(steps)]
    assert exact == told[: len(exact)]
    assert len(exact) == len(told) or runs[-1][0] == 0


@pytest.mark.parametrize(
    ("traceparent", "expected"),
    [
        (TRACEPARENT, "0af7651916cd43dd8448eb211c80319c"),
        ("", ""),
        (TRACEPARENT.upper(), ""),
        (TRACEPARENT + "\n", ""),
        (TRACEPARENT.replace("00-", "ff-", 1), ""),
        ("00-" + "0" * 32 + "-b7ad6b7169203331-01", ""),
        ("00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01", ""),
        ("level=error msg=forged", ""),
    ],
)
def test_only_a_traceparent_of_w3cs_form_names_a_trace(traceparent: str, expected: str):
    assert trace_id(pb.TraceContext(traceparent=traceparent)) == expected
