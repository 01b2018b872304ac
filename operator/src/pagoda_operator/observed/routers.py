"""From the JSON of a router's /internal/v1/fleet to a RouterReport. Pure; both executors ask routers for it."""

from collections.abc import Mapping
from typing import Any

from pagoda_operator.observed.world import ModelReport, RouterReport, WorkerReport


def report_of(body: Mapping[str, Any]) -> RouterReport:
    """Raises ValueError for what is not a fleet."""
    try:
        return RouterReport(
            workers={str(worker["name"]): _worker(worker) for worker in body.get("workers") or ()},
            models={str(name): _model(model) for name, model in (body.get("models") or {}).items()},
        )
    except (AttributeError, KeyError, OverflowError, TypeError) as error:
        raise ValueError(f"not a fleet: {error!r}") from error


def _worker(worker: Mapping[str, Any]) -> WorkerReport:
    return WorkerReport(
        routable=bool(worker.get("routable")),
        reason=str(worker.get("reason") or ""),
        sleeps=bool(worker.get("sleeps")),
        in_flight=int(worker.get("inFlight") or 0),
        kv_capacity_tokens=int(worker.get("kvCapacityTokens") or 0),
        kv_available_tokens=int(worker.get("kvAvailableTokens") or 0),
        kv_reserved_tokens=None if (reserved := worker.get("kvReservedTokens")) is None else int(reserved),
        kv_used_tokens=int(worker.get("kvUsedTokens") or 0),
    )


def _model(model: Mapping[str, Any]) -> ModelReport:
    ttft = model.get("ttftS")
    by_variant = model.get("waitingByVariant")
    p95 = ttft.get("p95") if isinstance(ttft, Mapping) else None
    return ModelReport(
        in_flight=int(model.get("inFlight") or 0),
        waiting=int(model.get("waiting") or 0),
        queued_tokens=int(model.get("queuedTokens") or 0),
        idle_s=float(model.get("idleS") or 0.0),
        ttft_p95_s=None if p95 is None else float(p95),
        waiting_by_variant={str(name): int(count) for name, count in by_variant.items()} if isinstance(by_variant, Mapping) else None,
    )
