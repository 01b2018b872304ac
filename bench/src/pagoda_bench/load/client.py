"""A streaming HTTP/1.1 client for a thousand answers at once: raw transports, and every chunk stamped before anything else is done with it.

Owns the connections to one server; knows no OpenAI beyond headers and paths. Called by the loops and by the handshake.
"""

import asyncio
import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

import httptools

from pagoda_bench.errors import SettingsError

ERROR_BODY_BYTES = 4096
SAID_CHARS = 300


class Sink(Protocol):
    def feed(self, body: bytes, now: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Target:
    """A server's address and what every request to it carries."""

    host: str
    port: int
    tls: bool
    prefix: str
    """Path before the endpoint's: `/v1`."""
    api_key: str | None

    @classmethod
    def parse(cls, url: str, api_key: str | None = None) -> "Target":
        """`http://host:port`, with or without `/v1`. Raises SettingsError."""
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError as error:
            raise SettingsError(f"{url}: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingsError(f"{url!r} is no address of a server: write http://HOST:PORT/v1")
        path = parts.path.rstrip("/")
        tls = parts.scheme == "https"
        return cls(parts.hostname, port or (443 if tls else 80), tls, path if path.endswith("/v1") else f"{path}/v1", api_key)

    def request(self, method: str, path: str, body: bytes = b"", request_id: str = "") -> bytes:
        """The bytes of a request; `path` from after /v1."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        headers: Mapping[str, str] = {
            "host": f"{host}:{self.port}",
            "accept": "text/event-stream, application/json",
            "user-agent": "pagoda-bench",
            **({"authorization": f"Bearer {self.api_key}"} if self.api_key else {}),
            **({"x-request-id": request_id} if request_id else {}),
            **({"content-type": "application/json", "content-length": str(len(body))} if body else {}),
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"{method} {self.prefix}{path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


@dataclass(slots=True)
class Outcome:
    sent_s: float
    """time.monotonic() when the request was written; connecting comes before it."""
    ended_s: float
    status: int
    """0: no answer came."""
    failure: str | None
    """connect, connection_lost, timeout, bad_response or http_STATUS; None: a whole answer with status 200."""
    detail: str
    """The body of an answer that is no 200, or why there was no connection."""

    @property
    def said(self) -> str:
        """The message of an OpenAI-style error, else the body's beginning."""
        try:
            content: Any = json.loads(self.detail)
            error = content.get("error", content)
            return str(error.get("message", error) if isinstance(error, dict) else error)[:SAID_CHARS]
        except (ValueError, AttributeError):
            return self.detail[:SAID_CHARS].strip()


class _Connection(asyncio.Protocol):
    """One exchange at a time."""

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._sink: Sink | None = None
        self._ended: asyncio.Future[str | None] | None = None
        self._now = 0.0
        self.status = 0
        self.error_body = bytearray()

    def begin(self, request: bytes, sink: Sink) -> asyncio.Future[str | None]:
        """The future's result is the failure, or None after a whole answer."""
        assert self._transport is not None
        self._sink, self.status = sink, 0
        self.error_body.clear()
        self._ended = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._ended

    def abort(self, failure: str) -> None:
        self._end(failure)
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _end(self, failure: str | None) -> None:
        self._sink = None
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(failure)

    # ------------------------------------------------------------ asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # TCP and TLS transports both write

    def data_received(self, data: bytes) -> None:
        self._now = time.monotonic()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.abort("bad_response")

    def connection_lost(self, error: Exception | None) -> None:
        self._client.forget(self)
        # an answer without a length ends with its connection; whether it was whole, the reading knows by its [DONE]
        self._end(None if error is None and self.status == 200 else "connection_lost")

    # ------------------------------------------------------------ httptools

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self.status == 200 and self._sink is not None:
            self._sink.feed(body, self._now)
        elif len(self.error_body) < ERROR_BODY_BYTES:
            self.error_body += body

    def on_message_complete(self) -> None:
        if self.status < 200:
            return  # 100 Continue and the like precede the answer
        if self._sink is not None and self._parser.should_keep_alive():
            self._client.keep(self)
        else:
            self.close()
        self._end(None if self.status == 200 else f"http_{self.status}")


class Client:
    """Connections are kept for the next request, newest first, and their number is not bounded: waiting for one would be our time in the
    server's figures."""

    def __init__(self, target: Target, *, timeout_s: float = 600.0) -> None:
        self.target = target
        self._timeout_s = timeout_s
        self._tls = ssl.create_default_context() if target.tls else None
        self._idle: dict[_Connection, None] = {}
        self._all: set[_Connection] = set()

    def keep(self, connection: _Connection) -> None:
        self._idle[connection] = None

    def forget(self, connection: _Connection) -> None:
        self._idle.pop(connection, None)
        self._all.discard(connection)

    async def exchange(self, request: bytes, sink: Sink) -> Outcome:
        """Never raises for what server or network do."""
        began = time.monotonic()
        loop = asyncio.get_running_loop()
        if self._idle:
            connection, _ = self._idle.popitem()
        else:
            try:
                async with asyncio.timeout(self._timeout_s):
                    connection = await self._connect(loop)
            except (OSError, TimeoutError) as error:
                return Outcome(began, time.monotonic(), 0, "connect", str(error) or "timed out")
        sent = time.monotonic()
        ended = connection.begin(request, sink)
        timer = loop.call_later(self._timeout_s, connection.abort, "timeout")
        try:
            failure = await ended
        except asyncio.CancelledError:
            connection.abort("cancelled")
            raise
        finally:
            timer.cancel()
        return Outcome(sent, time.monotonic(), connection.status, failure, connection.error_body.decode(errors="replace"))

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> _Connection:
        target = self.target
        _, connection = await loop.create_connection(lambda: _Connection(self), target.host, target.port, ssl=self._tls)
        self._all.add(connection)
        return connection

    async def aclose(self) -> None:
        for connection in list(self._all):
            connection.close()
        await asyncio.sleep(0)  # transports close in the loop's next turn
