"""What our connections do beyond ASGI, on real sockets: tokens leave in the middle of reading a frame, and leaving clients are told of."""

import asyncio
import gc
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import recorded
import uvicorn
from fleet_rig import Rig, rig
from foreign_rig import rig as foreign_rig
from foreign_server import Answer, json_answer, stream
from scripted import byte_level_tokenizer, chat
from scripted_worker import ScriptedWorker

from pagoda_router.http.app import create_app
from pagoda_router.http.asgi import ASGIApp, Exchange
from pagoda_router.http.cohort import Cohort
from pagoda_router.http.direct import protocol_of
from pagoda_router.http.surface import Observer, SurfaceSettings
from pagoda_router.wire import worker_pb2 as wire

TOKENIZER = byte_level_tokenizer()


@asynccontextmanager
async def routed(
    folder: Path, cohort: Cohort | None = None, observer: Observer | None = None, features: Sequence[int] = (), **options: Any
) -> AsyncIterator[tuple[Rig, ScriptedWorker, int]]:
    """A worker behind a router behind a port of this very event loop."""
    worker = ScriptedWorker(name="a")
    worker.use_tokenizer(TOKENIZER.to_str().encode())
    worker.features = [*features]
    async with worker, rig(folder, worker) as router:
        app = create_app(dispatcher=router.dispatcher, catalog=router.fleet, settings=SurfaceSettings(**options), observer=observer)
        async with listening(app, cohort or Cohort()) as port:
            yield router, worker, port


@asynccontextmanager
async def listening(app: ASGIApp, cohort: Cohort) -> AsyncIterator[int]:
    """On a port of this very event loop."""
    config = uvicorn.Config(app, http=protocol_of(cohort), lifespan="off", access_log=False, log_config=None, ws="none")
    server = uvicorn.Server(config)
    bound = socket.create_server(("127.0.0.1", 0))
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup([bound])
    try:
        yield bound.getsockname()[1]
    finally:
        server.should_exit = True
        await server.shutdown([bound])


def request(**fields: Any) -> bytes:
    body = json.dumps(chat(stream=True, **fields)).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    return head + b"content-length: %d\r\n\r\n%b" % (len(body), body)


class Client:
    """Of one stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._raw = b""

    async def read_until(self, words: str) -> None:
        async with asyncio.timeout(10):
            while words.encode() not in self._raw:
                self._raw += await self._reader.read(65536) or pytest.fail("the stream ended early")

    def text(self) -> str:
        chunks = [line for line in self._raw.decode().split("\n") if line.startswith("data: {")]
        return "".join(json.loads(chunk[6:])["choices"][0]["delta"].get("content", "") for chunk in chunks)

    async def leave(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


@asynccontextmanager
async def asking(port: int, **fields: Any) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(**fields))
    client = Client(reader, writer)
    try:
        yield client
    finally:
        await client.leave()


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Those that were written without a task's turn."""
    written: list[bytes] = []
    original = Exchange.write_at_once

    def write(self: Exchange, piece: bytes) -> None:
        written.append(piece)
        original(self, piece)

    monkeypatch.setattr(Exchange, "write_at_once", write)
    return written


WORDS = ["hello", " world", " of", " streams", "!"]


async def stream_words(worker: ScriptedWorker, client: Client) -> None:
    """One after another, as each has reached the client: only then its stream's reader waits for the next."""
    submit = await worker.next_submit()
    for number, word in enumerate(WORDS):
        worker.tokens(submit.request_id, TOKENIZER.encode(word, add_special_tokens=False).ids, started=number == 0)
        await client.read_until(word)
    worker.finish(submit.request_id, tokens=len(WORDS))
    await client.read_until("data: [DONE]")


async def test_a_plain_streams_tokens_are_written_as_they_come(tmp_path: Path, pieces: list[bytes]) -> None:
    async with routed(tmp_path) as (_, worker, port), asking(port) as client:
        await stream_words(worker, client)
        assert client.text() == "".join(WORDS)
        assert len(pieces) == len(WORDS) - 1  # the first opens the answer


async def test_what_needs_more_than_decoding_goes_the_long_way(tmp_path: Path, pieces: list[bytes]) -> None:
    async with routed(tmp_path) as (_, worker, port), asking(port, stop=["zzz"]) as client:
        await stream_words(worker, client)
        assert client.text() == "".join(WORDS)
        assert pieces == []


