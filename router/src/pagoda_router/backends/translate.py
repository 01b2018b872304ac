"""Generation → Submit, and the wire's finish reasons, usage, logprobs and refusals → ours. Pure; used by the pagoda backend only."""

from collections.abc import Iterable
from typing import Any

from pagoda_router.abilities import ALL_ON
from pagoda_router.adapters import LoadedAdapter
from pagoda_router.backends.base import RefusedByWorker
from pagoda_router.errors import BadRequest, ContextTooLong, ModelNotFound, RouterError
from pagoda_router.generation import EndReason, Generation, PromptLogprobs, Sampling, Structured, TokenLogprobs, Usage
from pagoda_router.token_ids import packed
from pagoda_router.wire import worker_pb2 as wire

END_REASONS: dict[int, EndReason] = {
    wire.FINISH_UNSPECIFIED: EndReason.ENGINE_ERROR,
    wire.FINISH_STOP: EndReason.STOP,
    wire.FINISH_LENGTH: EndReason.LENGTH,
    wire.FINISH_CANCELLED: EndReason.CANCELLED,
    wire.FINISH_DEADLINE: EndReason.DEADLINE,
    wire.FINISH_ENGINE_ERROR: EndReason.ENGINE_ERROR,
    wire.FINISH_SHUTDOWN: EndReason.SHUTDOWN,
}

_CLIENTS_FAULT: dict[int, type[RouterError]] = {
    wire.Refused.INVALID: BadRequest,
    wire.Refused.UNIMPLEMENTED: BadRequest,
    wire.Refused.CONTEXT_TOO_LONG: ContextTooLong,
    wire.Refused.MODEL_NOT_FOUND: ModelNotFound,
}
"""The other codes (overloaded, draining, not ready) are about the worker: another one may take the request."""


def submit_message(generation: Generation, request_id: int, reserved_tokens: int, *, packs_ids: bool = False) -> Any:
    """`packs_ids`: as the worker's Welcome said."""
    submit = wire.Submit(
        request_id=request_id,
        model=generation.model,
        adapter=generation.adapter,
        prompt_ids=() if packs_ids else generation.prompt_ids,
        packed_prompt_ids=packed(generation.prompt_ids) if packs_ids else b"",
        resume_ids=generation.resume_ids,
        n=generation.n,
        sampling=_sampling(generation.sampling),
        max_tokens=generation.max_tokens,
        min_tokens=generation.min_tokens,
        stop_token_ids=generation.stop_token_ids,
        ignore_eos=generation.ignore_eos,
        top_logprobs=generation.top_logprobs,
        prompt_logprobs=generation.prompt_logprobs,
        embedding=generation.embedding,
        structured=None if generation.structured is None else _structured(generation.structured),
        cache_salt=generation.cache_salt,
        priority=generation.priority,
        deadline_us=None if generation.deadline_s is None else max(1, int(generation.deadline_s * 1e6)),
        reserved_kv_tokens=reserved_tokens,
    )
    if (switches := generation.switches) is not ALL_ON:
        submit.toggles.no_prefix_cache = not switches.prefix_cache
        submit.toggles.no_batching = not switches.batching
        submit.toggles.no_speculation = not switches.speculation
    submit.trace.traceparent = generation.traceparent
    submit.trace.tracestate = generation.tracestate
    submit.trace.want_timings = True  # every request has its trace, and batch sizes are two bytes a token
    return wire.ToWorker(submit=submit)


def _sampling(sampling: Sampling) -> Any:
    return wire.Sampling(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        repetition_penalty=sampling.repetition_penalty,
        seed=sampling.seed,
        logit_bias=[wire.LogitBias(token_id=token, bias=bias) for token, bias in sampling.logit_bias.items()],
        allowed_token_ids=sampling.allowed_token_ids,
        bad_words=[wire.TokenIds(ids=ids) for ids in sampling.bad_words],
    )


def _structured(form: Structured) -> Any:
    if form.choices:
        return wire.StructuredOutput(choices=wire.Choices(choices=form.choices))
    if form.json_schema is not None:
        return wire.StructuredOutput(json_schema=form.json_schema)
    if form.regex is not None:
        return wire.StructuredOutput(regex=form.regex)
    if form.grammar is not None:
        return wire.StructuredOutput(grammar=form.grammar)
    return wire.StructuredOutput(json_object=form.json_object)


def adapters_of(message: Any) -> dict[str, LoadedAdapter]:
    """Of a Welcome or a Frame, by name."""
    return {
        each.name: LoadedAdapter(
            name=each.name,
            version=each.version,
            source=each.source,
            rank=each.rank,
            size_bytes=each.size_bytes,
            resident=each.resident,
        )
        for each in message.adapters.adapters
    }


def features_of(description: Any) -> tuple[str, ...]:
    """Names as in the wire's enum, without its prefix; numbers of a newer wire are left out."""
    known = wire.Feature.values()
    return tuple(wire.Feature.Name(number).removeprefix("FEATURE_").lower() for number in description.features if number in known)


def usage_from_wire(usage: Any) -> Usage:
    drafted, accepted = usage.draft_tokens, usage.accepted_draft_tokens
    return Usage(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens, draft_tokens=drafted, accepted_draft_tokens=accepted)


def row_logprobs(row: Any) -> list[TokenLogprobs]:
    """Of one row, one per token."""
    return _logprobs(row.sampled, row)


def prompt_logprobs(message: Any) -> PromptLogprobs:
    return PromptLogprobs(_logprobs(message.own, message))


def _logprobs(of_tokens: Iterable[float], message: Any) -> list[TokenLogprobs]:
    """The k most likely of each token lie one after another."""
    k, ids, values = message.k, list(message.top_ids), list(message.top)
    return [
        TokenLogprobs(own, tuple(zip(ids[place * k : place * k + k], values[place * k : place * k + k], strict=True)))
        for place, own in enumerate(of_tokens)
    ]


def refusal(refused: Any) -> RefusedByWorker:
    """Of a sampling field clients know the last part of the wire's name."""
    fault = _CLIENTS_FAULT.get(refused.code)
    message, param = (text.replace("sampling.", "", 1) for text in (refused.message, refused.param))
    return RefusedByWorker(
        message,
        None if fault is None else fault(message, param=param or None),
        overloaded=refused.code == wire.Refused.OVERLOADED,
        passed_credits=refused.code == wire.Refused.OVERLOADED and param == "reserved_kv_tokens",
    )
