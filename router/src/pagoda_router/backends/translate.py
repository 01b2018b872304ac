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
    # Each field named costs the same whether it says something or not: what is seldom asked for is left out while it is not.
    message = wire.ToWorker()
    submit = message.submit
    submit.request_id, submit.model = request_id, generation.model
    submit.n, submit.max_tokens, submit.reserved_kv_tokens = generation.n, generation.max_tokens, reserved_tokens
    submit.sampling.CopyFrom(_sampling(generation.sampling))
    if packs_ids:
        submit.packed_prompt_ids = packed(generation.prompt_ids)
    else:
        submit.prompt_ids.extend(generation.prompt_ids)
    _add_seldom_asked(submit, generation)
    if (switches := generation.switches) is not ALL_ON:
        submit.toggles.no_prefix_cache = not switches.prefix_cache
        submit.toggles.no_batching = not switches.batching
        submit.toggles.no_speculation = not switches.speculation
    submit.trace.traceparent = generation.traceparent
    submit.trace.tracestate = generation.tracestate
    submit.trace.want_timings = True  # every request has its trace, and batch sizes are two bytes a token
    return message


def _add_seldom_asked(submit: Any, generation: Generation) -> None:
    if generation.adapter:
        submit.adapter = generation.adapter
    if generation.resume_ids:
        submit.resume_ids.extend(generation.resume_ids)
    if generation.min_tokens:
        submit.min_tokens = generation.min_tokens
    if generation.stop_token_ids:
        submit.stop_token_ids.extend(generation.stop_token_ids)
    if generation.ignore_eos:
        submit.ignore_eos = True
    if generation.top_logprobs is not None:
        submit.top_logprobs = generation.top_logprobs
    if generation.prompt_logprobs is not None:
        submit.prompt_logprobs = generation.prompt_logprobs
    if generation.embedding:
        submit.embedding = True
    if generation.structured is not None:
        submit.structured.CopyFrom(_structured(generation.structured))
    if generation.cache_salt:
        submit.cache_salt = generation.cache_salt
    if generation.priority:
        submit.priority = generation.priority
    if generation.deadline_s is not None:
        submit.deadline_us = max(1, int(generation.deadline_s * 1e6))


def _sampling(sampling: Sampling) -> Any:
    message = wire.Sampling(temperature=sampling.temperature, top_p=sampling.top_p, repetition_penalty=sampling.repetition_penalty)
    if sampling.top_k or sampling.min_p or sampling.frequency_penalty or sampling.presence_penalty:
        message.top_k, message.min_p = sampling.top_k, sampling.min_p
        message.frequency_penalty, message.presence_penalty = sampling.frequency_penalty, sampling.presence_penalty
    if sampling.seed is not None:
        message.seed = sampling.seed
    if sampling.logit_bias or sampling.allowed_token_ids or sampling.bad_words:
        message.logit_bias.extend(wire.LogitBias(token_id=token, bias=bias) for token, bias in sampling.logit_bias.items())
        message.allowed_token_ids.extend(sampling.allowed_token_ids)
        message.bad_words.extend(wire.TokenIds(ids=ids) for ids in sampling.bad_words)
    return message


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
    if not usage.draft_tokens:
        return Usage(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)
    return Usage(
        usage.prompt_tokens,
        usage.cached_tokens,
        usage.completion_tokens,
        draft_tokens=usage.draft_tokens,
        accepted_draft_tokens=usage.accepted_draft_tokens,
        drafts=usage.drafts,
        accepted_by_place=tuple(usage.accepted_by_place),
    )


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
