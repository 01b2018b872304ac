"""The unmodified `openai` package, and bare sockets, against the surface behind a real uvicorn."""

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import openai
import pytest
from scripted import Address, Script, ScriptedCatalog, ScriptedDispatcher, served
from tokenizers import Tokenizer

from pagoda_router.errors import ColdStart, DeadlineInfeasible, ModelUnavailable, Overloaded, RouterError
from pagoda_router.generation import EndReason
from pagoda_router.http.app import create_app
from pagoda_router.http.surface import SurfaceSettings
from pagoda_router.keys.keyring import Keyring

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
def url(dispatcher: ScriptedDispatcher, catalog: ScriptedCatalog, tokenizer: Tokenizer) -> Iterator[Address]:
    dispatcher.script = Script(batches=[[i] for i in tokenizer.encode("hello world 🎉").ids], cached_tokens=2)
    settings = SurfaceSettings(stalled_reader_s=0.3)
    keyring = Keyring("secret", None, calendar=time.time)
    with served(create_app(dispatcher=dispatcher, catalog=catalog, settings=settings, keyring=keyring)) as base:
        yield base


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as client:
        yield client


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "org/asleep"]
    assert client.models.retrieve("org/asleep").created == 1_700_000_001


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/tiny", "/v1/models/nobody", "/", "/console/chat.js"])
def test_head_answers_as_get_does_without_its_body(url: str, path: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.connect()
    connection.auto_open = 0  # a body after the first head would be read as the next answer
    told = {}
    for method in ("HEAD", "GET", "HEAD"):
        connection.request(method, path, headers={"authorization": "Bearer secret", "x-request-id": "r"})
        answer = connection.getresponse()
        assert bool(answer.read()) is (method == "GET")
        told[method] = answer.status, [pair for pair in answer.getheaders() if pair[0] != "date"]
    connection.close()
    assert told["HEAD"] == told["GET"]


def test_a_chat_completion(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="tiny", messages=HI, n=2, seed=1, user="me", logprobs=True, top_logprobs=3, extra_headers={"x-request-id": "mine"}
    )  # type: ignore[call-overload]
    assert raw.headers["x-request-id"] == "mine"
    completion = raw.parse()
    assert completion._request_id == "mine"
    assert [choice.message.content for choice in completion.choices] == ["hello world 🎉"] * 2
    assert [(choice.index, choice.finish_reason, choice.message.role) for choice in completion.choices] == [
        (0, "stop", "assistant"),
        (1, "stop", "assistant"),
    ]
    tokens = completion.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == "hello world 🎉"
    assert len(tokens[0].top_logprobs) == 3
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens
    assert completion.usage.prompt_tokens_details.cached_tokens == 2


def test_a_chat_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="tiny", messages=HI, stream=True, stream_options={"include_usage": True})  # type: ignore[call-overload]
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "hello world 🎉"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.prompt_tokens == 5


TRACED = {"x-pagoda-trace": "1"}


