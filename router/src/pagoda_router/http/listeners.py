"""The two sockets this process answers on, each served by uvicorn (uvloop, httptools), and how they stop. Knows no routes and no fleet.

Sockets are bound before anything else starts, so that a busy port is one line instead of a stack trace. asyncio and uvloop set
TCP_NODELAY on what they accept; a test holds them to it.
"""

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Iterator

import uvicorn

from pagoda_router.errors import ConfigError
from pagoda_router.http.asgi import ASGIApp, Message, Receive, Scope, Send
from pagoda_router.http.cohort import Cohort
from pagoda_router.http.direct import protocol_of

KEEP_ALIVE_S = 75
"""Longer than the usual load balancer's 60 s, so that it is never us who close a connection it is about to use."""
LAST_WORDS_S = 2.0
"""Kept of the drain for the error events of streams that did not finish."""


def bind(host: str, port: int, variable: str, *, reuse_port: bool = False) -> socket.socket:
    """`reuse_port`: others who say so may listen there too. Raises ConfigError naming the variable."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise ConfigError(f"PAGODA_BIND_HOST={host} is not an address of this machine: {error.strerror}") from None
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        bound.bind(address)
        bound.listen(2048)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"port {port} on {host} is in use by another process: stop it or set {variable}") from None
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror}; set PAGODA_BIND_HOST or {variable}") from None
    bound.setblocking(False)
    return bound


def address(listener: socket.socket) -> str:
    host, port, *_ = listener.getsockname()
    return f"{host}:{port}"


def closing_when(draining: Callable[[], bool], app: ASGIApp) -> ASGIApp:
    """`app`; requests that come while it drains are answered and their connection closed, so that a client that keeps connections opens its
    next one elsewhere before this end is cut."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        if not draining():
            await app(scope, receive, send)
            return
        scope.pop("extensions", None)  # what is written past `send` would leave the connection open
        await app(scope, receive, send_and_close)

    return wrapped


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the process's signals are __main__'s


class Listeners:
    """The public application drains first; probes and the internal API answer until the end."""

    def __init__(
        self, public: tuple[socket.socket, ASGIApp], internal: tuple[socket.socket, ASGIApp], *, drain_s: float, linger_s: float = 0.0
    ) -> None:
        """`linger_s`: how long a drain still takes new connections."""
        self._drain_s = drain_s
        self._linger_s = linger_s
        self._public, self._public_socket = _server(public[1], drain_s + LAST_WORDS_S), public[0]
        self._internal, self._internal_socket = _server(internal[1], 1.0), internal[0]
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._public.serve([self._public_socket]), name="public listener"),
            asyncio.create_task(self._internal.serve([self._internal_socket]), name="internal listener"),
        ]

    async def stopped(self) -> None:
        """Returns when a listener stopped by itself, which is a fault."""
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    async def drain(self, out_of_time: Callable[[], None]) -> None:
        """After the linger time no new connections; running requests go on. `out_of_time` is called once when some outlast the drain
        time: it ends them."""
        public, internal = self._tasks
        if self._linger_s:
            await asyncio.wait([public], timeout=self._linger_s)
        self._public.should_exit = True
        done, _ = await asyncio.wait([public], timeout=self._drain_s)
        if not done:
            out_of_time()
        await asyncio.wait([public])
        self._internal.should_exit = True
        await asyncio.wait([internal])

    def end_at_once(self) -> None:
        """A second signal: connections are cut."""
        self._public.should_exit = self._public.force_exit = True
        self._internal.should_exit = self._internal.force_exit = True


def _server(app: ASGIApp, shutdown_s: float) -> _Server:
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=protocol_of(Cohort()),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing here asks who the client is
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(shutdown_s)),
    )
    return _Server(config)
