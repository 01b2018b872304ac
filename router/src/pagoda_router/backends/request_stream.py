"""One request on one of our own workers, as its reader sees it: what arrived together is read together. No network; times are workers'.

Written by its session's RunningRequests (streams.py), read by one task. What the reader stops or abandons is cancelled on the worker.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

from pagoda_router.admission.credits import Price
from pagoda_router.backends.base import Failure, RefusedByWorker
from pagoda_router.generation import (
    Embedded,
    Ended,
    EndReason,
    Event,
    Generation,
    PromptLogprobs,
    Started,
    Take,
    TakeRelayed,
    Tokens,
    Usage,
    WorkerId,
)
from pagoda_router.placement.prefixes import Expectation
from pagoda_router.tracing.record import WorkerTimes
from pagoda_router.wire import worker_pb2 as wire

CancelOnWorker = Callable[["RequestStream", int | None, Any], None]
"""Of one sequence or (None) all, with the wire's reason."""
DraftOnWorker = Callable[["RequestStream", int, Sequence[int]], None]
"""Guesses at the output of a request of one sequence, from this position on."""

FAILURES: dict[EndReason, Failure] = {
    EndReason.ENGINE_ERROR: "engine_error",
    EndReason.SHUTDOWN: "worker_drained",
    EndReason.TIMED_OUT: "timed_out",
}


class Follower(Protocol):
    """Who hears at once, in the middle of reading a frame, how a request of one sequence goes on, whether anybody reads it or not."""

    def came(self, token_ids: Sequence[int]) -> None:
        """What one step gave, while somebody waits for it."""
        ...

    def ended(self, end: Ended) -> None:
        """As the worker said it, or as a lost worker makes it."""
        ...

    def left(self) -> None:
        """It is gone from its worker; nothing follows. Of a lost or refusing worker this comes without `ended`."""
        ...


