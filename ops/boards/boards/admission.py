"""Board: what routers let in, hold back and refuse, and what they reserve for it. Where it goes: placement.py."""

from boards.grafana import Board, Panel, Query, Row
from boards.queries import MODEL, NAMESPACE, ROUTER, mean, quantile, quantiles, rate, ratio


def gauge(metric: str, by: str) -> str:
    """Each router has its own queue."""
    return f"sum by ({by}) ({metric}{{{ROUTER}}})"


REJECTED = rate("pagoda_router_rejected_total", ROUTER, "model")
ANSWERED = rate("pagoda_router_requests_total", ROUTER, "model")

QUEUE = Row(
    "Waiting",
    (
        Panel(
            title="Requests that wait",
            description="For room on a worker, or for a worker.",
            unit="short",
            queries=[Query(gauge("pagoda_router_queue_requests", "model, class"), "{{model}} {{class}}")],
        ),
        Panel(
            title="Tokens that wait",
            description="Their predicted cost. spec.routing.maxQueueTokens bounds it in each router.",
            unit="suffix: tok",
            queries=[Query(gauge("pagoda_router_queue_tokens", "model, class"), "{{model}} {{class}}")],
        ),
        Panel(
            title="Time in the queue",
            description="From admission to a worker, of requests that got one.",
            unit="s",
            queries=quantiles("pagoda_router_queue_wait_seconds", ROUTER),
        ),
        Panel(
            title="Requests in progress",
            description="Not yet answered in full, by router. One far above the others: clients keep connections to it.",
            unit="short",
            queries=[Query('sum by (pod) (pagoda_router_requests_in_progress{namespace=~"$namespace"})', "{{pod}}")],
        ),
    ),
)
REFUSED = Row(
    "Refused",
    (
        Panel(
            title="Rejections by reason",
            description="queue_full: 429, the queue is full. displaced: its place went to another. cold_start…: no worker ran.",
            unit="reqps",
            stacked=True,
            queries=[Query(rate("pagoda_router_rejected_total", ROUTER, "model, reason"), "{{model}} {{reason}}")],
        ),
        Panel(
            title="Share of requests rejected",
            description="Of all that were answered.",
            unit="percentunit",
            most=1,
            queries=[
                Query(
                    ratio(f"({REJECTED} or 0 * {ANSWERED})", ANSWERED),
                    "{{model}}",
                )
            ],
        ),
        Panel(
            title="Retry-After that was told",
            description="Seconds until the router expects to have room: measured from how fast its queue drains.",
            unit="s",
            queries=quantiles("pagoda_router_retry_after_seconds", ROUTER, 0.5, 0.95),
        ),
    ),
)
RESERVED = Row(
    "KV reservations",
    (
        Panel(
            title="KV tokens reserved, settled, refunded",
            description="Reserved when a request is placed. When it ends: what it used is settled, what it did not need is refunded, "
            "what it took beyond is overrun.",
            unit="suffix: tok/s",
            queries=[
                Query(rate("pagoda_router_reserved_kv_tokens_total", ROUTER), "reserved"),
                Query(rate("pagoda_router_settled_kv_tokens_total", ROUTER), "settled"),
                Query(rate("pagoda_router_refunded_kv_tokens_total", ROUTER), "refunded"),
                Query(rate("pagoda_router_overrun_kv_tokens_total", ROUTER), "overrun"),
            ],
        ),
        Panel(
            title="Output length: actual for one predicted token",
            description="1 is a perfect guess. Below 1 memory was held in vain; above 1 workers run out of it and preempt.",
            unit="short",
            decimals=2,
            queries=[
                Query(
                    ratio(
                        rate("pagoda_router_actual_output_tokens_total", ROUTER, "model"),
                        rate("pagoda_router_predicted_output_tokens_total", ROUTER, "model"),
                    ),
                    "{{model}}",
                )
            ],
        ),
    ),
)
ADDED = Row(
    "What the router takes",
    (
        Panel(
            title="Time that the router adds",
            description="Parsing, templating, tokenizing and placing; waiting excluded.",
            unit="s",
            queries=[
                Query(quantile(0.5, "pagoda_router_overhead_seconds", ROUTER), "p50"),
                Query(quantile(0.99, "pagoda_router_overhead_seconds", ROUTER), "p99"),
                Query(mean("pagoda_router_overhead_seconds", ROUTER), "mean"),
            ],
        ),
        Panel(
            title="Sessions that ended",
            description="One per worker. A rollout ends some; a steady rate is a network or a worker that comes and goes.",
            unit="suffix: /s",
            queries=[
                Query(
                    'sum by (namespace, pod) (rate(pagoda_router_sessions_ended_total{namespace=~"$namespace"}[$__rate_interval]))',
                    "{{pod}}",
                )
            ],
        ),
        Panel(
            title="Workers by variant and state",
            description="The largest count that a router has. Routers that disagree: one of them cannot reach a worker.",
            unit="short",
            queries=[
                Query(f"max by (model, variant, state) (pagoda_router_workers{{{ROUTER}}})", "{{model}}-{{variant}} {{state}}"),
            ],
        ),
    ),
)

BOARD = Board(
    uid="pagoda-admission",
    title="Pagoda / Router admission",
    description="What waits, what is refused and why, what is reserved, and what the router itself takes.",
    variables=(NAMESPACE, MODEL),
    rows=(QUEUE, REFUSED, RESERVED, ADDED),
)
