"""Sends finished traces to an OpenTelemetry collector (OTLP over HTTP) from a thread of its own.

The hot path's share is one append to a bounded queue. What does not fit, and what the collector does not take, is dropped and counted: a
dead collector costs nothing but its traces. `__main__` makes one when PAGODA_OTLP_ENDPOINT is set.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from importlib.metadata import version

import urllib3
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client import CollectorRegistry, Counter

from pagoda_router.tracing.record import RequestTrace
from pagoda_router.tracing.spans import resource_spans, spans_of

log = logging.getLogger(__name__)

QUEUE_TRACES = 2048
"""Up to 36 MB when all are long; at 200 requests/s a collector may be away for ten seconds without a loss."""
LOOK_EVERY_S = 0.5
"""Also time for the last word of a worker whose stream was cut short."""
BATCH_TRACES = 64
BREATH_S = 0.0002
"""After each trace: the event loop gets the interpreter in between, and never waits for a whole batch."""
TIMEOUT_S = 5.0
RETRIES = urllib3.Retry(total=2, backoff_factor=0.5, backoff_max=2.0, status_forcelist=(429, 502, 503, 504), allowed_methods=None)
"""The statuses that the protocol calls retryable."""
LAST_WORDS_S = 2.0
TRACES_PATH = "/v1/traces"


class OtlpExporter:
    def __init__(
        self, endpoint: str, instance: str, registry: CollectorRegistry, *, headers: Mapping[str, str], queue_traces: int = QUEUE_TRACES
    ) -> None:
        """`endpoint`: base URL of the collector, or the whole address of its traces."""
        self._endpoint = endpoint if endpoint.rstrip("/").endswith(TRACES_PATH) else endpoint.rstrip("/") + TRACES_PATH
        self._resource = {
            "service.name": "pagoda-router",
            "service.version": version("pagoda-router"),
            "service.instance.id": instance,
        }
        self._queue: deque[RequestTrace] = deque()
        self._queue_traces = queue_traces
        self._pool = urllib3.PoolManager(
            headers={**headers, "content-type": "application/x-protobuf"}, retries=RETRIES, timeout=urllib3.Timeout(TIMEOUT_S), maxsize=1
        )
        self._exported = Counter("pagoda_router_traces_exported", "Traces that the collector took", registry=registry)
        self._dropped = Counter("pagoda_router_traces_dropped", "Traces that it did not get", ("reason",), registry=registry)
        for reason in ("queue_full", "collector"):
            self._dropped.labels(reason)
        self._is_down = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # each retry is a warning there; we say it once per outage

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
        # Messages laid end to end are one message with all their spans: so each trace is encoded by itself, with a breath in between.
        encoded: list[bytes] = []
        while self._queue and len(encoded) < BATCH_TRACES:
            spans = spans_of(self._queue.popleft())
            encoded.append(ExportTraceServiceRequest(resource_spans=[resource_spans(spans, self._resource)]).SerializeToString())
            time.sleep(BREATH_S)
        trouble = self._post(b"".join(encoded))
        if not trouble:
            self._exported.inc(len(encoded))
            if self._is_down:
                log.info("otlp: %s takes traces again", self._endpoint)
        else:
            self._dropped.labels("collector").inc(len(encoded))
            if not self._is_down:
                log.warning("otlp: %s does not take traces (%s); they are dropped until it does", self._endpoint, trouble)
        self._is_down = bool(trouble)

    def _post(self, body: bytes) -> str:
        """What went wrong; empty: it has them."""
        try:
            answer = self._pool.request("POST", self._endpoint, body=body)
        except urllib3.exceptions.HTTPError as error:
            return str(getattr(error, "reason", None) or error)
        return "" if 200 <= answer.status < 300 else f"status {answer.status}"
