"""Board: what all models together do now, and whether the operator keeps up. The page to open first."""

from boards.grafana import Board, Panel, Query, Row
from boards.queries import MODEL, NAMESPACE, ROUTER, WORKER, per_model, quantile, rate, ratio

REQUESTS = "pagoda_router_requests_total"
SERVER_ERROR = ROUTER + ',code=~"5.."'
ERRORS = f"({rate(REQUESTS, SERVER_ERROR)} or vector(0))"

NOW = Row(
    "Now",
    (
        Panel(
            title="Models by readiness",
            description="InferenceModels by their Ready condition, as the operator wrote it. Asleep models are not ready.",
            unit="short",
            kind="stat",
            queries=[Query('sum by (status) (pagoda_operator_models{condition="Ready"})', "{{status}}")],
        ),
        Panel(
            title="Workers by state",
            description="As routers see them. unready: it loads, or cannot be reached. draining: it ends.",
            unit="short",
            kind="stat",
            queries=[Query(f"sum by (state) ({per_model('pagoda_router_workers', more='variant, state')})", "{{state}}")],
        ),
        Panel(
            title="Requests",
            description="Answered in full, whatever the answer.",
            unit="reqps",
            kind="stat",
            queries=[Query(rate(REQUESTS, ROUTER))],
        ),
        Panel(
            title="Server errors",
            description="Share of the answers with a status of 500 and above. A 429 is no error here: it is counted as a rejection.",
            unit="percentunit",
            kind="stat",
            decimals=2,
            queries=[Query(ratio(ERRORS, rate(REQUESTS, ROUTER)))],
        ),
        Panel(
            title="Output tokens",
            description="Sent to clients, all models together.",
            unit="suffix: tok/s",
            kind="stat",
            queries=[Query(rate("pagoda_router_tokens_total", ROUTER + ',kind="completion"'))],
        ),
        Panel(
            title="Cost",
            description="Of the workers that run now, by the prices in spec.cost. Models without a price are left out.",
            unit="currencyUSD",
            kind="stat",
            decimals=2,
            queries=[Query(f"sum({per_model('pagoda_router_model_cost_usd_per_hour')})", "an hour")],
        ),
    ),
)
TRAFFIC = Row(
    "Traffic",
    (
        Panel(
            title="Requests by model",
            description="A model that falls to zero while others do not has lost its clients or its workers.",
            unit="reqps",
            queries=[Query(rate(REQUESTS, ROUTER, "namespace, model"), "{{namespace}}/{{model}}")],
        ),
        Panel(
            title="Answers by status",
            description="429: no room, see the admission board. 503: no worker. 500: an engine's fault.",
            unit="reqps",
            stacked=True,
            queries=[Query(rate(REQUESTS, ROUTER, "code"), "{{code}}")],
        ),
        Panel(
            title="Tokens by kind",
            description="prompt includes cached, which is the part of prompts that no engine had to compute.",
            unit="suffix: tok/s",
            queries=[Query(rate("pagoda_router_tokens_total", ROUTER, "kind"), "{{kind}}")],
        ),
        Panel(
            title="Time to first token, p95",
            description="From a request's arrival at a router to its first token, waiting included.",
            unit="s",
            queries=[
                Query(quantile(0.95, "pagoda_router_time_to_first_token_seconds", ROUTER, "namespace, model"), "{{namespace}}/{{model}}")
            ],
        ),
        Panel(
            title="Tokens that wait",
            description="Predicted cost of the requests that wait in routers. Steady above zero: more workers would be used.",
            unit="suffix: tok",
            queries=[Query(f"sum by (namespace, model) (pagoda_router_queue_tokens{{{ROUTER}}})", "{{namespace}}/{{model}}")],
        ),
        Panel(
            title="KV cache in use, the fullest worker",
            description="Near 1, sequences are preempted and computed again.",
            unit="percentunit",
            most=1,
            queries=[Query(f"max by (namespace, model_name) (vllm:kv_cache_usage_perc{{{WORKER}}})", "{{namespace}}/{{model_name}}")],
        ),
    ),
)
OPERATOR = Row(
    "Operator",
    (
        Panel(
            title="Active operators",
            description="Must be 1. 0: nobody reconciles, though models go on serving.",
            unit="short",
            queries=[Query("sum(pagoda_operator_leader)", "leaders")],
        ),
        Panel(
            title="Why models are not ready",
            description="InferenceModels by the reason of their Ready condition.",
            unit="short",
            stacked=True,
            queries=[Query('sum by (reason) (pagoda_operator_models{condition="Ready"})', "{{reason}}")],
        ),
        Panel(
            title="Reconciles by outcome",
            description="blocked: the API server refused an object. failed: tried again with backoff.",
            unit="suffix: /s",
            stacked=True,
            queries=[Query("sum by (outcome) (rate(pagoda_operator_reconcile_seconds_count[$__rate_interval]))", "{{outcome}}")],
        ),
        Panel(
            title="Duration of a reconcile, p99",
            description="One model, or what a namespace shares.",
            unit="s",
            queries=[
                Query(
                    "histogram_quantile(0.99, sum by (le, unit) (rate(pagoda_operator_reconcile_seconds_bucket[$__rate_interval])))",
                    "{{unit}}",
                )
            ],
        ),
        Panel(
            title="Oldest key that waits",
            description="More than seconds: the operator does not keep up, or a key fails again and again.",
            unit="s",
            queries=[Query("max(pagoda_operator_queue_oldest_seconds)", "age"), Query("max(pagoda_operator_queue_depth)", "keys")],
        ),
        Panel(
            title="Silence of watches",
            description="Since a watch last said anything. Above four minutes the operator ends itself.",
            unit="s",
            queries=[Query("max by (resource) (pagoda_operator_watch_age_seconds)", "{{resource}}")],
        ),
        Panel(
            title="Calls to the API server",
            description="By answer. 409 and 404 belong to it; 403 means that a right is missing.",
            unit="suffix: /s",
            queries=[Query("sum by (code) (rate(pagoda_operator_api_calls_total[$__rate_interval]))", "{{code}}")],
        ),
        Panel(
            title="Questions to routers",
            description="silent: a router does not answer the operator, which then scales and gates without its word.",
            unit="suffix: /s",
            queries=[Query("sum by (outcome) (rate(pagoda_operator_router_polls_total[$__rate_interval]))", "{{outcome}}")],
        ),
        Panel(
            title="Scaling",
            description="Changes of the number of workers. Up and down in turns: spec.scaling.stableSeconds is too short for this load.",
            unit="suffix: /s",
            queries=[Query("sum by (direction) (rate(pagoda_operator_scalings_total[$__rate_interval]))", "{{direction}}")],
        ),
    ),
)

BOARD = Board(
    uid="pagoda-fleet",
    title="Pagoda / Fleet",
    description="Is everything served, how much, and does the operator keep up?",
    variables=(NAMESPACE, MODEL),
    rows=(NOW, TRAFFIC, OPERATOR),
)
