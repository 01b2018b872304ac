"""Who waits for the engine to say that it sleeps or wakes. Owned by the supervisor, which hears the engine."""

import asyncio
from typing import Generic, TypeVar

from pagoda_worker.errors import WorkerError

Answer = TypeVar("Answer")


class Answers(Generic[Answer]):
    """Of one kind of message: each answers everybody who waits, since an engine that sleeps sleeps for all of them."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[Answer]] = []

    async def next(self) -> Answer:
        """Raises what `fail` was given."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        return await future

    async def next_one(self) -> Answer:
        """Where each question has an answer of its own, in their order: `give_one`, `fail_one`."""
        return await self.next()

    def give_one(self, answer: Answer) -> None:
        future = self._waiting.pop(0)
        if not future.done():
            future.set_result(answer)

    def fail_one(self, error: WorkerError) -> None:
        future = self._waiting.pop(0)
        if not future.done():
            future.set_exception(error)

    def give(self, answer: Answer) -> None:
        for future in self._take():
            future.set_result(answer)

    def fail(self, error: WorkerError) -> None:
        for future in self._take():
            future.set_exception(error)

    def _take(self) -> list["asyncio.Future[Answer]"]:
        waiting, self._waiting = self._waiting, []
        return [future for future in waiting if not future.done()]  # done: its caller has gone
