"""Which keys need a reconcile, and when. A key is in work at most once; what happens to it meanwhile brings it back afterwards.

Owns waiting and backoff; does not know what a key means. loop.py gives it the work.
"""

import asyncio
import heapq
import random
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 60.0

Key = TypeVar("Key")


class WorkQueue(Generic[Key]):
    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._dirty: dict[Key, float] = {}
        """Since when, in order of arrival."""
        self._active: set[Key] = set()
        self._timers: dict[Key, float] = {}
        """The earliest moment at which a key comes back by itself."""
        self._heap: list[tuple[float, int, Key]] = []
        self._sequence = 0
        self._failures: dict[Key, int] = {}
        self._wake = asyncio.Event()

    def add(self, key: Key) -> None:
        if key not in self._dirty:
            self._dirty[key] = self._clock()
            self._wake.set()

    def add_later(self, key: Key, delay_s: float) -> None:
        """The earlier of two wishes counts."""
        due = self._clock() + delay_s
        if key in self._timers and self._timers[key] <= due:
            return
        self._timers[key] = due
        self._sequence += 1
        heapq.heappush(self._heap, (due, self._sequence, key))
        self._wake.set()

    def failed(self, key: Key) -> float:
        """Brings it back after a pause that grows with each failure in a row. Returns the pause."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        pause: float = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(failures, 16)) * (0.75 + random.random() / 2)
        self.add_later(key, pause)
        return pause

    def succeeded(self, key: Key) -> None:
        self._failures.pop(key, None)

    def forget(self, key: Key) -> None:
        self._failures.pop(key, None)
        self._timers.pop(key, None)

    @property
    def depth(self) -> int:
        return len(self._dirty)

    @property
    def oldest_s(self) -> float:
        return self._clock() - min(self._dirty.values()) if self._dirty else 0.0

    @property
    def idle(self) -> bool:
        return not self._dirty and not self._active

    async def work(self, handle: Callable[[Key, float], Awaitable[None]], *, concurrency: int) -> None:
        """For ever. `handle` gets the key and how long it waited, and does not raise; the loop's fault barrier is there."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                self._collect_due()
                while len(self._active) < concurrency and (key := self._next()) is not None:
                    waited = self._clock() - self._dirty.pop(key)
                    self._active.add(key)
                    group.create_task(self._one(key, waited, handle))
                try:
                    async with asyncio.timeout(self._until_due()):
                        await self._wake.wait()
                except TimeoutError:
                    pass

    async def _one(self, key: Key, waited: float, handle: Callable[[Key, float], Awaitable[None]]) -> None:
        try:
            await handle(key, waited)
        finally:
            self._active.discard(key)
            self._wake.set()

    def _next(self) -> Key | None:
        return next((key for key in self._dirty if key not in self._active), None)

    def _collect_due(self) -> None:
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            due, _, key = heapq.heappop(self._heap)
            if self._timers.get(key) == due:  # else an earlier wish replaced this one
                del self._timers[key]
                self.add(key)

    def _until_due(self) -> float | None:
        return max(0.0, self._heap[0][0] - self._clock()) if self._heap else None
