"""Metrics as Prometheus reads them: vLLM's names, labels and bounds, totals that survive the engine, histograms that add up."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from scripted_engine import FACTS
from test_front_progress import IDLE

from pagoda_worker.front.calls import Call
from pagoda_worker.front.histograms import TOKEN_LATENCY_BOUNDS_S, Histogram, Layout
from pagoda_worker.front.metrics import LAYOUTS, WorkerMetrics
from pagoda_worker.front.session import RouterSession
from pagoda_worker.request import EngineState, Finish, FinishReason, Request, StepOutput, Timings, Usage
from pagoda_worker.wire import worker_pb2 as pb


def read(metrics: WorkerMetrics) -> dict[str, float]:
    """name{extra labels} → value."""
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(metrics.expose().decode()):
        for sample in family.samples:
            extra = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()) if key not in ("model_name", "engine"))
            assert sample.labels["model_name"] == "chat"
            assert sample.labels.get("engine") == ("0" if sample.name.startswith("vllm:") else None)
            values[sample.name + (f"{{{extra}}}" if extra else "")] = sample.value
    return values


def stepped(state: EngineState) -> StepOutput:
    return StepOutput([], state, sequences=3, tokens=20, duration_us=1_200)


def call(*, resumed: int = 0, n: int = 1) -> Call:
    """Received at 1 s."""
    request = Request(request_id="1:1", prompt_ids=[1], resume_ids=[2] * resumed, n=n, max_tokens=40)
    return Call(RouterSession(1, "r1"), pb.Submit(request_id=1), request, 1_000_000)


VLLM_BOUNDS = {
    "vllm:time_to_first_token_seconds": "0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1 2.5 5 7.5 10 20 40 80 160 640 2560",
    "vllm:inter_token_latency_seconds": "0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1 2.5 5 7.5 10 20 40 80",
    "vllm:e2e_request_latency_seconds": "0.3 0.5 0.8 1 1.5 2 2.5 5 10 15 20 30 40 50 60 120 240 480 960 1920 7680",
    "vllm:iteration_tokens_total": "1 8 16 32 64 128 256 512 1024 2048 4096 8192 16384",
    "vllm:request_params_n": "1 2 5 10 20",
    "vllm:request_prompt_tokens": "1 2 5 10 20 50 100 200 500 1000 2000 5000 10000 20000 50000 100000",
}
"""Of vLLM's v1/metrics/buckets.py."""
SAME_BOUNDS = {
    "vllm:request_time_per_output_token_seconds": "vllm:inter_token_latency_seconds",
    **{f"vllm:request_{phase}_time_seconds": "vllm:e2e_request_latency_seconds" for phase in ("queue", "prefill", "decode", "inference")},
    **{
        f"vllm:request_{tokens}": "vllm:request_prompt_tokens"
        for tokens in ("generation_tokens", "max_num_generation_tokens", "params_max_tokens")
    },
}


@pytest.mark.parametrize("layout", [each for each in LAYOUTS.values() if each.name.startswith("vllm:")], ids=lambda layout: layout.name)
def test_a_board_made_for_vllm_finds_each_of_its_bounds(layout: Layout):
    vllms = [float(bound) for bound in VLLM_BOUNDS[SAME_BOUNDS.get(layout.name, layout.name)].split()]
    assert set(vllms) <= set(layout.bounds)
    assert list(layout.bounds) == sorted(set(layout.bounds))


def test_a_step_of_one_millisecond_is_told_from_one_of_two():
    for key in ("step_duration", "itl", "tpot"):
        bounds = LAYOUTS[key].bounds
        assert all(any(low <= bound < high for bound in bounds) for low, high in ((0.0005, 0.001), (0.001, 0.002), (0.002, 0.003)))
    assert {each / 1000 for each in range(1, 21)} <= set(LAYOUTS["step_duration"].bounds)


