"""The router's Prometheus metrics: what the surface and the dispatcher report, under names that peers' dashboards can be mapped to.

Owns the collectors in a registry it is given (no global one). Labels are InferenceModels that exist, statuses and fixed words: never a
client's text. What a label can be is known beforehand, so a series is there, at 0, from a model's first day. docs/metrics.md lists them.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, get_args

from prometheus_client import CollectorRegistry

from pagoda_router.backends.base import Failure, Settlement
from pagoda_router.drafting.guesses import Stop
from pagoda_router.generation import ModelName, RequestClass
from pagoda_router.http.surface import Endpoint, RequestOutcome
from pagoda_router.metrics.series import Counter, Distribution, Gauge, Histogram, Value
from pagoda_router.objectives import SLIS, Slo, verdicts
from pagoda_router.placement.policy import POLICY, Placement, PlacementReason

_TTFT_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 60)
_DURATION_S = (0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 60, 120, 300, 600)
_WAIT_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60)
_OVERHEAD_S = (0.0001, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.5)
_RETRY_AFTER_S = (1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60)
UNKNOWN_MODEL = "unknown"

REJECTIONS = (
    *("queue_full", "queue_timeout", "displaced", "deadline", "deadline_infeasible"),
    *("cold_start", "cold_start_full", "unavailable", "worker_refused"),
)
RETRIES = ("worker_lost", "worker_drained", "engine_died", "timed_out", "refused")
FALLBACKS = ("cold_start", "deadline_infeasible", "model_unavailable", "no_worker", "overloaded", "retry_budget_spent")
BUDGETS = ("retries", "replays")
TOKEN_KINDS = ("prompt", "cached", "completion")
DRAFT_KINDS = ("drafted", "verified", "accepted")
TURNED_AWAY = (429, 503)


class _Usual(NamedTuple):
    """The series of one model that each of its requests writes to, looked up once. Added to in place: a call for each adds up."""

    duration: Distribution
    ttft: Distribution
    overhead: Distribution
    prompt_tokens: Value
    cached_tokens: Value
    completion_tokens: Value
    prefix_predicted: Value
    prefix_cached: Value
    first_token_predicted: Value
    first_token_actual: Value
    first_token_error: Value
    settled: Value
    refunded: Value
    overrun: Value
    predicted_output: Value
    actual_output: Value


class RouterMetrics:
    """Implements surface.Observer; the dispatcher calls the rest."""

    def __init__(self, registry: CollectorRegistry, slo_of: Callable[[ModelName], Slo | None] = lambda model: None) -> None:
        self._registry = registry
        self._slo_of = slo_of
        self._in_progress = self._gauge("requests_in_progress", "Requests received and not yet answered in full")
        self._requests = self._counter("requests", "Requests answered", "model", "endpoint", "code")
        self._ttft = self._histogram("time_to_first_token_seconds", "From a request's arrival to its first token", _TTFT_S)
        self._duration = self._histogram("request_duration_seconds", "From a request's arrival to its last byte", _DURATION_S)
        self._overhead = self._histogram(
            "overhead_seconds", "Added by the router before the worker had the request, waiting excluded", _OVERHEAD_S
        )
        self._tokens = self._counter(
            "tokens", "Tokens of answered requests; kind: prompt, cached (part of prompt), completion", "model", "kind"
        )
        self._slo = self._counter("slo_requests", "Requests judged by availability and by spec.slo", "model", "sli", "verdict")
        self._prefix_predicted = self._counter("prefix_predicted_tokens", "Prompt tokens that placement expected to be cached", "model")
        self._prefix_cached = self._counter("prefix_cached_tokens", "Prompt tokens that the worker found cached", "model")
        self._first_token_predicted = self._counter(
            "predicted_first_token_seconds", "From placements to first tokens, as predicted", "model"
        )
        self._first_token_actual = self._counter("actual_first_token_seconds", "From placements to first tokens, as they came", "model")
        self._first_token_error = self._counter("first_token_error_seconds", "How far these two were apart, either way", "model")
        self._retry_after = self._histogram("retry_after_seconds", "Told to clients that were turned away", _RETRY_AFTER_S)
        self._drafts = self._counter(
            "draft_tokens", "Tokens of drafting workers; kind: drafted, of them verified, of them accepted", "model", "kind"
        )
        self._drafting_stopped = self._counter("drafting_stopped", "Requests that went on without drafts", "model", "reason")
        self._usual: dict[str, _Usual] = {}
        self._build_admission()
        self._build_upstream()

    def _build_admission(self) -> None:
        self._queue_tokens = self._gauge("queue_tokens", "Predicted cost of the waiting requests", "model", "class")
        self._queue_length = self._gauge("queue_requests", "Waiting requests", "model", "class")
        self._queue_wait = self._histogram("queue_wait_seconds", "From admission to a worker", _WAIT_S, "class")
        self._rejected = self._counter("rejected", "Requests refused by admission", "model", "reason")
        self._reserved = self._counter("reserved_kv_tokens", "KV tokens reserved on workers", "model")
        self._settled = self._counter("settled_kv_tokens", "Of reservations that are over: KV tokens that were used", "model")
        self._refunded = self._counter("refunded_kv_tokens", "Of reservations that are over: KV tokens that were not needed", "model")
        self._overrun = self._counter("overrun_kv_tokens", "KV tokens used beyond reservations: answers longer than predicted", "model")
        self._predicted = self._counter("predicted_output_tokens", "Predicted length of the sequences that ended by themselves", "model")
        self._actual = self._counter("actual_output_tokens", "Length of the sequences that ended by themselves", "model")

    def _build_upstream(self) -> None:
        self._placements = self._counter("placements", "Requests given to a worker", "model", "policy", "reason")
        self._retries = self._counter("retries", "Requests placed again before their first token", "model", "reason")
        self._replays = self._counter("replays", "Sequences continued on another worker after their first token", "model")
        self._budget_spent = self._counter(
            "retry_budget_spent", "Tries not made: the budget of the last minute was spent", "model", "budget"
        )
        self._suspects = self._counter("suspected_requests", "Requests not tried again since two engines had died with them", "model")
        self._fallbacks = self._counter("fallbacks", "Requests that another model answered", "model", "reason")
        self._hedges = self._counter("hedges", "Requests that a second worker was asked for too", "model", "won")
        self._hedge_tokens = self._counter("hedge_lost_tokens", "KV tokens used by the slower of two workers that were asked", "model")
        self._upstream_errors = self._counter("upstream_errors", "Requests that a worker failed or refused", "model", "reason")
        self._sessions_ended = self._counter("sessions_ended", "Worker sessions that ended or could not be opened")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"pagoda_router_{name}", text, labels, self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"pagoda_router_{name}", text, labels, self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"pagoda_router_{name}", text, ("model", *labels), self._registry, buckets=buckets)

    def introduce(self, model: ModelName) -> None:
        """Once per model: its series begin at 0, so that their first increase is seen as one."""
        for metric in (
            *(self._ttft, self._duration, self._overhead, self._prefix_predicted, self._prefix_cached, self._retry_after),
            *(self._reserved, self._settled, self._refunded, self._overrun, self._predicted, self._actual, self._replays, self._suspects),
            *(self._first_token_predicted, self._first_token_actual, self._first_token_error),
            self._hedge_tokens,
        ):
            metric.labels(model)
        for request_class in RequestClass:
            self._queue_wait.labels(model, request_class)
        self.queue_changed(model, dict.fromkeys(RequestClass, (0, 0)))
        for kind in TOKEN_KINDS:
            self._tokens.labels(model, kind)
        for kind in DRAFT_KINDS:
            self._drafts.labels(model, kind)
        for won in ("first", "second"):
            self._hedges.labels(model, won)
        for sli in SLIS:
            for verdict in ("good", "bad"):
                self._slo.labels(model, sli, verdict)
        for reason in PlacementReason:
            self._placements.labels(model, POLICY, reason)
        for stop in Stop:
            self._drafting_stopped.labels(model, stop)
        for metric, reasons in (
            *((self._rejected, REJECTIONS), (self._retries, RETRIES)),
            *((self._upstream_errors, get_args(Failure)), (self._budget_spent, BUDGETS), (self._fallbacks, FALLBACKS)),
        ):
            for each in reasons:
                metric.labels(model, each)

    # ------------------------------------------------------------ surface.Observer

    def request_started(self, endpoint: Endpoint) -> None:
        self._in_progress.labels().inc()

    def request_finished(self, outcome: RequestOutcome) -> None:
        self._in_progress.labels().dec()
        model = outcome.model or UNKNOWN_MODEL
        self._requests.labels(model, outcome.endpoint, str(outcome.status)).inc()
        if outcome.model is None:
            return
        if outcome.fell_back_from is not None:
            self._fallbacks.labels(outcome.fell_back_from, outcome.fell_back_why).inc()
        usual = self._usual_of(model)
        usual.duration.observe(outcome.duration_s)
        if outcome.ttft_s is not None:
            usual.ttft.observe(outcome.ttft_s)
        if outcome.overhead_s is not None:
            usual.overhead.observe(outcome.overhead_s)
        if outcome.retry_after_s is not None:
            self._retry_after.labels(model).observe(outcome.retry_after_s)
        usual.prompt_tokens.value += outcome.prompt_tokens
        usual.cached_tokens.value += outcome.cached_tokens
        usual.completion_tokens.value += outcome.completion_tokens
        usual.prefix_predicted.value += outcome.predicted_cached_tokens
        usual.prefix_cached.value += outcome.cached_tokens
        if outcome.first_token_s is not None:
            predicted_s, actual_s = outcome.first_token_s
            usual.first_token_predicted.value += predicted_s
            usual.first_token_actual.value += actual_s
            usual.first_token_error.value += abs(predicted_s - actual_s)
        for sli, good in verdicts(outcome, self._slo_of(ModelName(model))):
            self._slo.labels(model, sli, "good" if good else "bad").inc()

    def _usual_of(self, model: str) -> "_Usual":
        found = self._usual.get(model)
        if found is None:
            found = self._usual[model] = _Usual(
                self._duration.labels(model),
                self._ttft.labels(model),
                self._overhead.labels(model),
                self._tokens.labels(model, "prompt"),
                self._tokens.labels(model, "cached"),
                self._tokens.labels(model, "completion"),
                self._prefix_predicted.labels(model),
                self._prefix_cached.labels(model),
                self._first_token_predicted.labels(model),
                self._first_token_actual.labels(model),
                self._first_token_error.labels(model),
                self._settled.labels(model),
                self._refunded.labels(model),
                self._overrun.labels(model),
                self._predicted.labels(model),
                self._actual.labels(model),
            )
        return found

    # ------------------------------------------------------------ the dispatcher's

    def queue_changed(self, model: ModelName, waiting: Mapping[RequestClass, tuple[int, int]]) -> None:
        """`waiting`: requests and tokens."""
        for request_class, (requests, tokens) in waiting.items():
            self._queue_length.labels(model, request_class).set(requests)
            self._queue_tokens.labels(model, request_class).set(tokens)

    def placed(self, model: ModelName, request_class: RequestClass, waited_s: float, placement: Placement) -> None:
        self._queue_wait.labels(model, request_class).observe(waited_s)
        self._reserved.labels(model).inc(placement.reserved_tokens)
        self._placements.labels(model, placement.policy, placement.reason).inc()

    def rejected(self, model: ModelName, reason: str) -> None:
        self._rejected.labels(model, reason).inc()

    def retried(self, model: ModelName, reason: str) -> None:
        self._retries.labels(model, reason).inc()

    def replayed(self, model: ModelName) -> None:
        self._replays.labels(model).inc()

    def retry_budget_spent(self, model: ModelName, budget: str) -> None:
        self._budget_spent.labels(model, budget).inc()

    def suspected(self, model: ModelName) -> None:
        self._suspects.labels(model).inc()

    def hedged(self, model: ModelName, *, won: bool) -> None:
        """`won`: by the second one."""
        self._hedges.labels(model, "second" if won else "first").inc()

    def drafted(self, model: ModelName, tokens: int) -> None:
        self._drafts.labels(model, "drafted").inc(tokens)

    def drafts_verified(self, model: ModelName, tokens: int, accepted: int) -> None:
        self._drafts.labels(model, "verified").inc(tokens)
        self._drafts.labels(model, "accepted").inc(accepted)

    def drafting_stopped(self, model: ModelName, reason: Stop) -> None:
        self._drafting_stopped.labels(model, reason).inc()

    def settled(self, settlement: Settlement) -> None:
        model, reserved_tokens, used_tokens = settlement.model, settlement.reserved_tokens, settlement.used_tokens
        usual = self._usual_of(model)
        usual.settled.value += min(used_tokens, reserved_tokens)
        if used_tokens < reserved_tokens:
            usual.refunded.value += reserved_tokens - used_tokens
        elif used_tokens > reserved_tokens:
            usual.overrun.value += used_tokens - reserved_tokens
        if settlement.lost_hedge:
            self._hedge_tokens.labels(model).inc(used_tokens)
        for tokens in settlement.output_tokens:
            usual.predicted_output.value += settlement.predicted_output_tokens
            usual.actual_output.value += tokens
        if settlement.failure is not None:
            self._upstream_errors.labels(model, settlement.failure).inc()

    def session_ended(self) -> None:
        self._sessions_ended.labels().inc()
