"""Where a request's time went: parts that add up, two processes' clocks, and who may read it."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fleet_rig import Rig, model_object, rig
from hypothesis import given
from hypothesis import strategies as st
from scripted import Caller, byte_level_tokenizer, chat
from scripted_worker import ScriptedWorker

from pagoda_router.generation import ModelName
from pagoda_router.http.app import create_app
from pagoda_router.http.surface import RequestOutcome, SurfaceSettings
from pagoda_router.http.traces import TraceAdmin
from pagoda_router.tracing.clock import ClockReading, WorkerClock
from pagoda_router.tracing.context import TraceContext, trace_context
from pagoda_router.tracing.document import document
from pagoda_router.tracing.phases import UPSTREAM, overhead_us, phases
from pagoda_router.tracing.record import Attempt, GenerationTrace, RequestTrace, WorkerTimes
from pagoda_router.tracing.ring import TraceRing
from pagoda_router.tracing.tracer import Tracer
from pagoda_router.wire import worker_pb2 as wire

IDS = byte_level_tokenizer().encode("hello world", add_special_tokens=False).ids
CHAT = "/v1/chat/completions"
ALL = ["receive", "prepare", "queue_wait", "route", "worker_queue", "prefill", "decode", "stream"]
CONTEXT = TraceContext("a" * 32, "b" * 16)


class TickingClock:
    """A millisecond passes at each look, so that every stamp is another one."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        self.now_s += 0.001
        return self.now_s


class Traced:
    """A router's surface and inside on one ticking clock, with a worker whose stamps the test writes."""

    def __init__(self, router: Rig, worker: ScriptedWorker, clock: TickingClock) -> None:
        self.router, self.worker, self.clock = router, worker, clock
        self.ring = TraceRing(10)
        self.app = create_app(
            dispatcher=router.dispatcher,
            catalog=router.fleet,
            settings=SurfaceSettings(),
            tracer=Tracer(self.ring, None, clock=clock, calendar=lambda: 1_800_000_000.25),
        )

    def ask(self, headers: dict[str, str] | None = None, **fields: object) -> "asyncio.Task[Caller]":
        return asyncio.create_task(Caller(self.app)("POST", CHAT, chat(**fields), headers={"x-request-id": "mine", **(headers or {})}))

    async def answer(self, **stamps: int) -> Any:
        """Received 2 ms after it was placed, then 3 ms queue, 30 ms prefill, 50 ms decode; the router hears 4 ms later."""
        submit = await self.worker.next_submit()
        received_us = int(self.clock.now_s * 1e6) + 2000 + self.worker.clock_ahead_us
        timings = {
            "received_mono_us": received_us,
            "first_scheduled_mono_us": received_us + 3000,
            "first_token_mono_us": received_us + 33_000,
            "last_token_mono_us": received_us + 83_000,
            "steps": 4,
            "preemptions": 1,
            "batch_sizes": [1, 2, 3],
            "batch_steps": [1, 2, 1],
            **stamps,
        }
        self.clock.now_s += 0.089
        self.worker.tokens(submit.request_id, IDS, started=True)
        self.worker.finish(submit.request_id, tokens=len(IDS), timings=wire.Timings(**timings))
        return submit

    @property
    def trace(self) -> RequestTrace:
        found = self.ring.find("mine")
        assert found is not None
        return found

    @property
    def told(self) -> dict[str, Any]:
        assert self.trace.ended_s is not None
        return document(self.trace, self.trace.ended_s)


@asynccontextmanager
async def traced(tmp_path: Path, *, ahead_us: int = 0) -> AsyncIterator[Traced]:
    worker, clock = ScriptedWorker(), TickingClock()
    worker.clock_ahead_us = ahead_us
    worker.use_tokenizer(byte_level_tokenizer().to_str().encode())
    async with worker, rig(tmp_path, worker, clock=clock) as router:
        await worker.pings.get()  # whatever the worker sends from here on comes after its pong
        yield Traced(router, worker, clock)


def parts_of(told: dict[str, Any]) -> dict[str, float]:
    return {part["name"]: part["ms"] for part in told["phases"]}


# ---------------------------------------------------------------- parts and their sum


