"""A finished RequestTrace as OTLP spans: one for the request, a child for each phase. Called by the exporter's thread only.

Names and attributes are those of the GenAI semantic conventions ("development" in opentelemetry-semantic-conventions 0.66b2); ours begin
with pagoda. Never a prompt, never an answer. Written straight into the protocol's messages: the SDK's span objects and encoder take ten
times as long, all of it with the interpreter's lock held.
"""

import hashlib
from collections.abc import Mapping, Sequence

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from pagoda_router.tracing.phases import last_attempt, phases
from pagoda_router.tracing.record import Attempt, RequestTrace

Value = str | bool | int | float | tuple[str, ...] | None

OPERATIONS = {"chat": "chat", "responses": "chat", "completions": "text_completion", "embeddings": "embeddings"}
SAMPLED = 0x01
HAS_IS_REMOTE, IS_REMOTE = 0x100, 0x200
"""Of a span's flags: whether its parent is another process's."""


def resource_spans(spans: Sequence[Span], resource: Mapping[str, Value]) -> ResourceSpans:
    scope = ScopeSpans(scope=InstrumentationScope(name="pagoda_router"), spans=spans)
    return ResourceSpans(resource=Resource(attributes=_attributes(resource)), scope_spans=[scope])


def spans_of(trace: RequestTrace) -> list[Span]:
    assert trace.ended_s is not None
    outcome, context = trace.outcome, trace.context
    trace_id, span_id, parent_id = (bytes.fromhex(text) for text in (context.trace_id, context.span_id, context.parent_span_id))
    origin_ns = int(trace.received_unix_s * 1e6) * 1000
    parts = phases(trace, trace.ended_s)
    operation = OPERATIONS[outcome.endpoint]
    is_failed = outcome.status >= 500 or outcome.status == 0
    request = Span(
        trace_id=trace_id,
        span_id=span_id,
        parent_span_id=parent_id,
        trace_state=context.tracestate,
        flags=SAMPLED | HAS_IS_REMOTE | (IS_REMOTE if parent_id else 0),
        name=f"{operation} {outcome.served_name or outcome.model}",
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=origin_ns,
        end_time_unix_nano=origin_ns + parts[-1].end_us * 1000,
        attributes=_attributes(_request_facts(trace, operation) | _worker_facts(last_attempt(trace))),
        status=Status(code=Status.STATUS_CODE_ERROR, message=outcome.error_code or "") if is_failed else None,
    )
    children = [
        Span(
            trace_id=trace_id,
            span_id=_child_id(span_id, part.name),
            parent_span_id=span_id,
            trace_state=context.tracestate,
            flags=SAMPLED | HAS_IS_REMOTE,
            name=part.name,
            kind=Span.SPAN_KIND_INTERNAL,
            start_time_unix_nano=origin_ns + part.start_us * 1000,
            end_time_unix_nano=origin_ns + part.end_us * 1000,
            attributes=_attributes({"pagoda.process": part.opened_by}),
        )
        for part in parts
    ]
    return [request, *children]


def _request_facts(trace: RequestTrace, operation: str) -> dict[str, Value]:
    outcome = trace.outcome
    return {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "pagoda",
        "gen_ai.request.model": outcome.served_name or outcome.model,
        "gen_ai.request.stream": outcome.stream,
        "gen_ai.request.max_tokens": trace.max_tokens,
        "gen_ai.request.choice.count": trace.choices if trace.choices > 1 else None,
        "gen_ai.response.id": trace.answer_id or None,
        "gen_ai.response.model": outcome.model,
        "gen_ai.response.finish_reasons": outcome.finish_reasons or None,
        "gen_ai.response.time_to_first_chunk": outcome.ttft_s,
        "gen_ai.usage.input_tokens": outcome.prompt_tokens,
        "gen_ai.usage.output_tokens": outcome.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": outcome.cached_tokens,
        "http.response.status_code": outcome.status,
        "error.type": outcome.error_code,
        "pagoda.request_id": outcome.request_id,
        "pagoda.attempts": sum(len(generation.attempts) for generation in trace.generations),
    }


def _worker_facts(attempt: Attempt | None) -> dict[str, Value]:
    if attempt is None:
        return {}
    return {
        "pagoda.worker": attempt.worker,
        "pagoda.placement.policy": attempt.policy,
        "pagoda.placement.reason": str(attempt.reason),
        "pagoda.placement.predicted_ms": attempt.predicted_ms,
        "pagoda.placement.runner_up": attempt.runner_up,
        "pagoda.placement.runner_up_ms": attempt.runner_up_ms,
        "pagoda.steps": attempt.times.steps,
        "pagoda.preemptions": attempt.times.preemptions,
    }


def _attributes(facts: Mapping[str, Value]) -> list[KeyValue]:
    """Without those that are None."""
    return [KeyValue(key=key, value=_value(fact)) for key, fact in facts.items() if fact is not None]


def _value(fact: Value) -> AnyValue:
    if isinstance(fact, str):
        return AnyValue(string_value=fact)
    if isinstance(fact, bool):  # before int, which it is too
        return AnyValue(bool_value=fact)
    if isinstance(fact, int):
        return AnyValue(int_value=fact)
    if isinstance(fact, float):
        return AnyValue(double_value=fact)
    return AnyValue(array_value=ArrayValue(values=[AnyValue(string_value=text) for text in fact or ()]))


def _child_id(span_id: bytes, name: str) -> bytes:
    """The same at every look, so that a trace exported twice is one."""
    return hashlib.blake2b(name.encode(), key=span_id, digest_size=8).digest()
