"""What a foreign backend answers in one piece and without output: embeddings, and the conversions of /tokenize and /detokenize.

Queued, placed, cancelled and tried again as what relay.py relays. embeddings.py and tokenize.py call it for models that have such a
backend. Of embeddings it knows that only vLLM makes them; which server converts what is relayed_tokens.py's to know.
"""

import os
from array import array
from collections.abc import Mapping, Sequence

import msgspec

from pagoda_router.catalog import CatalogEntry
from pagoda_router.dispatch.endings import raise_failure
from pagoda_router.errors import BadRequest, LacksEndpoint, UpstreamFailed
from pagoda_router.generation import Dispatcher, Ended, Generation, Sender, Usage
from pagoda_router.http.asgi import JSON_TYPE, Exchange
from pagoda_router.openai import checks
from pagoda_router.openai.call import Call
from pagoda_router.openai.offers import require_switches
from pagoda_router.openai.prepare import SALT_BYTES
from pagoda_router.openai.relay import ended_early, require_no_trace
from pagoda_router.openai.relayed_prompt import pieces_of, prompts_in
from pagoda_router.openai.relayed_tokens import conversion_of
from pagoda_router.openai.schemas import decode_body
from pagoda_router.relays import Relay, Relayed

EMBEDDINGS = "/v1/embeddings"
ENCODINGS = ("float", "base64")
NO_PROMPT = array("I", [0])
"""Of a conversion: it takes no room in a KV cache, whatever its length, and finds and leaves nothing there."""


class _EmbeddingRequest(msgspec.Struct, kw_only=True):
    """The fields that the router reads."""

    encoding_format: str | None = None
    priority: int | None = None


class _ConversionRequest(msgspec.Struct):
    pass


class _Vectors(msgspec.Struct):
    data: list[msgspec.Raw]


class RelayingOnce:
    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    async def embed(self, call: Call, entry: CatalogEntry, backend: str, exchange: Exchange) -> None:
        generation = _embedding(call, entry, backend)
        outcome = call.outcome
        outcome.model, outcome.served_name = entry.model, entry.served_name
        await call.reserve([generation], self._dispatcher)
        try:
            body, usage = await self._asked(generation)
        except LacksEndpoint:
            raise BadRequest(
                f"{entry.served_name} makes no embeddings: its {backend} worker runs a model that generates text; "
                "use an embedding model, or run this one as such",
                param="model",
            ) from None
        outcome.prompt_tokens, outcome.cached_tokens = usage.prompt_tokens, usage.cached_tokens
        outcome.finish_reasons = ("stop",) * _count_of_vectors(body)
        outcome.status = 200
        await exchange.answer(200, [JSON_TYPE, (b"content-length", str(len(body)).encode()), *call.answer_headers()], body)

    async def convert(self, path: str, body: bytes, entry: CatalogEntry, variant: str | None, backend: str, sender: Sender) -> bytes:
        """The answer's body. `path`: /tokenize or /detokenize."""
        _, fields = decode_body(body, _ConversionRequest)
        conversion = conversion_of(backend, path, _bytes_of(fields), entry.max_model_len)
        relay = _relay(conversion.path, conversion.fields, entry)
        try:
            answer, _ = await self._asked(_generation("tok-", entry, relay, NO_PROMPT, sender=sender, variant=variant))
        except LacksEndpoint:
            raise BadRequest(f"{entry.served_name}: this {backend} worker has no {path}: a newer version may", param="model") from None
        return msgspec.json.encode(conversion.read(answer))

    async def _asked(self, generation: Generation) -> tuple[bytes, Usage]:
        body = b""
        async with self._dispatcher.generate(generation) as stream:
            async for events in stream:
                for event in events:
                    if isinstance(event, Relayed):
                        body += event.data
                    elif isinstance(event, Ended):
                        raise_failure(event)
                        return body, event.usage
        raise ended_early()


def _embedding(call: Call, entry: CatalogEntry, backend: str) -> Generation:
    request, fields = decode_body(call.body, _EmbeddingRequest)
    if backend != "vllm":
        raise BadRequest(f"a {backend} worker makes no embeddings: use a model whose backend is pagoda or vllm", param="model")
    require_no_trace(call, backend)
    given = fields.get("input", fields.get("messages"))
    if given is None:
        raise BadRequest("input is required", param="input")
    if request.encoding_format not in (None, *ENCODINGS):
        raise BadRequest(f"encoding_format is {request.encoding_format[:40]!r}: use float or base64", param="encoding_format")
    require_switches(call.wishes, backend, 1, None)
    relay = _relay(EMBEDDINGS, _bytes_of(fields), entry, prefix_cache=call.wishes.switches.prefix_cache)
    generation = _generation(
        "embd-",
        entry,
        relay,
        pieces_of(bytes(given)),
        sender=call.sender,
        variant=call.variant,
        n=prompts_in(bytes(given)),
        priority=checks.priority_of(request.priority),
        traceparent=call.trace.context.traceparent,
        tracestate=call.trace.context.tracestate,
    )
    call.trace.answer_id, call.trace.choices = generation.request_id, generation.n
    call.trace.generations = [generation.trace]
    return generation


def _generation(
    id_prefix: str,
    entry: CatalogEntry,
    relay: Relay,
    prompt: "Sequence[int]",
    *,
    sender: Sender,
    variant: str | None,
    n: int = 1,
    priority: int = 0,
    traceparent: str = "",
    tracestate: str = "",
) -> Generation:
    return Generation(
        request_id=id_prefix + os.urandom(12).hex(),
        model=entry.model,
        prompt_ids=prompt,
        max_tokens=1,  # none is made
        explicit_max_tokens=True,
        n=n,
        embedding=True,
        cache_salt=b"" if relay.prefix_cache else os.urandom(SALT_BYTES),
        tenant=sender.tenant,
        request_class=sender.request_class,
        deadline_s=sender.deadline_s,
        priority=priority,
        traceparent=traceparent,
        tracestate=tracestate,
        variant=variant,
        relay=relay,
    )


def _relay(path: str, fields: Mapping[str, bytes], entry: CatalogEntry, *, prefix_cache: bool = True) -> Relay:
    return Relay(path=path, fields=fields, served_name=entry.served_name, stream=False, wants_usage=False, prefix_cache=prefix_cache)


def _bytes_of(fields: Mapping[str, msgspec.Raw]) -> dict[str, bytes]:
    return {name: bytes(value) for name, value in fields.items()}


def _count_of_vectors(body: bytes) -> int:
    """Raises UpstreamFailed."""
    try:
        return len(msgspec.json.decode(body, type=_Vectors).data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UpstreamFailed(f"the worker's answer was not understood: {error}") from None