async def test_the_parts_of_a_request_share_their_boundaries_and_add_up_to_the_whole(tmp_path):
    async with traced(tmp_path) as stack:
        call = stack.ask()
        await stack.answer()
        assert (await call).status == 200
        trace, told = stack.trace, stack.told
        found = phases(trace, trace.ended_s)
        assert [part.name for part in found] == ALL
        assert [part.opened_by for part in found] == ["router"] * 4 + ["worker"] * 4
        assert found[0].start_us == 0
        assert all(before.end_us == after.start_us for before, after in itertools.pairwise(found))
        assert sum(part.end_us - part.start_us for part in found) == int(trace.ended_s * 1e6) - int(trace.received_s * 1e6)
        assert sum(parts_of(told).values()) == pytest.approx(told["total_ms"], abs=1e-9)
        assert [parts_of(told)[name] for name in ("worker_queue", "prefill", "decode")] == [3, 30, 50]
        assert all(ms > 0 for ms in parts_of(told).values()), "each part is time between two stamps of the ticking clock"


async def test_a_trace_says_what_was_decided_predicted_and_seen(tmp_path):
    async with traced(tmp_path) as stack:
        call = stack.ask()
        submit = await stack.answer()
        await call
        told = stack.told
        assert submit.trace.want_timings
        assert (told["model"], told["status"], told["received_at"]) == ("tiny", 200, "2027-01-15T08:00:00.250000Z")
        assert told["worker"] == {
            "told": True, "steps": 4, "preemptions": 1, "batch_sizes": [(1, 1), (2, 2), (3, 1)],
            "clock": {"shared": True, "offset_us": 0, "uncertainty_us": 0},
        }  # fmt: skip
        decision = told["decision"]
        assert (decision["worker"], decision["policy"], decision["reason"]) == (
            f"tiny-default-0@127.0.0.1:{stack.worker.port}", "predicted", "only_worker",
        )  # fmt: skip
        assert (decision["runner_up"], decision["reserved_kv_tokens"]) == (None, submit.reserved_kv_tokens)
        first = told["predicted"]["first_token_ms"]
        assert first["predicted"] > 0
        assert first["actual"] == parts_of(told)["route"] + 3 + 30
        assert told["predicted"]["output_tokens"] == {"predicted": 256, "actual": len(IDS)}
        assert told["predicted"]["cached_tokens"] == {"predicted": 0, "actual": 2}
        assert told["tokens"] == {"prompt": len(submit.prompt_ids), "cached": 2, "output": len(IDS)}


async def test_a_second_try_is_told_and_its_wait_is_queue_wait(tmp_path):
    async with traced(tmp_path) as stack:
        call = stack.ask()
        refused = await stack.worker.next_submit()
        async with ScriptedWorker(name="other") as other:
            other.artifacts = stack.worker.artifacts
            stack.router.know(stack.worker, other)
            await stack.router.until_routable(2)
            stack.worker.refuse(refused.request_id, wire.Refused.OVERLOADED, "full")
            submit = await other.next_submit()
            other.tokens(submit.request_id, IDS)
            other.finish(submit.request_id, tokens=len(IDS))
            await call
        assert [(attempt["worker"].split("@")[0], attempt["failed"]) for attempt in stack.told["attempts"]] == [
            ("tiny-default-0", "refused"),
            ("other", None),
        ]
        assert stack.told["decision"]["worker"].startswith("other")


async def test_a_worker_on_another_host_is_read_by_our_clock(tmp_path):
    async with traced(tmp_path, ahead_us=7_000_000_000) as stack:
        call = stack.ask()
        await stack.answer()
        await call
        clock = stack.told["worker"]["clock"]
        assert not clock["shared"]
        assert abs(clock["offset_us"] - 7_000_000_000) <= clock["uncertainty_us"]
        parts = phases(stack.trace, stack.trace.ended_s)
        assert [part.name for part in parts] == ALL
        assert sum(part.end_us - part.start_us for part in parts) == parts[-1].end_us
        assert {part.name: part.end_us - part.start_us for part in parts}["prefill"] == 30_000, "a length needs no offset"


