"""The worker's Prometheus metrics, under vLLM's names where it has one, so that boards and pickers made for it work.

The switchboard counts here once per step; everything else is read from the last engine state when a scrape comes. Knows no gRPC.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry

from pagoda_worker.request import EngineState, Finish, FinishReason, ModelFacts

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily

ITL_BUCKETS_S = (
    0.0005,
    0.001,
    0.002,
    0.003,
    0.005,
    0.0075,
    0.01,
    0.015,
    0.02,
    0.03,
    0.04,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.5,
    1.0,
    2.5,
    10.0,
)
TTFT_BUCKETS_S = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
    160.0,
)
E2E_BUCKETS_S = (
    0.01,
    0.05,
    0.1,
    0.3,
    0.5,
    0.8,
    1.0,
    1.5,
    2.0,
    2.5,
    5.0,
    10.0,
    15.0,
    20.0,
    30.0,
    40.0,
    50.0,
    60.0,
    120.0,
    240.0,
    480.0,
    960.0,
)

VLLM_REASONS = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.CANCELLED: "abort",
    FinishReason.DEADLINE: "deadline",
    FinishReason.ENGINE_ERROR: "error",
    FinishReason.SHUTDOWN: "abort",
}
ENGINE_TOTALS = (
    ("vllm:num_preemptions", "preemptions_total", "Sequences preempted; each is computed again."),
    ("vllm:prefix_cache_queries", "prefix_queries_total", "Prompt tokens looked up in the prefix cache."),
    ("vllm:prefix_cache_hits", "prefix_hits_total", "Prompt tokens found in the prefix cache."),
    ("vllm:generation_tokens", "generation_tokens_total", "Output tokens sampled."),
    ("pagoda_prefill_tokens_computed", "prompt_tokens_total", "Prompt tokens computed, those from the prefix cache not included."),
)


class StepHistogram:
    """A histogram that takes one value many times at once: rows of a step mostly share their gap."""

    def __init__(self, buckets_s: Sequence[float]) -> None:
        self._bounds_s = buckets_s
        self._counts = [0] * (len(buckets_s) + 1)
        self._sum_s = 0.0

    def observe(self, seconds: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds_s, seconds)] += times
        self._sum_s += seconds * times

    def family(self, name: str, help_text: str, model: str) -> HistogramMetricFamily:
        cumulative, buckets = 0, []
        for bound, count in zip([*map(str, self._bounds_s), "+Inf"], self._counts, strict=True):
            cumulative += count
            buckets.append((bound, cumulative))
        family = HistogramMetricFamily(name, help_text, labels=["model_name"])
        family.add_metric([model], buckets=buckets, sum_value=self._sum_s)
        return family


class WorkerMetrics(Collector):
    """Registered on the registry it is given. Totals of engine states go on over restarts of the engine."""

    def __init__(self, model: str, registry: CollectorRegistry) -> None:
        self._model = model
        self._facts: ModelFacts | None = None
        self._state: EngineState | None = None
        self._totals_before: Counter[str] = Counter()
        self._ttft = StepHistogram(TTFT_BUCKETS_S)
        self._itl = StepHistogram(ITL_BUCKETS_S)
        self._e2e = StepHistogram(E2E_BUCKETS_S)
        self._queue = StepHistogram(TTFT_BUCKETS_S)
        self._finished: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._prompt_tokens = 0
        self.engine_restarts = 0
        self.sessions = 0
        registry.register(self)

    # ---- counted once per step or event

    def engine_ready(self, facts: ModelFacts, state: EngineState) -> None:
        self._facts, self._state = facts, state

    def engine_down(self) -> None:
        self.engine_restarts += 1
        if self._state is not None:
            for _, field, _ in ENGINE_TOTALS:
                self._totals_before[field] += getattr(self._state, field)
        self._state = None

    def stepped(self, state: EngineState, gaps_us: dict[int, int]) -> None:
        """`gaps_us`: time since a sequence's token before → how many output tokens of this step had it."""
        self._state = state
        for gap_us, times in gaps_us.items():
            self._itl.observe(gap_us / 1e6, times)

    def started(self, prompt_tokens: int, queue_us: int) -> None:
        self._prompt_tokens += prompt_tokens
        self._queue.observe(queue_us / 1e6)

    def finished(self, finish: Finish, *, stopped_by_text: bool) -> None:
        timings = finish.timings
        if timings.first_token_mono_us:
            self._ttft.observe((timings.first_token_mono_us - timings.received_mono_us) / 1e6)
            self._e2e.observe((timings.last_token_mono_us - timings.received_mono_us) / 1e6)
        self._finished["stop" if stopped_by_text else VLLM_REASONS[finish.reason]] += 1

    def ended_unsaid(self, reason: int, sequences: int) -> None:
        """Ended by the front, for an engine that cannot say it any more."""
        self._finished[VLLM_REASONS[FinishReason(reason)]] += sequences

    def abandoned(self, sequences: int) -> None:
        """Their router went away."""
        self._finished["abort"] += sequences

    def refused(self, code: str) -> None:
        self._refused[code] += 1

    # ---- read by a scrape

    def collect(self) -> Iterator[Family]:
        yield from self._engine_gauges()
        for name, field, help_text in ENGINE_TOTALS:
            now = getattr(self._state, field) if self._state is not None else 0
            yield self._counter(name, help_text, self._totals_before[field] + now)
        yield self._counter("vllm:prompt_tokens", "Prompt tokens of started requests.", self._prompt_tokens)
        yield self._ttft.family("vllm:time_to_first_token_seconds", "From receipt to the first output token.", self._model)
        yield self._itl.family("vllm:inter_token_latency_seconds", "Between two output tokens of one sequence.", self._model)
        yield self._e2e.family("vllm:e2e_request_latency_seconds", "From receipt to the last output token.", self._model)
        yield self._queue.family("vllm:request_queue_time_seconds", "From receipt to the first scheduled chunk.", self._model)
        yield self._labelled("vllm:request_success", "Sequences by how they ended.", "finished_reason", self._finished)
        yield self._labelled("pagoda_requests_refused", "Submits that never became a request.", "code", self._refused)
        yield self._counter("pagoda_engine_restarts", "Engine processes that ended unasked.", self.engine_restarts)
        yield self._gauge("pagoda_engine_up", "1 while an engine is loaded.", 1 if self._state is not None else 0)
        yield self._gauge("pagoda_sessions", "Connected routers.", self.sessions)

    def _engine_gauges(self) -> Iterator[Family]:
        state = self._state
        running, waiting, used, queued = (0, 0, 0.0, 0)
        if state is not None:
            running, waiting, queued = state.num_running, state.num_waiting, state.queued_prefill_tokens
            used = 1.0 - state.kv_free_tokens / state.kv_capacity_tokens if state.kv_capacity_tokens else 0.0
        yield self._gauge("vllm:num_requests_running", "Sequences in the running batch.", running)
        yield self._gauge("vllm:num_requests_waiting", "Sequences waiting to be scheduled.", waiting)
        yield self._gauge("vllm:kv_cache_usage_perc", "KV cache in use, 1 is all of it.", used)
        yield self._gauge("pagoda_queued_prefill_tokens", "Prompt tokens not computed yet.", queued)
        if self._facts is not None:
            info = GaugeMetricFamily("vllm:cache_config_info", "KV cache layout.", labels=["model_name", "block_size", "num_gpu_blocks"])
            blocks = self._facts.kv_capacity_tokens // self._facts.block_size
            info.add_metric([self._model, str(self._facts.block_size), str(blocks)], 1)
            yield info
            yield self._gauge(
                "pagoda_measured_prefill_tokens_per_second", "By the self-test after loading.", self._facts.prefill_tokens_per_s
            )
            yield self._gauge(
                "pagoda_measured_decode_tokens_per_second",
                "By the self-test after loading, a small batch together.",
                self._facts.decode_tokens_per_s,
            )

    def _gauge(self, name: str, help_text: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, help_text, labels=["model_name"])
        family.add_metric([self._model], value)
        return family

    def _counter(self, name: str, help_text: str, value: float) -> CounterMetricFamily:
        family = CounterMetricFamily(name, help_text, labels=["model_name"])
        family.add_metric([self._model], value)
        return family

    def _labelled(self, name: str, help_text: str, label: str, values: "Counter[str]") -> CounterMetricFamily:
        family = CounterMetricFamily(name, help_text, labels=["model_name", label])
        for value, count in sorted(values.items()):
            family.add_metric([self._model, value], count)
        return family
