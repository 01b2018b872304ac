"""spec.routing.fallback: another model answers when the one that was asked cannot, says so, and is billed alone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fleet_rig import Rig, generation, model_object, rig
from scripted import Caller, byte_level_tokenizer, chat
from scripted_worker import ScriptedWorker

from pagoda_router.catalog import ServedName
from pagoda_router.discovery.snapshot import read_models
from pagoda_router.generation import ModelName
from pagoda_router.http.app import create_app
from pagoda_router.http.surface import SurfaceSettings
from pagoda_router.keys.key import ANYONE
from pagoda_router.openai import fallback

CHAT = "/v1/chat/completions"
IDS = byte_level_tokenizer().encode("hello", add_special_tokens=False).ids
SPARE = model_object("spare", served_names=(ServedName("org/spare"),))


def tiny(**fields: Any) -> Any:
    return model_object("tiny", **{"fallback": ModelName("spare"), "fallback_after_s": 0.0, **fields})


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback, "LOOK_S", 0.01)


@asynccontextmanager
async def spare(**options: Any) -> AsyncIterator[ScriptedWorker]:
    worker = ScriptedWorker(model="spare", **options)
    worker.use_tokenizer(byte_level_tokenizer().to_str().encode())
    async with worker:
        yield worker


@asynccontextmanager
async def fleet(tmp_path: Path, *workers: ScriptedWorker, model: Any = None, **settings: Any) -> AsyncIterator[Rig]:
    async with rig(tmp_path, **settings) as router:
        router.know(*workers, models=[model or tiny(), SPARE])
        for worker in workers:
            await router.until_routable(model=worker.model)
        yield router


def caller(router: Rig) -> Caller:
    surface = SurfaceSettings(keep_alive_first_s=0.02, keep_alive_s=0.02)
    return Caller(create_app(dispatcher=router.dispatcher, catalog=router.fleet, settings=surface, observer=router.metrics))


async def answer(worker: ScriptedWorker) -> None:
    submit = await worker.next_submit()
    worker.tokens(submit.request_id, IDS, started=True)
    worker.finish(submit.request_id, tokens=len(IDS))


def fell_back(router: Rig, reason: str) -> float:
    return router.metric("fallbacks_total", model="tiny", reason=reason)


ASKED = {
    "chat": (CHAT, chat()),
    "completion": ("/v1/completions", {"model": "tiny", "prompt": "hi"}),
    "response": ("/v1/responses", {"model": "tiny", "input": "hi", "store": False}),
}


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize(("path", "body"), ASKED.values(), ids=ASKED)
async def test_a_model_without_a_worker_is_answered_by_the_other_which_says_its_name(
    tmp_path: Path, path: str, body: dict[str, Any], streams: bool
) -> None:
    async with spare() as worker, fleet(tmp_path, worker) as router:
        call = caller(router)
        asking = asyncio.create_task(call("POST", path, {**body, "stream": streams}))
        await answer(worker)
        await asking
        assert call.status == 200
        assert b'"model":"org/spare"' in call.body
        assert b'"model":"tiny"' not in call.body
        assert fell_back(router, "cold_start") == 1
        assert router.metric("tokens_total", model="spare", kind="completion") > 0
        assert router.metric("tokens_total", model="tiny", kind="completion") == 0
        assert router.dispatcher.queue(ModelName("tiny")) == (0, 0)


async def test_a_wait_for_a_worker_that_comes_in_time_is_waited_out(tmp_path: Path) -> None:
    own = ScriptedWorker()
    own.use_tokenizer(byte_level_tokenizer().to_str().encode())
    async with own, spare() as worker, fleet(tmp_path, worker, model=tiny(fallback_after_s=60.0)) as router:
        call = caller(router)
        asking = asyncio.create_task(call("POST", CHAT, chat()))
        async with asyncio.timeout(10):
            while router.dispatcher.queue(ModelName("tiny"))[0] == 0:
                await asyncio.sleep(0.005)
        router.know(own, worker, models=[tiny(fallback_after_s=60.0), SPARE])
        await answer(own)
        await asking
        assert b'"model":"tiny"' in call.body
        assert worker.submits.empty()


async def test_a_full_queue_and_a_wait_that_was_too_long_go_to_the_other(tmp_path: Path) -> None:
    own = ScriptedWorker(capacity_tokens=64)
    own.use_tokenizer(byte_level_tokenizer().to_str().encode())
    bounds = {"max_queue_tokens": 100, "queue_timeout_s": 0.2}
    async with own, spare() as worker, fleet(tmp_path, own, worker, **bounds) as router:
        running = asyncio.create_task(router.collect(generation(40, 24)))
        await own.next_submit()
        answering = asyncio.create_task(_answer_all(worker))
        calls = [caller(router) for _ in range(3)]
        await asyncio.gather(*(call("POST", CHAT, chat(max_tokens=40)) for call in calls))
        assert [call.status for call in calls] == [200] * 3
        headers = [call.headers["x-pagoda-fallback"] for call in calls]
        assert set(headers) == {"overloaded"}
        assert fell_back(router, "overloaded") == 3
        for task in (running, answering):
            task.cancel()


async def _answer_all(worker: ScriptedWorker) -> None:
    while True:
        await answer(worker)


NOBODY_ELSE = {
    "the client forbids it": ({}, {"X-Pagoda-Fallback": "off"}, True),
    "a variant was asked for": ({}, {"X-Pagoda-Features": "variant=default"}, True),
    "the other has no worker either": ({}, {}, False),
    "the other is gone": ({"fallback": ModelName("gone")}, {}, True),
    "none is named": ({"fallback": None}, {}, True),
}


@pytest.mark.parametrize(("fields", "headers", "has_spare"), NOBODY_ELSE.values(), ids=NOBODY_ELSE)
async def test_the_own_models_refusal_is_told_where(tmp_path: Path, fields: Any, headers: dict[str, str], has_spare: bool) -> None:
    model = tiny(**{"wake_timeout_s": 0.2, **fields})
    async with spare() as worker, fleet(tmp_path, *([worker] if has_spare else []), model=model) as router:
        call = await caller(router)("POST", CHAT, chat(), headers)
        assert (call.status, call.error["code"]) == (503, "cold_start")
        assert "no worker of tiny came" in call.error["message"]
        assert worker.submits.empty()


async def test_a_request_that_the_other_does_not_take_gets_the_own_models_refusal(tmp_path: Path) -> None:
    worker = ScriptedWorker(model="spare")
    worker.max_model_len = 16
    worker.use_tokenizer(byte_level_tokenizer().to_str().encode())
    async with worker, fleet(tmp_path, worker, model=tiny(hopeless="OutOfMemory: too large")) as router:
        call = await caller(router)("POST", CHAT, chat(messages=[{"role": "user", "content": "hello world " * 20}]))
        assert (call.status, call.error["code"]) == (503, "model_unavailable")
        assert fell_back(router, "model_unavailable") == 0


async def test_one_step_and_never_further(tmp_path: Path) -> None:
    async with spare(capacity_tokens=64) as worker, rig(tmp_path) as router:
        both = [tiny(hopeless="OutOfMemory: too large"), model_object("spare", fallback=ModelName("tiny"), max_queue_tokens=0)]
        router.know(worker, models=both)
        await router.until_routable(model="spare")
        running = [asyncio.create_task(router.collect(generation(40, 24, model=ModelName("spare")))) for _ in range(2)]
        await worker.next_submit()
        call = await caller(router)("POST", CHAT, chat())
        assert (call.status, call.error["code"]) == (503, "model_unavailable")
        for task in running:
            task.cancel()


async def test_embeddings_are_never_another_models(tmp_path: Path) -> None:
    async with spare() as worker, fleet(tmp_path, worker, model=tiny(wake_timeout_s=0.2)) as router:
        call = await caller(router)("POST", "/v1/embeddings", {"model": "tiny", "input": "hello"})
        assert (call.status, call.error["code"]) == (503, "cold_start")


async def test_a_key_that_may_not_ask_for_the_other_model_is_not_answered_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with spare() as worker, fleet(tmp_path, worker, model=tiny(wake_timeout_s=0.2)) as router:
        limited = replace(ANYONE, models=frozenset({"tiny"}))
        monkeypatch.setattr("pagoda_router.http.app._Surface._key_of", lambda self, scope: limited)
        call = await caller(router)("POST", CHAT, chat())
        assert (call.status, call.error["code"]) == (503, "cold_start")


async def test_a_header_that_is_neither_on_nor_off_is_refused(tmp_path: Path) -> None:
    async with fleet(tmp_path) as router:
        call = await caller(router)("POST", CHAT, chat(), {"X-Pagoda-Fallback": "maybe"})
        assert (call.status, call.error["param"]) == (400, "X-Pagoda-Fallback")


async def test_a_client_that_leaves_while_it_waits_for_either_leaves_nothing_behind(tmp_path: Path) -> None:
    async with spare() as worker, fleet(tmp_path, worker, model=tiny(fallback_after_s=0.1)) as router:
        for is_cold in (True, False):
            call = caller(router)
            asking = asyncio.create_task(call("POST", CHAT, chat(stream=True)))
            if not is_cold:
                submit = await worker.next_submit()
            call.left.set()
            await asking
        assert (await worker.next_cancel()).request_id == submit.request_id
        assert router.dispatcher.queue(ModelName("tiny")) == (0, 0)


def test_the_manifests_fields_are_read() -> None:
    def read(routing: dict[str, str]) -> tuple[Any, float]:
        item = {"metadata": {"name": "tiny"}, "spec": {"model": {"source": "builtin://tiny"}, "routing": routing}}
        (model,) = read_models([item], [])
        return model.fallback, model.fallback_after_s

    assert read({"fallback": "spare", "fallbackAfter": "2s"}) == ("spare", 2.0)
    assert read({"fallback": "spare"}) == ("spare", 10.0)
    assert read({}) == (None, 10.0)
