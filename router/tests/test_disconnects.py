"""A client that leaves, on every path and at every stage: whatever runs for it is cancelled on its worker, and every credit comes back.

Requests that foreign backends answer, and hedged ones, are in test_backends.py and test_hedging.py.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fleet_rig import Rig, generation, model_object, rig
from scripted import Caller, byte_level_tokenizer, chat
from scripted_worker import ScriptedWorker

from pagoda_router.generation import ModelName
from pagoda_router.http.app import create_app
from pagoda_router.http.surface import SurfaceSettings
from pagoda_router.wire import worker_pb2 as wire

TINY = ModelName("tiny")
TOKENIZER = byte_level_tokenizer()
IDS = TOKENIZER.encode("hello", add_special_tokens=False).ids
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PATHS: dict[str, tuple[str, dict[str, Any], int]] = {
    "chat, streaming": (CHAT, chat(stream=True), 1),
    "chat, whole": (CHAT, chat(), 1),
    "chat, three choices streaming": (CHAT, chat(n=3, stream=True), 1),
    "chat, three choices whole": (CHAT, chat(n=3), 1),
    "completion, streaming": (COMPLETIONS, {"model": "tiny", "prompt": "hi", "stream": True}, 1),
    "completion, whole": (COMPLETIONS, {"model": "tiny", "prompt": "hi"}, 1),
    "completion of two prompts, streaming": (COMPLETIONS, {"model": "tiny", "prompt": ["hi", "ho"], "stream": True}, 2),
    "completion of two prompts, whole": (COMPLETIONS, {"model": "tiny", "prompt": ["hi", "ho"]}, 2),
    "response, streaming": ("/v1/responses", {"model": "tiny", "input": "hi", "stream": True, "store": False}, 1),
    "response, whole": ("/v1/responses", {"model": "tiny", "input": "hi", "store": False}, 1),
    "embeddings": ("/v1/embeddings", {"model": "tiny", "input": ["hi", "ho"]}, 2),
}
"""Path, body, and how many requests a worker sees of it."""
every_path = pytest.mark.parametrize(("path", "body", "requests"), PATHS.values(), ids=PATHS)
ANSWERS = {name: entry for name, entry in PATHS.items() if name != "embeddings"}
every_answer = pytest.mark.parametrize(("path", "body", "requests"), ANSWERS.values(), ids=ANSWERS)


@asynccontextmanager
async def awake(name: str = "a", **options: Any) -> AsyncIterator[ScriptedWorker]:
    worker = ScriptedWorker(name=name, **options)
    worker.use_tokenizer(TOKENIZER.to_str().encode())
    worker.features = [wire.FEATURE_EMBEDDINGS]
    async with worker:
        yield worker


class Client:
    def __init__(self, router: Rig, path: str, body: dict[str, Any]) -> None:
        settings = SurfaceSettings(keep_alive_first_s=0.02, keep_alive_s=0.02)
        self._caller = Caller(create_app(dispatcher=router.dispatcher, catalog=router.fleet, settings=settings))
        self._asking = asyncio.create_task(self._caller("POST", path, body))

    async def has_read_tokens(self) -> None:
        """Of a stream: more than its headers and signs of life."""
        async with asyncio.timeout(10):
            while not any(b"hello" in message.get("body", b"") for message in self._caller.sent):
                self._caller.got.clear()
                await self._caller.got.wait()

    async def leaves(self) -> None:
        self._caller.left.set()
        await self._asking


async def submits_of(worker: ScriptedWorker, count: int) -> list[Any]:
    return [await worker.next_submit() for _ in range(count)]


async def cancelled(router: Rig, worker: ScriptedWorker, submits: list[Any]) -> None:
    """All of them, and no others; then nothing is held any more."""
    told = [await worker.next_cancel() for _ in submits]
    assert {(cancel.request_id, cancel.reason) for cancel in told} == {(each.request_id, wire.CANCEL_CLIENT_GONE) for each in submits}
    for submit in submits:
        for sequence in range(submit.n):
            worker.finish(submit.request_id, wire.FINISH_CANCELLED, sequence=sequence)
    await router.until(lambda: router.outstanding_tokens == 0)
    assert worker.cancels.empty()
    assert router.dispatcher.queue(TINY) == (0, 0)
    assert not router.dispatcher._running


async def queued(router: Rig, at_least: int = 1) -> None:
    async with asyncio.timeout(10):
        while router.dispatcher.queue(TINY)[0] < at_least:
            await asyncio.sleep(0.001)


@every_path
async def test_before_the_first_token_it_is_cancelled_on_the_worker(tmp_path: Path, path: str, body: dict[str, Any], requests: int) -> None:
    async with awake() as worker, rig(tmp_path, worker) as router:
        client = Client(router, path, body)
        submits = await submits_of(worker, requests)
        await client.leaves()
        await cancelled(router, worker, submits)


@every_answer
async def test_in_the_middle_of_the_answer_too(tmp_path: Path, path: str, body: dict[str, Any], requests: int) -> None:
    async with awake() as worker, rig(tmp_path, worker) as router:
        client = Client(router, path, body)
        submits = await submits_of(worker, requests)
        for submit in submits:
            worker.rows([(submit.request_id, sequence, IDS) for sequence in range(submit.n)], started=[submit.request_id])
        worker.change_state(num_running=7)  # read after the rows
        await router.until(lambda: all(link.view().running == 7 for link in router.fleet.links(TINY)))
        if body.get("stream"):
            await client.has_read_tokens()
        await client.leaves()
        await cancelled(router, worker, submits)


@every_path
async def test_in_the_queue_it_never_reaches_a_worker(tmp_path: Path, path: str, body: dict[str, Any], requests: int) -> None:
    async with awake(capacity_tokens=64) as worker, rig(tmp_path, worker) as router:
        running = asyncio.create_task(router.collect(generation(40, 24)))
        (before,) = await submits_of(worker, 1)
        client = Client(router, path, body)
        await queued(router)
        await client.leaves()
        assert router.dispatcher.queue(TINY) == (0, 0)
        worker.finish(before.request_id)
        await running
        await router.until(lambda: router.outstanding_tokens == 0)
        assert worker.submits.empty()


@every_path
async def test_while_its_model_sleeps_it_frees_its_place(tmp_path: Path, path: str, body: dict[str, Any], requests: int) -> None:
    async with rig(tmp_path) as router:
        router.know(models=[model_object()])
        client = Client(router, path, body)
        await queued(router)
        await client.leaves()
        assert router.dispatcher.queue(TINY) == (0, 0)
        assert router.dispatcher.demand(TINY).idle_s(router.dispatcher.now_s() + 1) > 0


@pytest.mark.parametrize("has_begun", [False, True], ids=["tried again", "going on"])
@every_answer
async def test_on_its_second_worker_it_is_cancelled_there(
    tmp_path: Path, path: str, body: dict[str, Any], requests: int, has_begun: bool
) -> None:
    async with awake() as lost, rig(tmp_path, lost) as router:
        client = Client(router, path, body)
        submits = await submits_of(lost, requests)
        if has_begun:
            for submit in submits:
                lost.rows([(submit.request_id, sequence, IDS) for sequence in range(submit.n)], started=[submit.request_id])
        lost.break_session()
        again = await submits_of(lost, sum(submit.n for submit in submits) if has_begun else requests)
        await client.leaves()
        await cancelled(router, lost, again)


@every_answer
async def test_while_the_rest_of_its_answer_waits_for_a_worker(tmp_path: Path, path: str, body: dict[str, Any], requests: int) -> None:
    async with awake() as worker, rig(tmp_path, worker) as router:
        client = Client(router, path, body)
        submits = await submits_of(worker, requests)
        for submit in submits:
            worker.rows([(submit.request_id, sequence, IDS) for sequence in range(submit.n)], started=[submit.request_id])
        worker.change_state(num_running=7)  # read after the rows, without which there is one answer to repeat, not each of its choices
        await router.until(lambda: all(link.view().running == 7 for link in router.fleet.links(TINY)))
        await worker.stop()
        await queued(router, sum(submit.n for submit in submits))
        await client.leaves()
        assert router.dispatcher.queue(TINY) == (0, 0)
        assert not router.dispatcher._running
