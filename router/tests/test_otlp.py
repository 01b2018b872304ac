"""Traces to a collector: a real OTLP/HTTP receiver on a socket parses what arrives, and one that is away hurts nobody."""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from prometheus_client import CollectorRegistry

from pagoda_router.generation import ModelName
from pagoda_router.http.surface import RequestOutcome
from pagoda_router.tracing.clock import ClockReading
from pagoda_router.tracing.context import trace_context
from pagoda_router.tracing.export import OtlpExporter
from pagoda_router.tracing.record import Attempt, GenerationTrace, RequestTrace, WorkerTimes
from pagoda_router.tracing.ring import TraceRing
from pagoda_router.tracing.tracer import Tracer

PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass
class Collector:
    url: str = ""
    status: int = 200
    requests: list[ExportTraceServiceRequest] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    about_to_answer: Callable[[], None] = lambda: None
    """Called after each answer."""

    @property
    def resource(self) -> dict[str, Any]:
        return attributes_of(self.requests[0].resource_spans[0].resource)

    @property
    def spans(self) -> list[Any]:
        return [span for request in self.requests for part in request.resource_spans for scope in part.scope_spans for span in scope.spans]


def attributes_of(holder: Any) -> dict[str, Any]:
    return {entry.key: getattr(entry.value, entry.value.WhichOneof("value")) for entry in holder.attributes}


@contextmanager
def collector(status: int = 200) -> Iterator[Collector]:
    heard = Collector(status=status)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            heard.paths.append(self.path)
            heard.headers.append({name.lower(): value for name, value in self.headers.items()})
            heard.requests.append(ExportTraceServiceRequest.FromString(body))
            answer = ExportTraceServiceResponse().SerializeToString()
            status = heard.status
            heard.about_to_answer()  # not behind the answer: whoever has it may ask again at once
            self.send_response(status)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *facts: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    heard.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield heard
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def finished(request_id: str = "mine", **fields: Any) -> RequestTrace:
    """Received at 10 s, over at 10.1 s."""
    usual = {
        "endpoint": "chat", "model": ModelName("tiny"), "served_name": "org/tiny", "stream": True, "status": 200, "prompt_tokens": 30,
        "cached_tokens": 16, "completion_tokens": 7, "longest_completion_tokens": 7, "finish_reasons": ("stop",), "ttft_s": 0.04,
    }  # fmt: skip
    times = WorkerTimes()
    times.clock = ClockReading(shared=True, offset_us=0, uncertainty_us=0)
    times.received_us, times.first_scheduled_us, times.first_token_us, times.last_token_us = 10_010_000, 10_012_000, 10_040_000, 10_095_000
    times.steps = 8
    attempt = Attempt(
        placed_s=10.003, worker="w@h:1", policy="predicted", reason="least_wait", reserved_tokens=48, predicted_ms=25.5,
        predicted_cached_tokens=0, runner_up="v@h:1", runner_up_ms=31.0, times=times,
    )  # fmt: skip
    return RequestTrace(
        context=trace_context(PARENT, b"vendor=x", sample=True),
        outcome=RequestOutcome(request_id=request_id, **{**usual, **fields}),
        received_s=10.0,
        received_unix_s=1_800_000_000.0,
        body_s=10.001,
        ended_s=10.1,
        answer_id="chatcmpl-1",
        max_tokens=64,
        generations=[GenerationTrace(queued_s=10.002, attempts=[attempt])],
    )


@contextmanager
def exporting(url: str, **settings: Any) -> Iterator[tuple[OtlpExporter, CollectorRegistry]]:
    registry = CollectorRegistry()
    exporter = OtlpExporter(url, "router-1", registry, headers={"x-tenant": "blue"}, **settings)
    exporter.start()
    try:
        yield exporter, registry
    finally:
        exporter.stop()


def dropped(registry: CollectorRegistry, reason: str) -> float | None:
    return registry.get_sample_value("pagoda_router_traces_dropped_total", {"reason": reason})


def test_a_request_is_one_span_with_a_child_for_each_phase_under_the_clients_own():
    with collector() as heard:
        with exporting(heard.url) as (exporter, registry):
            exporter.offer(finished())
        assert heard.paths == ["/v1/traces"]
        assert (heard.headers[0]["content-type"], heard.headers[0]["x-tenant"]) == ("application/x-protobuf", "blue")
        assert heard.resource["service.name"] == "pagoda-router"
        assert heard.resource["service.instance.id"] == "router-1"
        request, *children = heard.spans
        assert registry.get_sample_value("pagoda_router_traces_exported_total") == 1
        assert (request.name, request.trace_id.hex(), request.parent_span_id.hex()) == (
            "chat org/tiny", "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331",
        )  # fmt: skip
        assert request.end_time_unix_nano - request.start_time_unix_nano == 100_000_000
        assert [child.name for child in children] == [
            "receive", "prepare", "queue_wait", "route", "worker_queue", "prefill", "decode", "stream",
        ]  # fmt: skip
        assert {child.parent_span_id for child in children} == {request.span_id}
        assert len({child.span_id for child in children}) == len(children)
        assert children[0].start_time_unix_nano == request.start_time_unix_nano == 1_800_000_000 * 10**9
        assert children[-1].end_time_unix_nano == request.end_time_unix_nano
        assert all(a.end_time_unix_nano == b.start_time_unix_nano for a, b in itertools.pairwise(children))


