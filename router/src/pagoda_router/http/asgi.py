"""ASGI without a framework: types, reading a bounded body, answering, and noticing that the client left or stopped reading.

Knows HTTP only. Used by app and openai/ on the /v1 path, where a framework's request objects and middleware would cost more than the work.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from types import TracebackType
from typing import Any, Self

from pagoda_router.errors import BodyTooLarge, RequestTimeout, RouterError
from pagoda_router.http.direct import EXTENSION, DirectResponse

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]

JSON_TYPE = (b"content-type", b"application/json")
EVENT_STREAM_HEADERS: Headers = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
LONGEST_REQUEST_ID = 128
BY_NAME = "pagoda.headers"
"""Of a scope: the first header of each name, once somebody asked."""


class ClientGone(Exception):
    """Nobody is left to answer: the client closed the connection, or took no bytes for too long."""


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header of this lower-case name."""
    known: dict[bytes, bytes] | None = scope.get(BY_NAME)
    if known is None:  # some seven are asked for of each request
        known = scope[BY_NAME] = dict(reversed(scope["headers"]))
    return known.get(name)


def take_direct(scope: Scope) -> DirectResponse | None:
    """Out of the scope: the two know each other, and what is left in a cycle waits for the collector, which then stops all streams at once.
    None: the server that called has no such thing."""
    found: DirectResponse | None = scope.pop("extensions", {}).get(EXTENSION)
    return found


async def read_body(scope: Scope, receive: Receive, *, limit_bytes: int, timeout_s: float, direct: DirectResponse | None = None) -> bytes:
    """The whole body; stops reading at the limit, whether or not a Content-Length announced it."""
    announced = header(scope, b"content-length")
    if announced is not None and announced.isdigit() and int(announced) > limit_bytes:
        raise _too_large(limit_bytes)
    if direct is not None and (whole := direct.whole_body()) is not None:  # nearly always, and a timeout costs as much as parsing
        if len(whole) > limit_bytes:
            raise _too_large(limit_bytes)
        return whole
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                chunk: bytes = message.get("body", b"")
                size += len(chunk)
                if size > limit_bytes:
                    raise _too_large(limit_bytes)
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    except TimeoutError:
        raise RequestTimeout(f"the request body did not arrive within {timeout_s:g} s: send it faster, or in fewer bytes") from None


def _too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the request body is larger than {limit_bytes} bytes: shorten the prompt, or raise PAGODA_MAX_BODY_BYTES on the router"
    )


async def answer(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """A whole response in one go."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


def request_id(scope: Scope) -> bytes:
    """The client's own x-request-id when it is sane, so that its logs and ours speak of the same thing."""
    given = header(scope, b"x-request-id")
    if given is not None and 0 < len(given) <= LONGEST_REQUEST_ID and all(33 <= byte <= 126 for byte in given):
        return given
    return b"req-" + os.urandom(12).hex().encode()


def with_header(send: Send, extra: tuple[bytes, bytes]) -> Send:
    async def send_with_header(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers: Headers = message.get("headers", [])
            message = {**message, "headers": [*headers, extra]}
        await send(message)

    return send_with_header


async def acknowledge_lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


class Exchange:
    """One request's connection while its answer is being made: leaving client or stalled reader cancels the work inside.

    `async with Exchange(...)` runs in the request's task. The connection tells of the disconnect, or a watcher waits for it; from the first
    write that may wait a timer looks at how long the current one has. Either cancels the task, and the context turns that cancellation into
    ClientGone.
    """

    def __init__(self, receive: Receive, send: Send, *, stalled_reader_s: float, direct: DirectResponse | None = None) -> None:
        self.started = False
        """Response headers have left; an error can only be an event now."""
        self.failure: Callable[[RouterError], bytes] | None = None
        """Makes that event, where it is not the usual one."""
        self._receive = receive
        self._send = send
        self._stalled_reader_s = stalled_reader_s
        self._direct = direct
        self._watcher: asyncio.Task[None] | None = None
        self._writing_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        """Runs from the first write that may wait."""
        self._gone = False

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        if self._direct is None:
            self._watcher = loop.create_task(self._watch())
        else:
            self._direct.on_gone = self._cancel
            if self._direct.is_gone:
                loop.call_soon(self._cancel)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop_watching()
        if self._timer is not None:
            self._timer.cancel()
        # Watcher, connection and timer only speak while this task waits, so their cancellation always surfaces inside the context.
        if self._gone and kind is asyncio.CancelledError and self._task.uncancel() == 0:
            raise ClientGone from None

    async def start(self, status: int, headers: Headers) -> None:
        """Of an answer of pieces, unless a content-length is among the headers."""
        self.started = True
        is_whole = any(name == b"content-length" for name, _ in headers)
        if is_whole or self._direct is None or not self._direct.start(status, headers):
            await self._send_watched({"type": "http.response.start", "status": status, "headers": list(headers)})

    async def write(self, body: bytes, *, last: bool = False) -> None:
        """Waits while the client's socket buffer is full."""
        if last:
            self._stop_watching()  # a finished response looks like a disconnect to the watcher
        if self._direct is not None and body and self._direct.takes_more:
            if last:
                self._direct.finish(body)
            else:
                self._direct.write(body)
            return
        await self._send_watched({"type": "http.response.body", "body": body, "more_body": not last})

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole one, with its content-length among the headers."""
        self._stop_watching()
        if self._direct is not None and self._direct.answer(status, headers, body):
            self.started = True
            return
        await self.start(status, headers)
        await self.write(body, last=True)

    @property
    def takes_more(self) -> bool:
        """`write_at_once` can: the answer has begun, and its client reads. Never where the server gives no way."""
        return self._direct is not None and self.started and self._direct.takes_more

    def write_at_once(self, body: bytes) -> None:
        """Not the last piece, and only while it takes more."""
        assert self._direct is not None
        self._direct.write(body)

    def _stop_watching(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None  # its end holds this exchange: a cycle
        elif self._direct is not None:
            self._direct.on_gone = None

    async def _send_watched(self, message: Message) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._stalled_reader_s, self._look_at_write)
        self._writing_since = time.monotonic()
        await self._send(message)
        self._writing_since = None

    async def _watch(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._cancel()
                return

    def _look_at_write(self) -> None:
        loop = asyncio.get_running_loop()
        waited_s = 0.0 if self._writing_since is None else time.monotonic() - self._writing_since
        if waited_s >= self._stalled_reader_s:
            _abort(self._send)
            self._cancel()
        else:
            self._timer = loop.call_later(self._stalled_reader_s - waited_s, self._look_at_write)

    def _cancel(self) -> None:
        if not self._gone:
            self._gone = True
            self._task.cancel()


def _abort(send: Send) -> None:
    """Drop the connection without flushing.

    NOTE: ASGI has no word for this; returning early makes uvicorn close the transport politely, waiting for the stalled reader for ever.
    """
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    if transport is not None:
        transport.abort()
