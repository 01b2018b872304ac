"""POST /v1/embeddings from parsed body to answer: one generation per input, whose worker sends a vector instead of tokens.

app.py calls `Embeddings.answer` as it calls answers.py; a RouterError raised here becomes the status. What a foreign backend embeds goes
through relay_once.py.
"""

import asyncio
import base64
import os
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import msgspec

from pagoda_router.abilities import Feature
from pagoda_router.catalog import Catalog
from pagoda_router.dispatch.endings import raise_failure
from pagoda_router.errors import BadRequest, UpstreamFailed
from pagoda_router.generation import Dispatcher, Embedded, Ended, Generation
from pagoda_router.http.asgi import JSON_TYPE, Exchange
from pagoda_router.http.surface import SurfaceSettings
from pagoda_router.openai import checks
from pagoda_router.openai.call import Call
from pagoda_router.openai.fields import NOTHING, REFUSED, check_unknown_fields
from pagoda_router.openai.offers import choose_own, require_switches
from pagoda_router.openai.prepare import SALT_BYTES
from pagoda_router.openai.relay_once import ENCODINGS, RelayingOnce
from pagoda_router.openai.schemas import EmbeddingRequest, decode_body, model_named
from pagoda_router.openai.target import Target, Targets, guessed_tokens, texts_or_ids
from pagoda_router.relays import OWN_BACKEND
from pagoda_router.tracing.document import document

_LENGTH = "vectors have length 1: leave it out"
EMBEDDING_REFUSED = {
    **REFUSED,
    # vLLM's, as in fields.py: why and what to do, values that ask for nothing
    "messages": ("send text in input", NOTHING),
    "prompt": ("use input", NOTHING),
    "normalize": (_LENGTH, (None, True)),
    "use_activation": (_LENGTH, (None, True)),
    "embed_dtype": ("vectors are float32: leave it out", (None, "float32")),
    "endianness": ("base64 is little-endian: leave it out", (None, "native", "little")),
}