async def test_a_stream_cut_by_a_stop_string_is_told_apart_once_the_worker_has_spoken(tmp_path):
    async with traced(tmp_path) as stack:
        call = stack.ask(stop=["wor"])
        submit = await stack.worker.next_submit()
        stack.worker.tokens(submit.request_id, IDS, started=True)
        await call
        assert [part["name"] for part in stack.told["phases"]][3] == UPSTREAM
        assert not stack.told["worker"]["told"]
        await stack.worker.next_cancel()
        settled = stack.router.metric("settled_kv_tokens_total", model="tiny")
        at_us = int(stack.trace.received_s * 1e6)
        timings = wire.Timings(
            received_mono_us=at_us, first_scheduled_mono_us=at_us, first_token_mono_us=at_us, last_token_mono_us=at_us + 10**9
        )
        stack.worker.finish(submit.request_id, wire.FINISH_CANCELLED, timings=timings)
        await stack.router.until(lambda: stack.router.metric("settled_kv_tokens_total", model="tiny") > settled)
        assert [part["name"] for part in stack.told["phases"]] == ALL


async def test_a_refused_request_ends_in_the_phase_it_had_reached(tmp_path):
    async with traced(tmp_path) as stack:
        assert (await stack.ask(max_tokens=-1)).status == 400
        assert [part["name"] for part in stack.told["phases"]] == ["receive", "prepare"]
        assert (stack.told["decision"], stack.told["error"]) == (None, None)
        await stack.ask(model="no such")
        assert len(stack.ring) == 1, "requests for no known model would push everything else out"


async def test_the_time_in_which_a_model_wakes_is_queue_wait(tmp_path):
    async with ScriptedWorker() as worker, rig(tmp_path, clock=TickingClock()) as router:
        worker.use_tokenizer(byte_level_tokenizer().to_str().encode())
        router.know(models=[model_object()])
        stack = Traced(router, worker, router.dispatcher._clock)
        call = stack.ask()
        async with asyncio.timeout(10):
            while not router.dispatcher.queue(ModelName("tiny"))[0]:
                await asyncio.sleep(0)
        stack.clock.now_s += 5
        router.know(worker)
        await worker.pings.get()
        await stack.answer()
        assert (await call).status == 200
        assert [part["name"] for part in stack.told["phases"]] == ALL
        assert 5000 < parts_of(stack.told)["queue_wait"] < 5500
        assert stack.trace.held_s is not None, "it waited before its prompt could be tokenized"


def test_of_several_prompts_the_one_that_came_last_is_told():
    early = written([0, 1, 2, 3, 4, 5, 10, 10], told=True, cut_short=False, offset_us=0, reached=3)
    late = written([0, 1, 7, 8, 9, 20, 30, 30], told=True, cut_short=False, offset_us=0, reached=3)
    early.generations = [early.generations[0], late.generations[0], early.generations[0]]
    parts = {part.name: part for part in phases(early, 0.000040)}
    assert (parts["route"].start_us, parts["decode"].start_us, parts["stream"].start_us) == (7, 20, 30)


STAMPS_US = st.lists(st.integers(0, 10**7), min_size=8, max_size=8)


def written(stamps_us: list[int], *, told: bool, cut_short: bool, offset_us: int, reached: int) -> RequestTrace:
    times = WorkerTimes()
    times.clock = ClockReading(shared=False, offset_us=offset_us, uncertainty_us=5)
    times.cut_short = cut_short
    times.first_frame_us, times.last_frame_us = stamps_us[6] + offset_us, stamps_us[7] + offset_us
    if told:
        times.received_us, times.first_scheduled_us, times.first_token_us, times.last_token_us = (
            stamp + offset_us for stamp in stamps_us[3:7]
        )
    attempt = Attempt(
        placed_s=stamps_us[2] / 1e6, worker="w", policy="p", reason="r", reserved_tokens=16, predicted_ms=1.0, predicted_cached_tokens=0,
        runner_up=None, runner_up_ms=None, times=times,
    )  # fmt: skip
    trace = RequestTrace(
        context=CONTEXT, outcome=RequestOutcome(endpoint="chat", request_id="r"), received_s=stamps_us[0] / 1e6, received_unix_s=0.0
    )
    trace.body_s = stamps_us[1] / 1e6 if reached > 0 else None
    generation = GenerationTrace(queued_s=stamps_us[1] / 1e6 if reached > 1 else None, attempts=[attempt] if reached > 2 else [])
    trace.generations = [generation] if reached > 1 else []
    return trace


