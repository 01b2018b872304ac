"""Metrics as Prometheus reads them: vLLM's names, totals that survive the engine, histograms that add up."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from scripted_engine import FACTS
from test_front_progress import IDLE

from pagoda_worker.front.metrics import ITL_BUCKETS_S, StepHistogram, WorkerMetrics
from pagoda_worker.request import Finish, FinishReason, Timings, Usage


def read(registry: CollectorRegistry) -> dict[str, float]:
    """name{extra labels} → value."""
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            extra = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()) if key != "model_name")
            assert sample.labels["model_name"] == "chat"
            values[sample.name + (f"{{{extra}}}" if extra else "")] = sample.value
    return values


VLLM_NAMES = [
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:num_preemptions_total",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:time_to_first_token_seconds_count",
    "vllm:inter_token_latency_seconds_count",
    "vllm:e2e_request_latency_seconds_count",
    "vllm:request_queue_time_seconds_count",
]


def test_every_name_is_there_before_the_first_request():
    registry = CollectorRegistry()
    WorkerMetrics("chat", registry)
    values = read(registry)
    assert {name: values[name] for name in VLLM_NAMES} == dict.fromkeys(VLLM_NAMES, 0.0)


def test_totals_go_on_over_a_restart_of_the_engine():
    registry = CollectorRegistry()
    metrics = WorkerMetrics("chat", registry)
    metrics.engine_ready(FACTS, IDLE)
    metrics.stepped(replace(IDLE, generation_tokens_total=10, preemptions_total=1), {})
    metrics.engine_down()
    assert read(registry)["vllm:generation_tokens_total"] == 10
    assert read(registry)["pagoda_engine_up"] == 0
    metrics.engine_ready(FACTS, IDLE)
    metrics.stepped(replace(IDLE, generation_tokens_total=5), {})
    values = read(registry)
    assert (values["vllm:generation_tokens_total"], values["vllm:num_preemptions_total"]) == (15, 1)
    assert values["pagoda_engine_restarts_total"] == 1


def test_gauges_are_the_engines_last_state():
    registry = CollectorRegistry()
    metrics = WorkerMetrics("chat", registry)
    metrics.engine_ready(FACTS, IDLE)
    metrics.stepped(replace(IDLE, num_running=3, num_waiting=2, kv_free_tokens=256, queued_prefill_tokens=77), {})
    values = read(registry)
    assert (values["vllm:num_requests_running"], values["vllm:num_requests_waiting"]) == (3, 2)
    assert (values["vllm:kv_cache_usage_perc"], values["pagoda_queued_prefill_tokens"]) == (0.75, 77)
    assert values["vllm:cache_config_info{block_size=16,num_gpu_blocks=1024}"] == 1
    assert values["pagoda_measured_prefill_tokens_per_second"] == 10_000
    assert values["pagoda_measured_decode_tokens_per_second"] == 500


def test_a_finish_is_counted_by_its_reason_and_timed_from_receipt():
    registry = CollectorRegistry()
    metrics = WorkerMetrics("chat", registry)
    timings = Timings(1_000_000, 1_001_000, 1_030_000, 1_200_000, 0, 5, [])
    metrics.finished(Finish(FinishReason.STOP, Usage(1, 0, 5), timings), stopped_by_text=False)
    metrics.finished(Finish(FinishReason.CANCELLED, Usage(1, 0, 5), timings), stopped_by_text=True)
    metrics.finished(Finish(FinishReason.CANCELLED, Usage(1, 0, 0), Timings(1, 0, 0, 0, 0, 0, [])), stopped_by_text=False)
    values = read(registry)
    assert values["vllm:request_success_total{finished_reason=stop}"] == 2
    assert values["vllm:request_success_total{finished_reason=abort}"] == 1
    assert values["vllm:time_to_first_token_seconds_count"] == 2, "no first token, no time to it"
    assert values["vllm:time_to_first_token_seconds_sum"] == 0.06
    assert values["vllm:e2e_request_latency_seconds_sum"] == 0.4


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(1, 256)), max_size=20))
def test_a_histogram_of_many_at_once_equals_one_at_a_time(observed: list[tuple[float, int]]):
    at_once, one_by_one = StepHistogram(ITL_BUCKETS_S), StepHistogram(ITL_BUCKETS_S)
    for seconds, times in observed:
        at_once.observe(seconds, times)
        for _ in range(times):
            one_by_one.observe(seconds)
    buckets, expected = (each.family("x", "x", "m").samples[:-2] for each in (at_once, one_by_one))
    assert buckets == expected
    assert [sample.value for sample in buckets] == sorted(sample.value for sample in buckets)
    for sample in buckets:
        bound = float(sample.labels["le"])
        assert sample.value == sum(times for seconds, times in observed if seconds <= bound)
