"""A request that a foreign backend answers: its JSON goes there as the client wrote it, and what comes back is written as it comes.

The router still queues, places, cancels, counts and bills it; it tokenizes nothing and looks into no text. answers.py calls
`Relaying.answer` for a model, or a variant of one, that such a backend serves.
"""

import os
from collections.abc import Awaitable, Callable
from dataclasses import replace

import msgspec

from pagoda_router.catalog import CatalogEntry
from pagoda_router.dispatch.endings import raise_failure
from pagoda_router.errors import BadRequest, LacksEndpoint, UpstreamFailed
from pagoda_router.generation import Dispatcher, Ended, EndReason, Generation
from pagoda_router.http.asgi import JSON_TYPE, Exchange
from pagoda_router.http.surface import RequestOutcome, SurfaceSettings
from pagoda_router.openai import checks
from pagoda_router.openai.call import Call
from pagoda_router.openai.formats import DONE
from pagoda_router.openai.keepalive import KeepAlive
from pagoda_router.openai.offers import require_switches
from pagoda_router.openai.prepare import SALT_BYTES
from pagoda_router.openai.relayed_prompt import pieces_of, prompts_in
from pagoda_router.openai.responses.relayed import RelayedResponse, relayed_chat
from pagoda_router.openai.responses.request import ResponsesRequest
from pagoda_router.openai.schemas import StreamOptions, decode_body
from pagoda_router.relays import Relay, Relayed

PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions", "responses": "/v1/chat/completions"}
"""A response is asked as a chat (responses/relayed.py)."""
COMPLETION_MAX_TOKENS = 16
UNTOLD_MAX_TOKENS = 8192
"""Of a chat without a limit on a server that does not tell its context; only the first prediction depends on it."""