async def test_a_client_that_leaves_is_cancelled_on_its_worker(tmp_path: Path) -> None:
    async with routed(tmp_path) as (router, worker, port):
        async with asking(port) as client:
            submit = await worker.next_submit()
            worker.tokens(submit.request_id, TOKENIZER.encode("hello", add_special_tokens=False).ids, started=True)
            await client.read_until("hello")
        cancel = await worker.next_cancel()
        assert (cancel.request_id, cancel.reason) == (submit.request_id, wire.CANCEL_CLIENT_GONE)
        worker.finish(submit.request_id, wire.FINISH_CANCELLED)
        await router.until(lambda: router.outstanding_tokens == 0)


async def test_of_pipelined_requests_the_one_being_answered_is_cancelled(tmp_path: Path) -> None:
    async with routed(tmp_path) as (_, worker, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request() + request())
        submit = await worker.next_submit()
        writer.close()
        await writer.wait_closed()
        assert (await worker.next_cancel()).request_id == submit.request_id
        assert worker.submits.empty()


def whole_answer(**fields: Any) -> bytes:
    return request(**fields).replace(b'"stream": true', b'"stream":false')


@pytest.mark.parametrize("ask", [request, whole_answer], ids=["streamed", "whole"])
async def test_a_request_leaves_nothing_to_the_collector(tmp_path: Path, ask: Any) -> None:
    """Thirty objects a request in cycles were a pause of 20 ms each second at 500 requests/s."""
    async with routed(tmp_path) as (_, worker, port):

        async def works() -> None:
            submit = await worker.next_submit()
            worker.tokens(submit.request_id, TOKENIZER.encode("hello", add_special_tokens=False).ids, started=True)
            worker.finish(submit.request_id, tokens=1)

        assert await left_to_the_collector(port, ask(), works) == []


async def left_to_the_collector(port: int, asked: bytes, works: Callable[[], Awaitable[object]]) -> list[str]:
    """Types of what three requests left in cycles. `works`: what answers one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def answered() -> None:
        writer.write(asked)
        await works()
        received = b""
        async with asyncio.timeout(10):
            while not received.endswith(b"}" if b"content-length" in received else b"\r\n0\r\n\r\n"):
                received += await reader.read(65536) or pytest.fail("the answer ended early")
        assert received.startswith(b"HTTP/1.1 200 ")

    await answered()  # the first loads the tokenizer
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(3):
            await answered()
        gc.collect()
        return [type(each).__name__ for each in gc.garbage if type(each).__module__.startswith(("pagoda_router", "uvicorn"))]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def relaying(folder: Path, answer: Answer) -> AsyncIterator[int]:
    """Somebody else's server behind a router behind a port of this very event loop."""
    async with recorded.server("vllm", answer) as server, foreign_rig(folder, server) as router:
        app = create_app(dispatcher=router.dispatcher, catalog=router.fleet, settings=SurfaceSettings())
        async with listening(app, Cohort()) as port:
            yield port


async def test_a_relayed_stream_is_written_as_it_comes(tmp_path: Path, pieces: list[bytes]) -> None:
    gates = [asyncio.Event() for _ in recorded.VLLM_TOKENS]
    parts = [part for pair in zip(gates, recorded.VLLM_TOKENS, strict=True) for part in pair]
    answer = stream(recorded.VLLM_ROLE, *parts, recorded.VLLM_LAST, recorded.DONE)
    async with relaying(tmp_path, answer) as port, asking(port, model="chat") as client:
        await client.read_until('"role"')
        for gate, words in zip(gates, ("Hello", "model"), strict=True):
            gate.set()
            await client.read_until(words)
        await client.read_until("data: [DONE]")
        assert client.text() == 'Hello "model":"x" \n\n'
        assert len(pieces) >= 2  # the first event opens the answer, and the last may come with the one before


@pytest.mark.parametrize(
    ("ask", "answer"),
    [(request, stream(*recorded.VLLM_STREAM)), (whole_answer, json_answer(recorded.VLLM_WHOLE))],
    ids=["streamed", "whole"],
)
async def test_a_relayed_request_leaves_nothing_to_the_collector(tmp_path: Path, ask: Any, answer: Answer) -> None:
    async with relaying(tmp_path, answer) as port:
        assert await left_to_the_collector(port, ask(model="chat"), lambda: asyncio.sleep(0)) == []
