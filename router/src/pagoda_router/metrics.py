"""The router's Prometheus metrics: what the surface and the dispatcher report, under names that peers' dashboards can be mapped to.

Owns the collectors in a registry it is given (no global one). Labels are models that exist, statuses and fixed words: never a client's
text.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from pagoda_router.generation import ModelName
from pagoda_router.surface import Endpoint, RequestOutcome

_TTFT_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 60)
_DURATION_S = (0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 60, 120, 300, 600)
_WAIT_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60)
UNKNOWN_MODEL = "unknown"


class RouterMetrics:
    """Implements surface.Observer; the dispatcher calls the rest."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"pagoda_router_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"pagoda_router_{name}", text, ("model",), buckets=buckets, registry=registry)

        self._in_progress = Gauge("pagoda_router_requests_in_progress", "Requests received and not yet answered in full", registry=registry)
        self._requests = counter("requests", "Requests answered", "model", "endpoint", "code")
        self._ttft = histogram("time_to_first_token_seconds", "From a request's arrival to its first token", _TTFT_S)
        self._duration = histogram("request_duration_seconds", "From a request's arrival to its last byte", _DURATION_S)
        self._tokens = counter("tokens", "Tokens of answered requests; kind: prompt, cached (part of prompt), completion", "model", "kind")
        self._queue_tokens = Gauge("pagoda_router_queue_tokens", "Predicted cost of the waiting requests", ("model",), registry=registry)
        self._queue_length = Gauge("pagoda_router_queue_requests", "Waiting requests", ("model",), registry=registry)
        self._queue_wait = histogram("queue_wait_seconds", "From admission to a worker", _WAIT_S)
        self._rejected = counter("rejected", "Requests refused by admission", "model", "reason")
        self._reserved = counter("reserved_kv_tokens", "KV tokens reserved on workers", "model")
        self._settled = counter("settled_kv_tokens", "KV tokens of reservations that are over", "model")
        self._predicted = counter("predicted_output_tokens", "Predicted length of the sequences that ended by themselves", "model")
        self._actual = counter("actual_output_tokens", "Length of the sequences that ended by themselves", "model")
        self._retries = counter("retries", "Requests placed again before their first token", "model", "reason")
        self._sessions_ended = counter("sessions_ended", "Worker sessions that ended or could not be opened")

    # ------------------------------------------------------------ surface.Observer

    def request_started(self, endpoint: Endpoint) -> None:
        self._in_progress.inc()

    def request_finished(self, outcome: RequestOutcome) -> None:
        self._in_progress.dec()
        model = outcome.model or UNKNOWN_MODEL
        self._requests.labels(model, outcome.endpoint, str(outcome.status)).inc()
        if outcome.model is None:
            return
        self._duration.labels(model).observe(outcome.duration_s)
        if outcome.ttft_s is not None:
            self._ttft.labels(model).observe(outcome.ttft_s)
        self._tokens.labels(model, "prompt").inc(outcome.prompt_tokens)
        self._tokens.labels(model, "cached").inc(outcome.cached_tokens)
        self._tokens.labels(model, "completion").inc(outcome.completion_tokens)

    # ------------------------------------------------------------ the dispatcher's

    def queue_changed(self, model: ModelName, requests: int, tokens: int) -> None:
        self._queue_length.labels(model).set(requests)
        self._queue_tokens.labels(model).set(tokens)

    def placed(self, model: ModelName, waited_s: float, reserved_tokens: int) -> None:
        self._queue_wait.labels(model).observe(waited_s)
        self._reserved.labels(model).inc(reserved_tokens)

    def rejected(self, model: ModelName, reason: str) -> None:
        self._rejected.labels(model, reason).inc()

    def retried(self, model: ModelName, reason: str) -> None:
        self._retries.labels(model, reason).inc()

    def settled(self, model: ModelName, reserved_tokens: int) -> None:
        self._settled.labels(model).inc(reserved_tokens)

    def output_learned(self, model: ModelName, predicted_tokens: int, actual_tokens: int) -> None:
        self._predicted.labels(model).inc(predicted_tokens)
        self._actual.labels(model).inc(actual_tokens)

    def session_ended(self) -> None:
        self._sessions_ended.inc()
