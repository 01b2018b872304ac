"""A finished RequestTrace as OpenTelemetry spans: one for the request, a child for each phase. Called by the exporter's thread only.

Names and attributes are those of the GenAI semantic conventions ("development" in opentelemetry-semantic-conventions 0.66b2); ours begin
with pagoda. Never a prompt, never an answer.
"""

import hashlib
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.semconv.attributes.http_attributes import HTTP_RESPONSE_STATUS_CODE
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from pagoda_router.tracing.phases import last_attempt, phases
from pagoda_router.tracing.record import Attempt, RequestTrace

SCOPE = InstrumentationScope("pagoda_router")
OPERATIONS = {"chat": "chat", "completions": "text_completion"}


def spans_of(trace: RequestTrace, resource: Resource) -> list[ReadableSpan]:
    """Made directly, not by the SDK's tracer: they were timed long ago, and that way costs a twentieth."""
    assert trace.ended_s is not None
    outcome, context = trace.outcome, trace.context
    origin_ns = int(trace.received_unix_s * 1e6) * 1000
    parts = phases(trace, trace.ended_s)
    own = _context(trace, context.span_id)
    operation = OPERATIONS[outcome.endpoint]
    request = ReadableSpan(
        name=f"{operation} {outcome.served_name or outcome.model}",
        context=own,
        parent=_context(trace, context.parent_span_id, is_remote=True) if context.parent_span_id else None,
        kind=SpanKind.SERVER,
        resource=resource,
        instrumentation_scope=SCOPE,
        attributes={**_request_attributes(trace, operation), **_worker_attributes(last_attempt(trace))},
        status=Status(StatusCode.ERROR, outcome.error_code) if outcome.status >= 500 or outcome.status == 0 else Status(StatusCode.UNSET),
        start_time=origin_ns,
        end_time=origin_ns + parts[-1].end_us * 1000,
    )
    children = [
        ReadableSpan(
            name=part.name,
            context=_context(trace, _child_id(context.span_id, part.name)),
            parent=own,
            kind=SpanKind.INTERNAL,
            resource=resource,
            instrumentation_scope=SCOPE,
            attributes={"pagoda.process": part.opened_by},
            start_time=origin_ns + part.start_us * 1000,
            end_time=origin_ns + part.end_us * 1000,
        )
        for part in parts
    ]
    return [request, *children]


def _request_attributes(trace: RequestTrace, operation: str) -> dict[str, Any]:
    outcome = trace.outcome
    attributes: dict[str, Any] = {
        gen_ai.GEN_AI_OPERATION_NAME: operation,
        gen_ai.GEN_AI_PROVIDER_NAME: "pagoda",
        gen_ai.GEN_AI_REQUEST_MODEL: outcome.served_name or outcome.model,
        gen_ai.GEN_AI_REQUEST_STREAM: outcome.stream,
        gen_ai.GEN_AI_RESPONSE_MODEL: outcome.model,
        gen_ai.GEN_AI_USAGE_INPUT_TOKENS: outcome.prompt_tokens,
        gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS: outcome.completion_tokens,
        gen_ai.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: outcome.cached_tokens,
        HTTP_RESPONSE_STATUS_CODE: outcome.status,
        "pagoda.request_id": outcome.request_id,
        "pagoda.attempts": sum(len(generation.attempts) for generation in trace.generations),
    }
    if trace.answer_id:
        attributes[gen_ai.GEN_AI_RESPONSE_ID] = trace.answer_id
    if trace.max_tokens is not None:
        attributes[gen_ai.GEN_AI_REQUEST_MAX_TOKENS] = trace.max_tokens
    if trace.choices > 1:
        attributes[gen_ai.GEN_AI_REQUEST_CHOICE_COUNT] = trace.choices
    if outcome.finish_reasons:
        attributes[gen_ai.GEN_AI_RESPONSE_FINISH_REASONS] = outcome.finish_reasons
    if outcome.ttft_s is not None:
        attributes[gen_ai.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK] = outcome.ttft_s
    if outcome.error_code is not None:
        attributes[ERROR_TYPE] = outcome.error_code
    return attributes


def _worker_attributes(attempt: Attempt | None) -> dict[str, Any]:
    if attempt is None:
        return {}
    attributes = {
        "pagoda.worker": attempt.worker,
        "pagoda.placement.policy": attempt.policy,
        "pagoda.placement.reason": str(attempt.reason),
        "pagoda.placement.predicted_ms": attempt.predicted_ms,
        "pagoda.steps": attempt.times.steps,
        "pagoda.preemptions": attempt.times.preemptions,
    }
    if attempt.runner_up is not None and attempt.runner_up_ms is not None:
        attributes["pagoda.placement.runner_up"] = attempt.runner_up
        attributes["pagoda.placement.runner_up_ms"] = attempt.runner_up_ms
    return attributes


def _context(trace: RequestTrace, span_id: str, *, is_remote: bool = False) -> SpanContext:
    state = trace.context.tracestate
    return SpanContext(
        int(trace.context.trace_id, 16),
        int(span_id, 16),
        is_remote,
        TraceFlags(TraceFlags.SAMPLED),
        TraceState.from_header([state]) if state else TraceState(),
    )


def _child_id(span_id: str, name: str) -> str:
    """The same at every look, so that a trace exported twice is one."""
    return hashlib.blake2b(name.encode(), key=span_id.encode(), digest_size=8).hexdigest()
