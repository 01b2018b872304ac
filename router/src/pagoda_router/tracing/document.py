"""A RequestTrace as the JSON that clients and operators read. Pure; called when somebody asks, never on the request's way."""

from datetime import UTC, datetime
from typing import Any

from pagoda_router.tracing.phases import deciding, first_token_us, last_attempt, phases
from pagoda_router.tracing.record import Attempt, RequestTrace, WorkerTimes


def document(trace: RequestTrace, end_s: float) -> dict[str, Any]:
    """`end_s`: when it ended, or now. Durations in milliseconds, exact to the microsecond."""
    parts = phases(trace, end_s)
    outcome, attempt = trace.outcome, last_attempt(trace)
    return {
        "request_id": outcome.request_id,
        "trace_id": trace.context.trace_id,
        "model": outcome.model,
        "endpoint": outcome.endpoint,
        "stream": outcome.stream,
        "status": outcome.status or None,
        "error": outcome.error_code,
        "finish_reasons": list(outcome.finish_reasons),
        "received_at": datetime.fromtimestamp(trace.received_unix_s, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "total_ms": parts[-1].end_us / 1000,
        "phases": [
            {"name": part.name, "start_ms": part.start_us / 1000, "ms": (part.end_us - part.start_us) / 1000, "opened_by": part.opened_by}
            for part in parts
        ],
        "tokens": {"prompt": outcome.prompt_tokens, "cached": outcome.cached_tokens, "output": outcome.completion_tokens},
        "worker": None if attempt is None else _worker(attempt.times),
        "decision": None if attempt is None else _decision(attempt),
        "predicted": None if attempt is None else _predicted(trace, attempt),
        "attempts": [
            {"prompt": place, "worker": tried.worker, "failed": tried.failed or None}
            for place, generation in enumerate(trace.generations)
            for tried in generation.attempts
        ],
    }


def _worker(times: WorkerTimes) -> dict[str, Any]:
    clock = times.clock
    return {
        "told": times.told,
        "steps": times.steps,
        "batch_sizes": list(times.batch_runs),
        "preemptions": times.preemptions,
        "clock": None if clock is None else {"shared": clock.shared, "offset_us": clock.offset_us, "uncertainty_us": clock.uncertainty_us},
    }


def _decision(attempt: Attempt) -> dict[str, Any]:
    return {
        "worker": attempt.worker,
        "policy": attempt.policy,
        "reason": attempt.reason,
        "predicted_ms": round(attempt.predicted_ms, 3),
        "runner_up": attempt.runner_up,
        "runner_up_ms": None if attempt.runner_up_ms is None else round(attempt.runner_up_ms, 3),
        "reserved_kv_tokens": attempt.reserved_tokens,
    }


def _predicted(trace: RequestTrace, attempt: Attempt) -> dict[str, Any]:
    """Beside what became of it."""
    generation = deciding(trace)
    assert generation is not None
    actual_us = first_token_us(attempt)
    return {
        "first_token_ms": {"predicted": round(attempt.predicted_ms, 3), "actual": None if actual_us is None else actual_us / 1000},
        "cached_tokens": {"predicted": attempt.predicted_cached_tokens, "actual": attempt.times.cached_tokens},
        "output_tokens": {"predicted": generation.predicted_output_tokens, "actual": trace.outcome.longest_completion_tokens},
    }


def summary(trace: RequestTrace, end_s: float) -> dict[str, Any]:
    """One line of a list."""
    parts = phases(trace, end_s)
    outcome, attempt = trace.outcome, last_attempt(trace)
    return {
        "request_id": outcome.request_id,
        "trace_id": trace.context.trace_id,
        "model": outcome.model,
        "status": outcome.status,
        "received_at": datetime.fromtimestamp(trace.received_unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "total_ms": parts[-1].end_us / 1000,
        "phases_ms": {part.name: (part.end_us - part.start_us) / 1000 for part in parts},
        "tokens": {"prompt": outcome.prompt_tokens, "cached": outcome.cached_tokens, "output": outcome.completion_tokens},
        "worker": None if attempt is None else attempt.worker,
        "attempts": sum(len(generation.attempts) for generation in trace.generations),
    }
