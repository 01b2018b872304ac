"""Connections to other people's servers: kept while they may be, closed where they must be, and one answer never taken for another's."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda_router.backends.http1 import Connection, ConnectionFailed, ConnectionLost, Connections, Patience, Silent
from pagoda_router.backends.sse import NotAnAnswer

PATIENT = Patience(connect_s=5, silence_s=60, keep_s=60)
HEAD = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n"
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"
TO_THE_END = b"HTTP/1.1 200 OK\r\n\r\nhello"


class Asked:
    """What one asker heard."""

    def __init__(self, on_piece: Callable[[], None] = lambda: None) -> None:
        self.status = 0
        self.body = b""
        self.error: Exception | None = None
        self.is_whole = False
        self._on_piece = on_piece
        self._changed = asyncio.Event()

    def answered(self, status: int) -> None:
        self.status = status

    def came(self, piece: bytes) -> None:
        self.body += piece
        self._changed.set()
        self._on_piece()

    def whole(self) -> None:
        self.is_whole = True
        self._changed.set()

    def failed(self, error: Exception) -> None:
        self.error = error
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def over(self) -> None:
        await self.until(lambda: self.is_whole or self.error is not None)


class Server:
    """Each request of it gets the next of `answers`; after None it closes the connection."""

    def __init__(self, *answers: bytes | None) -> None:
        self._answers = list(answers)
        self.connections = 0
        self.left = asyncio.Event()
        """Somebody closed a connection."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                await reader.readexactly(len(HEAD) + 2)
                while self._answers:
                    answer = self._answers.pop(0)
                    if answer is None:
                        return
                    writer.write(answer)
                    if not answer.startswith(b"HTTP/1.1 1"):
                        break
        except (asyncio.IncompleteReadError, ConnectionError):
            self.left.set()
        finally:
            writer.close()


@asynccontextmanager
async def served(server: Server, patience: Patience = PATIENT, **more: Any) -> AsyncIterator[Connections]:
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    connections = Connections("127.0.0.1", listening.sockets[0].getsockname()[1], patience, **more)
    try:
        yield connections
    finally:
        connections.close_idle()
        listening.close()


async def ask(connections: Connections, asked: Asked | None = None) -> Asked:
    asked = asked or Asked()
    (connections.idle() or await connections.new()).ask(HEAD, b"{}", asked)
    await asked.over()
    return asked


@pytest.mark.parametrize("answer", [WHOLE, CHUNKED], ids=["length", "chunks"])
async def test_the_next_request_goes_over_the_same_connection(answer):
    server = Server(answer, answer, answer)
    async with served(server) as connections:
        for _ in range(3):
            asked = await ask(connections)
            assert (asked.status, asked.body, asked.error) == (200, b"hello", None)
        assert server.connections == 1


@pytest.mark.parametrize("answer", [WHOLE.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"), TO_THE_END], ids=["told", "no length"])
async def test_a_connection_that_ends_with_its_answer_is_not_asked_again(answer):
    server = Server()

    async def one_each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        await reader.readexactly(len(HEAD) + 2)
        writer.write(answer)
        writer.close()

    server.serve = one_each  # type: ignore[method-assign]
    async with served(server) as connections:
        for _ in range(2):
            asked = await ask(connections)
            assert (asked.body, asked.is_whole, asked.error) == (b"hello", True, None)
        assert server.connections == 2


async def test_an_answer_that_is_announced_is_awaited():
    async with served(Server(b"HTTP/1.1 102 Processing\r\n\r\n", WHOLE)) as connections:
        asked = await ask(connections)
        assert (asked.status, asked.body) == (200, b"hello")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", ConnectionLost),
        (b"HTTP/1.1 200", ConnectionLost),
        (b"HTTP/1.1 200 OK\r\n", ConnectionLost),
        (WHOLE[:-1], ConnectionLost),
        (CHUNKED[:-2], ConnectionLost),
        (b"SSH-2.0-OpenSSH_9.2\r\n", NotAnAnswer),
    ],
)
async def test_what_is_not_a_whole_answer_is_an_error(answer, error):
    server = Server()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(HEAD) + 2)
        writer.write(answer)
        writer.close()

    server.serve = one  # type: ignore[method-assign]
    async with served(server) as connections:
        asked = await ask(connections)
        assert isinstance(asked.error, error)
        assert not asked.is_whole
        assert connections.idle() is None


async def test_who_leaves_in_the_middle_closes_the_connection():
    server = Server(CHUNKED[:-5])
    async with served(server) as connections:
        asked = Asked()
        connection = await connections.new()
        connection.ask(HEAD, b"{}", asked)
        await asked.until(lambda: asked.body == b"hello")
        connection.leave()
        async with asyncio.timeout(10):
            await server.left.wait()
        assert (connections.idle(), asked.error) == (None, None)