@given(STAMPS_US, st.booleans(), st.booleans(), st.integers(-(10**12), 10**12), st.integers(0, 3), st.integers(0, 2 * 10**7))
def test_no_part_is_negative_and_none_is_missing_whatever_the_clocks_say(stamps_us, told, cut_short, offset_us, reached, length_us):
    trace = written(stamps_us, told=told, cut_short=cut_short, offset_us=offset_us, reached=reached)
    end_s = trace.received_s + length_us / 1e6
    parts = phases(trace, end_s)
    whole_us = int(end_s * 1e6) - int(trace.received_s * 1e6)
    assert sum(part.end_us - part.start_us for part in parts) == whole_us
    assert all(part.end_us >= part.start_us >= 0 for part in parts)
    assert all(before.end_us == after.start_us for before, after in itertools.pairwise(parts))
    assert document(trace, end_s)["total_ms"] == whole_us / 1000


def test_overhead_is_preparing_and_handing_over_without_waiting():
    trace = written([0, 100, 5000, 5300, 6000, 7000, 9000, 9000], told=True, cut_short=False, offset_us=10**9, reached=3)
    trace.generations[0].queued_s = 0.0005
    assert overhead_us(trace) == 400 + 300
    trace.held_s = 0.0002
    assert overhead_us(trace) == 100 + 300, "waiting for a worker that can say how its prompt is tokenized is waiting"
    trace.generations[0].attempts[0].times.received_us = 0
    assert overhead_us(trace) is None


# ---------------------------------------------------------------- two clocks


def test_a_clock_whose_stamps_lie_within_the_round_trip_is_ours():
    clock = WorkerClock()
    assert clock.reading is None
    clock.ponged(1000, 1900, 1950, 2000)
    assert clock.reading == ClockReading(shared=True, offset_us=0, uncertainty_us=0)


def test_one_stamp_outside_its_round_trip_proves_another_host_and_the_quickest_ping_says_how_far():
    clock = WorkerClock()
    clock.ponged(1000, 3000, 3000, 9000)  # within a slow round trip, by chance
    assert clock.reading.shared
    clock.ponged(10_000, 15_100, 45_100, 40_200)  # 30 ms within the worker
    assert clock.reading == ClockReading(shared=False, offset_us=5000, uncertainty_us=101)
    assert clock.reading.ours_us(15_100) == 10_100
    clock.ponged(20_000, 26_000, 26_000, 21_000)
    assert clock.reading.offset_us == 5000


# ---------------------------------------------------------------- W3C context


PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CONTEXTS = [
    # traceparent, taken, sampled
    (PARENT, True, True),
    (PARENT[:-2] + b"00", True, False),
    (b"cc" + PARENT[2:] + b"-more", True, True),
    (PARENT + b"-more", False, False),
    (b"ff" + PARENT[2:], False, False),
    (PARENT.upper(), False, False),
    (b"00-" + b"0" * 32 + PARENT[35:], False, False),
    (PARENT[:36] + b"0" * 16 + b"-01", False, False),
    (b"nonsense", False, False),
    (None, False, False),
]


@pytest.mark.parametrize(("traceparent", "taken", "sampled"), CONTEXTS, ids=str)
def test_a_well_formed_parent_is_taken_and_anything_else_begins_a_trace(traceparent, taken, sampled):
    context = trace_context(traceparent, b"a=1", sample=False)
    assert (context.trace_id == "0af7651916cd43dd8448eb211c80319c", context.parent_span_id == "b7ad6b7169203331") == (taken, taken)
    assert (context.sampled, context.tracestate) == (sampled, "a=1" if taken else "")
    assert context.traceparent == f"00-{context.trace_id}-{context.span_id}-{'01' if sampled else '00'}"
    assert len(context.span_id) == 16
    assert context.span_id != context.parent_span_id


async def test_the_worker_continues_the_clients_trace_and_the_answer_names_it(tmp_path):
    async with traced(tmp_path) as stack:
        call = stack.ask({"traceparent": PARENT.decode(), "tracestate": "vendor=x"})
        submit = await stack.answer()
        answered = await call
        assert answered.headers["x-trace-id"] == "0af7651916cd43dd8448eb211c80319c"
        _, trace_id, span_id, flags = submit.trace.traceparent.split("-")
        assert (trace_id, flags, submit.trace.tracestate) == ("0af7651916cd43dd8448eb211c80319c", "01", "vendor=x")
        assert span_id == stack.trace.context.span_id != "b7ad6b7169203331"
        assert len((await stack.ask(model="no such")).headers["x-trace-id"]) == 32