def test_spans_carry_the_conventions_attributes_and_no_text():
    with collector() as heard:
        with exporting(f"{heard.url}/v1/traces") as (exporter, _):
            exporter.offer(finished())
            exporter.offer(finished(status=502, error_code="worker_lost", finish_reasons=()))
        answered, failed = (span for span in heard.spans if span.kind == span.SPAN_KIND_SERVER)
        told = attributes_of(answered)
        assert next(iter(told.pop("gen_ai.response.finish_reasons").values)).string_value == "stop"
        assert told == {
            "gen_ai.operation.name": "chat", "gen_ai.provider.name": "pagoda", "gen_ai.request.model": "org/tiny",
            "gen_ai.request.stream": True, "gen_ai.request.max_tokens": 64, "gen_ai.response.id": "chatcmpl-1",
            "gen_ai.response.model": "tiny", "gen_ai.response.time_to_first_chunk": 0.04, "gen_ai.usage.input_tokens": 30,
            "gen_ai.usage.output_tokens": 7, "gen_ai.usage.cache_read.input_tokens": 16, "http.response.status_code": 200,
            "pagoda.request_id": "mine", "pagoda.attempts": 1, "pagoda.worker": "w@h:1", "pagoda.placement.policy": "predicted",
            "pagoda.placement.reason": "least_wait", "pagoda.placement.predicted_ms": 25.5, "pagoda.placement.runner_up": "v@h:1",
            "pagoda.placement.runner_up_ms": 31.0, "pagoda.steps": 8, "pagoda.preemptions": 0,
        }  # fmt: skip
        assert attributes_of(failed)["error.type"] == "worker_lost"
        assert (answered.status.code, failed.status.code) == (answered.status.STATUS_CODE_UNSET, failed.status.STATUS_CODE_ERROR)
        assert heard.paths == ["/v1/traces"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", None], ids=["nobody listens", "it answers 400"])
def test_a_collector_that_takes_nothing_costs_its_traces_only(url):
    with collector(status=400) as heard, exporting(url or heard.url) as (exporter, registry):
        for _ in range(3):
            exporter.offer(finished())
        exporter.stop()
        assert registry.get_sample_value("pagoda_router_traces_exported_total") == 0
        if url is None:
            assert dropped(registry, "collector") == 3, "no retry heals a 400"
            assert len(heard.requests) == 1


def test_a_collector_that_is_busy_for_a_moment_is_asked_again():
    with collector(status=503) as heard:

        def recover() -> None:
            heard.status = 200

        heard.about_to_answer = recover
        with exporting(heard.url) as (exporter, registry):
            exporter.offer(finished())
            exporter.stop()
        assert len(heard.requests) == 2
        assert registry.get_sample_value("pagoda_router_traces_exported_total") == 1


def test_what_does_not_fit_into_the_queue_is_dropped_and_counted():
    registry = CollectorRegistry()
    exporter = OtlpExporter("http://127.0.0.1:9", "router-1", registry, headers={}, queue_traces=2)  # never started: nobody empties it
    for _ in range(5):
        exporter.offer(finished())
    assert dropped(registry, "queue_full") == 3


def test_only_sampled_requests_for_models_that_exist_are_exported():
    class Sink:
        offered: list[str] = []  # noqa: RUF012

        def offer(self, trace: RequestTrace) -> None:
            self.offered.append(trace.outcome.request_id)

    sink = Sink()
    tracer = Tracer(TraceRing(9), sink, clock=lambda: 0.0, calendar=lambda: 0.0)
    for request_id, traceparent, model in (
        ("ours", None, "tiny"), ("sampled", PARENT, "tiny"), ("unsampled", PARENT[:-2] + b"00", "tiny"), ("unknown", None, None),
    ):  # fmt: skip
        outcome = RequestOutcome(endpoint="chat", request_id=request_id)
        trace = tracer.begin(outcome, traceparent, None)
        outcome.model = model
        tracer.finish(trace)
    assert sink.offered == ["ours", "sampled"]