def test_every_series_is_there_before_the_first_request_and_requests_add_none():
    metrics = WorkerMetrics("chat", CollectorRegistry(), wall_clock=lambda: 5.0)
    before_an_engine = read(metrics)
    assert set(before_an_engine.values()) == {0.0, 5.0}, "5.0: when the adapters last changed"
    metrics.engine_ready(FACTS, IDLE)
    series = set(read(metrics))
    assert series - set(before_an_engine) == {
        "vllm:cache_config_info{block_size=16,num_gpu_blocks=1024}",
        "pagoda_kernels_info{kernels=scripted}",
        "vllm:lora_requests_info{max_lora=4,running_lora_adapters=,waiting_lora_adapters=}",
        "pagoda_measured_prefill_tokens_per_second",
        "pagoda_measured_decode_tokens_per_second",
    }
    metrics.stepped(stepped(IDLE), {1_000: 2, 20_000_000: 1})
    for reason in FinishReason:
        metrics.finished(call(), 0, Finish(reason, Usage(10**6, 0, 10**6), Timings(1, 2, 3, 4, 0, 1, [])))
        metrics.ended_unsaid(reason, 1)
    for code in pb.Refused.Code.values()[1:]:
        metrics.refused(pb.Refused.Code.Name(code).lower())
    metrics.request_ended(call(n=100))
    metrics.engine_down()
    assert set(read(metrics)) == series
    assert len(series) < 600, "one worker"


def test_totals_go_on_over_a_restart_of_the_engine():
    metrics = WorkerMetrics("chat", CollectorRegistry())
    metrics.engine_ready(FACTS, IDLE)
    metrics.stepped(stepped(replace(IDLE, generation_tokens_total=10, preemptions_total=1)), {})
    metrics.engine_down()
    assert read(metrics)["vllm:generation_tokens_total"] == 10
    assert read(metrics)["pagoda_engine_up"] == 0
    metrics.engine_ready(FACTS, IDLE)
    metrics.stepped(stepped(replace(IDLE, generation_tokens_total=5)), {})
    values = read(metrics)
    assert (values["vllm:generation_tokens_total"], values["vllm:num_preemptions_total"]) == (15, 1)
    assert values["pagoda_engine_restarts_total"] == 1


def test_gauges_are_the_engines_last_state():
    metrics = WorkerMetrics("chat", CollectorRegistry())
    metrics.engine_ready(FACTS, IDLE)
    metrics.idle(replace(IDLE, num_running=3, num_waiting=2, kv_free_tokens=256, queued_prefill_tokens=77))
    values = read(metrics)
    assert (values["vllm:num_requests_running"], values["vllm:num_requests_waiting"]) == (3, 2)
    assert (values["vllm:kv_cache_usage_perc"], values["pagoda_queued_prefill_tokens"]) == (0.75, 77)
    assert values["vllm:cache_config_info{block_size=16,num_gpu_blocks=1024}"] == 1
    assert values["pagoda_measured_prefill_tokens_per_second"] == 10_000
    assert values["pagoda_measured_decode_tokens_per_second"] == 500


def test_a_step_counts_once_and_one_that_computes_nothing_does_not():
    metrics = WorkerMetrics("chat", CollectorRegistry())
    metrics.stepped(stepped(IDLE), {})
    metrics.stepped(StepOutput([], IDLE), {})
    values = read(metrics)
    assert (values["pagoda_step_duration_seconds_count"], values["pagoda_step_duration_seconds_sum"]) == (1, 0.0012)
    assert (values["pagoda_step_sequences_sum"], values["vllm:iteration_tokens_total_sum"]) == (3, 20)


