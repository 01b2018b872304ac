"""Board: one model's promises, how much of the error budget is left, how fast it burns, and what it burns on."""

from dataclasses import replace

from boards.grafana import Board, Panel, Query, Row
from boards.queries import MODEL, NAMESPACE, ROUTER, WORKER, mean, per_model, quantile, quantiles, rate, ratio

JUDGED = "pagoda_router_slo_requests_total"
BAD = ROUTER + ',verdict="bad"'
BUDGET = f"(1 - max(pagoda_router_slo_objective_ratio{{{ROUTER}}}) > 0)"
WINDOWS = ("5m", "30m", "1h", "6h", "3d")


def over_range(selector: str) -> str:
    return f"sum by (sli) (increase({JUDGED}{{{selector}}}[$__range]))"


def bad_share_over_range() -> str:
    """0 where nothing was bad, whether or not `bad` was ever counted."""
    return ratio(f"({over_range(BAD)} or 0 * {over_range(ROUTER)})", over_range(ROUTER))


def bound(sli: str) -> Query:
    threshold = per_model("pagoda_router_slo_threshold_seconds", f'{ROUTER},sli="{sli}"')
    return Query(f"max({threshold})", "promised")


PROMISE = Row(
    "Promise and budget",
    (
        Panel(
            title="Objective",
            description="Share of the requests that must keep each promise over 30 days: spec.slo.objective.",
            unit="percentunit",
            kind="stat",
            decimals=3,
            queries=[Query(f"max(pagoda_router_slo_objective_ratio{{{ROUTER}}})")],
        ),
        Panel(
            title="Promised time",
            description="spec.slo.ttft and spec.slo.tpot.",
            unit="s",
            kind="stat",
            queries=[Query(f"max by (sli) (pagoda_router_slo_threshold_seconds{{{ROUTER}}})", "{{sli}}")],
        ),
        Panel(
            title="Kept, over the range shown",
            description="Share of the requests that kept the promise, over the range of time chosen at the top.",
            unit="percentunit",
            kind="stat",
            decimals=3,
            queries=[Query(f"1 - {bad_share_over_range()}", "{{sli}}")],
        ),
        Panel(
            title="Budget left, over the range shown",
            description="1: nothing was bad. 0: all used up. Below: broken. Choose 30 days at the top for the real budget.",
            unit="percentunit",
            kind="stat",
            queries=[Query(f"1 - {bad_share_over_range()} / on () group_left () {BUDGET}", "{{sli}}")],
        ),
    ),
)
BURN = Row(
    "Burn rate: how many times faster than it may the budget goes",
    tuple(
        Panel(
            title=f"Burn rate: {sli}",
            description="1 uses up the budget in 30 days, exactly. Alerts: 14.4 over 1h and 5m, 6 over 6h and 30m, 1 over 3d and 6h.",
            unit="suffix: x",
            queries=[
                Query(
                    f'max by (sli) (slo:pagoda_requests_bad:ratio_rate{window}{{{ROUTER},sli="{sli}"}}) / on () group_left () {BUDGET}',
                    window,
                )
                for window in WINDOWS
            ],
        )
        for sli in ("availability", "ttft", "tpot")
    ),
)
MEASURED = Row(
    "What clients see",
    (
        Panel(
            title="Requests judged",
            description="Without clients' own mistakes and those that left.",
            unit="reqps",
            queries=[Query(rate(JUDGED, ROUTER, "sli, verdict"), "{{sli}} {{verdict}}")],
        ),
        Panel(
            title="Time to first token",
            description="From arrival at a router, waiting included, beside what was promised.",
            unit="s",
            queries=[*quantiles("pagoda_router_time_to_first_token_seconds", ROUTER), bound("ttft")],
        ),
        Panel(
            title="Time per output token",
            description="The mean of each request, as workers measured it, beside what was promised.",
            unit="s",
            queries=[*quantiles("vllm:request_time_per_output_token_seconds", WORKER), bound("tpot")],
        ),
    ),
)
CAUSES = Row(
    "What it burns on",
    (
        Panel(
            title="Answers by status",
            description="429 and 503 burn availability as much as 500 does.",
            unit="reqps",
            stacked=True,
            queries=[Query(rate("pagoda_router_requests_total", ROUTER, "code"), "{{code}}")],
        ),
        Panel(
            title="Sequences by how they ended",
            description="stop and length are good; abort is a client that left; error is an engine's fault.",
            unit="suffix: /s",
            stacked=True,
            queries=[Query(rate("vllm:request_success_total", WORKER, "finished_reason"), "{{finished_reason}}")],
        ),
        Panel(
            title="Where the time goes, mean of a request",
            description="Waiting in the router and in the worker: more workers. Prefill: long prompts. Decode: full batches.",
            unit="s",
            stacked=True,
            queries=[
                Query(mean("pagoda_router_queue_wait_seconds", ROUTER), "wait in the router"),
                Query(mean("vllm:request_queue_time_seconds", WORKER), "wait in the worker"),
                Query(mean("vllm:request_prefill_time_seconds", WORKER), "prefill"),
                Query(mean("vllm:request_decode_time_seconds", WORKER), "decode"),
            ],
        ),
        Panel(
            title="Inter-token latency, p99",
            description="Far above the mean time per token: steps with long prompts come between, see maxBatchTokens.",
            unit="s",
            queries=[Query(quantile(0.99, "vllm:inter_token_latency_seconds", WORKER), "p99")],
        ),
    ),
)

BOARD = Board(
    uid="pagoda-slo",
    title="Pagoda / One model's SLO",
    description="Does this model keep what spec.slo promises, and if not, why?",
    variables=(NAMESPACE, replace(MODEL, many=False, metric='pagoda_router_slo_objective_ratio{namespace=~"$namespace"}')),
    rows=(PROMISE, BURN, MEASURED, CAUSES),
)
