"""One generation request from parsed body to last byte: prepare, run, and write either a stream or one whole answer.

app.py calls `Completions.answer` inside an Exchange; a RouterError raised here becomes a status or, once the headers have left, an event.
"""

import math
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from pagoda_router.catalog import Catalog, CatalogEntry
from pagoda_router.errors import BadRequest, RouterError
from pagoda_router.generation import Dispatcher, Take, Tokens
from pagoda_router.http.asgi import JSON_TYPE, Exchange
from pagoda_router.http.cohort import next_stage
from pagoda_router.http.surface import RequestOutcome, SurfaceSettings
from pagoda_router.openai.answer_parts import Format, WholeChoice
from pagoda_router.openai.call import Call
from pagoda_router.openai.formats import ChatFormat, CompletionFormat, ReplyFormat
from pagoda_router.openai.keepalive import KeepAlive
from pagoda_router.openai.offers import choose
from pagoda_router.openai.prepare import Job, Preparer
from pagoda_router.openai.relay import Relaying
from pagoda_router.openai.responses.asking import chat_of
from pagoda_router.openai.responses.form import ResponseFormat, failed_early
from pagoda_router.openai.responses.request import ResponsesRequest, in_own_words, parse_responses
from pagoda_router.openai.run import Progress, run
from pagoda_router.openai.schemas import ChatRequest, CompletionRequest, model_named, parse_request
from pagoda_router.openai.sequence import Delta
from pagoda_router.relays import OWN_BACKEND
from pagoda_router.tracing.document import document


class Completions:
    """The endpoints that generate text."""

    def __init__(
        self, dispatcher: Dispatcher, catalog: Catalog, preparer: Preparer, settings: SurfaceSettings, clock: Callable[[], float]
    ) -> None:
        self._dispatcher = dispatcher
        self._catalog = catalog
        self._settings = settings
        self._clock = clock
        self._preparer = preparer
        self._relaying = Relaying(dispatcher, settings, clock)
        self._rng = Random()

    async def answer(self, call: Call, exchange: Exchange) -> None:
        if call.outcome.endpoint == "responses":
            await self._respond(call, exchange)
            return
        if self._catalog.relays:
            name = model_named(call.body)
            call.key.require_model(name)
            entry = self._catalog.get(name)
            call, backend = choose(call, entry, self._catalog, self._rng)
            if backend != OWN_BACKEND:
                keep_alive = partial(self._keep_alive, call, entry.served_name, exchange)
                call.member.leave()
                await self._relaying.answer(call, entry, backend, exchange, keep_alive)
                return
        is_chat = call.outcome.endpoint == "chat"
        request = parse_request(call.body, ChatRequest) if is_chat else parse_request(call.body, CompletionRequest)
        call.key.require_model(request.model)
        entry = self._catalog.get(request.model)
        if not self._catalog.relays:
            call, _ = choose(call, entry, self._catalog, self._rng)
        if call.member.in_company:
            await next_stage()
        await self._reply(call, request, entry, exchange)

    async def _respond(self, call: Call, exchange: Exchange) -> None:
        """A response is a chat in other words."""
        asked = parse_responses(call.body)
        call.key.require_model(asked.model)
        entry = self._catalog.get(asked.model)
        call, backend = choose(call, entry, self._catalog, self._rng)
        exchange.failure = partial(failed_early, asked)
        try:
            if backend != OWN_BACKEND:
                keep_alive = partial(self._keep_alive, call, entry.served_name, exchange)
                call.member.leave()
                await self._relaying.respond(call, entry, backend, exchange, keep_alive, asked)
                return
            await self._reply(call, chat_of(asked), entry, exchange, asked)
        except BadRequest as error:
            raise in_own_words(error) from None

    async def _reply(
        self,
        call: Call,
        request: ChatRequest | CompletionRequest,
        entry: CatalogEntry,
        exchange: Exchange,
        asked: ResponsesRequest | None = None,
    ) -> None:
        call.outcome.model, call.outcome.served_name = entry.model, request.model
        call.outcome.stream = bool(request.stream)
        if not request.stream:
            await self._answer(call, request, entry, exchange, None, asked)
            return
        async with self._keep_alive(call, entry.served_name, exchange) as alive:
            await self._answer(call, request, entry, exchange, alive, asked)

    async def _answer(
        self,
        call: Call,
        request: ChatRequest | CompletionRequest,
        entry: CatalogEntry,
        exchange: Exchange,
        alive: KeepAlive | None,
        asked: ResponsesRequest | None,
    ) -> None:
        output_format: Format
        if isinstance(request, ChatRequest) and asked is not None:
            job = await self._preparer.chat(request, entry, call, id_prefix="resp_")
            output_format = ResponseFormat(asked, job.answer_id, job.created, job.text)
            exchange.failure = output_format.failed
        elif isinstance(request, ChatRequest):
            job = await self._preparer.chat(request, entry, call)
            output_format = ChatFormat(job) if job.reply is None and not job.shows_token_ids else ReplyFormat(job)
        else:
            job = await self._preparer.completion(request, entry, call)
            output_format = CompletionFormat(job)
        if call.member.in_company:
            await next_stage()
        progress = Progress(job)
        writer: _Writer
        take: Take | None = None
        if alive is not None:
            streaming = writer = _StreamWriter(job, output_format, progress, exchange, call, self._clock, alive)
            take = streaming.take if all(choice.is_plain for choice in progress.choices) else None
        else:
            writer = _WholeWriter(job, output_format, progress, exchange, call, self._clock)
        await call.reserve(job.generations, self._dispatcher)
        if call.member.in_company:
            await next_stage()
        call.member.leave()
        call.account.look = partial(_bill, call.outcome, progress)
        try:
            await run(job, self._dispatcher, progress, writer.deliver, in_flight=self._settings.max_batch_in_flight, take=take)
        except BadRequest as error:
            raise _in_the_requests_words(error, job) from error
        finally:
            _bill(call.outcome, progress)

    def _keep_alive(self, call: Call, served_name: str, exchange: Exchange) -> KeepAlive:
        def started() -> None:
            call.outcome.status = 200

        def waits_for() -> str:
            try:
                model = self._catalog.get(served_name).model
            except RouterError:
                return ""  # deleted in the meantime; the wait itself ends with the reason
            if self._catalog.can_answer(model, call.variant):
                return ""
            wait_s = self._dispatcher.worker_in_s(model)
            return f"{served_name}, expected in {math.ceil(wait_s)} s" if wait_s else served_name

        return KeepAlive(exchange, self._settings, headers=call.answer_headers, started=started, waits_for=waits_for)


