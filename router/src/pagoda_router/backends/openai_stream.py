"""One request on a foreign backend: its HTTP exchange, and the events that its reader gets. Implements BackendStream.

Owns the exchange's task and its buffer: a reader that does not read stops the reading from the backend. Knows no load and no other
request; the link of openai_http.py makes it, and hears once when it is over.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import aiohttp

from pagoda_router.admission.credits import Price
from pagoda_router.backends.base import Failure, RefusedByWorker
from pagoda_router.backends.dialect import Dialect, told
from pagoda_router.backends.sse import EventRewriter, NotAnAnswer, Piece, whole_answer
from pagoda_router.errors import BadRequest
from pagoda_router.generation import Ended, EndReason, Event, Generation, Take, Usage, WorkerId
from pagoda_router.relays import Relay, Relayed
from pagoda_router.tracing.record import WorkerTimes

log = logging.getLogger(__name__)

MOST_BUFFERED_BYTES = 256 * 1024
"""Unread by the client; then the backend is not read from, until it stops sending by itself."""
LARGEST_ANSWER_BYTES = 64 * 2**20
LARGEST_ERROR_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Destination:
    session: aiohttp.ClientSession
    dialect: Dialect
    url: str
    """Without a path."""
    model: str
    """What the server calls it."""
    name: str
    """Of the worker, in errors."""
    silence_s: float
    """Longest time without a byte: of an answer that is no stream, its whole making."""


class OpenAiStream:
    """Written by its own task, read by one other."""

    def __init__(self, generation: Generation, cost: Price, worker: WorkerId, over: Callable[["OpenAiStream"], None]) -> None:
        """`over` is called once, when nothing of it runs on the worker any more as far as the router can tell."""
        assert generation.relay is not None
        self.worker = worker
        self.generation = generation
        self.relay: Relay = generation.relay
        self.cost = cost
        self.lost = False
        self.engine_died = False
        self.begun = False
        self.failure = ""
        self.failure_reason = EndReason.ENGINE_ERROR
        self.times = WorkerTimes()
        self.usage: Usage | None = None
        self.seen_tokens = 0
        """Events with choices so far: tokens, or a little more."""
        self.first_output_s: float | None = None
        """Monotonic, as the next."""
        self.last_output_s: float | None = None
        self.began_s = time.monotonic()
        self.finished = False
        """It ended as asked."""
        self.hurt: Failure | None = None
        self._over = over
        self._pending: list[Event] = []
        self._pending_bytes = 0
        self._refusal: RefusedByWorker | None = None
        self._ended = False
        self._has_output = False
        self._changed = asyncio.Event()
        self._read = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self, destination: Destination) -> None:
        self._task = asyncio.create_task(self._run(destination), name=f"relay {self.generation.request_id}")
        self._task.add_done_callback(self._task_ended)

    # ------------------------------------------------------------ the reader's side

    def __aiter__(self) -> AsyncIterator[list[Event]]:
        return self

    async def __anext__(self) -> list[Event]:
        while not self._pending:
            if self._refusal is not None:
                raise self._refusal
            if self._ended:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        batch, self._pending, self._pending_bytes = self._pending, [], 0
        self._read.set()
        return batch

    async def wait_for_output(self) -> None:
        while not self._has_output:
            if self._refusal is not None:
                raise self._refusal
            self._changed.clear()
            await self._changed.wait()

    def tap(self, take: Take) -> None:
        """It brings text, never Tokens."""

    def stop(self, sequence: int) -> None:
        """Never asked for: who relays bytes looks for no stop string."""

    @property
    def is_awaited(self) -> bool:
        return not self._ended

    @property
    def progress(self) -> int:
        return self.seen_tokens

    def give_up(self, detail: str) -> None:
        self.lost, self.hurt = True, "timed_out"
        if not self._has_output:
            self.failure, self.failure_reason = detail, EndReason.TIMED_OUT
        self.end_all(EndReason.TIMED_OUT, detail)

    def end_all(self, reason: EndReason, detail: str) -> None:
        self._end(reason, detail)
        self.abandon()

    def abandon(self, *, lost_hedge: bool = False) -> None:
        """Closing the connection is how these servers are told to stop."""
        self._ended = True
        self._changed.set()
        if self._task is not None:
            self._task.cancel()

    async def closed(self) -> None:
        """Until nothing of it runs here."""
        if self._task is not None:
            await asyncio.wait([self._task])

    # ------------------------------------------------------------ the exchange

    async def _run(self, to: Destination) -> None:
        deadline_s = self.generation.deadline_s
        try:
            async with asyncio.timeout(deadline_s):
                await self._exchange(to)
        except BadRequest as error:
            self._refuse(RefusedByWorker(error.message, error))
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            self._refuse(RefusedByWorker(f"the worker {to.name} cannot be reached: {_sentence(error)}"))
        except NotAnAnswer as error:
            self._fail(EndReason.ENGINE_ERROR, f"the worker {to.name} was not understood: {error}", "engine_error")
        except aiohttp.SocketTimeoutError:
            self._fail(EndReason.ENGINE_ERROR, f"the worker {to.name} said nothing for {to.silence_s:g} s", "engine_error")
        except TimeoutError:
            self._fail(EndReason.DEADLINE, f"the request's deadline of {deadline_s or 0:g} s passed")
        except (aiohttp.ClientError, OSError) as error:
            self.lost = True
            self._fail(EndReason.ENGINE_ERROR, f"the worker {to.name} was lost: {_sentence(error)}", "worker_lost")

    async def _exchange(self, to: Destination) -> None:
        """Raises what aiohttp and asyncio.timeout raise, NotAnAnswer, BadRequest."""
        generation, relay = self.generation, self.relay
        headers = {"content-type": "application/json", "x-request-id": generation.request_id}
        if generation.traceparent:
            headers |= {"traceparent": generation.traceparent, "tracestate": generation.tracestate}
        body = to.dialect.request(relay, to.model, generation.cache_salt.hex())
        async with to.session.post(to.url + relay.path, data=body, headers=headers) as response:
            if response.status != 200:
                self._answered_otherwise(to, response.status, await response.content.read(LARGEST_ERROR_BYTES))
            elif relay.stream:
                await self._stream(to, response)
            else:
                await self._whole(to, response)

    async def _stream(self, to: Destination, response: aiohttp.ClientResponse) -> None:
        events = EventRewriter(self.relay.served_name, wants_usage=self.relay.wants_usage, manners=to.dialect.manners)
        async for chunk in response.content.iter_any():
            piece = events.feed(chunk)
            self.usage = events.usage
            self._push(piece)
            if piece.error is not None:
                self._failed_in_stream(to, piece.error)
                return
            if piece.done:
                self._finish()
                return
            while self._pending_bytes > MOST_BUFFERED_BYTES:
                self._read.clear()
                await self._read.wait()
        self.lost = True
        self._fail(EndReason.ENGINE_ERROR, f"the worker {to.name} was lost: its stream ended early", "worker_lost")

    async def _whole(self, to: Destination, response: aiohttp.ClientResponse) -> None:
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > LARGEST_ANSWER_BYTES:
                raise NotAnAnswer(f"its answer is larger than {LARGEST_ANSWER_BYTES} bytes")
        data, self.usage, reasons = whole_answer(bytes(body), self.relay.served_name, to.dialect.manners)
        tokens = self.usage.completion_tokens if self.usage is not None else 0
        self._push(Piece(data=data, tokens=tokens, finish_reasons=reasons))
        self._finish()

    def _answered_otherwise(self, to: Destination, status: int, body: bytes) -> None:
        failure = to.dialect.failure(status, body)
        if isinstance(failure, RefusedByWorker):
            self._refuse(failure)
        else:
            self.begun = True  # it had the request, and may have been hurt by it
            self._fail(EndReason.ENGINE_ERROR, failure.message, "engine_error")

    def _failed_in_stream(self, to: Destination, event: bytes) -> None:
        failure = to.dialect.failure_in_stream(event)
        if isinstance(failure, RefusedByWorker) and not self._has_output:
            self._refuse(failure)
        else:
            message, _ = told(event)
            self._fail(EndReason.ENGINE_ERROR, f"the worker {to.name} failed: {message}", "engine_error")

    # ------------------------------------------------------------ what the reader will see

    def _push(self, piece: Piece) -> None:
        if not piece.data:
            return
        now_s = time.monotonic()
        self.first_output_s = self.first_output_s or now_s
        self.last_output_s = now_s
        self.begun = self._has_output = True
        self.seen_tokens += piece.tokens
        self._pending.append(Relayed(piece.data, piece.tokens, piece.finish_reasons))
        self._pending_bytes += len(piece.data)
        self._changed.set()

    def _finish(self) -> None:
        self.finished = True
        self._end(EndReason.STOP, "")

    def _fail(self, reason: EndReason, sentence: str, hurt: Failure | None = None) -> None:
        self.hurt = hurt
        if not self._has_output and reason is EndReason.ENGINE_ERROR:
            self.failure = sentence
        self._end(reason, sentence)

    def _refuse(self, refusal: RefusedByWorker) -> None:
        if refusal.error is None:
            self.hurt = "refused"
        self._refusal = refusal
        self._ended = True
        self._changed.set()

    def _end(self, reason: EndReason, detail: str) -> None:
        if self._ended:
            return
        self._ended = self._has_output = True
        usage = self.usage or Usage(self.cost.prompt_tokens if self.begun else 0, 0, self.seen_tokens)
        self.times.cached_tokens = usage.cached_tokens
        self._pending.append(Ended(0, reason, usage, detail=detail))
        self._changed.set()

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("relay %s: internal error", self.generation.request_id, exc_info=error)
            self._fail(EndReason.ENGINE_ERROR, "the router failed on this request: its log has the reason")
        elif not self._ended:
            self._end(EndReason.CANCELLED, "the request was cancelled")
        self._over(self)


def _sentence(error: BaseException) -> str:
    return str(error) or type(error).__name__
