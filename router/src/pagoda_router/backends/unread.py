"""What a relayed answer brought and its reader has not taken: given at once to a reader that waits for it, else kept.

Knows no network. Written by one stream (openai_stream.py), read by one task.
"""

import asyncio

from pagoda_router.backends.base import RefusedByWorker
from pagoda_router.generation import Ended, Event, TakeRelayed
from pagoda_router.relays import Relayed


class Unread:
    def __init__(self) -> None:
        self.bytes = 0
        self.has_output = False
        """A first piece came, or the end did."""
        self._events: list[Event] = []
        self._take: TakeRelayed | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._refusal: RefusedByWorker | None = None
        self._fault: Exception | None = None
        """Of whoever takes: raised where it is read."""
        self._is_closed = False

    # ------------------------------------------------------------ the reader's side

    async def batch(self) -> list[Event]:
        """At least one, all that is there. Raises the refusal, or StopAsyncIteration behind the last."""
        while not self._events:
            if self._fault is not None:
                raise self._fault
            if self._refusal is not None:
                raise self._refusal
            if self._is_closed:
                raise StopAsyncIteration
            await self._woken()
        batch, self._events, self.bytes = self._events, [], 0
        return batch

    async def wait_for_output(self) -> None:
        """It stays to be read. Raises the refusal."""
        while not self.has_output:
            if self._refusal is not None:
                raise self._refusal
            await self._woken()

    def tap(self, take: TakeRelayed) -> None:
        self._take = take

    async def _woken(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # ------------------------------------------------------------ the stream's side

    def put(self, event: Relayed) -> None:
        self.has_output = True
        if not self._taken(event):
            self._events.append(event)
            self.bytes += len(event.data)
            self._wake()

    def end(self, event: Ended) -> None:
        """The last that is put."""
        self.has_output = True
        self._events.append(event)
        self._close()

    def refuse(self, refusal: RefusedByWorker) -> None:
        """Instead of anything."""
        self._refusal = refusal
        self._close()

    def _taken(self, event: Relayed) -> bool:
        """By its reader, which has taken everything and waits for more, so that nothing can be overtaken."""
        if self._take is None or self._waiter is None or self._events or self._waiter.done():
            return False
        try:
            return self._take(event)
        except Exception as error:  # a bug in one answer is that answer's, not its connection's
            self._take, self._fault = None, error
            self._wake()
            return True

    def _close(self) -> None:
        self._is_closed = True
        self._take = None  # it leads to whoever reads this: a cycle, which only the collector would free
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
