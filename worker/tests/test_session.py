"""Sessions between routers and a front whose engine is scripted: ids in, frames out, in order; credits, cancels, cut-offs."""

import time
from typing import Any

import grpc
import pytest
from front_support import MODEL, first_answer, running_front
from scripted_engine import CAPACITY, ENDLESS, REFUSED

from pagoda_worker.front import session as session_module
from pagoda_worker.wire import worker_pb2 as pb


async def test_a_session_streams_tokens_and_ends_with_usage_and_timings():
    async with running_front() as bench:
        router = await bench.router()
        await router.submit(7, [10, 20, 30], max_tokens=4)
        finish = await router.finish(7)
        assert router.tokens[7, 0] == [31, 32, 33, 34]
        assert finish.reason == pb.FINISH_LENGTH
        assert (finish.usage.prompt_tokens, finish.usage.completion_tokens) == (3, 4)
        timings = finish.timings
        assert router.started[7].queue_us == timings.first_scheduled_mono_us - timings.received_mono_us


async def test_one_frame_holds_a_steps_rows_of_one_router_only():
    async with running_front() as bench:
        ours, theirs = await bench.router(router_id="ours"), await bench.router(router_id="theirs")
        for request_id in range(4):
            await ours.submit(request_id, [100 * request_id], max_tokens=50)
        await theirs.submit(0, [500], max_tokens=50)
        for request_id in range(4):
            await ours.finish(request_id)
        await theirs.finish(0)
        assert {key[0] for key in theirs.tokens} == {0}
        assert theirs.tokens[0, 0] == list(range(501, 551))
        assert [ours.tokens[each, 0][-1] for each in range(4)] == [50, 150, 250, 350]
        steps = [frame.step for frame in ours.frames if frame.request_ids]
        assert steps == sorted(set(steps)), "one frame a step, in order"
        assert len(steps) < 4 * 50, "rows of one step travel together"


async def test_n_sequences_are_told_apart():
    async with running_front() as bench:
        router = await bench.router()
        await router.submit(1, [10], max_tokens=3, n=3, top_logprobs=2)
        for sequence in range(3):
            await router.finish(1, sequence)
        assert {key: len(ids) for key, ids in router.tokens.items()} == {(1, 0): 3, (1, 1): 3, (1, 2): 3}
        rows = [row for frame in router.frames for row in frame.logprobs]
        assert len(rows) == 9
        assert all((row.k, len(row.sampled), len(row.top_ids), len(row.top)) == (2, 1, 2, 2) for row in rows)


async def test_a_cancel_ends_one_sequence_or_all():
    async with running_front() as bench:
        router = await bench.router()
        await router.submit(1, [ENDLESS], max_tokens=200, n=2)
        await router.until(lambda: (1, 1) in router.tokens)
        await router.cancel(1, sequence=0, reason=pb.CANCEL_STOP_STRING)
        assert (await router.finish(1, 0)).reason == pb.FINISH_CANCELLED
        seen = len(router.tokens[1, 1])
        await router.until(lambda: len(router.tokens[1, 1]) > seen)
        await router.cancel(1)
        assert (await router.finish(1, 1)).reason == pb.FINISH_CANCELLED
        await router.cancel(1)
        await router.cancel(99)
        await router.submit(2, [10], max_tokens=1)
        await router.finish(2)
        assert await bench.metric("vllm:request_success_total", finished_reason="stop") == 1


async def test_a_router_that_vanishes_takes_its_requests_along():
    async with running_front() as bench:
        watcher, leaver = await bench.router(router_id="watcher"), await bench.router(router_id="leaver")
        await leaver.submit(1, [ENDLESS], max_tokens=200, reserved_kv_tokens=320)
        await watcher.until(lambda: watcher.state.num_running == 1)
        leaver.vanish()
        await watcher.until(
            lambda: watcher.state.num_running == 0 and watcher.state.kv_free_tokens == CAPACITY and watcher.granted == CAPACITY
        )
        assert await bench.metric("pagoda_sessions") == 1
        assert bench.front.switchboard.idle.is_set()


async def test_a_second_session_of_a_router_replaces_the_first():
    async with running_front() as bench:
        first = await bench.router(router_id="same")
        await first.submit(1, [ENDLESS], max_tokens=200, reserved_kv_tokens=320)
        await first.until(lambda: first.tokens)
        second = await bench.router(router_id="same")
        assert second.welcome.epoch > first.welcome.epoch
        assert second.granted == CAPACITY
        assert await first.end() == (grpc.StatusCode.ABORTED, "a newer session of router same replaced this one")
        await second.until(lambda: second.state.num_running == 0)


