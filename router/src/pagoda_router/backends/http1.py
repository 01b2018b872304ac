"""HTTP/1.1 to one server: connections that are kept, one exchange at a time on each, and answers handed over while they are read.

A client library gives each piece of a body to a task that waits for it, which costs a stream's token more than all that is done with it.
Here whoever asks is called in the middle of a read. httptools parses. Knows nothing of what is sent; openai_stream.py asks.

    idle ──ask──▶ asked ──▶ head ──▶ pieces … ──▶ whole ──▶ idle, for `keep_s`
                    └────────── leave, silence, a lost connection ──▶ closed
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import httptools

from pagoda_router.backends.sse import NotAnAnswer

BODY_BY_ITSELF_BYTES = 2**14
"""A larger one is written beside its head and not copied behind it."""


class ConnectionFailed(Exception):
    """One sentence: why no connection came about. Nothing was sent."""


class ConnectionLost(Exception):
    """One sentence. What was asked may have been done."""


class Silent(Exception):
    """Nothing came for too long."""


class Asker(Protocol):
    """Called on the event loop, in the middle of reading. After `whole` or `failed`, or once it left, it hears nothing more."""

    def answered(self, status: int) -> None:
        """The head is here."""
        ...

    def came(self, piece: bytes) -> None:
        """Of the body, what one read brought."""
        ...

    def whole(self) -> None: ...

    def failed(self, error: Exception) -> None:
        """ConnectionLost, Silent, NotAnAnswer, or what one of these calls raised."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Seconds."""

    connect_s: float
    silence_s: float
    """Without a byte of an answer."""
    keep_s: float
    """An idle connection: shorter than the server keeps it, so that no request is sent into a closing one."""


class Connection(asyncio.Protocol):
    def __init__(self, connections: "Connections") -> None:
        self.idle_since_s = 0.0
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._asker: Asker | None = None
        self._is_asked = False
        """An answer is due, though its asker may have left."""
        self._is_headed = self._is_whole = self._has_length = self._ends_with_connection = self._may_go_on = self._is_paused = False
        self._pieces: list[bytes] = []
        self._heard_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------ whoever asks

    def ask(self, head: bytes, body: bytes, asker: Asker) -> None:
        """Of an idle one. `head`: up to its empty line."""
        assert self._transport is not None
        assert not self._is_asked
        self._asker, self._is_asked = asker, True
        self._is_headed = self._is_whole = self._ends_with_connection = False
        if len(body) < BODY_BY_ITSELF_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))
        self._heard_s = time.monotonic()
        self._timer = asyncio.get_running_loop().call_later(self._connections.patience.silence_s, self._look_at_silence)

    def leave(self, *, may_end: bool = False) -> None:
        """Nobody waits for the rest. `may_end`: it is about to end by itself, and the connection is kept if it does; else it is closed,
        which is how a server is told to stop."""
        self._asker = None
        if self._is_asked:
            if may_end:
                self.resume()
                self._stop_timer()
                self._timer = asyncio.get_running_loop().call_later(self._connections.patience.keep_s, self.close)
            else:
                self.close()

    def pause(self) -> None:
        """Nothing more is read, until the server stops sending by itself."""
        if self._transport is not None and not self._is_paused and not self._transport.is_closing():
            self._is_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self._heard_s = time.monotonic()
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()

    def close(self) -> None:
        self._stop_timer()
        self._asker = None
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------ asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._connections.heard_s = self._heard_s = time.monotonic()
        if not self._is_asked:
            self.close()  # nobody asked: whatever comes next would be taken for an answer
            return
        try:
            self._parser.feed_data(data)
            self._hand_over()
        except httptools.HttpParserError as error:
            self._fail(NotAnAnswer(f"its answer is not HTTP: {error}"))
        except Exception as error:  # a bug with one answer is that answer's
            self._fail(error)

    def eof_received(self) -> None:
        """The transport closes itself."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._connections.gone(self)
        if self._is_asked and self._ends_with_connection and exc is None:
            self._is_whole = True
            self._hand_over()
        elif self._is_asked:
            self._fail(ConnectionLost(_sentence(exc) if exc is not None else "it closed the connection"))

    # ------------------------------------------------------------ the parser's side

    def on_message_begin(self) -> None:
        if self._is_whole:
            raise ValueError("an answer that nobody asked for")
        self._has_length = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._has_length = True

    def on_headers_complete(self) -> None:
        self._is_headed = True
        self._ends_with_connection = not self._has_length

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        self._is_whole = self._parser.get_status_code() >= 200  # others announce the answer
        self._may_go_on = self._parser.should_keep_alive()  # known here only

    def _hand_over(self) -> None:
        """What one read brought, once it is parsed: whoever is called may close this, which the parser would not survive."""
        if self._is_headed:
            status = self._parser.get_status_code()
            self._is_headed = False
            if self._asker is not None and status >= 200:
                self._asker.answered(status)
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            if self._asker is not None:
                self._asker.came(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if self._is_whole:
            self._end()

    def _end(self) -> None:
        asker, self._asker = self._asker, None
        self._is_asked = self._is_whole = False
        self._stop_timer()
        if self._transport is None or not self._may_go_on:
            self.close()
        elif not self._transport.is_closing():
            self.resume()
            self._connections.free(self)
        if asker is not None:
            asker.whole()

    def _fail(self, error: Exception) -> None:
        asker, self._is_asked = self._asker, False
        self.close()
        if asker is not None:
            asker.failed(error)

    # ------------------------------------------------------------ silence

    def _look_at_silence(self) -> None:
        """A timer for each piece would cost as much as the piece."""
        patience_s = self._connections.patience.silence_s
        silent_s = 0.0 if self._is_paused else time.monotonic() - self._heard_s
        if silent_s >= patience_s:
            self._fail(Silent())
        else:
            self._timer = asyncio.get_running_loop().call_later(patience_s - silent_s, self._look_at_silence)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Connections:
    """To one server. As many as are asked at a time; owns those that are idle."""

    def __init__(self, host: str, port: int, patience: Patience, clock: Callable[[], float] = time.monotonic) -> None:
        self.patience = patience
        self.heard_s = time.monotonic()
        """When the server said anything last, on any of them."""
        self._host = host
        self._port = port
        self._clock = clock
        self._idle: list[Connection] = []
        """The one used last at the end."""

    def idle(self) -> Connection | None:
        """One to ask at once."""
        self.close_old()
        return self._idle.pop() if self._idle else None

    async def new(self) -> Connection:
        """Raises ConnectionFailed."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.patience.connect_s):
                _, connection = await loop.create_connection(lambda: Connection(self), self._host, self._port)
        except TimeoutError:
            raise ConnectionFailed(f"it took no connection within {self.patience.connect_s:g} s") from None
        except OSError as error:
            raise ConnectionFailed(_sentence(error)) from None
        return connection

    def close_old(self) -> None:
        """Those that the server may be about to close."""
        until_s = self._clock() - self.patience.keep_s
        while self._idle and self._idle[0].idle_since_s < until_s:
            self._idle.pop(0).close()

    def close_idle(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    # ------------------------------------------------------------ connections' side

    def free(self, connection: Connection) -> None:
        connection.idle_since_s = self._clock()
        self._idle.append(connection)

    def gone(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)


def _sentence(error: BaseException) -> str:
    return str(error) or type(error).__name__
