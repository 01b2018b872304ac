"""One session's running requests: which frame row belongs to which stream, who wakes, what each one holds. No network; times are workers'.

A frame is walked once; each stream it touches wakes at most once for it and then reads everything that arrived together. Reservations are
held until the worker confirms the end (or the session is gone), not until the reader leaves: that is how long the KV is really in use.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pagoda_router.admission.credits import CreditLedger, Price, service_tokens, used_kv_tokens
from pagoda_router.admission.depth import BatchDepth
from pagoda_router.backends.base import LinkListener, RefusedByWorker, Settlement
from pagoda_router.backends.request_stream import FAILURES, RequestStream
from pagoda_router.backends.translate import END_REASONS, prompt_logprobs, row_logprobs, usage_from_wire
from pagoda_router.generation import (
    Embedded,
    Ended,
    EndReason,
    Generation,
    ModelName,
    RequestClass,
    Started,
    Tokens,
    WorkerId,
)
from pagoda_router.placement.prefixes import Expectation
from pagoda_router.tracing.clock import WorkerClock
from pagoda_router.tracing.record import WorkerTimes
from pagoda_router.wire import worker_pb2 as wire


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

    def unbegun_latest_first(self) -> Iterator[tuple[int, int]]:
        """Sequences, and prompt tokens to compute, of each request that the worker has not begun."""
        return ((each.generation.n, each.unbegun_prompt_tokens) for each in reversed(self._streams.values()) if not each.begun)

    def add(
        self,
        generation: Generation,
        cost: Price,
        reserved_tokens: int,
        *,
        uncached_tokens: int | None = None,
        expectation: Expectation | None = None,
        takes_drafts: bool = False,
    ) -> RequestStream:
        stream = RequestStream(
            self._next_id,
            self._worker,
            generation,
            cost,
            self._cancel,
            uncached_tokens=uncached_tokens,
            expectation=expectation,
            draft=self._draft if takes_drafts else None,
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
            stream.hurt = stream.hurt or FAILURES.get(reason)
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
                is_draft=generation.is_draft,
            )
        )
        if stream.follower is not None:
            stream.follower.left()

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

    def _draft(self, stream: RequestStream, position: int, token_ids: Sequence[int]) -> None:
        if stream.request_id in self._streams:
            self._send(wire.ToWorker(draft=wire.DraftTokens(request_id=stream.request_id, position=position, token_ids=token_ids)))

    def _cancel(self, stream: RequestStream, sequence: int | None, reason: Any) -> None:
        if stream.request_id in self._streams:
            self._send(wire.ToWorker(cancel=wire.Cancel(request_id=stream.request_id, sequence=sequence, reason=reason)))
