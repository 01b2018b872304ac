"""The worker's Prometheus metrics, under vLLM's names where it has one, so that boards and pickers made for it work.

The switchboard counts here once per step; everything else is read from the last engine state when a scrape comes. Knows no gRPC and no GPU.
Every series is there from the first scrape on, and requests never add one: labels come from closed sets. docs/metrics.md lists them.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry

from pagoda_worker.facts import AdaptersState, ModelFacts
from pagoda_worker.front.calls import Call
from pagoda_worker.front.histograms import (
    FIRST_TOKEN_BOUNDS_S,
    N_BOUNDS,
    REQUEST_LATENCY_BOUNDS_S,
    REQUEST_TOKENS_BOUNDS,
    STEP_DURATION_BOUNDS_S,
    STEP_SEQUENCES_BOUNDS,
    STEP_TOKENS_BOUNDS,
    TOKEN_LATENCY_BOUNDS_S,
    Histogram,
    Layout,
)
from pagoda_worker.request import EngineState, Finish, FinishReason, StepOutput
from pagoda_worker.wire import worker_pb2 as pb

Family = CounterMetricFamily | GaugeMetricFamily

ENGINE = "0"
"""vLLM numbers the engines of a server; a worker has one."""
VLLM_REASONS = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.CANCELLED: "abort",
    FinishReason.DEADLINE: "deadline",
    FinishReason.ENGINE_ERROR: "error",
    FinishReason.SHUTDOWN: "abort",
}
REFUSAL_CODES = [name.lower() for name in pb.Refused.Code.keys() if name != "CODE_UNSPECIFIED"]  # noqa: SIM118  # an enum, not a dict
ENGINE_TOTALS = (
    ("vllm:num_preemptions", "preemptions_total", "Sequences preempted; each is computed or copied in again."),
    ("vllm:prefix_cache_queries", "prefix_queries_total", "Prompt tokens looked up in the prefix cache."),
    ("vllm:prefix_cache_hits", "prefix_hits_total", "Prompt tokens found in the prefix cache."),
    ("vllm:external_prefix_cache_queries", "host_prefix_queries_total", "Prompt tokens looked up in the host tier of the prefix cache."),
    ("vllm:external_prefix_cache_hits", "host_prefix_hits_total", "Prompt tokens found in the host tier of the prefix cache."),
    ("pagoda_preemptions_swapped", "swaps_total", "Preempted sequences whose blocks were kept in host memory."),
    ("vllm:generation_tokens", "generation_tokens_total", "Output tokens sampled."),
    ("vllm:spec_decode_num_drafts", "drafts_total", "Guesses verified, of one sequence and step each; 0 without speculation."),
    ("vllm:spec_decode_num_draft_tokens", "draft_tokens_total", "Draft tokens verified; 0 without speculation."),
    ("pagoda_prefill_tokens_computed", "prompt_tokens_total", "Prompt tokens computed, those from the prefix cache not included."),
)
SLEEP_STATES = ("awake", "weights_offloaded", "discard_all")
"""By level, vLLM's words."""
LAYOUTS = {
    "ttft": Layout("vllm:time_to_first_token_seconds", "From receipt to the first output token.", FIRST_TOKEN_BOUNDS_S),
    "itl": Layout("vllm:inter_token_latency_seconds", "Between two output tokens of one sequence.", TOKEN_LATENCY_BOUNDS_S),
    "tpot": Layout(
        "vllm:request_time_per_output_token_seconds",
        "Decode time of a sequence by its tokens after the first; sequences of one token have none.",
        TOKEN_LATENCY_BOUNDS_S,
    ),
    "e2e": Layout("vllm:e2e_request_latency_seconds", "From receipt to the last output token.", REQUEST_LATENCY_BOUNDS_S),
    "queue": Layout("vllm:request_queue_time_seconds", "From receipt to the first scheduled chunk.", REQUEST_LATENCY_BOUNDS_S),
    "prefill": Layout("vllm:request_prefill_time_seconds", "From the first scheduled chunk to the first token.", REQUEST_LATENCY_BOUNDS_S),
    "decode": Layout("vllm:request_decode_time_seconds", "From the first to the last output token.", REQUEST_LATENCY_BOUNDS_S),
    "inference": Layout(
        "vllm:request_inference_time_seconds", "From the first scheduled chunk to the last token.", REQUEST_LATENCY_BOUNDS_S
    ),
    "prompt_tokens": Layout("vllm:request_prompt_tokens", "Prompt tokens of a finished sequence.", REQUEST_TOKENS_BOUNDS),
    "generation_tokens": Layout("vllm:request_generation_tokens", "Output tokens of a finished sequence.", REQUEST_TOKENS_BOUNDS),
    "max_generation": Layout(
        "vllm:request_max_num_generation_tokens", "Output tokens of the longest sequence of a request.", REQUEST_TOKENS_BOUNDS
    ),
    "n": Layout("vllm:request_params_n", "Sequences that a request asked for.", N_BOUNDS),
    "max_tokens": Layout("vllm:request_params_max_tokens", "max_tokens of a request.", REQUEST_TOKENS_BOUNDS),
    "step_tokens": Layout("vllm:iteration_tokens_total", "Tokens computed in a step, prompts and outputs.", STEP_TOKENS_BOUNDS),
    "step_duration": Layout(
        "pagoda_step_duration_seconds", "From planning a step until its tokens were on the host.", STEP_DURATION_BOUNDS_S
    ),
    "step_sequences": Layout("pagoda_step_sequences", "Sequences that a step computed.", STEP_SEQUENCES_BOUNDS),
}