async def test_who_has_all_it_wants_leaves_the_end_to_the_connection_which_is_kept():
    server = Server(CHUNKED, WHOLE)
    async with served(server) as connections:
        connection = await connections.new()
        done = asyncio.Event()

        def enough() -> None:
            connection.leave(may_end=True)
            done.set()

        connection.ask(HEAD, b"{}", Asked(enough))
        await done.wait()
        asked = await ask(connections)
        assert (asked.body, server.connections) == (b"hello", 1)


async def test_an_end_that_does_not_come_is_not_awaited_for_ever():
    server = Server(CHUNKED[:-5])
    async with served(server, Patience(connect_s=5, silence_s=60, keep_s=0.02)) as connections:
        connection = await connections.new()
        connection.ask(HEAD, b"{}", Asked(lambda: connection.leave(may_end=True)))
        async with asyncio.timeout(10):
            await server.left.wait()


async def test_a_server_that_says_nothing_is_given_up_and_hears_of_it():
    server = Server()
    async with served(server, Patience(connect_s=5, silence_s=0.05, keep_s=60)) as connections:
        assert isinstance((await ask(connections)).error, Silent)
        async with asyncio.timeout(10):
            await server.left.wait()


async def test_while_its_asker_reads_nothing_a_server_is_not_called_silent():
    async with served(Server(CHUNKED[:-5]), Patience(connect_s=5, silence_s=0.05, keep_s=60)) as connections:
        connection = await connections.new()
        asked = Asked(connection.pause)
        connection.ask(HEAD, b"{}", asked)
        await asked.until(lambda: bool(asked.body))
        connection._heard_s -= 1000
        connection._look_at_silence()
        assert asked.error is None
        connection.resume()
        await asked.over()
        assert isinstance(asked.error, Silent)


async def test_who_reads_nothing_at_the_end_leaves_a_connection_that_reads_on():
    server = Server(WHOLE, WHOLE)
    async with served(server) as connections:
        connection = await connections.new()
        asked = Asked(connection.pause)
        connection.ask(HEAD, b"{}", asked)
        await asked.over()
        assert connection._timer is None, "nobody waits for an answer"
        assert (await ask(connections)).body == b"hello"
        assert server.connections == 1


async def test_an_old_connection_is_not_asked_again():
    now_s = 0.0
    server = Server(WHOLE, WHOLE)
    async with served(server, Patience(connect_s=5, silence_s=60, keep_s=3), clock=lambda: now_s) as connections:
        await ask(connections)
        now_s = 3.5
        await ask(connections)
        assert server.connections == 2


async def test_what_nobody_asked_for_is_nobodys_answer():
    server = Server(WHOLE + WHOLE)
    async with served(server) as connections:
        asked = await ask(connections)
        assert isinstance(asked.error, NotAnAnswer)
        assert connections.idle() is None


@pytest.mark.parametrize("unasked", [WHOLE, None], ids=["speaks", "closes"])
async def test_a_connection_whose_server_does_something_unasked_is_not_asked_again(unasked):
    server = Server(WHOLE, unasked)
    async with served(server) as connections:
        await ask(connections)
        connection = connections._idle[0]
        connection._transport.write(HEAD + b"{}")  # type: ignore[union-attr]  # makes the server do it
        async with asyncio.timeout(10):
            while connections._idle:
                await asyncio.sleep(0)


async def test_who_asks_and_fails_on_the_answer_fails_alone():
    server = Server(WHOLE, WHOLE)

    def fault() -> None:
        raise RuntimeError("a bug")

    async with served(server) as connections:
        assert isinstance((await ask(connections, Asked(fault))).error, RuntimeError)
        assert (await ask(connections)).body == b"hello"
        assert server.connections == 2


async def test_where_nobody_listens_the_reason_is_told():
    with pytest.raises(ConnectionFailed, match=r"(refused|Connect call failed)"):
        await Connections("127.0.0.1", 1, PATIENT).new()


class Wire:
    """A transport that only knows whether it was closed."""

    def __init__(self) -> None:
        self.closed = False

    def write(self, data: bytes) -> None: ...

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


TWO = CHUNKED + b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno"


@given(cuts=st.sets(st.integers(1, len(TWO) - 1)))
def test_answers_are_the_same_however_the_network_cuts_them(cuts):
    async def run() -> None:
        connections = Connections("127.0.0.1", 1, PATIENT)
        connection = Connection(connections)
        connection.connection_made(Wire())  # type: ignore[arg-type]
        heard = [Asked(), Asked()]
        connection.ask(HEAD, b"{}", heard[0])
        for start, end in pairwise([0, *sorted({*cuts, len(CHUNKED)}), len(TWO)]):
            if start == len(CHUNKED):
                idle = connections.idle()
                assert idle is connection
                idle.ask(HEAD, b"{}", heard[1])
            connection.data_received(TWO[start:end])
        assert [(each.status, each.body, each.is_whole, each.error) for each in heard] == [
            (200, b"hello", True, None),
            (404, b"no", True, None),
        ]
        connection.close()

    asyncio.run(run())
