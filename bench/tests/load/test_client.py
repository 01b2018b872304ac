"""The raw client against servers that answer with bytes chosen by hand."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from pagoda_bench.errors import SettingsError
from pagoda_bench.load.client import Client, Target
from pagoda_bench.load.engine import rows
from pagoda_bench.load.reading import StreamReading

STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
CHUNK = b'data: {"choices":[{"text":"a","finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"


def chunked(*pieces: bytes) -> bytes:
    return STREAM + b"transfer-encoding: chunked\r\n\r\n" + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


@asynccontextmanager
async def server(*answers: Sequence[bytes] | None) -> AsyncIterator[tuple[Client, list[int]]]:
    """Answers one request after another with pieces, each written alone, and closes; None: never. Yields the number of each request's
    connection, too."""
    connections: list[int] = []
    left = list(answers)
    count = 0
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        mine = count
        while left:
            try:
                await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            connections.append(mine)
            answer = left.pop(0)
            if answer is None:
                await ended.wait()
                break
            for piece in answer:
                writer.write(piece)
                await writer.drain()
            if b"keep-alive" not in answer[0]:
                break
        writer.close()

    running = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = running.sockets[0].getsockname()[1]
    client = Client(Target.parse(f"http://127.0.0.1:{port}"), timeout_s=30 if None not in answers else 0.05)
    try:
        yield client, connections
    finally:
        ended.set()
        await client.aclose()
        running.close()
        await running.wait_closed()


@pytest.mark.parametrize(
    ("answer", "failure", "said"),
    [
        ([chunked(CHUNK, DONE), b"0\r\n\r\n"], None, ""),
        ([STREAM + b"\r\n" + CHUNK, DONE], None, ""),  # no length: it ends with the connection
        ([b"HTTP/1.1 100 Continue\r\n\r\n", chunked(CHUNK, DONE) + b"0\r\n\r\n"], None, ""),
        ([bytes([byte]) for byte in chunked(CHUNK, DONE) + b"0\r\n\r\n"], None, ""),
        ([chunked(CHUNK)], "truncated", ""),
        ([chunked(CHUNK, DONE[:6])], "truncated", ""),
        ([b""], "connection_lost", ""),
        ([b"HTTP/1.1 200"], "connection_lost", ""),
        ([b"220 smtp ready\r\n"], "bad_response", ""),
        ([b'HTTP/1.1 429 X\r\ncontent-length: 32\r\n\r\n{"error":{"message":"too busy"}}'], "http_429", "too busy"),
        ([b"HTTP/1.1 502 X\r\ncontent-length: 4\r\n\r\noops"], "http_502", "oops"),
        (None, "timeout", ""),
    ],
)
async def test_an_answer_is_whole_or_has_a_kind_of_error(answer: Sequence[bytes] | None, failure: str | None, said: str) -> None:
    reading = StreamReading()
    async with server(answer) as (client, _):
        outcome = await client.exchange(client.target.request("GET", "/x"), reading)
    assert (outcome.failure or reading.failure if outcome.status == 200 else outcome.failure) == failure
    assert outcome.said == said
    assert outcome.sent_s <= outcome.ended_s


async def test_a_connection_is_used_again_when_the_server_keeps_it() -> None:
    whole = chunked(CHUNK, DONE).replace(b"\r\n", b"\r\nconnection: keep-alive\r\n", 1) + b"0\r\n\r\n"
    closing = whole.replace(b"keep-alive", b"close")
    async with server([whole], [closing], [whole]) as (client, connections):
        for _ in range(3):
            outcome = await client.exchange(client.target.request("GET", "/x"), StreamReading())
            assert outcome.failure is None
    assert connections == [1, 1, 2]


@pytest.mark.parametrize(
    ("url", "host", "port", "prefix"),
    [
        ("http://h:81", "h", 81, "/v1"),
        ("http://h/v1/", "h", 80, "/v1"),
        ("https://h/api", "h", 443, "/api/v1"),
        ("http://[::1]:9/v1", "::1", 9, "/v1"),
    ],
)
def test_an_address_may_end_with_v1_or_not(url: str, host: str, port: int, prefix: str) -> None:
    target = Target.parse(url, "secret")
    assert (target.host, target.port, target.prefix) == (host, port, prefix)
    assert b"authorization: Bearer secret\r\n" in target.request("GET", "/models")


@pytest.mark.parametrize("url", ["h:81", "ftp://h", "http://", "http://h:x"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(SettingsError):
        Target.parse(url)


def test_the_engines_rounds_become_medians_with_their_extremes() -> None:
    rounds = [{"tokens": 10, "seconds": seconds, "tokens_per_s": 10 / seconds, "ttft_p50_ms": 5.0} for seconds in (1.0, 2.0, 4.0)]
    found = {
        row.metric: (row.value, row.low, row.high) for row in rows("tiny n=1", [one | {"device_peak_bytes": None} for one in rounds], 30)
    }
    assert found == {
        "output_tokens_per_s": (5.0, 2.5, 10.0),
        "ttft_p50_s": (0.005, 0.005, 0.005),
        "total_tokens_per_s": (20.0, 10.0, 40.0),
    }