async def test_credits_are_spent_and_come_back_with_the_finish():
    async with running_front() as bench:
        router = await bench.router()
        assert router.granted == CAPACITY
        await router.submit(1, [10], max_tokens=100, reserved_kv_tokens=112)
        other = await bench.router(router_id="r2")
        assert other.granted == CAPACITY // 2
        await router.until(lambda: router.granted == CAPACITY // 2)
        await router.finish(1)
        assert router.granted == CAPACITY // 2 + 112, "the grant comes in the frame of the finish"


async def test_a_refused_submit_gets_its_credits_back():
    async with running_front() as bench:
        router = await bench.router()
        await router.submit(1, [], reserved_kv_tokens=64)
        assert (await router.refusal(1)).param == "prompt_ids"
        await router.until(lambda: router.granted == CAPACITY + 64)
        await router.submit(2, [REFUSED], reserved_kv_tokens=32)
        await router.refusal(2)
        await router.until(lambda: router.granted == CAPACITY + 96)


REFUSALS = [
    ({"prompt_ids": [1], "model": "other"}, pb.Refused.MODEL_NOT_FOUND, "model", "this worker serves 'tiny', not 'other'"),
    ({"prompt_ids": [5000]}, pb.Refused.INVALID, "prompt_ids", "vocabulary has 1000"),
    ({"prompt_ids": [1] * 300}, pb.Refused.CONTEXT_TOO_LONG, "prompt_ids", "300 tokens; the model takes 256"),
    ({"prompt_ids": [1], "adapter": "sql"}, pb.Refused.MODEL_NOT_FOUND, "adapter", "there is no adapter 'sql'; there is: none"),
    ({"prompt_ids": [1], "reserved_kv_tokens": CAPACITY + 1}, pb.Refused.OVERLOADED, "reserved_kv_tokens", "do not fit"),
    ({"prompt_ids": [REFUSED]}, pb.Refused.INVALID, "prompt_ids", "the engine does not like this prompt"),
]


async def test_each_refusal_has_its_code_its_field_and_a_sentence():
    async with running_front() as bench:
        router = await bench.router()
        for request_id, (fields, code, param, message) in enumerate(REFUSALS):
            await router.submit(request_id, **fields)
            refused = await router.refusal(request_id)
            assert (refused.code, refused.param) == (code, param)
            assert message in refused.message
        assert bench.front.switchboard.idle.is_set()


async def test_pings_are_answered_with_four_stamps_from_which_the_clocks_offset_follows():
    ahead_us = 86_400_000_000

    def now_us() -> int:
        """A router whose clock is a day ahead of the worker's."""
        return time.monotonic_ns() // 1000 + ahead_us

    async with running_front() as bench:
        router = await bench.router()
        await router.send(pb.ToWorker(ping=pb.Ping(sent_mono_us=now_us())))
        await router.until(lambda: router.pongs)
        got_us, [pong] = now_us(), router.pongs
        offset_us = ((pong.worker_mono_us - pong.sent_mono_us) + (pong.replied_mono_us - got_us)) / 2
        uncertainty_us = ((got_us - pong.sent_mono_us) - (pong.replied_mono_us - pong.worker_mono_us)) / 2
        assert abs(offset_us + ahead_us) <= uncertainty_us + 1


async def test_messages_that_came_along_count_as_if_sent_one_by_one():
    async with running_front() as bench:
        router = await bench.router()
        assert router.welcome.takes_batches
        assert router.welcome.takes_packed_ids
        submits = [pb.ToWorker(submit=pb.Submit(request_id=i, model=MODEL, prompt_ids=[10], max_tokens=100 + i)) for i in (1, 2, 3)]
        cancel = pb.ToWorker(cancel=pb.Cancel(request_id=2))
        submits[0].more.extend([*submits[1:], cancel])
        await router.send(submits[0])
        assert [(await router.finish(i)).reason for i in (1, 2, 3)] == [pb.FINISH_LENGTH, pb.FINISH_CANCELLED, pb.FINISH_LENGTH]
        assert len(router.tokens[3, 0]) == 103


async def test_a_router_that_does_not_acknowledge_is_cut_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session_module, "MAX_UNREAD_FRAMES", 20)
    async with running_front() as bench:
        deaf = await bench.router(router_id="deaf", acknowledges=False)
        fine = await bench.router(router_id="fine")
        await fine.submit(1, [10], max_tokens=10)
        await deaf.submit(1, [10], max_tokens=200)
        code, details = await deaf.end()
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "20 frames are unacknowledged" in details
        await fine.until(lambda: fine.state.num_running == 0)


async def test_a_router_that_stops_reading_costs_no_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session_module, "MAX_UNREAD_FRAMES", 50)
    async with running_front() as bench:
        call = bench.stub.Session()
        await call.write(pb.ToWorker(hello=pb.Hello(protocol=1, router_id="stuck")))
        watcher = await bench.router(router_id="watcher")
        for request_id in range(4):
            submit = pb.Submit(request_id=request_id, model=MODEL, prompt_ids=[1] * 30, max_tokens=200, top_logprobs=5, n=4)
            await call.write(pb.ToWorker(submit=submit))
        await watcher.until(lambda: watcher.state.num_running == 16)
        await watcher.until(lambda: watcher.state.num_running == 0)
        assert await bench.metric("pagoda_sessions") == 1, "its session is gone"
        call.cancel()