class RequestStream:
    """Implements BackendStream. Written by RunningRequests, read by one task."""

    def __init__(
        self,
        request_id: int,
        worker: WorkerId,
        generation: Generation,
        cost: Price,
        cancel: CancelOnWorker,
        *,
        uncached_tokens: int | None = None,
        expectation: Expectation | None = None,
        draft: DraftOnWorker | None = None,
    ) -> None:
        """`uncached_tokens`: of its prompt, those that the worker is expected to compute; None: all. `draft`: how guesses reach it; None:
        it takes none."""
        self.worker = worker
        self.generation = generation
        self.cost = cost
        self.request_id = request_id
        self.unbegun_prompt_tokens = cost.prompt_tokens if uncached_tokens is None else uncached_tokens
        self.expectation = expectation
        self.lost = False
        self.lost_hedge = False
        self.engine_died = False
        self.begun = False
        self.progress = 0
        self.failure = ""
        self.failure_reason = EndReason.ENGINE_ERROR
        self.times = WorkerTimes()
        self.running = set(range(generation.n))
        """On the worker, as far as it told."""
        self.silent: set[int] = set()
        """No further events: stopped by the reader, or ended."""
        self.stopped: set[int] = set()
        """Of those: by a stop string, so that their length is a real answer's."""
        self.output_tokens: list[int] = []
        self.lengths: list[int] = []
        """Of all sequences that ended on the worker, cancelled ones too."""
        self.hurt: Failure | None = None
        """What its worker did to it while somebody waited."""
        self._has_tokens = False
        self._has_output = False
        self._pending: list[Event] = []
        self._refusal: RefusedByWorker | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._cancel = cancel
        self._draft = draft
        self.follower: Follower | None = None
        """Set by whoever submitted it, at once."""
        self._take: Take | None = None
        self._fault: Exception | None = None
        """What `_take` raised."""

    # ------------------------------------------------------------ the reader's side

    def __aiter__(self) -> AsyncIterator[list[Event]]:
        return self

    async def __anext__(self) -> list[Event]:
        while not self._pending:
            if self._fault is not None:
                raise self._fault
            if self._refusal is not None:
                raise self._refusal
            if len(self.silent) == self.generation.n:
                raise StopAsyncIteration
            # As _woken, in place: this is once a token, and a coroutine less.
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        batch, self._pending = self._pending, []
        return batch

    async def wait_for_output(self) -> None:
        while not self._has_output:
            if self._refusal is not None:
                raise self._refusal
            await self._woken()

    def stop(self, sequence: int) -> None:
        if sequence in self.silent:
            return
        self.silent.add(sequence)
        self.stopped.add(sequence)
        self.times.cut_short = True
        self._pending = [event for event in self._pending if event.sequence != sequence]
        self._cancel(self, sequence, wire.CANCEL_STOP_STRING)

    def tap(self, take: Take) -> None:
        self._take = take

    def tap_relayed(self, take: TakeRelayed) -> None:
        """It brings tokens, never bytes."""

    def abandon(self, *, lost_hedge: bool = False) -> None:
        self.lost_hedge = lost_hedge
        self._silence(self._unsilenced(), wire.CANCEL_HEDGE_LOST if lost_hedge else wire.CANCEL_CLIENT_GONE)

    def give_up(self, detail: str) -> None:
        self.lost, self.hurt = True, "timed_out"
        self.end_all(EndReason.TIMED_OUT, detail)

    @property
    def takes_drafts(self) -> bool:
        return self._draft is not None

    def draft(self, position: int, token_ids: Sequence[int]) -> None:
        """Guesses at the output; the worker drops those that are of no use. Only where it takes them."""
        assert self._draft is not None
        if self.is_awaited:
            self._draft(self, position, token_ids)

    def end_all(self, reason: EndReason, detail: str) -> None:
        open_sequences = self._unsilenced()
        for sequence in open_sequences:
            self.end(Ended(sequence, reason, Usage(self.cost.prompt_tokens, 0, 0), detail=detail))
        self._silence(open_sequences, wire.CANCEL_SHUTDOWN)

    def _unsilenced(self) -> list[int]:
        return [sequence for sequence in range(self.generation.n) if sequence not in self.silent]

    def _silence(self, sequences: list[int], cancel_reason: Any) -> None:
        """`sequences`: those that had not been silent. Whoever was has been cancelled already, and the worker is told once."""
        self._take = None  # it leads to whoever reads this stream: a cycle, which only the collector would free
        self.silent.update(sequences)
        if not self.running.isdisjoint(sequences):
            self.times.cut_short = True
            self._cancel(self, None, cancel_reason)

    async def _woken(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # ------------------------------------------------------------ the session's side

    @property
    def is_awaited(self) -> bool:
        return len(self.silent) < self.generation.n

    def push(self, event: Started | Tokens | PromptLogprobs | Embedded) -> None:
        if event.sequence in self.silent:
            return
        if type(event) is not Tokens:
            self._pending.append(event)
            self.wake()
            return
        self._has_tokens = self._has_output = True
        self.progress += 1
        if self._take is None or not self._is_read_out or not self._taken(self._take, event):
            self._pending.append(event)
            self.wake()
        if self.follower is not None:
            self.follower.came(event.token_ids)

    @property
    def _is_read_out(self) -> bool:
        """Its reader has taken everything and waits for more, so that nothing can be overtaken."""
        return self._waiter is not None and not self._pending and not self._waiter.done()

    def _taken(self, take: Take, tokens: Tokens) -> bool:
        try:
            return take(tokens)
        except Exception as error:  # a bug in one answer is that answer's, not its session's
            self._take, self._fault = None, error
            self.wake()
            return True

    def end(self, event: Ended) -> None:
        if self.follower is not None:
            self.follower.ended(event)
        if event.sequence in self.silent:
            return
        self.silent.add(event.sequence)
        self._pending.append(event)
        self._has_output = self._has_tokens or len(self.silent) == self.generation.n
        if not self._has_tokens and self._has_output and event.reason in FAILURES:
            self.failure = event.detail or "the worker gave no reason"
            self.failure_reason = event.reason
        self.wake()

    def refuse(self, refusal: RefusedByWorker) -> None:
        self._refusal = refusal
        self.wake()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
