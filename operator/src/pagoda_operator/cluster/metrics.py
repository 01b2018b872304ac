"""The operator's own metrics. One object per process, made by __main__ and handed to whoever counts; no global registry."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.reconciles = Histogram(
            "pagoda_operator_reconcile_seconds",
            "Duration of one reconcile, by what it was for and how it ended (unchanged, changed, blocked, failed).",
            ("unit", "outcome"),
            buckets=SECONDS,
            registry=registry,
        )
        self.queue_depth = Gauge("pagoda_operator_queue_depth", "Keys that wait for a reconcile.", registry=registry)
        self.queue_age = Gauge("pagoda_operator_queue_oldest_seconds", "Age of the key that waits longest.", registry=registry)
        self.queue_wait = Histogram(
            "pagoda_operator_queue_wait_seconds", "From an event to the start of its reconcile.", buckets=SECONDS, registry=registry
        )
        self.api_calls = Counter(
            "pagoda_operator_api_calls", "Calls to the API server, retries counted.", ("verb", "resource", "code"), registry=registry
        )
        self.api_seconds = Histogram(
            "pagoda_operator_api_call_seconds", "Duration of calls to the API server.", ("verb",), buckets=SECONDS, registry=registry
        )
        self.watch_age = Gauge(
            "pagoda_operator_watch_age_seconds",
            "Since a watch last said anything: event, bookmark or list.",
            ("resource",),
            registry=registry,
        )
        self.leader = Gauge("pagoda_operator_leader", "1 while this replica holds the Lease.", registry=registry)
        self.conditions = Gauge(
            "pagoda_operator_models",
            "InferenceModels by condition, status and reason.",
            ("condition", "status", "reason"),
            registry=registry,
        )
        self.router_polls = Counter(
            "pagoda_operator_router_polls", "Questions to routers, by outcome (answered, silent, refused).", ("outcome",), registry=registry
        )
        self.scalings = Counter("pagoda_operator_scalings", "Changes of replicas by the autoscaler.", ("direction",), registry=registry)
        # There from the start, as 0: a rate over what was never counted is nothing, and looks like a scrape that failed.
        for outcome in ("answered", "silent", "refused"):
            self.router_polls.labels(outcome)
        for direction in ("up", "down"):
            self.scalings.labels(direction)