def _in_the_requests_words(error: BadRequest, job: Job) -> BadRequest:
    """A worker that cannot enforce a form calls it by the wire's name."""
    wire_name = error.param or ""
    if not job.constraint_field or not wire_name.startswith("structured."):
        return error
    return BadRequest(error.message.replace(wire_name, job.constraint_field), param=job.constraint_field, code=error.code)


def _bill(outcome: RequestOutcome, progress: Progress) -> None:
    usage = progress.usage
    outcome.prompt_tokens = usage.prompt_tokens
    outcome.cached_tokens = usage.cached_tokens
    outcome.completion_tokens = usage.completion_tokens
    if len(progress.choices) == 1:
        one = progress.choices[0]
        outcome.longest_completion_tokens = one.completion_tokens
        outcome.finish_reasons = () if one.finish_reason is None else (one.finish_reason,)
        return
    outcome.longest_completion_tokens = max(choice.completion_tokens for choice in progress.choices)
    outcome.finish_reasons = tuple(choice.finish_reason for choice in progress.choices if choice.finish_reason is not None)


class _Writer:
    """Takes each batch of deltas; knows when the last choice has finished."""

    def __init__(
        self, job: Job, output_format: Format, progress: Progress, exchange: Exchange, call: Call, clock: Callable[[], float]
    ) -> None:
        self._job = job
        self._format = output_format
        self._progress = progress
        self._exchange = exchange
        self._headers = call.answer_headers
        self._outcome = call.outcome
        self._trace = call.trace
        self._wants_trace = call.wants_trace
        self._clock = clock
        self._unfinished = len(progress.choices)

    async def deliver(self, deltas: list[Delta]) -> None:
        since_s = self._clock() - self._trace.received_s
        if self._outcome.ttft_s is None:
            self._outcome.ttft_s = since_s
        self._outcome.last_token_s = since_s
        for delta in deltas:
            if delta.finish_reason is not None:
                self._unfinished -= 1
        await self._write(deltas, last=self._unfinished == 0)

    async def _write(self, deltas: list[Delta], *, last: bool) -> None:
        raise NotImplementedError

    def _trace_document(self) -> dict[str, Any] | None:
        """Up to here, which is as far as an answer can tell of itself."""
        if not self._wants_trace:
            return None
        _bill(self._outcome, self._progress)
        self._outcome.status = 200
        return document(self._trace, self._clock())


class _StreamWriter(_Writer):
    def __init__(
        self,
        job: Job,
        output_format: Format,
        progress: Progress,
        exchange: Exchange,
        call: Call,
        clock: Callable[[], float],
        alive: KeepAlive,
    ) -> None:
        super().__init__(job, output_format, progress, exchange, call, clock)
        self._alive = alive
        self._is_open = False

    def take(self, tokens: Tokens) -> bool:
        """As `deliver` of a plain choice's tokens in the middle of its stream, without waiting. False: it would have to."""
        if not self._is_open or not self._exchange.takes_more:
            return False
        delta = self._progress.choices[tokens.sequence].feed(tokens)
        self._outcome.last_token_s = self._clock() - self._trace.received_s
        if delta.text:
            self._exchange.write_at_once(self._format.chunk(delta, self._progress.usage if self._job.continuous_usage else None))
        return True

    async def _write(self, deltas: list[Delta], *, last: bool) -> None:
        chunks = await self._open() if not self._is_open else []
        usage = self._progress.usage if self._job.continuous_usage else None
        for delta in deltas:
            chunks.append(self._format.chunk(delta, usage))
        if last:
            chunks.append(self._format.closing(self._progress, self._trace_document()))
        await self._exchange.write(chunks[0] if len(chunks) == 1 else b"".join(chunks), last=last)

    async def _open(self) -> list[bytes]:
        """Headers wait for the first tokens, or for a worker to wake: a failure before them still has a status of its own."""
        self._is_open = True
        await self._alive.stop()
        await self._alive.start()
        return [self._format.opening()]


class _WholeWriter(_Writer):
    def __init__(
        self, job: Job, output_format: Format, progress: Progress, exchange: Exchange, call: Call, clock: Callable[[], float]
    ) -> None:
        super().__init__(job, output_format, progress, exchange, call, clock)
        self._choices = [WholeChoice() for _ in progress.choices]

    async def _write(self, deltas: list[Delta], *, last: bool) -> None:
        for delta in deltas:
            self._choices[delta.index].add(delta)
        if last:
            body = self._format.whole(self._choices, self._progress, self._trace_document())
            self._outcome.status = 200
            length = (b"content-length", str(len(body)).encode())
            await self._exchange.answer(200, [JSON_TYPE, length, *self._headers()], body)
