"""Sends finished traces to an OpenTelemetry collector (OTLP over HTTP) from a thread of its own.

The hot path's share is one append to a bounded queue. What does not fit, and what the collector does not take, is dropped and counted: a
dead collector costs nothing but its traces. `__main__` makes one when PAGODA_OTLP_ENDPOINT is set.
"""

import logging
import threading
import time
from collections import deque
from importlib.metadata import version

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace.export import SpanExportResult
from prometheus_client import CollectorRegistry, Counter

from pagoda_router.tracing.record import RequestTrace
from pagoda_router.tracing.spans import spans_of

log = logging.getLogger(__name__)

QUEUE_TRACES = 2048
"""Up to 36 MB when all are long; at 200 requests/s a collector may be away for ten seconds without a loss."""
LOOK_EVERY_S = 0.5
"""Also time for the last word of a worker whose stream was cut short."""
BATCH_TRACES = 16
"""Of one post. Making and encoding it holds the interpreter for a few milliseconds at most, in pieces: the event loop runs in between."""
BREATH_S = 0.0005
EXPORT_TIMEOUT_S = 5.0
LAST_WORDS_S = 2.0
TRACES_PATH = "/v1/traces"


class OtlpExporter:
    def __init__(self, endpoint: str, instance: str, registry: CollectorRegistry, *, queue_traces: int = QUEUE_TRACES) -> None:
        """`endpoint`: base URL of the collector, or the whole address of its traces."""
        self._endpoint = endpoint if endpoint.rstrip("/").endswith(TRACES_PATH) else endpoint.rstrip("/") + TRACES_PATH
        self._queue: deque[RequestTrace] = deque()
        self._queue_traces = queue_traces
        self._resource = Resource.create(
            {SERVICE_NAME: "pagoda-router", SERVICE_VERSION: version("pagoda-router"), SERVICE_INSTANCE_ID: instance}
        )
        self._client = OTLPSpanExporter(endpoint=self._endpoint, timeout=EXPORT_TIMEOUT_S)
        self._exported = Counter("pagoda_router_traces_exported", "Traces that the collector took", registry=registry)
        self._dropped = Counter("pagoda_router_traces_dropped", "Traces that it did not get", ("reason",), registry=registry)
        for reason in ("queue_full", "collector"):
            self._dropped.labels(reason)
        self._is_down = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # what fails there, we say once per outage

    def start(self) -> None:
        self._thread.start()

    def offer(self, trace: RequestTrace) -> None:
        if len(self._queue) >= self._queue_traces:
            self._dropped.labels("queue_full").inc()
        else:
            self._queue.append(trace)

    def stop(self) -> None:
        """Sends what is left, for LAST_WORDS_S at most. Blocks: not for a loop that still serves."""
        self._stopping.set()
        self._thread.join(LAST_WORDS_S)
        self._client.shutdown()  # type: ignore[no-untyped-call]  # ends a retry that still waits
        self._thread.join(LAST_WORDS_S)

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_EVERY_S):
            self._send_all()
        self._send_all()

    def _send_all(self) -> None:
        while self._queue:
            try:
                self._send_some()
            except Exception:  # the thread's outermost line: a bug costs one batch, not all to come
                log.exception("otlp: internal error; one batch of traces is lost")

    def _send_some(self) -> None:
        count, spans = 0, []
        while self._queue and count < BATCH_TRACES:
            spans += spans_of(self._queue.popleft(), self._resource)
            count += 1
            time.sleep(BREATH_S)
        if self._client.export(spans) is SpanExportResult.SUCCESS:
            self._exported.inc(count)
            if self._is_down:
                log.info("otlp: %s takes traces again", self._endpoint)
            self._is_down = False
            return
        self._dropped.labels("collector").inc(count)
        if not self._is_down:
            log.warning("otlp: %s does not take traces; they are dropped until it does", self._endpoint)
        self._is_down = True
