"""One request on a foreign backend: its HTTP exchange, and the events that its reader gets. Implements BackendStream.

Called in the middle of reading from the connection (http1.py): what its reader takes at once leaves in that same turn of the event loop,
the rest waits in its buffer, and a reader that does not read stops the reading from the backend. Knows no load and no other request; the
link of openai_http.py makes it, and hears once when it is over.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable

from pagoda_router.admission.credits import Price
from pagoda_router.backends.base import Failure, RefusedByWorker
from pagoda_router.backends.destination import Destination
from pagoda_router.backends.dialect import told
from pagoda_router.backends.http1 import Connection, ConnectionFailed, ConnectionLost, Silent
from pagoda_router.backends.sse import EventRewriter, NotAnAnswer, Piece, whole_answer
from pagoda_router.backends.unread import Unread
from pagoda_router.errors import BadRequest
from pagoda_router.generation import Ended, EndReason, Event, Generation, Take, TakeRelayed, Usage, WorkerId
from pagoda_router.placement.prefixes import Expectation
from pagoda_router.relays import Relay, Relayed
from pagoda_router.tracing.record import WorkerTimes

log = logging.getLogger(__name__)

MOST_BUFFERED_BYTES = 256 * 1024
"""Unread by the client; then the backend is not read from, until it stops sending by itself."""
LARGEST_ANSWER_BYTES = 64 * 2**20
LARGEST_ERROR_BYTES = 64 * 1024


class OpenAiStream:
    """Written by its connection, read by one task. Implements http1.Asker."""

    def __init__(
        self,
        generation: Generation,
        cost: Price,
        worker: WorkerId,
        to: Destination,
        over: Callable[["OpenAiStream"], None],
        expectation: Expectation | None = None,
    ) -> None:
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
        self._to = to
        self._over = over
        self._expectation = expectation
        self._events = EventRewriter(self.relay.served_name, wants_usage=self.relay.wants_usage, manners=to.dialect.manners)
        self._body = bytearray()
        """Of an answer that is no stream."""
        self._status = 200
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._unread = Unread()
        self._ended = False

    # ------------------------------------------------------------ the reader's side

    def __aiter__(self) -> AsyncIterator[list[Event]]:
        return self

    async def __anext__(self) -> list[Event]:
        batch = await self._unread.batch()
        if self._connection is not None:
            self._connection.resume()
        return batch

    async def wait_for_output(self) -> None:
        await self._unread.wait_for_output()

    def tap(self, take: Take) -> None:
        """It brings bytes, never tokens."""

    def tap_relayed(self, take: TakeRelayed) -> None:
        self._unread.tap(take)

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
        if not self._unread.has_output:
            self.failure, self.failure_reason = detail, EndReason.TIMED_OUT
        self.end_all(EndReason.TIMED_OUT, detail)

    def end_all(self, reason: EndReason, detail: str) -> None:
        self._end(reason, detail)

    def abandon(self, *, lost_hedge: bool = False) -> None:
        """Closing the connection is how these servers are told to stop."""
        self._end(EndReason.CANCELLED, "the request was cancelled")

    # ------------------------------------------------------------ the exchange

    def start(self) -> None:
        generation, to = self.generation, self._to
        loop = asyncio.get_running_loop()
        if generation.deadline_s is not None:
            self._deadline = loop.call_later(generation.deadline_s, self._too_late)
        try:
            body = to.dialect.request(self.relay, to.model, generation.cache_salt.hex())
        except BadRequest as error:
            self._refuse(RefusedByWorker(error.message, error))
            return
        except Exception as error:  # a bug with one request is that request's, not its placer's
            self.failed(error)
            return
        if (connection := to.connections.idle()) is not None:
            self._ask(connection, body)
        else:
            self._connecting = loop.create_task(self._connect(body), name=f"relay {generation.request_id}")

    async def _connect(self, body: bytes) -> None:
        try:
            connection = await self._to.connections.new()
        except ConnectionFailed as error:
            self._connecting = None
            self._refuse(RefusedByWorker(f"the worker {self._to.name} cannot be reached: {error}"))
        except Exception as error:  # the task's outermost line
            self._connecting = None
            self.failed(error)
        else:
            self._connecting = None
            self._ask(connection, body)

    def _ask(self, connection: Connection, body: bytes) -> None:
        self._connection = connection
        connection.ask(self._to.head(self.relay, self.generation, len(body)), body, self)

    def answered(self, status: int) -> None:
        self._status = status

    def came(self, piece: bytes) -> None:
        if self._status != 200:
            self._body += piece
            if len(self._body) > LARGEST_ERROR_BYTES:
                self._answered_otherwise()
        elif self.relay.stream:
            self._streamed(self._events.feed(piece))
        else:
            self._body += piece
            if len(self._body) > LARGEST_ANSWER_BYTES:
                raise NotAnAnswer(f"its answer is larger than {LARGEST_ANSWER_BYTES} bytes")

    def whole(self) -> None:
        self._connection = None
        if self._ended:
            return
        if self._status != 200:
            self._answered_otherwise()
        elif self.relay.stream:
            self._lost("its stream ended early")
        else:
            try:
                data, self.usage, reasons = whole_answer(bytes(self._body), self.relay.served_name, self._to.dialect.manners)
            except NotAnAnswer as error:
                self.failed(error)
                return
            tokens = self.usage.completion_tokens if self.usage is not None else 0
            self._push(Piece(data=data, tokens=tokens, finish_reasons=reasons))
            self._finish()

    def failed(self, error: Exception) -> None:
        self._connection, name = None, self._to.name
        if isinstance(error, ConnectionLost):
            self._lost(str(error))
        elif isinstance(error, Silent):
            silence_s = self._to.connections.patience.silence_s
            self._fail(EndReason.ENGINE_ERROR, f"the worker {name} said nothing for {silence_s:g} s", "engine_error")
        elif isinstance(error, NotAnAnswer):
            self._fail(EndReason.ENGINE_ERROR, f"the worker {name} was not understood: {error}", "engine_error")
        else:
            log.error("relay %s: internal error", self.generation.request_id, exc_info=error)
            self._fail(EndReason.ENGINE_ERROR, "the router failed on this request: its log has the reason")

    def _streamed(self, piece: Piece) -> None:
        self.usage = self._events.usage
        self._push(piece)
        if piece.error is not None:
            self._failed_in_stream(piece.error)
        elif piece.done:
            self._finish()
        elif self._unread.bytes > MOST_BUFFERED_BYTES and self._connection is not None:
            self._connection.pause()

    def _too_late(self) -> None:
        self._deadline = None
        self._fail(EndReason.DEADLINE, "")

    def _lost(self, why: str) -> None:
        self.lost = True
        self._fail(EndReason.ENGINE_ERROR, f"the worker {self._to.name} was lost: {why}", "worker_lost")

    def _answered_otherwise(self) -> None:
        failure = self._to.dialect.failure(self._status, bytes(self._body[:LARGEST_ERROR_BYTES]))
        if isinstance(failure, RefusedByWorker):
            self._refuse(failure)
        else:
            self.begun = True  # it had the request, and may have been hurt by it
            self._note_death(bytes(self._body))
            self._fail(EndReason.ENGINE_ERROR, failure.message, "engine_error")

    def _failed_in_stream(self, event: bytes) -> None:
        failure = self._to.dialect.failure_in_stream(event)
        if isinstance(failure, RefusedByWorker) and not self._unread.has_output:
            self._refuse(failure)
        else:
            message, _ = told(event)
            self._note_death(event)
            self._fail(EndReason.ENGINE_ERROR, f"the worker {self._to.name} failed: {message}", "engine_error")

    def _note_death(self, body: bytes) -> None:
        """A server may outlive its engine for seconds, and answer each request with an error. Whether this one was the cause it does not
        say: it is lost as with a worker, and tried elsewhere once."""
        if self._to.dialect.tells_of_a_dead_engine(body):
            self.lost = True

    # ------------------------------------------------------------ what the reader will see

    def _push(self, piece: Piece) -> None:
        if not piece.data:
            return
        now_s = time.monotonic()
        if self.first_output_s is None:
            self.first_output_s = now_s
            self.begun = True
            if self._expectation is not None:
                self._expectation.begun()
        self.last_output_s = now_s
        self.seen_tokens += piece.tokens
        self._unread.put(Relayed(piece.data, piece.tokens, piece.finish_reasons))

    def _finish(self) -> None:
        self.finished = True
        self._end(EndReason.STOP, "")

    def _fail(self, reason: EndReason, sentence: str, hurt: Failure | None = None) -> None:
        if self._ended:
            return
        self.hurt = hurt
        if not self._unread.has_output and reason is EndReason.ENGINE_ERROR:
            self.failure = sentence
        self._end(reason, sentence)

    def _refuse(self, refusal: RefusedByWorker) -> None:
        if self._ended:
            return
        if refusal.error is None:
            self.hurt = "refused"
        self._ended = True
        self._unread.refuse(refusal)
        self._leave()

    def _end(self, reason: EndReason, detail: str) -> None:
        if self._ended:
            return
        self._ended = True
        usage = self.usage or Usage(self.cost.prompt_tokens if self.begun else 0, 0, self.seen_tokens)
        self.times.cached_tokens = usage.cached_tokens
        self._unread.end(Ended(0, reason, usage, detail=detail))
        self._leave()

    def _leave(self) -> None:
        """Nothing more of it comes. It settles in a turn of its own: whoever ends it is in the middle of something."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if self._connection is not None:
            self._connection.leave(may_end=self.finished)
            self._connection = None
        asyncio.get_running_loop().call_soon(self._settle)

    def _settle(self) -> None:
        if self._expectation is not None:
            self._expectation.over()
        self._over(self)
