"""Board: what tokens and requests cost, from the prices in spec.cost and the measured use.

Everything divides the same sum: price of the workers that run, idle ones included. Half-used workers therefore make tokens dear, which is
what the board is for. The split between input and output weighs an output token as $output_weight input tokens.
"""

from boards.grafana import Board, Choice, Panel, Query, Row
from boards.queries import MODEL, NAMESPACE, ROUTER, WORKER, per_model, rate, ratio

BY = "namespace, model"
LEGEND = "{{namespace}}/{{model}}"
USD_PER_HOUR = per_model("pagoda_router_model_cost_usd_per_hour")
TOKENS = "pagoda_router_tokens_total"
PROMPT = rate(TOKENS, f'{ROUTER},kind="prompt"', BY)
COMPLETION = rate(TOKENS, f'{ROUTER},kind="completion"', BY)
ALL = rate(TOKENS, f'{ROUTER},kind=~"prompt|completion"', BY)
REQUESTS = rate("pagoda_router_requests_total", f'{ROUTER},code="200"', BY)
SECONDS_PER_HOUR, MILLION = 3600, 1_000_000

WEIGHT = Choice(name="output_weight", label="An output token weighs", values=("4", "1", "2", "3", "5", "8"))


def per_million(tokens: str, weight: str = "") -> str:
    return f"{weight}{ratio(f'{USD_PER_HOUR} / {SECONDS_PER_HOUR}', tokens)} * {MILLION}"


WEIGHED = f"({PROMPT} + $output_weight * {COMPLETION})"

MONEY = Row(
    "Money",
    (
        Panel(
            title="Cost now",
            description="An hour of the workers that have an endpoint, times the price. Models without spec.cost are left out.",
            unit="currencyUSD",
            kind="stat",
            decimals=2,
            queries=[Query(f"sum({USD_PER_HOUR})", "an hour")],
        ),
        Panel(
            title="A million tokens",
            description="Input and output alike.",
            unit="currencyUSD",
            kind="stat",
            decimals=3,
            queries=[Query(per_million(ALL), LEGEND)],
        ),
        Panel(
            title="A request",
            description="Answered with 200.",
            unit="currencyUSD",
            kind="stat",
            decimals=6,
            queries=[Query(ratio(f"{USD_PER_HOUR} / {SECONDS_PER_HOUR}", REQUESTS), LEGEND)],
        ),
        Panel(
            title="Over the range shown",
            description="Mean price of an hour times its length.",
            unit="currencyUSD",
            kind="stat",
            decimals=2,
            queries=[
                Query(
                    f"max by ({BY}) (avg_over_time(pagoda_router_model_cost_usd_per_hour{{{ROUTER}}}[$__range]))"
                    f" * $__range_s / {SECONDS_PER_HOUR}",
                    LEGEND,
                )
            ],
        ),
    ),
)
TOKEN = Row(
    "Tokens",
    (
        Panel(
            title="A million tokens, input and output alike",
            description="Falls as workers fill up; the floor is what full batches cost.",
            unit="currencyUSD",
            queries=[Query(per_million(ALL), LEGEND)],
        ),
        Panel(
            title="A million input tokens",
            description="Cached ones included. An output token counts as $output_weight of them, because decoding takes a step for each.",
            unit="currencyUSD",
            queries=[Query(per_million(WEIGHED), LEGEND)],
        ),
        Panel(
            title="A million output tokens",
            description="$output_weight times an input token.",
            unit="currencyUSD",
            queries=[Query(per_million(WEIGHED, "$output_weight * "), LEGEND)],
        ),
    ),
)
USE = Row(
    "Use",
    (
        Panel(
            title="Cost of an hour",
            description="Steps are workers that came and went.",
            unit="currencyUSD",
            stacked=True,
            queries=[Query(USD_PER_HOUR, LEGEND)],
        ),
        Panel(
            title="A request",
            description="Answered with 200.",
            unit="currencyUSD",
            decimals=6,
            queries=[Query(ratio(f"{USD_PER_HOUR} / {SECONDS_PER_HOUR}", REQUESTS), LEGEND)],
        ),
        Panel(
            title="Tokens by worker, as OpenCost reads them",
            description="vllm:prompt_tokens_total and vllm:generation_tokens_total: what OpenCost divides its own prices of pods by.",
            unit="suffix: tok/s",
            queries=[
                Query(rate("vllm:prompt_tokens_total", WORKER, "pod"), "{{pod}} input"),
                Query(rate("vllm:generation_tokens_total", WORKER, "pod"), "{{pod}} output"),
            ],
        ),
        Panel(
            title="Input tokens that cost nothing",
            description="Share of prompt tokens that came from prefix caches.",
            unit="percentunit",
            most=1,
            queries=[Query(ratio(rate(TOKENS, f'{ROUTER},kind="cached"', BY), PROMPT), LEGEND)],
        ),
    ),
)

BOARD = Board(
    uid="pagoda-cost",
    title="Pagoda / Cost",
    description="US dollars per million tokens and per request, by the prices in spec.cost and measured use.",
    variables=(NAMESPACE, MODEL, WEIGHT),
    rows=(MONEY, TOKEN, USE),
)