def test_a_trace_in_the_answer_reaches_a_client_that_knows_nothing_of_it(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(model="tiny", messages=HI, extra_headers=TRACED)  # type: ignore[call-overload]
    assert completion.choices[0].message.content == "hello world 🎉"
    assert completion.pagoda_trace["tokens"]["output"] == completion.usage.completion_tokens
    text = client.completions.create(model="tiny", prompt="a", extra_headers=TRACED)
    assert text.pagoda_trace["status"] == 200  # type: ignore[attr-defined]


@pytest.mark.parametrize("options", [None, {"include_usage": True}])
def test_a_trace_is_a_streams_last_chunk(client: openai.OpenAI, options: object) -> None:
    *chunks, last = client.chat.completions.create(  # type: ignore[call-overload]
        model="tiny", messages=HI, stream=True, stream_options=options, extra_headers=TRACED
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "hello world 🎉"
    assert last.choices == []
    assert last.pagoda_trace["phases"][0]["name"] == "receive"


def test_the_clients_own_accumulator_passes_a_trace_on(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="tiny", messages=HI, extra_headers=TRACED) as stream:  # type: ignore[arg-type]
        chunks = [event.chunk for event in stream if event.type == "chunk"]
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "hello world 🎉"
    assert chunks[-1].pagoda_trace["stream"] is True  # type: ignore[attr-defined]


def test_the_clients_own_stream_accumulator(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="tiny", messages=HI) as stream:  # type: ignore[arg-type]
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "hello world 🎉"


@pytest.mark.parametrize("stream", [False, True])
def test_text_completions(client: openai.OpenAI, stream: bool) -> None:
    answer = client.completions.create(model="tiny", prompt=["a", "b"], max_tokens=20, stream=stream)
    if stream:
        texts = {0: "", 1: ""}
        for chunk in answer:
            texts[chunk.choices[0].index] += chunk.choices[0].text
        assert list(texts.values()) == ["hello world 🎉"] * 2
    else:
        assert [choice.text for choice in answer.choices] == ["hello world 🎉"] * 2


async def test_many_async_streams_at_once(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as client:

        async def one() -> str:
            stream = await client.chat.completions.create(model="tiny", messages=HI, stream=True)  # type: ignore[call-overload]
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        assert await asyncio.gather(*(one() for _ in range(16))) == ["hello world 🎉"] * 16


def test_each_error_is_the_clients_own_exception(client: openai.OpenAI, dispatcher: ScriptedDispatcher, url: str) -> None:
    create = client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as not_found:
        create(model="nobody", messages=HI)  # type: ignore[arg-type]
    assert (not_found.value.code, not_found.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as bad:
        create(model="tiny", messages=HI, max_tokens=9999)  # type: ignore[arg-type]
    assert (bad.value.code, bad.value.param, bad.value.type) == ("context_length_exceeded", "messages", "invalid_request_error")
    with pytest.raises(openai.AuthenticationError), openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as stranger:
        stranger.models.list()
    dispatcher.script = Script(refusal=Overloaded("busy", retry_after_s=2))
    with pytest.raises(openai.RateLimitError) as busy:
        create(model="tiny", messages=HI, stream=True)  # type: ignore[arg-type]
    assert busy.value.response.headers["retry-after"] == "2"
    dispatcher.script = Script(batches=[[70]], reason=EndReason.ENGINE_ERROR, detail="the engine died")
    with pytest.raises(openai.APIError, match="the engine died"):
        list(create(model="tiny", messages=HI, stream=True))  # type: ignore[arg-type]


def test_a_client_that_retries_is_answered_in_the_end(url: str, dispatcher: ScriptedDispatcher) -> None:
    refused = [Script(refusal=Overloaded("busy", retry_after_s=0.01))] * 2
    answered = dispatcher.script
    dispatcher.script_of = lambda _generation: refused.pop() if refused else answered
    with openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=2) as client:
        assert client.chat.completions.create(model="tiny", messages=HI).choices[0].message.content == "hello world 🎉"  # type: ignore[arg-type]


REFUSED = [
    # refusal → the client's exception, and how often it asked with two retries
    (Overloaded("full", retry_after_s=0.01), openai.RateLimitError, "overloaded", 3),
    (ColdStart("asleep", retry_after_s=0.01), openai.InternalServerError, "cold_start", 3),
    (DeadlineInfeasible("too late", retry_after_s=5.0), openai.RateLimitError, "deadline_infeasible", 1),
    (ModelUnavailable("no such model file"), openai.InternalServerError, "model_unavailable", 1),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("refusal", "exception", "code", "asked"), REFUSED, ids=lambda value: str(value)[:20])
def test_a_client_retries_what_a_retry_can_heal_and_nothing_else(
    url: str,
    dispatcher: ScriptedDispatcher,
    refusal: RouterError,
    exception: type[openai.APIStatusError],
    code: str,
    asked: int,
    stream: bool,
) -> None:
    dispatcher.script = Script(refusal=refusal)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=2) as client, pytest.raises(exception) as told:
        client.chat.completions.create(model="tiny", messages=HI, stream=stream)  # type: ignore[call-overload]
    assert told.value.code == code
    assert len(dispatcher.generations) == asked


def request_bytes(**fields: object) -> bytes:
    body = json.dumps({"model": "tiny", "messages": HI, "stream": True, **fields}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


class Left(threading.Event):
    """Set, from the server's thread, when the dispatcher's context has been left."""

    def watch(self, dispatcher: ScriptedDispatcher) -> None:
        original = dispatcher.left.set

        def left() -> None:
            original()
            self.set()

        dispatcher.left.set = left  # type: ignore[method-assign]


def test_a_closed_socket_cancels_on_the_worker(url: str, dispatcher: ScriptedDispatcher) -> None:
    dispatcher.script.pause_before = {1: asyncio.Event()}
    left = Left()
    left.watch(dispatcher)
    with connect(url) as connection:
        connection.sendall(request_bytes())
        assert b"200 OK" in connection.recv(4096)
    assert left.wait(10)
    assert dispatcher.running == 0


def test_a_reader_that_stops_is_cut_while_others_go_on(url: Address, dispatcher: ScriptedDispatcher) -> None:
    long = Script(batches=[[70] * 2000] * 20_000)  # 40 MB of text, more than the sockets hold
    short = dispatcher.script
    dispatcher.script_of = lambda generation: long if generation.sampling.seed == 7 else short
    left = Left()
    left.watch(dispatcher)
    with connect(url) as stalled:
        stalled.sendall(request_bytes(seed=7))
        assert stalled.recv(100)
        assert left.wait(20)
        answer = httpx.post(
            f"{url}/v1/chat/completions", json={"model": "tiny", "messages": HI}, headers={"authorization": "Bearer secret"}, timeout=20
        )
        assert answer.status_code == 200
        # Dropped, not closing politely, which would wait for this reader for ever.
        assert stalled.getsockname() not in url.clients


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\nContent-Length: 99999999\r\n\r\n", b"413"),
        (b"GET /v1/models HTTP/1.1\r\nHost: x/../?a=b\r\n\r\n", b"401"),
        (b"GET /v1/models?x=/health HTTP/1.1\r\nHost: x\r\n\r\n", b"401"),
        (b"GET /%2576%31/models HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
        (b"NONSENSE\r\n\r\n", b"400"),
        (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
    ],
    ids=["announced body", "host with path", "query", "encoded path", "nonsense", "two lengths"],
)
def test_odd_requests_are_refused_by_status(url: str, raw: bytes, status: bytes) -> None:
    with connect(url) as connection:
        connection.sendall(raw)
        assert connection.recv(4096).split(b" ")[1] == status


def test_a_chunked_body_without_end_is_cut_at_the_limit(url: str) -> None:
    with connect(url) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
        sent = 0
        try:
            for _ in range(40):
                connection.sendall(chunk)
                sent += 1
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert sent < 40