PROTOCOL_ERRORS = [
    (pb.ToWorker(flow=pb.FlowCredit(frames_read_total=1_000_000)), "FlowCredit says 1000000 frames read"),
    (pb.ToWorker(hello=pb.Hello(protocol=1, router_id="again")), "a session's message was hello"),
    (pb.ToWorker(), "a session's message was empty"),
    (
        pb.ToWorker(ping=pb.Ping(), more=[pb.ToWorker(ping=pb.Ping(), more=[pb.ToWorker(ping=pb.Ping())])]),
        "a session's message was a batch in a batch",
    ),
    (pb.ToWorker(submit=pb.Submit(request_id=1, model=MODEL, prompt_ids=[1], max_tokens=200)), "Submit 1 is already running"),
    (pb.ToWorker(submit=pb.Submit(request_id=2, model=MODEL, reserved_kv_tokens=2**64 - 1)), "reserves more than"),
]


@pytest.mark.parametrize(("message", "details"), PROTOCOL_ERRORS, ids=[details for _, details in PROTOCOL_ERRORS])
async def test_a_router_that_breaks_the_protocol_is_told_how(message: pb.ToWorker, details: str):
    async with running_front() as bench:
        router = await bench.router()
        await router.submit(1, [1], max_tokens=200)
        await router.send(message)
        code, said = await router.end()
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert details in said


HELLOS = [
    ({"protocol": 2}, grpc.StatusCode.FAILED_PRECONDITION, "the router speaks protocol 2 and this worker 1"),
    ({"token": "wrong"}, grpc.StatusCode.UNAUTHENTICATED, "the session token is wrong"),
    ({"router_id": ""}, grpc.StatusCode.INVALID_ARGUMENT, "Hello names no router_id"),
]


@pytest.mark.parametrize(("fields", "code", "details"), HELLOS, ids=[details for *_, details in HELLOS])
async def test_a_wrong_hello_ends_the_call(fields: dict[str, Any], code: grpc.StatusCode, details: str):
    async with running_front(session_token="right") as bench:
        said = await first_answer(bench.stub, pb.ToWorker(hello=pb.Hello(**{"protocol": 1, "router_id": "r", "token": "right", **fields})))
        assert said[0] is code
        assert details in said[1]


async def test_the_right_token_opens_a_session():
    async with running_front(session_token="right") as bench:
        assert (await bench.router(token="right")).welcome.worker_id.startswith(MODEL)


async def test_a_session_must_begin_with_hello():
    async with running_front() as bench:
        assert (await first_answer(bench.stub, pb.ToWorker(ping=pb.Ping())))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_what_describe_names_can_be_fetched_by_hash():
    async with running_front() as bench:
        await bench.router()
        described = await bench.stub.Describe(pb.DescribeRequest())
        (model,) = described.models
        assert (described.protocol, model.model, model.max_model_len, model.eos_token_ids) == (1, MODEL, 256, [1])
        assert list(model.features) == [
            pb.FEATURE_CACHE_EVENTS,
            pb.FEATURE_PREFIX_CACHE_TOGGLE,
            pb.FEATURE_BATCHING_TOGGLE,
            pb.FEATURE_SLEEP,
            pb.FEATURE_PROMPT_LOGPROBS,
            pb.FEATURE_EMBEDDINGS,
            pb.FEATURE_STRUCTURED_OUTPUT,
            pb.FEATURE_ADAPTERS,
        ]
        for artifact in (model.tokenizer, model.chat_template):
            chunks = [chunk.data async for chunk in bench.stub.FetchArtifact(pb.FetchArtifactRequest(sha256=artifact.sha256))]
            assert sum(map(len, chunks)) == artifact.size_bytes
        assert b"<|end|>" in b"".join(chunks)
        assert '"eos_token": "<|end|>"' in model.special_tokens_json
        with pytest.raises(grpc.aio.AioRpcError, match="no artifact has the hash"):
            await anext(aiter(bench.stub.FetchArtifact(pb.FetchArtifactRequest(sha256="0" * 64))))


async def test_reserved_calls_answer_with_a_sentence():
    async with running_front() as bench:
        with pytest.raises(grpc.aio.AioRpcError, match="KV blocks cannot be imported yet") as refused:
            await bench.stub.ImportKv(iter([pb.KvChunk()]))
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        for stream in (bench.stub.ExportKv(pb.ExportKvRequest()), bench.stub.Verify(iter([pb.VerifyRequest()]))):
            with pytest.raises(grpc.aio.AioRpcError, match="UNIMPLEMENTED"):
                await anext(aiter(stream))


async def test_a_router_that_closes_its_side_ends_its_session():
    async with running_front() as bench:
        router = await bench.router()
        await router.submit(1, [ENDLESS], max_tokens=200)
        await router.until(lambda: router.tokens)
        await router.close_our_side()
        assert (await router.end())[0] is grpc.StatusCode.OK
        assert bench.front.switchboard.idle.is_set()
