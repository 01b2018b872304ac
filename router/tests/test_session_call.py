"""The session's call against gRPC's own server: large messages both ways, windows, pings, statuses, nobody there."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest

from pagoda_router.backends.http2 import Http2Error
from pagoda_router.backends.session_call import CallEnded, Outbox, SessionCall, Unreachable, open_call

MOST = 64 * 2**20
PATH = "/test.Echo/Session"
SERVER_OPTIONS = [("grpc.max_receive_message_length", MOST), ("grpc.max_send_message_length", MOST)]


@asynccontextmanager
async def serving(handle: Callable[[Any, Any], Any], *options: tuple[str, int]) -> AsyncIterator[int]:
    """gRPC's server with one method; raw bytes are its messages."""
    server = grpc.aio.server(options=[*SERVER_OPTIONS, *options])
    method = grpc.stream_stream_rpc_method_handler(handle)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", {"Session": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def echo(requests: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


async def opened(port: int, on_message: Callable[[bytes], None], path: str = PATH) -> SessionCall:
    return await open_call("127.0.0.1", port, path, on_message, most_message_bytes=MOST)


async def test_messages_of_all_sizes_come_back_whole_and_in_order():
    """18 MB in all: beyond every first window, both ways."""
    sent = [bytes((n % 251,)) * size for n, size in enumerate((0, 1, 16_379, 16_384, 65_535, 220_000, 1_000_000, 8_000_000, 3) * 2)]
    found: list[bytes] = []
    async with serving(echo) as port, asyncio.timeout(30):
        all_came = asyncio.Event()

        def take(data: bytes) -> None:
            found.append(data)
            if len(found) == len(sent):
                all_came.set()

        call = await opened(port, take)
        for message in sent:
            call.send(message)
        call.flush()
        await all_came.wait()
        call.close()
    assert found == sent


async def test_a_server_that_pings_finds_the_call_alive():
    pings = (("grpc.keepalive_time_ms", 20), ("grpc.keepalive_timeout_ms", 500), ("grpc.http2.max_pings_without_data", 0))

    async def slow(requests: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            await asyncio.sleep(0.8)  # longer than it would wait for an answer to its ping
            yield request

    async with serving(slow, *pings) as port, asyncio.timeout(30):
        came = asyncio.get_running_loop().create_future()
        call = await opened(port, came.set_result)
        call.send(b"still there?")
        call.flush()
        assert await came == b"still there?"
        call.close()


async def test_the_servers_status_ends_the_call():
    async def refuse(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        yield await anext(requests)
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is wrong: ü%")

    async with serving(refuse) as port, asyncio.timeout(30):
        found: list[bytes] = []
        call = await opened(port, found.append)
        call.send(b"hello")
        call.flush()
        with pytest.raises(CallEnded, match="UNAUTHENTICATED: the token is wrong: ü%"):
            await call.ended
        assert found == [b"hello"]
        call.close()


async def test_a_method_that_is_not_there_says_so():
    async with serving(echo) as port, asyncio.timeout(30):
        call = await opened(port, lambda _: None, "/test.Echo/Other")
        with pytest.raises(CallEnded, match="UNIMPLEMENTED") as ended:
            await call.ended
        assert ended.value.status == 12
        call.close()


async def test_closing_ends_the_servers_side():
    gone = asyncio.Event()

    async def wait(requests: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
        try:
            async for request in requests:
                yield request
        finally:
            gone.set()

    async with serving(wait) as port, asyncio.timeout(30):
        came = asyncio.Event()
        call = await opened(port, lambda _: came.set())
        call.send(b"a")
        call.flush()
        await came.wait()
        call.close()
        await gone.wait()


async def test_what_a_message_raises_ends_the_call():
    def fail(_: bytes) -> None:
        raise Http2Error("cannot use this")

    async with serving(echo) as port, asyncio.timeout(30):
        call = await opened(port, fail)
        call.send(b"a")
        call.flush()
        with pytest.raises(Http2Error, match="cannot use this"):
            await call.ended
        call.close()


async def test_a_port_where_nobody_listens_is_unreachable():
    with socket.socket() as bound:  # but not listening
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(Unreachable, match="cannot be reached"):
            await opened(bound.getsockname()[1], lambda _: None)


async def test_a_message_that_cannot_be_sent_ends_the_call_instead_of_silencing_it():
    class Broken:
        def SerializeToString(self) -> bytes:
            raise ValueError("a bug")

    async with serving(echo) as port, asyncio.timeout(30):
        call = await opened(port, lambda data: None)
        outbox = Outbox(call)
        outbox.put(Broken())
        outbox.put(Broken())
        with pytest.raises(ValueError, match="a bug"):
            await call.ended
        call.close()