class Embeddings:
    def __init__(
        self,
        dispatcher: Dispatcher,
        catalog: Catalog,
        targets: Targets,
        relaying: RelayingOnce,
        settings: SurfaceSettings,
        clock: Callable[[], float],
    ) -> None:
        """`clock`: the trace's."""
        self._dispatcher = dispatcher
        self._catalog = catalog
        self._targets = targets
        self._settings = settings
        self._clock = clock
        self._relaying = relaying
        self._rng = Random()

    async def answer(self, call: Call, exchange: Exchange) -> None:
        if self._catalog.relays:
            name = model_named(call.body)
            call.key.require_model(name)
            entry = self._catalog.get(name)
            call, backend = choose_own(call, entry, self._catalog, self._rng)
            if backend != OWN_BACKEND:
                call.member.leave()
                await self._relaying.embed(call, entry, backend, exchange)
                return
        await self._embed(call, exchange)

    async def _embed(self, call: Call, exchange: Exchange) -> None:
        request, _ = decode_body(
            call.body,
            EmbeddingRequest,
            lambda fields: check_unknown_fields(fields, EmbeddingRequest.__struct_fields__, refused=EMBEDDING_REFUSED),
        )
        call.key.require_model(request.model)
        entry = self._catalog.get(request.model)
        outcome = call.outcome
        outcome.model, outcome.served_name = entry.model, request.model
        if request.encoding_format not in (None, *ENCODINGS):
            raise BadRequest(f"encoding_format is {request.encoding_format[:40]!r}: use float or base64", param="encoding_format")
        inputs = texts_or_ids(request.input, "input")
        if len(inputs) > self._settings.max_choices:
            raise BadRequest(f"input has {len(inputs)} entries: send at most {self._settings.max_choices}", param="input")

        def guess() -> int:
            return sum(guessed_tokens(text) if isinstance(text, str) else len(text) for text in inputs)

        if not self._catalog.relays:
            call, _ = choose_own(call, entry, self._catalog, self._rng)
        target = await self._targets.wait_for(entry, call.trace, call.variant, guess, call.sender, call.member)
        target.require(Feature.EMBEDDINGS, "model", "make no embeddings: use another model")
        require_switches(call.wishes, OWN_BACKEND, 1, target.assets)
        generations = await self._generations(request, inputs, target, call)
        await call.reserve(generations, self._dispatcher)
        call.member.leave()
        vectors = await self._vectors(generations)
        if request.dimensions is not None and request.dimensions != len(vectors[0]):
            raise BadRequest(
                f"dimensions is {request.dimensions}, but {request.model} makes {len(vectors[0])} and is not shortened: leave it out",
                param="dimensions",
            )
        outcome.prompt_tokens = sum(len(generation.prompt_ids) for generation in generations)
        outcome.finish_reasons = ("stop",) * len(vectors)
        outcome.status = 200
        trace = document(call.trace, self._clock()) if call.wants_trace else None
        body = _body(request, vectors, outcome.prompt_tokens, trace)
        await exchange.start(200, [JSON_TYPE, (b"content-length", str(len(body)).encode()), *call.answer_headers()])
        await exchange.write(body, last=True)

    async def _generations(
        self, request: EmbeddingRequest, inputs: Sequence[str | Sequence[int]], target: Target, call: Call
    ) -> list[Generation]:
        most, special = checks.most_prompt_tokens(request, target.assets), request.add_special_tokens is not False
        answer_id, trace = "embd-" + os.urandom(12).hex(), call.trace
        generations: list[Generation] = []
        for position, given in enumerate(inputs):
            if isinstance(given, str):
                ids = await target.encode(given, special=special, param="input", most=most)
            else:
                checks.check_prompt_ids(given, target.assets, param="input")
                ids = given if most is None else given[-most:]
            if not ids:
                raise BadRequest("input is empty: send at least one token", param="input")
            checks.check_context(len(ids), target.assets, param="input")
            generations.append(
                Generation(
                    request_id=f"{answer_id}-{position}",
                    model=target.model,
                    adapter=target.adapter,
                    prompt_ids=ids,
                    max_tokens=1,  # the wire asks for one at least; none is made
                    explicit_max_tokens=True,
                    embedding=True,
                    tenant=target.sender.tenant,
                    request_class=target.sender.request_class,
                    deadline_s=target.sender.deadline_s,
                    priority=checks.priority_of(request.priority),
                    cache_salt=b"" if call.wishes.switches.prefix_cache else os.urandom(SALT_BYTES),
                    switches=call.wishes.switches,
                    traceparent=trace.context.traceparent,
                    tracestate=trace.context.tracestate,
                    variant=target.variant,
                    arrival=target.arrival,
                )
            )
        trace.answer_id, trace.choices = answer_id, len(generations)
        trace.generations = [generation.trace for generation in generations]
        return generations

    async def _vectors(self, generations: Sequence[Generation]) -> list[Sequence[float]]:
        """In order. The first failure ends the others."""
        slots = asyncio.Semaphore(self._settings.max_batch_in_flight)

        async def one(generation: Generation) -> Sequence[float]:
            async with slots:
                return await self._vector(generation)

        tasks = [asyncio.create_task(one(generation)) for generation in generations]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _vector(self, generation: Generation) -> Sequence[float]:
        values: Sequence[float] = ()
        async with self._dispatcher.generate(generation) as stream:
            async for events in stream:
                for event in events:
                    if isinstance(event, Embedded):
                        values = event.values
                    elif isinstance(event, Ended):
                        raise_failure(event)
        if not values:
            raise UpstreamFailed("the worker ended the request without an embedding: send it again")
        return values


def _body(request: EmbeddingRequest, vectors: Sequence[Sequence[float]], prompt_tokens: int, trace: dict[str, Any] | None) -> bytes:
    as_base64 = request.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _base64(vector) if as_base64 else vector}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
    answer = {"object": "list", "data": data, "model": request.model, "usage": usage}
    return msgspec.json.encode(answer if trace is None else {**answer, "pagoda_trace": trace})


def _base64(vector: Sequence[float]) -> str:
    """Float32, little-endian, as OpenAI's client reads it."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
