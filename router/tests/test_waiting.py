"""Requests for a model without a worker: held in a bounded room, woken, tokenized late, and never answered with 404."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fleet_rig import Rig, ends_of, generation, model_object, rig
from scripted import Caller, byte_level_tokenizer, chat
from scripted_worker import ScriptedWorker

from pagoda_router.errors import ColdStart, ModelNotFound, ModelUnavailable, Overloaded
from pagoda_router.generation import ModelName
from pagoda_router.http.app import create_app
from pagoda_router.http.surface import SurfaceSettings

TINY = ModelName("tiny")
CHAT = "/v1/chat/completions"
IDS = byte_level_tokenizer().encode("hello", add_special_tokens=False).ids


@asynccontextmanager
async def sleeping(tmp_path: Path, **fields: Any) -> AsyncIterator[Rig]:
    """A model without a worker, never described here."""
    async with rig(tmp_path) as router:
        router.know(models=[model_object(**fields)])
        yield router


@asynccontextmanager
async def awake() -> AsyncIterator[ScriptedWorker]:
    worker = ScriptedWorker()
    worker.use_tokenizer(byte_level_tokenizer().to_str().encode())
    async with worker:
        yield worker


def callers(router: Rig, count: int) -> list[Caller]:
    """Of one router: they share its tokenizers, as requests do."""
    settings = SurfaceSettings(keep_alive_first_s=0.02, keep_alive_s=0.02)
    app = create_app(dispatcher=router.dispatcher, catalog=router.fleet, settings=settings)
    return [Caller(app) for _ in range(count)]


def caller(router: Rig) -> Caller:
    return callers(router, 1)[0]


async def waiting(router: Rig, count: int) -> None:
    async with asyncio.timeout(10):
        while router.dispatcher.queue(TINY)[0] != count:
            await asyncio.sleep(0.005)


async def answer(worker: ScriptedWorker) -> Any:
    submit = await worker.next_submit()
    worker.tokens(submit.request_id, IDS, started=True)
    worker.finish(submit.request_id, tokens=len(IDS))
    return submit


def text_of(call: Caller) -> str:
    chunks = [line for line in call.body.decode().split("\n\n") if line.startswith("data: {")]
    return "".join(chunks)


# ---------------------------------------------------------------- waking


async def test_a_request_for_a_model_at_zero_waits_and_is_answered_by_the_worker_that_comes(tmp_path):
    async with awake() as worker, rig(tmp_path, worker) as router:
        router.know(models=[model_object()])
        task = asyncio.create_task(router.collect())
        await waiting(router, 1)
        router.know(worker)
        await answer(worker)
        assert ends_of(await task) == {0: "stop"}


async def test_a_stream_for_a_model_never_seen_gets_signs_of_life_and_then_its_tokens(tmp_path):
    async with awake() as worker, sleeping(tmp_path) as router:
        call = caller(router)
        task = asyncio.create_task(call("POST", CHAT, chat(stream=True)))
        async with asyncio.timeout(10):
            while call.body.count(b": waiting for a worker of tiny\n\n") < 2:
                call.got.clear()
                await call.got.wait()
        assert call.status == 200
        assert call.headers["content-type"].startswith("text/event-stream")
        assert router.dispatcher.queue(TINY) == (1, 1), "two bytes are less than a token, and a request is at least one"
        router.know(worker)
        submit = await answer(worker)
        await task
        assert len(submit.prompt_ids) > 0
        assert "hello" in text_of(call)
        assert call.body.endswith(b"data: [DONE]\n\n")
        assert router.dispatcher.queue(TINY) == (0, 0)


async def test_a_whole_answer_waits_in_silence(tmp_path):
    async with awake() as worker, sleeping(tmp_path) as router:
        call = caller(router)
        task = asyncio.create_task(call("POST", CHAT, chat()))
        await waiting(router, 1)
        assert call.sent == []
        router.know(worker)
        await answer(worker)
        await task
        assert call.json["choices"][0]["message"]["content"] == "hello"


async def test_a_model_that_can_answer_gets_no_signs_of_life(tmp_path):
    async with awake() as worker, rig(tmp_path, worker) as router:
        call = caller(router)
        task = asyncio.create_task(call("POST", CHAT, chat(stream=True)))
        submit = await worker.next_submit()
        await asyncio.sleep(0.1)
        assert call.sent == [], "a failure before the first token still has its own status"
        worker.tokens(submit.request_id, IDS)
        worker.finish(submit.request_id)
        await task
        assert b": waiting" not in call.body


async def test_text_prompts_and_ids_are_held_at_a_third_of_their_bytes(tmp_path):
    async with awake() as worker, sleeping(tmp_path) as router:
        bodies = [{"model": "tiny", "prompt": "ä" * 300}, {"model": "tiny", "prompt": [[1, 2, 3], [4, 5]], "max_tokens": 2}]
        tasks = [asyncio.create_task(caller(router)("POST", "/v1/completions", body)) for body in bodies]
        await waiting(router, 2)
        assert router.dispatcher.queue(TINY)[1] == 600 // 3 + 1 + 5
        router.know(worker)
        for _ in range(3):
            await answer(worker)
        assert [(await task).status for task in tasks] == [200, 200]


async def test_patience_for_room_begins_when_a_worker_came(tmp_path):
    now_s = [0.0]
    worker = ScriptedWorker(capacity_tokens=64)
    async with worker, rig(tmp_path, worker, queue_timeout_s=10.0, clock=lambda: now_s[0]) as router:
        router.know(models=[model_object()])
        tasks = [asyncio.create_task(router.collect(generation(20, 40))) for _ in range(2)]
        await waiting(router, 2)
        now_s[0] = 200.0
        router.know(worker)
        first = await worker.next_submit()
        now_s[0] = 209.0
        await asyncio.sleep(0.25)
        assert router.dispatcher.queue(TINY)[0] == 1
        now_s[0] = 211.0
        with pytest.raises(Overloaded, match="had no room for 64 tokens within 211 s"):
            await tasks[1]
        worker.finish(first.request_id)
        await tasks[0]


# ---------------------------------------------------------------- bounds


async def test_a_wait_ends_after_the_models_wake_timeout(tmp_path):
    async with sleeping(tmp_path, wake_timeout_s=0.2) as router:
        call = await caller(router)("POST", CHAT, chat())
        assert (call.status, call.error["code"]) == (503, "cold_start")
        assert re.search(r"no worker of tiny came within \d+ s", call.error["message"])
        assert 9 <= int(call.headers["retry-after"]) <= 11, "nothing is known of this model's wakes"
        stream = await caller(router)("POST", CHAT, chat(stream=True))
        assert stream.status == 200
        assert stream.body.startswith(b": waiting for a worker of tiny\n\n")
        assert b'"code":"cold_start"' in stream.body.split(b"\n\n")[-2]


async def test_signs_of_life_say_when_a_worker_is_expected_where_a_wake_was_seen(tmp_path):
    async with sleeping(tmp_path, wake_timeout_s=0.2, wake_s=40.0) as router:
        stream = await caller(router)("POST", CHAT, chat(stream=True))
        assert re.match(rb": waiting for a worker of tiny, expected in (39|40) s\n\n", stream.body)


async def test_more_than_the_room_holds_are_refused_with_what_a_wake_takes(tmp_path):
    async with sleeping(tmp_path, max_waiting=2, wake_s=40.0) as router:
        held = [asyncio.create_task(router.collect()) for _ in range(2)]
        await waiting(router, 2)
        with pytest.raises(ColdStart, match="2 requests with 64 tokens wait already for a worker of tiny to come") as refused:
            await router.collect()
        assert 34 < refused.value.retry_after_s <= 44
        for task in held:
            task.cancel()


async def test_the_token_bound_holds_while_asleep_too(tmp_path):
    async with sleeping(tmp_path, max_queue_tokens=64) as router:
        held = [asyncio.create_task(router.collect()) for _ in range(2)]
        await waiting(router, 2)
        with pytest.raises(ColdStart):
            await router.collect()
        for task in held:
            task.cancel()


async def test_a_measured_wake_makes_the_next_retry_after(tmp_path):
    now_s = [0.0]
    async with awake() as worker, rig(tmp_path, worker, clock=lambda: now_s[0]) as router:
        asleep = model_object(max_waiting=1, wake_s=500.0)
        router.know(models=[asleep])
        first = asyncio.create_task(router.collect())
        await waiting(router, 1)
        now_s[0] = 30.0
        router.know(worker, models=[asleep])
        await answer(worker)
        await first
        router.know(models=[asleep])
        second = asyncio.create_task(router.collect())
        await waiting(router, 1)
        now_s[0] = 40.0
        with pytest.raises(ColdStart) as refused:
            await router.collect()
        assert 18 <= refused.value.retry_after_s <= 22, "30 s as last time, of which 10 have passed"
        second.cancel()


HOPELESS = "ModelNotFound: there is no hf://no/such"


async def test_a_model_that_cannot_come_is_refused_at_once_with_its_reason(tmp_path):
    async with sleeping(tmp_path, hopeless=HOPELESS) as router:
        call = await caller(router)("POST", CHAT, chat(stream=True))
        assert (call.status, call.error["code"]) == (503, "model_unavailable")
        assert HOPELESS in call.error["message"]
        assert call.headers["x-should-retry"] == "false"
        assert (await caller(router)("GET", "/v1/models/tiny")).json["pagoda"] == {
            "variants": [{"name": "default", "backend": "pagoda", "quantization": "none"}],
            "ready": False,
            "state": "unavailable",
            "reason": HOPELESS,
        }


async def test_those_that_wait_hear_at_once_when_it_becomes_hopeless(tmp_path):
    async with sleeping(tmp_path) as router:
        task = asyncio.create_task(router.collect())
        await waiting(router, 1)
        router.know(models=[model_object(hopeless=HOPELESS)])
        with pytest.raises(ModelUnavailable, match="no worker of tiny can come: ModelNotFound"):
            await task


async def test_a_variant_that_cannot_come_keeps_nobody_from_waiting_for_another(tmp_path):
    variants = (("full", 100), ("int8", 0))
    async with sleeping(tmp_path, hopeless=HOPELESS, variants=variants, hopeless_variants=(("full", HOPELESS),)) as router:
        for headers in ({}, {"x-pagoda-features": "variant=full"}):
            call = await caller(router)("POST", CHAT, chat(), headers)
            assert (call.status, call.error["code"]) == (503, "model_unavailable")
        task = asyncio.create_task(caller(router)("POST", CHAT, chat(), {"x-pagoda-features": "variant=int8"}))
        await waiting(router, 1)
        router.know(models=[model_object(hopeless_variants=(("int8", HOPELESS),), variants=variants)])
        assert (await task).error["code"] == "model_unavailable"


async def test_a_verdict_does_not_count_while_a_worker_answers(tmp_path):
    async with awake() as worker, rig(tmp_path, worker) as router:
        router.know(worker, models=[model_object(hopeless="OutOfMemory: the new version does not fit")])
        task = asyncio.create_task(router.collect())
        await answer(worker)
        assert ends_of(await task) == {0: "stop"}


async def test_a_model_deleted_while_requests_wait_is_not_found(tmp_path):
    async with sleeping(tmp_path) as router:
        task = asyncio.create_task(router.collect())
        await waiting(router, 1)
        router.know(models=[model_object("other")])
        with pytest.raises(ModelNotFound):
            await task


# ---------------------------------------------------------------- late tokenization


async def test_what_is_wrong_for_any_model_is_said_at_once(tmp_path):
    async with sleeping(tmp_path) as router:
        for wrong, param in [
            ({"temperature": 9}, "temperature"),
            ({"messages": []}, "messages"),
            ({"n": 0}, "n"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"tool_choice": "required"}, "tool_choice"),
            ({"bad_words": [""]}, "bad_words"),
            ({"response_format": {"type": "xml"}}, "response_format.type"),
            ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice"),
        ]:
            call = await caller(router)("POST", CHAT, chat(stream=True, **wrong))
            assert (call.status, call.error["param"]) == (400, param)
        assert router.dispatcher.demand(TINY).arrivals == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_turns_out_too_long_is_refused_at_the_wake(tmp_path, stream):
    async with awake() as worker, sleeping(tmp_path) as router:
        call = caller(router)
        task = asyncio.create_task(call("POST", CHAT, chat(stream=stream, max_tokens=5000)))
        async with asyncio.timeout(10):
            while stream and not call.sent:
                await asyncio.sleep(0.005)
        await waiting(router, 1)
        router.know(worker)
        await task
        assert call.status == (200 if stream else 400)
        assert b'"code":"context_length_exceeded"' in call.body
        assert worker.submits.empty()
        assert router.dispatcher.queue(TINY) == (0, 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_while_it_waits_frees_its_place(tmp_path, stream):
    async with sleeping(tmp_path) as router:
        call = caller(router)
        task = asyncio.create_task(call("POST", CHAT, chat(stream=stream)))
        await waiting(router, 1)
        call.left.set()
        await task
        assert router.dispatcher.queue(TINY) == (0, 0)
        assert router.dispatcher.demand(TINY).idle_s(router.dispatcher.now_s()) >= 0
        sent = len(call.sent)
        await asyncio.sleep(0.1)
        assert len(call.sent) == sent, "nobody writes to a client that left"


async def test_a_held_request_keeps_its_place_before_later_ones(tmp_path):
    async with awake() as worker, sleeping(tmp_path) as router:
        worker.state.kv_capacity_tokens = 400
        earlier, later = callers(router, 2)
        first = asyncio.create_task(earlier("POST", CHAT, chat(max_tokens=300)))
        await waiting(router, 1)
        second = asyncio.create_task(later("POST", CHAT, chat(max_tokens=299)))
        await waiting(router, 2)
        router.know(worker)
        assert (await answer(worker)).max_tokens == 300
        assert (await answer(worker)).max_tokens == 299
        await asyncio.gather(first, second)


async def test_shutting_down_ends_what_is_held(tmp_path):
    async with sleeping(tmp_path) as router:
        call = caller(router)
        task = asyncio.create_task(call("POST", CHAT, chat()))
        await waiting(router, 1)
        router.dispatcher.shut_down("the router is shutting down")
        await task
        assert (call.status, call.error["code"]) == (503, "no_worker")


# ---------------------------------------------------------------- before the first snapshot


@pytest.mark.parametrize(("method", "path"), [("POST", CHAT), ("GET", "/v1/models"), ("GET", "/v1/models/tiny")])
async def test_a_router_that_knows_nothing_yet_does_not_say_that_there_is_nothing(tmp_path, method, path):
    async with rig(tmp_path) as router:
        call = await caller(router)(method, path, chat() if method == "POST" else b"")
        assert (call.status, call.error["code"], call.headers["retry-after"]) == (503, "router_starting", "2")


# ---------------------------------------------------------------- everything at once


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_comes_and_goes_nothing_is_left_behind(tmp_path, seed):
    rng = Random(seed)
    async with awake() as worker, sleeping(tmp_path, wake_timeout_s=5.0) as router:
        serving = asyncio.create_task(_serve_for_ever(worker))
        calls, tasks = [], []
        for _ in range(40):
            action = rng.random()
            if action < 0.5:
                call = caller(router)
                calls.append(call)
                tasks.append(asyncio.create_task(call("POST", CHAT, chat(stream=rng.random() < 0.5, max_tokens=rng.randint(1, 400)))))
            elif action < 0.65 and calls:
                rng.choice(calls).left.set()
            elif action < 0.75:
                worker.break_session()
            elif action < 0.9:
                router.know(worker)
            else:
                router.know(models=[model_object(wake_timeout_s=5.0)])
            await asyncio.sleep(rng.choice([0, 0, 0.01]))
        router.know(worker, models=[model_object(wake_timeout_s=5.0)])
        async with asyncio.timeout(20):
            await asyncio.gather(*tasks)
        serving.cancel()
        assert router.dispatcher.queue(TINY) == (0, 0)
        assert router.dispatcher.waiting_by_variant(TINY) == {}
        assert router.dispatcher.demand(TINY).arrivals >= 0
        await asyncio.sleep(0.01)
        assert router.dispatcher.demand(TINY).idle_s(router.dispatcher.now_s()) > 0
        for call in calls:
            assert call.left.is_set() or call.sent, "whoever stayed was answered"
            assert not call.sent or call.status != 404


async def _serve_for_ever(worker: ScriptedWorker) -> None:
    while True:
        submit = await worker.submits.get()
        if submit.request_id in worker._reserved:
            worker.tokens(submit.request_id, IDS, started=True)
            worker.finish(submit.request_id, tokens=len(IDS))
