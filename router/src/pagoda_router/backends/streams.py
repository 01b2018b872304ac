"""One session's running requests: which frame row belongs to which stream, who wakes, what each one holds. No network; times are workers'.

A frame is walked once; each stream it touches wakes at most once for it and then reads everything that arrived together. Reservations are
held until the worker confirms the end (or the session is gone), not until the reader leaves: that is how long the KV is really in use.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from pagoda_router.admission.credits import CreditLedger, Price, service_tokens, used_kv_tokens
from pagoda_router.admission.depth import BatchDepth
from pagoda_router.backends.base import Failure, LinkListener, RefusedByWorker, Settlement
from pagoda_router.backends.translate import END_REASONS, prompt_logprobs, row_logprobs, usage_from_wire
from pagoda_router.generation import (
    Embedded,
    Ended,
    EndReason,
    Event,
    Generation,
    ModelName,
    PromptLogprobs,
    RequestClass,
    Started,
    Tokens,
    Usage,
    WorkerId,
)
from pagoda_router.placement.prefixes import Expectation
from pagoda_router.tracing.clock import WorkerClock
from pagoda_router.tracing.record import WorkerTimes
from pagoda_router.wire import worker_pb2 as wire

CancelOnWorker = Callable[["RequestStream", int | None, Any], None]
"""Of one sequence or (None) all, with the wire's reason."""

_FAILURES: dict[EndReason, Failure] = {
    EndReason.ENGINE_ERROR: "engine_error",
    EndReason.SHUTDOWN: "worker_drained",
    EndReason.TIMED_OUT: "timed_out",
}