# ---------------------------------------------------------------- in the answer


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_asks_gets_its_trace(tmp_path, stream):
    async with traced(tmp_path) as stack:
        call = stack.ask({"x-pagoda-trace": "1"}, stream=stream)
        await stack.answer()
        answered = await call
        if stream:
            assert answered.events[-1] == "[DONE]"
            chunk = answered.events[-2]
            assert (chunk["object"], chunk["choices"]) == ("chat.completion.chunk", [])
        else:
            chunk = answered.json
        told = chunk["pagoda_trace"]
        assert (told["request_id"], told["status"], told["tokens"]["output"]) == ("mine", 200, len(IDS))
        assert [part["name"] for part in told["phases"]] == ALL
        assert sum(parts_of(told).values()) == pytest.approx(told["total_ms"], abs=1e-9)


@pytest.mark.parametrize(("value", "status"), [("0", 200), ("true", 400), ("", 400)])
async def test_the_header_is_read_strictly(tmp_path, value, status):
    async with traced(tmp_path) as stack:
        call = stack.ask({"x-pagoda-trace": value})
        if status == 200:
            await stack.answer()
        answered = await call
        assert answered.status == status
        assert "pagoda_trace" not in answered.json


# ---------------------------------------------------------------- the ring and who reads it


def kept(request_id: str, *, model: str = "tiny", status: int = 200, duration_s: float = 1.0) -> RequestTrace:
    outcome = RequestOutcome(endpoint="chat", request_id=request_id, model=ModelName(model), status=status, duration_s=duration_s)
    return RequestTrace(context=CONTEXT, outcome=outcome, received_s=0.0, received_unix_s=0.0, ended_s=duration_s)


@pytest.fixture
def ring() -> TraceRing:
    made = TraceRing(4)
    for trace in (
        kept("gone"), kept("a"), kept("b", model="other", duration_s=3.0), kept("c", status=502), kept("a", duration_s=0.2)
    ):  # fmt: skip
        made.append(trace)
    return made


QUERIES = [
    (b"", ["a", "c", "b", "a"]),
    (b"limit=2", ["a", "c"]),
    (b"limit=0", []),
    (b"model=other", ["b"]),
    (b"status=502", ["c"]),
    (b"min_ms=500", ["c", "b", "a"]),
    (b"min_ms=500&model=tiny&limit=1", ["c"]),
]


@pytest.mark.parametrize(("query", "ids"), QUERIES, ids=str)
def test_traces_are_listed_newest_first_and_filtered(ring, query, ids):
    status, told = TraceAdmin(ring, lambda: 0.0)("/admin/traces", query)
    assert status == 200
    assert [trace["request_id"] for trace in told["traces"]] == ids


def test_one_trace_is_found_by_its_request_id_and_the_latest_wins(ring):
    admin = TraceAdmin(ring, lambda: 0.0)
    status, told = admin("/admin/traces/a", b"")
    assert (status, told["total_ms"]) == (200, 200)
    status, told = admin("/admin/traces/gone", b"")
    assert (status, told["error"]["message"]) == (404, "no trace of request 'gone': the last 4 finished requests are kept")
    assert admin("/admin/other", b"") is None


@pytest.mark.parametrize("known_as", ["r", "cmpl-1f", "cmpl-1f-2"], ids=["its own", "its answer's", "one prompt's"])
def test_a_trace_is_found_by_the_ids_that_answers_and_decisions_have(ring, known_as):
    trace = kept("r")
    trace.answer_id = "cmpl-1f"
    ring.append(trace)
    assert ring.find(known_as) is trace


@pytest.mark.parametrize(("query", "word"), [(b"modle=x", "modle"), (b"status=good", "whole numbers"), (b"min_ms=x", "min_ms")])
def test_a_filter_that_would_be_ignored_is_refused(ring, query, word):
    status, told = TraceAdmin(ring, lambda: 0.0)("/admin/traces", query)
    assert status == 400
    assert word in told["error"]["message"]