class WorkerMetrics(Collector):
    """Registered on the registry it is given. Totals of engine states go on over restarts of the engine."""

    def __init__(self, model: str, registry: CollectorRegistry, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._pagoda = {"model_name": model}
        self._vllm = {"model_name": model, "engine": ENGINE}
        self._facts: ModelFacts | None = None
        self._state: EngineState | None = None
        self._totals_before: Counter[str] = Counter()
        self._accepted_before: Counter[int] = Counter()
        self._observed = {key: Histogram(layout, self._labels(layout.name)) for key, layout in LAYOUTS.items()}
        self._finished = Counter(dict.fromkeys(VLLM_REASONS.values(), 0))
        self._refused = Counter(dict.fromkeys(REFUSAL_CODES, 0))
        self._prompt_tokens = 0
        self._wall_clock = wall_clock
        self._adapters_changed_at = wall_clock()
        self._adapters: AdaptersState | None = None
        self.engine_restarts = 0
        self.sessions = 0
        self._registry = registry
        registry.register(self)

    # ---- counted once per step or event

    def engine_ready(self, facts: ModelFacts, state: EngineState) -> None:
        self._facts, self._state = facts, state

    def engine_down(self) -> None:
        self.engine_restarts += 1
        if self._state is not None:
            for _, field, _ in ENGINE_TOTALS:
                self._totals_before[field] += getattr(self._state, field)
            self._accepted_before = self._accepted()
        self._state = None

    def adapters_told(self, state: AdaptersState) -> None:
        self._adapters, self._adapters_changed_at = state, self._wall_clock()

    def idle(self, state: EngineState) -> None:
        self._state = state

    def stepped(self, output: StepOutput, gaps_us: Mapping[int, int]) -> None:
        """`gaps_us`: time since a sequence's token before → how many output tokens of this step had it."""
        self._state = output.state
        if output.sequences:
            self._observed["step_duration"].observe(output.duration_us / 1e6)
            self._observed["step_sequences"].observe(output.sequences)
            self._observed["step_tokens"].observe(output.tokens)
        for gap_us, times in gaps_us.items():
            self._observed["itl"].observe(gap_us / 1e6, times)

    def started(self, prompt_tokens: int) -> None:
        self._prompt_tokens += prompt_tokens

    def first_token(self, ttft_us: int) -> None:
        self._observed["ttft"].observe(ttft_us / 1e6)

    def finished(self, call: Call, sequence: int, finish: Finish) -> None:
        """One sequence. Its phases share their boundaries: queue, prefill and decode add up to e2e."""
        observed, timings = self._observed, finish.timings
        began_us, first_us, last_us = timings.first_scheduled_mono_us, timings.first_token_mono_us, timings.last_token_mono_us
        if began_us:
            observed["queue"].observe((began_us - call.received_us) / 1e6)
        if first_us:
            observed["prefill"].observe((first_us - began_us) / 1e6)
            observed["decode"].observe((last_us - first_us) / 1e6)
            observed["inference"].observe((last_us - began_us) / 1e6)
            observed["e2e"].observe((last_us - call.received_us) / 1e6)
            later_tokens = finish.usage.completion_tokens - call.resumed_tokens - 1
            if later_tokens > 0:
                observed["tpot"].observe((last_us - first_us) / 1e6 / later_tokens)
        observed["prompt_tokens"].observe(finish.usage.prompt_tokens)
        observed["generation_tokens"].observe(finish.usage.completion_tokens)
        self._finished["stop" if sequence in call.stopped_by_text else VLLM_REASONS[finish.reason]] += 1

    def request_ended(self, call: Call) -> None:
        """All of its sequences."""
        self._observed["max_generation"].observe(max(call.completion_tokens))
        self._observed["n"].observe(call.n)
        self._observed["max_tokens"].observe(call.max_tokens)

    def ended_unsaid(self, reason: int, sequences: int) -> None:
        """Ended by the front, for an engine that cannot say it any more."""
        self._finished[VLLM_REASONS[FinishReason(reason)]] += sequences

    def abandoned(self, sequences: int) -> None:
        """Their router went away."""
        self._finished["abort"] += sequences

    def refused(self, code: str) -> None:
        self._refused[code] += 1

    # ---- read by a scrape

    def expose(self) -> bytes:
        """Everything of the registry, and the histograms."""
        lines = [line for histogram in self._observed.values() for line in histogram.lines()]
        return generate_latest(self._registry) + "\n".join(lines).encode() + b"\n"

    def collect(self) -> Iterator[Family]:
        yield from self._engine_gauges()
        for name, field, help_text in ENGINE_TOTALS:
            now = getattr(self._state, field) if self._state is not None else 0
            yield self._counter(name, help_text, self._totals_before[field] + now)
        yield self._counter("vllm:prompt_tokens", "Prompt tokens of started requests.", self._prompt_tokens)
        yield self._by_label("vllm:request_success", "Sequences by how they ended.", "finished_reason", self._finished)
        accepted = self._accepted()
        about = "Draft tokens accepted; 0 without speculation."
        yield self._counter("vllm:spec_decode_num_accepted_tokens", about, accepted.total())
        about = "Draft tokens accepted, by position in the guess; 0 without speculation, at position 0."
        places = {str(place): accepted[place] for place in range(max(1, self._facts.draft_tokens if self._facts else 0))}
        yield self._by_label("vllm:spec_decode_num_accepted_tokens_per_pos", about, "position", places)
        yield self._adapters_info()
        yield self._by_label("pagoda_requests_refused", "Submits that never became a request.", "code", self._refused)
        yield self._counter("pagoda_engine_restarts", "Engine processes that ended unasked.", self.engine_restarts)
        yield self._gauge("pagoda_engine_up", "1 while an engine is loaded.", 1 if self._state is not None else 0)
        yield self._gauge("pagoda_sessions", "Connected routers.", self.sessions)

    def _engine_gauges(self) -> Iterator[Family]:
        state, facts = self._state, self._facts
        running, waiting, used, queued = (0, 0, 0.0, 0)
        if state is not None:
            running, waiting, queued = state.num_running, state.num_waiting, state.queued_prefill_tokens
            used = 1.0 - state.kv_free_tokens / state.kv_capacity_tokens if state.kv_capacity_tokens else 0.0
        yield self._gauge("vllm:num_requests_running", "Sequences in the running batch.", running)
        yield self._gauge("vllm:num_requests_waiting", "Sequences waiting to be scheduled.", waiting)
        yield self._gauge("vllm:kv_cache_usage_perc", "KV cache in use, 1 is all of it.", used)
        yield self._gauge("pagoda_queued_prefill_tokens", "Prompt tokens not computed yet.", queued)
        level = state.sleep_level if state is not None else None
        about = "1 in the state that the engine is in: awake, asleep at level 1, asleep at level 2; none while there is no engine."
        yield self._by_state("vllm:engine_sleep_state", about, "sleep_state", SLEEP_STATES, level)
        if facts is not None:
            blocks = facts.kv_capacity_tokens // facts.block_size
            layout = {"block_size": str(facts.block_size), "num_gpu_blocks": str(blocks)}
            yield self._gauge("vllm:cache_config_info", "KV cache layout.", 1, layout)
            yield self._gauge("pagoda_kernels_info", "What the model computes with.", 1, {"kernels": facts.kernels})
            prefill, decode = facts.prefill_tokens_per_s, facts.decode_tokens_per_s
            yield self._gauge("pagoda_measured_prefill_tokens_per_second", "By the self-test after loading.", prefill)
            yield self._gauge("pagoda_measured_decode_tokens_per_second", "By the self-test after loading, a small batch together.", decode)

    def _accepted(self) -> Counter[int]:
        """Draft tokens by their place in the guess, over restarts of the engine."""
        return self._accepted_before + Counter(dict(enumerate(self._state.accepted_draft_tokens if self._state is not None else ())))

    def _adapters_info(self) -> Family:
        """vLLM's names, by which pickers know them; "running" are those in a slot of the device, "waiting" the others."""
        loaded = [each.name for each in self._adapters.loaded] if self._adapters else []
        resident = self._adapters.resident if self._adapters else []
        adapters = {
            "max_lora": str(self._facts.adapter_slots if self._facts else 0),
            "running_lora_adapters": ",".join(sorted(resident)),
            "waiting_lora_adapters": ",".join(sorted(set(loaded) - set(resident))),
        }
        about = (
            "Adapters in slots of the device (running) and loaded beside them (waiting); the value is when that last changed, Unix seconds."
        )
        return self._gauge("vllm:lora_requests_info", about, self._adapters_changed_at, adapters)

    def _labels(self, name: str) -> dict[str, str]:
        return self._vllm if name.startswith("vllm:") else self._pagoda

    def _gauge(self, name: str, help_text: str, value: float, more_labels: Mapping[str, str] | None = None) -> GaugeMetricFamily:
        labels = {**self._labels(name), **(more_labels or {})}
        family = GaugeMetricFamily(name, help_text, labels=list(labels))
        family.add_metric(list(labels.values()), value)
        return family

    def _counter(self, name: str, help_text: str, value: float) -> CounterMetricFamily:
        labels = self._labels(name)
        family = CounterMetricFamily(name, help_text, labels=list(labels))
        family.add_metric(list(labels.values()), value)
        return family

    def _by_state(self, name: str, help_text: str, label: str, states: Sequence[str], now: int | None) -> GaugeMetricFamily:
        labels = self._labels(name)
        family = GaugeMetricFamily(name, help_text, labels=[*labels, label])
        for index, state in enumerate(states):
            family.add_metric([*labels.values(), state], 1 if index == now else 0)
        return family

    def _by_label(self, name: str, help_text: str, label: str, values: Mapping[str, int]) -> CounterMetricFamily:
        labels = self._labels(name)
        family = CounterMetricFamily(name, help_text, labels=[*labels, label])
        for value, count in sorted(values.items()):
            family.add_metric([*labels.values(), value], count)
        return family