class RelayedRequest(msgspec.Struct, kw_only=True):
    """The fields that the router reads; all others are the backend's to understand or refuse."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    priority: int | None = None


class Relaying:
    def __init__(self, dispatcher: Dispatcher, settings: SurfaceSettings, clock: Callable[[], float]) -> None:
        """`clock`: the trace's."""
        self._dispatcher = dispatcher
        self._settings = settings
        self._clock = clock

    async def answer(self, call: Call, entry: CatalogEntry, backend: str, exchange: Exchange, keep_alive: Callable[[], KeepAlive]) -> None:
        generation = self._generation(call, entry, backend)
        relay = generation.relay
        assert relay is not None
        call.outcome.model, call.outcome.served_name, call.outcome.stream = entry.model, entry.served_name, relay.stream
        await call.reserve([generation], self._dispatcher)
        try:
            if relay.stream:
                async with keep_alive() as alive:
                    await self._stream(call, generation, exchange, alive)
            else:
                await self._whole(call, generation, exchange)
        except LacksEndpoint:
            raise _makes_no_text(entry, backend) from None

    async def respond(
        self,
        call: Call,
        entry: CatalogEntry,
        backend: str,
        exchange: Exchange,
        keep_alive: Callable[[], KeepAlive],
        asked: ResponsesRequest,
    ) -> None:
        generation = self._generation(replace(call, body=relayed_chat(asked, backend)), entry, backend)
        call.outcome.model, call.outcome.served_name, call.outcome.stream = entry.model, entry.served_name, bool(asked.stream)
        await call.reserve([generation], self._dispatcher)
        response = RelayedResponse(asked)
        try:
            await self._respond(call, generation, exchange, keep_alive, response, bool(asked.stream))
        except LacksEndpoint:
            raise _makes_no_text(entry, backend) from None

    async def _respond(
        self,
        call: Call,
        generation: Generation,
        exchange: Exchange,
        keep_alive: Callable[[], KeepAlive],
        response: RelayedResponse,
        streams: bool,
    ) -> None:
        if not streams:
            await self._feed(call, generation, response, None)
            await self._write_whole(call, exchange, response.whole())
            return
        async with keep_alive() as alive:
            is_open = False

            async def deliver(data: bytes) -> None:
                nonlocal is_open
                if not is_open:
                    is_open, exchange.failure = True, response.failed
                    await alive.stop()
                    await alive.start()
                await exchange.write(data)

            await self._feed(call, generation, response, deliver)
            await exchange.write(response.closing(), last=True)

    async def _feed(
        self, call: Call, generation: Generation, response: RelayedResponse, deliver: Callable[[bytes], Awaitable[None]] | None
    ) -> None:
        """Returns at the answer's end, raises what broke it. `deliver`: what its events are written by, as they come."""
        async with self._dispatcher.generate(generation) as stream:
            async for events in stream:
                relayed = [event for event in events if isinstance(event, Relayed)]
                for event in relayed:
                    self._count(call, event)
                data = response.feed(b"".join(event.data for event in relayed))
                if data and deliver is not None:
                    await deliver(data)
                ended = next((event for event in events if isinstance(event, Ended)), None)
                if ended is not None:
                    self._bill(call.outcome, ended)
                    raise_failure(ended)
                    return
        raise ended_early()

    def _generation(self, call: Call, entry: CatalogEntry, backend: str) -> Generation:
        request, fields = decode_body(call.body, RelayedRequest)
        require_no_trace(call, backend)
        path = PATHS[call.outcome.endpoint]
        is_chat = call.outcome.endpoint != "completions"
        prompt_field = "messages" if is_chat else "prompt"
        if prompt_field not in fields:
            raise BadRequest(f"{prompt_field} is required", param=prompt_field)
        n = 1 if request.n is None else request.n
        if not 1 <= n <= self._settings.max_choices:
            raise BadRequest(f"n is {n}: use a value from 1 to {self._settings.max_choices}", param="n")
        require_switches(call.wishes, backend, n, None)
        sequences = n if is_chat else n * prompts_in(bytes(fields["prompt"]))
        limit = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
        usual = (entry.max_model_len or UNTOLD_MAX_TOKENS) if is_chat else COMPLETION_MAX_TOKENS
        relay = Relay(
            path=path,
            fields={name: bytes(value) for name, value in fields.items()},
            served_name=entry.served_name,
            stream=bool(request.stream),
            wants_usage=request.stream_options is not None and bool(request.stream_options.include_usage),
            prefix_cache=call.wishes.switches.prefix_cache,
        )
        trace, answer_id = call.trace, "relay-" + os.urandom(12).hex()
        generation = Generation(
            request_id=answer_id,
            model=entry.model,
            prompt_ids=pieces_of(relay.fields[prompt_field]),
            max_tokens=usual if limit is None else max(1, limit),
            explicit_max_tokens=limit is not None or not is_chat,
            n=sequences,
            min_tokens=max(0, request.min_tokens or 0),
            ignore_eos=bool(request.ignore_eos),
            cache_salt=b"" if relay.prefix_cache else os.urandom(SALT_BYTES),
            tenant=call.sender.tenant,
            request_class=call.sender.request_class,
            deadline_s=call.sender.deadline_s,
            priority=checks.priority_of(request.priority),
            traceparent=trace.context.traceparent,
            tracestate=trace.context.tracestate,
            variant=call.variant,
            relay=relay,
        )
        trace.answer_id, trace.choices, trace.max_tokens = answer_id, sequences, limit
        trace.generations = [generation.trace]
        return generation

    async def _stream(self, call: Call, generation: Generation, exchange: Exchange, alive: KeepAlive) -> None:
        is_open = False

        def take(event: Relayed) -> bool:
            """In the middle of the stream, while its client reads."""
            if not (is_open and exchange.takes_more):
                return False
            self._count(call, event)
            exchange.write_at_once(event.data)
            return True

        async with self._dispatcher.generate(generation) as stream:
            stream.tap_relayed(take)
            async for events in stream:
                # What arrived together leaves together; what came before a failure leaves before it.
                relayed = [event for event in events if isinstance(event, Relayed)]
                ended = next((event for event in events if isinstance(event, Ended)), None)
                data = b"".join(event.data for event in relayed)
                if data and not is_open:
                    is_open = True
                    await alive.stop()
                    await alive.start()
                for event in relayed:
                    self._count(call, event)
                if ended is None:
                    await exchange.write(data)
                    continue
                self._bill(call.outcome, ended)
                if ended.reason in (EndReason.STOP, EndReason.LENGTH):
                    await exchange.write(data + DONE, last=True)
                    return
                if data:
                    await exchange.write(data)
                raise_failure(ended)
        raise ended_early()

    async def _whole(self, call: Call, generation: Generation, exchange: Exchange) -> None:
        body = b""
        async with self._dispatcher.generate(generation) as stream:
            async for events in stream:
                for event in events:
                    if isinstance(event, Relayed):
                        self._count(call, event, streams=False)
                        body += event.data
                    elif isinstance(event, Ended):
                        self._bill(call.outcome, event)
                        raise_failure(event)
                        await self._write_whole(call, exchange, body)
                        return
        raise ended_early()

    async def _write_whole(self, call: Call, exchange: Exchange, body: bytes) -> None:
        call.outcome.status = 200
        await exchange.answer(200, [JSON_TYPE, (b"content-length", str(len(body)).encode()), *call.answer_headers()], body)

    def _count(self, call: Call, event: Relayed, *, streams: bool = True) -> None:
        """As it comes, so that a stream that breaks off is billed for what was sent."""
        outcome = call.outcome
        if streams:  # all of an answer in one piece says nothing of its first token
            since_s = self._clock() - call.trace.received_s
            outcome.ttft_s = since_s if outcome.ttft_s is None else outcome.ttft_s
            outcome.last_token_s = since_s
        outcome.completion_tokens += event.tokens
        outcome.finish_reasons += event.finish_reasons
        outcome.longest_completion_tokens = outcome.completion_tokens

    def _bill(self, outcome: RequestOutcome, ended: Ended) -> None:
        outcome.prompt_tokens = ended.usage.prompt_tokens
        outcome.cached_tokens = ended.usage.cached_tokens
        outcome.completion_tokens = ended.usage.completion_tokens
        outcome.longest_completion_tokens = ended.usage.completion_tokens // max(1, len(outcome.finish_reasons))


def _makes_no_text(entry: CatalogEntry, backend: str) -> BadRequest:
    return BadRequest(
        f"{entry.served_name} generates no text: its {backend} worker has no endpoint for that, as one that runs an embedding model; "
        "use another model",
        param="model",
    )


def require_no_trace(call: Call, backend: str) -> None:
    """In the answer."""
    if call.wants_trace:
        raise BadRequest(
            f"X-Pagoda-Trace: an answer of a {backend} worker carries no trace: leave it out; /admin/v1/traces has it",
            param="X-Pagoda-Trace",
        )


def ended_early() -> UpstreamFailed:
    return UpstreamFailed("the worker's stream ended early: send the request again")
