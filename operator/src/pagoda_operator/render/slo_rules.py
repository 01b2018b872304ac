"""Prometheus rules of one model's `spec.slo`: how large the bad share is over each window, and alerts on how fast the budget burns.

Pure. `objects` makes a PrometheusRule of them, the local supervisor a rule file, `ops/boards` the example that is tested with promtool.
Windows and factors are those of the SRE workbook, chapter 5, for a period of 30 days. Needs the routers' pagoda_router_slo_requests_total
with the label `namespace`, which Prometheus adds when it scrapes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pagoda_operator.manifest.promises import Slo

RUNBOOKS = "ops/runbooks"
"""Where each alert's page is: in Pagoda's repository, unless the installation names an address."""
BAD_RATIO = "slo:pagoda_requests_bad:ratio_rate"
"""Followed by the window: 0 to 1, by namespace, model and sli."""
REQUESTS = "slo:pagoda_requests:rate"
"""Followed by the window: judged requests a second."""

SHORT_WINDOWS = ("5m", "30m", "1h")
LONG_WINDOWS = ("6h", "3d")
PERIOD_S = 30 * 86_400
LEAST_BAD_REQUESTS = 5
"""In the long window. Below it, one client's bad minute at night would wake somebody."""
MOST_RATIO = Fraction(9, 10)
"""No alert asks for a larger share of bad requests: with a low objective a total outage would else be no fast burn (at 90%, 14.4 times the
budget is 144%)."""


@dataclass(frozen=True, slots=True)
class Burn:
    """An alert fires while the budget burns `factor` times faster than it may, over both windows: the long one says that it matters, the
    short one that it goes on."""

    long: str
    short: str
    long_s: int
    factor: Fraction
    severity: str


BURNS = (
    Burn("1h", "5m", 3600, Fraction(144, 10), "page"),
    Burn("6h", "30m", 21_600, Fraction(6), "page"),
    Burn("3d", "6h", 259_200, Fraction(1), "ticket"),
)

ALERTS = {"availability": "PagodaAvailabilityBurn", "ttft": "PagodaTtftBurn", "tpot": "PagodaTpotBurn"}
_BROKEN = {
    "availability": "requests end in an error, are refused for lack of room, or break off",
    "ttft": "first tokens come later than promised",
    "tpot": "tokens follow each other more slowly than promised",
}

Group = dict[str, Any]


def slo_groups(namespace: str, model: str, slo: Slo, runbooks: str = RUNBOOKS) -> list[Group]:
    """As in a Prometheus rule file, and in spec.groups of a PrometheusRule. `runbooks`: what an alert's page is below."""
    chosen = f'namespace="{namespace}",model="{model}"'
    name = f"pagoda-slo-{namespace}-{model}"
    alerts = [_alert(f"{namespace}/{model}", chosen, sli, burn, slo, runbooks) for sli in slo.indicators for burn in BURNS]
    return [
        {"name": name, "interval": "30s", "rules": [rule for window in SHORT_WINDOWS for rule in _recordings(chosen, window)]},
        # samples of three days are many, and nothing there changes within minutes
        {"name": f"{name}-long", "interval": "3m", "rules": [rule for window in LONG_WINDOWS for rule in _recordings(chosen, window)]},
        {"name": f"{name}-burn", "interval": "30s", "rules": alerts},
    ]


def _recordings(chosen: str, window: str) -> Iterator[dict[str, Any]]:
    """A model without traffic has no ratio, rather than 0/0; one without a bad request has 0, whether or not `bad` was ever counted.

    Rules of a group are evaluated in order, so the second reads what the first has just recorded.
    """
    requests = f"{REQUESTS}{window}{{{chosen}}}"
    bad = _rate(f'{chosen},verdict="bad"', window)
    yield {"record": f"{REQUESTS}{window}", "expr": _rate(chosen, window)}
    yield {"record": f"{BAD_RATIO}{window}", "expr": f"({bad}\n or 0 * {requests}) / ({requests} > 0)"}


def _rate(chosen: str, window: str) -> str:
    return f"sum by (namespace, model, sli) (rate(pagoda_router_slo_requests_total{{{chosen}}}[{window}]))"


def _alert(key: str, chosen: str, sli: str, burn: Burn, slo: Slo, runbooks: str) -> dict[str, Any]:
    budget = 1 - slo.objective
    threshold = min(burn.factor * budget, MOST_RATIO)
    spent = threshold / budget * burn.long_s / PERIOD_S
    return {
        "alert": ALERTS[sli],
        "expr": _burning(f'{chosen},sli="{sli}"', burn, _decimal(threshold)),
        "labels": {"severity": burn.severity, "window": burn.long},
        "annotations": {
            "summary": f"{key}: {_BROKEN[sli]}",
            "description": (
                f"{{{{ $value | humanizePercentage }}}} of the requests of {burn.long} broke the promise, and of {burn.short} as well: "
                f"{_percent(slo.objective)} were to keep it. {burn.long} like this cost {_percent(spent)} of 30 days' budget, or more."
            ),
            "runbook_url": f"{runbooks}/{ALERTS[sli]}.md",
        },
    }


def _burning(chosen: str, burn: Burn, threshold: str) -> str:
    return (
        f"{BAD_RATIO}{burn.long}{{{chosen}}} > {threshold}\n"
        f"and {BAD_RATIO}{burn.short}{{{chosen}}} > {threshold}\n"
        f"and {BAD_RATIO}{burn.long}{{{chosen}}} * {REQUESTS}{burn.long}{{{chosen}}} * {burn.long_s} >= {LEAST_BAD_REQUESTS}"
    )


def _percent(share: Fraction) -> str:
    return f"{float(share * 100):.3f}".rstrip("0").rstrip(".") + "%"


def _decimal(value: Fraction) -> str:
    """Of a value with few decimals, as a person writes it."""
    return f"{float(value):.9f}".rstrip("0").rstrip(".")