def test_a_finish_is_counted_by_its_reason_and_timed_from_receipt():
    metrics = WorkerMetrics("chat", CollectorRegistry())
    timings = Timings(1_000_500, 1_001_000, 1_030_000, 1_200_000, 0, 5, [])
    stopped_by_text = call()
    stopped_by_text.stopped_by_text.add(0)
    metrics.finished(call(), 0, Finish(FinishReason.STOP, Usage(1, 0, 5), timings))
    metrics.finished(stopped_by_text, 0, Finish(FinishReason.CANCELLED, Usage(1, 0, 5), timings))
    metrics.finished(call(), 0, Finish(FinishReason.CANCELLED, Usage(1, 0, 0), Timings(1, 0, 0, 0, 0, 0, [])))
    values = read(metrics)
    assert values["vllm:request_success_total{finished_reason=stop}"] == 2
    assert values["vllm:request_success_total{finished_reason=abort}"] == 1
    assert values["vllm:request_decode_time_seconds_count"] == 2, "no first token, no time after it"
    assert values["vllm:e2e_request_latency_seconds_sum"] == pytest.approx(0.4)
    assert values["vllm:request_prompt_tokens_count"] == values["vllm:request_generation_tokens_count"] == 3


@pytest.mark.parametrize(("resumed", "completion", "tpot_s"), [(0, 5, 0.0425), (0, 1, None), (3, 5, 0.17), (4, 5, None)])
def test_time_per_output_token_counts_the_tokens_sampled_here_after_the_first(resumed: int, completion: int, tpot_s: float | None):
    metrics = WorkerMetrics("chat", CollectorRegistry())
    timings = Timings(1_000_500, 1_001_000, 1_030_000, 1_200_000, 0, 5, [])
    metrics.finished(call(resumed=resumed), 0, Finish(FinishReason.STOP, Usage(1, 0, completion), timings))
    values = read(metrics)
    assert values["vllm:request_time_per_output_token_seconds_count"] == (tpot_s is not None)
    assert values["vllm:request_time_per_output_token_seconds_sum"] == pytest.approx(tpot_s or 0.0)


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(1, 256)), max_size=20))
def test_a_histogram_of_many_at_once_equals_one_at_a_time(observed: list[tuple[float, int]]):
    layout, labels = Layout("x_seconds", "A line.", TOKEN_LATENCY_BOUNDS_S), {"model_name": 'a"b'}
    at_once, one_by_one = Histogram(layout, labels), Histogram(layout, labels)
    for seconds, times in observed:
        at_once.observe(seconds, times)
        for _ in range(times):
            one_by_one.observe(seconds)
    *buckets, count, total = parsed(at_once)
    *expected, _, expected_total = parsed(one_by_one)
    assert buckets == expected
    assert total.value == pytest.approx(expected_total.value)
    assert (count.name, total.name, count.value) == ("x_seconds_count", "x_seconds_sum", sum(times for _, times in observed))
    for sample in buckets:
        bound = float(sample.labels["le"])
        assert sample.value == sum(times for seconds, times in observed if seconds <= bound)


def parsed(histogram: Histogram) -> list[Sample]:
    [family] = text_string_to_metric_families("\n".join(histogram.lines()) + "\n")
    assert (family.type, family.documentation, family.samples[0].labels["model_name"]) == ("histogram", "A line.", 'a"b')
    return family.samples


def test_speculation_is_counted_by_place_and_goes_on_over_a_restart():
    metrics = WorkerMetrics("chat", CollectorRegistry())
    assert read(metrics)["vllm:spec_decode_num_accepted_tokens_per_pos_total{position=0}"] == 0
    facts = replace(FACTS, speculative="ngram", draft_tokens=3)
    metrics.engine_ready(facts, IDLE)
    guessed = replace(IDLE, drafts_total=10, draft_tokens_total=30, accepted_draft_tokens=(8, 5, 1))
    metrics.stepped(stepped(guessed), {})
    metrics.engine_down()
    metrics.engine_ready(facts, IDLE)
    metrics.stepped(stepped(replace(guessed, drafts_total=1, draft_tokens_total=2, accepted_draft_tokens=(1, 0, 0))), {})
    values = read(metrics)
    assert values["vllm:spec_decode_num_drafts_total"] == 11
    assert values["vllm:spec_decode_num_draft_tokens_total"] == 32
    assert values["vllm:spec_decode_num_accepted_tokens_total"] == 15
    per_place = [values[f"vllm:spec_decode_num_accepted_tokens_per_pos_total{{position={place}}}"] for place in range(3)]
    assert per_place == [9, 5, 1]
