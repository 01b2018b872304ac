"""Board: where requests go and why, how good the predictions behind it are, how traffic is cut by length, who is left alone."""

from boards.grafana import Board, Panel, Query, Row
from boards.queries import MODEL, NAMESPACE, ROUTER, per_model, rate, ratio

PREDICTED = rate("pagoda_router_predicted_first_token_seconds_total", ROUTER, "model")
ACTUAL = rate("pagoda_router_actual_first_token_seconds_total", ROUTER, "model")
ERROR = rate("pagoda_router_first_token_error_seconds_total", ROUTER, "model")

DECISIONS = Row(
    "Decisions",
    (
        Panel(
            title="Placements by policy and reason",
            description="Why the chosen worker was chosen. A growing last_resort or only_with_room: too few workers.",
            unit="suffix: /s",
            stacked=True,
            queries=[Query(rate("pagoda_router_placements_total", ROUTER, "policy, reason"), "{{policy}}: {{reason}}")],
        ),
        Panel(
            title="Share of placements on a cached prefix",
            description="More of the prompt is cached there than at the runner-up. It falls when caches are too small.",
            unit="percentunit",
            most=1,
            queries=[
                Query(
                    ratio(
                        rate("pagoda_router_placements_total", ROUTER + ',reason="cached_prefix"', "model"),
                        rate("pagoda_router_placements_total", ROUTER, "model"),
                    ),
                    "{{model}}",
                )
            ],
        ),
        Panel(
            title="Second tries and replays",
            description="Placed again before the first token, or continued elsewhere after it. budget: not tried, because too many were.",
            unit="suffix: /s",
            queries=[
                Query(rate("pagoda_router_retries_total", ROUTER, "reason"), "again: {{reason}}"),
                Query(rate("pagoda_router_replays_total", ROUTER), "replays"),
                Query(rate("pagoda_router_retry_budget_spent_total", ROUTER, "budget"), "budget: {{budget}}"),
            ],
        ),
    ),
)
GUESSES = Row(
    "Predicted and actual",
    (
        Panel(
            title="First token: actual for one predicted second",
            description="From placement on. 1 is no bias. Far from it learned rates are wrong: GET /admin/v1/decisions says whose.",
            unit="short",
            decimals=2,
            queries=[Query(ratio(ACTUAL, PREDICTED), "{{model}}")],
        ),
        Panel(
            title="First token: mean error of a prediction",
            description="Either way, relative to what came. Errors that all workers share do no harm; those of one do.",
            unit="percentunit",
            queries=[Query(ratio(ERROR, ACTUAL), "{{model}}")],
        ),
        Panel(
            title="Prefix tokens: predicted and found",
            description="The router's guess of what a worker's prefix cache holds, beside what it held.",
            unit="suffix: tok/s",
            queries=[
                Query(rate("pagoda_router_prefix_predicted_tokens_total", ROUTER), "predicted"),
                Query(rate("pagoda_router_prefix_cached_tokens_total", ROUTER), "found"),
            ],
        ),
    ),
)
LANES = Row(
    "Lanes by length",
    (
        Panel(
            title="Longest request of each lane",
            description="Uncached prompt and predicted output, cut from live traffic; the last lane has no end and is not drawn. Cuts that "
            "jump: traffic changes shape. Nothing: traffic is even, or workers are few.",
            unit="suffix: tok",
            queries=[
                Query(
                    f"{per_model('pagoda_router_lane_longest_tokens', more='variant, lane')} < Inf", "{{model}}-{{variant}} lane {{lane}}"
                )
            ],
            rare=True,
        ),
        Panel(
            title="Workers of each lane",
            description="0 while there is one lane for all.",
            unit="short",
            stacked=True,
            queries=[Query(per_model("pagoda_router_lane_workers", more="variant, lane"), "{{model}}-{{variant}} lane {{lane}}")],
        ),
    ),
)
SHUNNED = Row(
    "Left alone",
    (
        Panel(
            title="Workers that get no new requests",
            description="Failures in a row, far slower than its peers, or silent with work to do. One for long: look at its log and node.",
            unit="short",
            queries=[
                Query(per_model("pagoda_router_workers_shunned", more="variant, cause"), "{{model}}-{{variant}} {{cause}}"),
            ],
        ),
        Panel(
            title="Requests that workers failed",
            description="By reason: what opens a worker's breaker.",
            unit="suffix: /s",
            queries=[Query(rate("pagoda_router_upstream_errors_total", ROUTER, "model, reason"), "{{model}} {{reason}}")],
        ),
    ),
)

BOARD = Board(
    uid="pagoda-placement",
    title="Pagoda / Lanes and decisions",
    description="Where requests go and why, whether predictions hold, how traffic is cut by length, and which workers are left alone.",
    variables=(NAMESPACE, MODEL),
    rows=(DECISIONS, GUESSES, LANES, SHUNNED),
)
