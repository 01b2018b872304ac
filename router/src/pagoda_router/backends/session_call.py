"""The socket under a worker's Session: connects, hands over each message as it is read, writes in one go what one turn of the loop sends.

Owns the connection of one call; http2.py knows the bytes. The worker's link opens one for each session, and hears of its end by `ended`.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from pagoda_router.backends.http2 import LONGEST_HEADER, UNAVAILABLE, CallEnd, Http2Call, Http2Error

MAX_MESSAGE_BYTES = 64 * 2**20
"""A prompt of a million ids is about 4 MB."""
MAX_BATCH_BYTES = 2**20
"""What waits to be sent goes as one message until it is so large."""
MOST_UNREAD_BYTES = 2**27
"""Written and not taken by the worker: beyond two of the largest messages it asks (pings, settings, windows) without reading."""


class CallEnded(Exception):
    """The worker ended the call, or the connection broke."""

    def __init__(self, end: CallEnd) -> None:
        super().__init__(end.sentence)
        self.status = end.status


class Unreachable(Exception):
    """Nobody listens there, or the way to it is broken."""


class SessionCall(asyncio.Protocol):
    def __init__(self, call: Http2Call, on_message: Callable[[bytes], None]) -> None:
        """`on_message`: called in the middle of reading; what it raises ends the call, and is what `ended` raises."""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Never has a result: raises CallEnded, Http2Error or what `on_message` raised."""
        self._call = call
        self._on_message = on_message
        self._transport: asyncio.Transport | None = None

    async def over(self) -> None:
        """Raises what `ended` raises."""
        await self.ended

    def send(self, message: bytes) -> None:
        """`flush` writes it, and all that was sent before."""
        self._call.send(message)

    def flush(self) -> None:
        out = self._call.to_write()
        if out and self._transport is not None and not self._transport.is_closing():
            self._transport.write(out)

    def close(self) -> None:
        """At once; what was not written yet is dropped."""
        if self._transport is not None:
            self._transport.abort()
        if not self.ended.cancel() and not self.ended.cancelled():
            self.ended.exception()  # somebody looked at it

    # ------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self.flush()

    def data_received(self, data: bytes) -> None:
        if self.ended.done():
            return
        try:
            for message in self._call.receive(data):
                self._on_message(message)
                if self.ended.done():
                    return
        except Exception as error:  # a bug in handling costs this session, as any other error of it
            self.fail(error)
            return
        if self._call.end is not None:
            self.fail(CallEnded(self._call.end))
        else:
            self.flush()  # acknowledgements, and what waited for a window
            if self._transport is not None and self._transport.get_write_buffer_size() > MOST_UNREAD_BYTES:
                self.fail(Http2Error("it does not read what it is sent"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(CallEnded(CallEnd(UNAVAILABLE, f"the connection broke: {exc}" if exc is not None else "the connection was closed")))

    def fail(self, error: BaseException) -> None:
        """Ends the call with it."""
        if not self.ended.done():
            self.ended.set_exception(error)
        if self._transport is not None:
            self._transport.abort()


class Outbox:
    """What a link says to its worker: all of one turn of the event loop leaves with one write, and as one message to a worker that takes
    batches, since there each message costs a turn of its own."""

    def __init__(self, call: SessionCall) -> None:
        self.takes_batches = False
        self.packs_ids = False
        """Prompts go as packed ids. Both as the worker's Welcome says."""
        self._call = call
        self._waiting: deque[Any] = deque()

    def put(self, message: Any) -> None:
        """The wire's ToWorker."""
        self._waiting.append(message)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._leave)

    def _leave(self) -> None:
        waiting = self._waiting
        try:
            while waiting:
                message = waiting.popleft()
                if self.takes_batches:
                    add_waiting(message, waiting)
                self._call.send(message.SerializeToString())
            self._call.flush()
        except Exception as error:  # a bug costs this session, as in receiving: with entries left nothing would leave any more
            waiting.clear()
            self._call.fail(error)


def add_waiting(message: Any, waiting: deque[Any]) -> None:
    """What waits goes along, up to a bound."""
    size_bytes = 0
    while waiting and size_bytes < MAX_BATCH_BYTES:
        following = waiting.popleft()
        size_bytes += following.ByteSize()
        message.more.append(following)


async def open_call(host: str, port: int, path: str, on_message: Callable[[bytes], None], *, most_message_bytes: int) -> SessionCall:
    """Connected; the call's headers are on their way. Raises Unreachable, Http2Error."""
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        call = Http2Call(path, authority if len(authority) <= LONGEST_HEADER else "worker", most_message_bytes=most_message_bytes)
        _, session = await asyncio.get_running_loop().create_connection(lambda: SessionCall(call, on_message), host, port)
    except UnicodeError as error:
        raise Http2Error(f"{host[:40]!r} is no name of a host") from error
    except OSError as error:
        raise Unreachable(f"it cannot be reached ({error.strerror or error})") from error
    return session
