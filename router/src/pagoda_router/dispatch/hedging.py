"""A second try beside the first: where a first token is long overdue and another worker is half empty, both are asked and the first wins.

Off unless PAGODA_HEDGE_FACTOR says how many times its predicted wait a request may take. Within the budget of retries, and never while
anything waits: what is spent is capacity that nobody asks for. The loser is cancelled before its reader has seen a token of it. Owned by
the dispatcher.
"""

import asyncio
from collections.abc import Callable

from pagoda_router.admission.lane import Pending
from pagoda_router.backends.base import BackendStream, RefusedByWorker
from pagoda_router.dispatch.placing import Placer
from pagoda_router.dispatch.second_tries import SecondTries
from pagoda_router.metrics.requests import RouterMetrics

SHORTEST_S = 0.25
"""However short the predicted wait: below it the second worker's own prefill comes too late to be of use."""


class Hedges:
    def __init__(
        self, factor: float, placer: Placer, second_tries: SecondTries, metrics: RouterMetrics, in_flight: Callable[[], int]
    ) -> None:
        """`factor`: times the predicted wait for a first token. 0: never. `in_flight`: requests that workers have."""
        self._factor = factor
        self._placer = placer
        self._second_tries = second_tries
        self._metrics = metrics
        self._in_flight = in_flight

    async def first_output(self, pending: Pending, stream: BackendStream, runs: Callable[[BackendStream], None]) -> BackendStream:
        """Whoever has output, or has ended, first: usually `stream`. `runs` is told of a second one. Raises RefusedByWorker. Cancelled, it
        leaves `stream` to its caller and nothing else."""
        if not self._factor or pending.generation.relay is not None:
            await stream.wait_for_output()
            return stream
        first = asyncio.create_task(stream.wait_for_output())
        try:
            await asyncio.wait({first}, timeout=max(SHORTEST_S, self._factor * pending.generation.trace.attempts[-1].predicted_ms / 1000))
            if first.done() or (other := self._second(pending)) is None:
                await first
                return stream
            runs(other)
            return await self._race(pending, stream, first, other)
        finally:
            first.cancel()

    def _second(self, pending: Pending) -> BackendStream | None:
        if not self._second_tries.may_hedge(in_flight=self._in_flight()):
            return None
        other = self._placer.place_once_more(pending)
        if other is not None:
            self._second_tries.hedged(in_flight=self._in_flight())
        return other

    async def _race(self, pending: Pending, stream: BackendStream, first: "asyncio.Task[None]", other: BackendStream) -> BackendStream:
        second = asyncio.create_task(other.wait_for_output())
        tasks, winner = {first: stream, second: other}, stream
        try:
            done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if waiting and not any(_has_answered(task, tasks[task]) for task in done):
                await asyncio.wait(waiting)  # one has failed: the other one decides
            if second.done() and _has_answered(second, other) and not (first.done() and _has_answered(first, stream)):
                winner = other
            self._metrics.hedged(pending.model, won=winner is other)
            _note(pending, winner)
            if winner is stream:
                await first  # raises what its worker refused it for
            return winner
        finally:
            (other if winner is stream else stream).abandon(lost_hedge=True)
            second.cancel()


def _has_answered(task: "asyncio.Task[None]", stream: BackendStream) -> bool:
    return not isinstance(task.exception(), RefusedByWorker) and not stream.failure


def _note(pending: Pending, winner: BackendStream) -> None:
    """In the trace the last attempt is the one that answered."""
    attempts = pending.generation.trace.attempts
    if attempts[-1].worker != winner.worker:
        attempts[-2], attempts[-1] = attempts[-1], attempts[-2]
    attempts[-2].failed = "hedge_lost"
