"""Signs of life on a stream whose model has no worker yet: the headers leave, and a comment every few seconds, which SSE clients skip.

A model that can answer gets none: there the headers wait for the first tokens, and a failure before them has a status of its own.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from pagoda_router.http.asgi import EVENT_STREAM_HEADERS, Exchange, Headers
from pagoda_router.http.surface import SurfaceSettings


class KeepAlive:
    """`async with` around a request's wait; `stop()` before anything else is written to the exchange."""

    def __init__(
        self,
        exchange: Exchange,
        settings: SurfaceSettings,
        *,
        headers: Callable[[], Headers],
        started: Callable[[], None],
        waits_for: Callable[[], str],
    ) -> None:
        """`headers` is asked, and `started` told, when headers leave; `waits_for` names the model, and when
        it expects a worker, while it has none; empty while it has."""
        self._exchange = exchange
        self._settings = settings
        self._headers = headers
        self._started = started
        self._waits_for = waits_for
        self._timer: asyncio.TimerHandle | None = None
        self._beat: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._timer = asyncio.get_running_loop().call_later(self._settings.keep_alive_first_s, self._tick)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._beat is not None and kind is asyncio.CancelledError:
            self._beat.cancel()  # it may be the very write that the client does not read
        await self.stop()

    async def start(self) -> None:
        """The stream's headers, unless they have left."""
        if not self._exchange.started:
            self._started()
            await self._exchange.start(200, [*EVENT_STREAM_HEADERS, *self._headers()])

    async def stop(self) -> None:
        """Returns when nothing of it is being written any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._beat is not None and not self._beat.cancelled():
            beat, self._beat = self._beat, None
            try:
                await beat
            except asyncio.CancelledError:
                beat.cancel()
                raise

    def _tick(self) -> None:
        model = self._waits_for()
        if (model or self._exchange.started) and (self._beat is None or self._beat.done()):
            comment = f"waiting for a worker of {model}" if model else "waiting for the first token"
            self._beat = asyncio.get_running_loop().create_task(self._write(comment))
        wait_s = self._settings.keep_alive_s if self._beat is not None else self._settings.keep_alive_first_s
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._tick)

    async def _write(self, comment: str) -> None:
        await self.start()
        await self._exchange.write(f": {comment}\n\n".encode())