class RequestStream:
    """Implements BackendStream. Written by RunningRequests, read by one task."""

    def __init__(
        self,
        request_id: int,
        worker: WorkerId,
        generation: Generation,
        cost: Price,
        cancel: "CancelOnWorker",
        *,
        uncached_tokens: int | None = None,
        expectation: Expectation | None = None,
    ) -> None:
        """`uncached_tokens`: of its prompt, those that the worker is expected to compute; None: all."""
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

    # ------------------------------------------------------------ the reader's side

    def __aiter__(self) -> AsyncIterator[list[Event]]:
        return self

    async def __anext__(self) -> list[Event]:
        while not self._pending:
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

    def abandon(self, *, lost_hedge: bool = False) -> None:
        self.lost_hedge = lost_hedge
        self._silence(self._unsilenced(), wire.CANCEL_HEDGE_LOST if lost_hedge else wire.CANCEL_CLIENT_GONE)

    def give_up(self, detail: str) -> None:
        self.lost, self.hurt = True, "timed_out"
        self.end_all(EndReason.TIMED_OUT, detail)

    def end_all(self, reason: EndReason, detail: str) -> None:
        open_sequences = self._unsilenced()
        for sequence in open_sequences:
            self.end(Ended(sequence, reason, Usage(self.cost.prompt_tokens, 0, 0), detail=detail))
        self._silence(open_sequences, wire.CANCEL_SHUTDOWN)

    def _unsilenced(self) -> list[int]:
        return [sequence for sequence in range(self.generation.n) if sequence not in self.silent]

    def _silence(self, sequences: list[int], cancel_reason: Any) -> None:
        """`sequences`: those that had not been silent. Whoever was has been cancelled already, and the worker is told once."""
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
        self._pending.append(event)
        if type(event) is Tokens:
            self._has_tokens = self._has_output = True
            self.progress += 1
        self.wake()

    def end(self, event: Ended) -> None:
        if event.sequence in self.silent:
            return
        self.silent.add(event.sequence)
        self._pending.append(event)
        self._has_output = self._has_tokens or len(self.silent) == self.generation.n
        if not self._has_tokens and self._has_output and event.reason in _FAILURES:
            self.failure = event.detail or "the worker gave no reason"
            self.failure_reason = event.reason
        self.wake()

    def refuse(self, refusal: RefusedByWorker) -> None:
        self._refusal = refusal
        self.wake()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class RunningRequests:
    """Everything in flight in one session."""

    def __init__(
        self,
        worker: WorkerId,
        model: ModelName,
        ledger: CreditLedger,
        listener: LinkListener,
        send: Callable[[Any], None],
        *,
        block_size: Callable[[], int],
        on_prefilled: Callable[[int, WorkerTimes], None] | None = None,
    ) -> None:
        """`block_size`: tokens per KV block, as far as known at the time of the call. `on_prefilled` hears of each request that ran to its
        end how many tokens of its prompt were computed, and what the worker told of when."""
        self.ledger = ledger
        self.depth = BatchDepth()
        self.clock = WorkerClock()
        self.unbegun_prompt_tokens = 0
        """Sent, not expected to be cached, and not yet reported as begun: prefill work that the worker's last state may not show."""
        self.sequences = 0
        self.yielding = 0
        """Of those, of throughput requests, which make way on the worker."""
        self._worker = worker
        self._model = model
        self._listener = listener
        self._send = send
        self._block_size = block_size
        self._on_prefilled = on_prefilled
        self._streams: dict[int, RequestStream] = {}
        self._next_id = 1

    def __len__(self) -> int:
        return len(self._streams)

    def add(
        self,
        generation: Generation,
        cost: Price,
        reserved_tokens: int,
        *,
        uncached_tokens: int | None = None,
        expectation: Expectation | None = None,
    ) -> RequestStream:
        stream = RequestStream(
            self._next_id, self._worker, generation, cost, self._cancel, uncached_tokens=uncached_tokens, expectation=expectation
        )
        self.ledger.spend(stream.request_id, reserved_tokens)
        self._next_id += 1
        self._streams[stream.request_id] = stream
        self.unbegun_prompt_tokens += stream.unbegun_prompt_tokens
        self._count(generation, generation.n)
        return stream

    def deliver(self, frame: Any) -> None:
        """One pass over a Frame's rows."""
        streams = self._streams
        for started in frame.started:
            stream = streams.get(started.request_id)
            if stream is not None:
                self._mark_begun(stream)
                stream.times.cached_tokens = started.cached_tokens
                stream.push(Started(0, started.cached_tokens, started.queue_us))
        for logprobs_of_prompt in frame.prompt_logprobs:
            stream = streams.get(logprobs_of_prompt.request_id)
            if stream is not None:
                stream.push(prompt_logprobs(logprobs_of_prompt))
        for embedding in frame.embeddings:
            stream = streams.get(embedding.request_id)
            if stream is not None:
                self._mark_begun(stream)
                stream.push(Embedded(list(embedding.values)))
        if frame.request_ids:
            token_ids = list(frame.token_ids)
            logprobs = {row.row: row for row in frame.logprobs}
            at_us, clock = frame.at_mono_us, self.clock.reading
            end = 0
            rows = zip(list(frame.request_ids), list(frame.sequences), list(frame.token_counts), strict=True)  # protobuf's own walk slowly
            for row, (request_id, sequence, count) in enumerate(rows):
                start, end = end, end + count
                stream = streams.get(request_id)
                if stream is None:
                    continue
                if not stream.begun:
                    self._mark_begun(stream)
                if sequence not in stream.silent:
                    stream.times.saw_tokens(at_us, clock)
                stream.push(Tokens(sequence, token_ids[start:end], row_logprobs(logprobs[row]) if row in logprobs else None))
        for finish in frame.finishes:
            self._finish(finish)

    def refuse(self, request_id: int, refusal: RefusedByWorker) -> None:
        stream = self._streams.get(request_id)
        if stream is not None:
            if stream.is_awaited and refusal.error is None:
                stream.hurt = "refused"
            self._release(stream, ran=False)
            stream.refuse(refusal)

    def lose_all(self, reason: str) -> None:
        """The session is gone and with it every request on the worker."""
        for stream in list(self._streams.values()):
            if stream.is_awaited:
                stream.hurt = "worker_lost"
            self._release(stream, ran=False)
            stream.lost = True
            stream.end_all(EndReason.ENGINE_ERROR, reason)

    def _finish(self, finish: Any) -> None:
        stream = self._streams.get(finish.request_id)
        if stream is None or finish.sequence not in stream.running:
            return
        sequence, usage, reason = finish.sequence, usage_from_wire(finish.usage), END_REASONS[finish.reason]
        stream.running.discard(sequence)
        stream.lengths.append(usage.completion_tokens - len(stream.generation.resume_ids))  # the rest is its context there
        stream.times.finished(finish.timings, self.clock.reading, usage.completion_tokens)
        if sequence not in stream.silent:
            stream.hurt = stream.hurt or _FAILURES.get(reason)
        if finish.engine_died:
            stream.lost = stream.engine_died = True
        self._count(stream.generation, -1)
        self.depth.ended(stream.lengths[-1])
        if (reason in (EndReason.STOP, EndReason.LENGTH) or sequence in stream.stopped) and not stream.generation.embedding:
            stream.output_tokens.append(usage.completion_tokens)
        stop_token_id = finish.stop_token_id if reason is EndReason.STOP else None
        stream.end(Ended(sequence, reason, usage, stop_token_id, finish.detail))
        if not stream.running:
            self._release(stream, ran=True)

    def _release(self, stream: RequestStream, *, ran: bool) -> None:
        """The request left the worker: its reservation settles, exactly once."""
        del self._streams[stream.request_id]
        self._prefill_no_longer_ahead(stream)
        if stream.expectation is not None:
            stream.expectation.over()
        if stream.begun and ran and self._on_prefilled is not None:
            self._on_prefilled(stream.cost.prompt_tokens - stream.times.cached_tokens, stream.times)
        self._count(stream.generation, -len(stream.running))
        stream.running.clear()
        generation, prompt_tokens, cached_tokens = stream.generation, stream.cost.prompt_tokens, stream.times.cached_tokens
        used = used_kv_tokens(prompt_tokens, stream.lengths, self._block_size(), cached_tokens) if stream.begun else 0
        self._listener.settled(
            Settlement(
                model=self._model,
                reserved_tokens=self.ledger.settle(stream.request_id),
                used_tokens=used,
                predicted_output_tokens=stream.cost.output_tokens,
                output_tokens=stream.output_tokens,
                ran=ran,
                failure=stream.hurt,
                lost_hedge=stream.lost_hedge,
                worker=self._worker,
                tenant=generation.tenant,
                request_class=generation.request_class,
                charged_service_tokens=stream.cost.service_tokens,
                service_tokens=service_tokens(prompt_tokens, cached_tokens, sum(stream.lengths)) if ran and stream.begun else 0,
            )
        )

    def _count(self, generation: Generation, sequences: int) -> None:
        self.sequences += sequences
        if generation.request_class is RequestClass.THROUGHPUT:
            self.yielding += sequences

    def _mark_begun(self, stream: RequestStream) -> None:
        if not stream.begun:
            stream.begun = True
            if stream.expectation is not None:
                stream.expectation.begun()
        self._prefill_no_longer_ahead(stream)

    def _prefill_no_longer_ahead(self, stream: RequestStream) -> None:
        self.unbegun_prompt_tokens -= stream.unbegun_prompt_tokens
        stream.unbegun_prompt_tokens = 0

    def _cancel(self, stream: RequestStream, sequence: int | None, reason: Any) -> None:
        if stream.request_id in self._streams:
            self._send(wire.ToWorker(cancel=wire.Cancel(request_id=stream.request_id, sequence=sequence, reason=reason)))
