"""What each alert is tried on: series over time, and which of its rules fire at a moment. Data for test_alerts.py."""

from collections.abc import Mapping
from dataclasses import dataclass

Series = Mapping[str, str]
"""Values by selector, in promtool's notation: 0+20x60 is 0, 20, 40 … 1200."""


@dataclass(frozen=True, kw_only=True)
class Case:
    alert: str
    what: str
    series: Series
    at: str
    fires: tuple[str, ...] = ()
    """What tells the firing alerts apart: the window of a burn, else the severity. Empty: none fires."""
    interval: str = "1m"

    def __str__(self) -> str:
        return f"{self.alert}: {self.what}"


def judged(sli: str, good: str, bad: str | None) -> Series:
    """Two routers, so that sums matter."""
    series = {
        f'pagoda_router_slo_requests_total{{namespace="models",model="chat",sli="{sli}",verdict="good",pod="r{n}"}}': good for n in (0, 1)
    }
    name = f'pagoda_router_slo_requests_total{{namespace="models",model="chat",sli="{sli}",verdict="bad",pod="r0"}}'
    return series | ({} if bad is None else {name: bad})


def burns(alert: str, sli: str, *, closely: bool = False) -> list[Case]:
    """The three alerts have one text but for the sli: one is looked at closely."""

    def case(what: str, series: Series, at: str, *fires: str, interval: str = "1m") -> Case:
        return Case(alert=alert, what=what, series=series, at=at, fires=fires, interval=interval)

    shared = [
        # of 100 requests a minute 20 are bad: 20 times the budget
        case("a fast burn pages", judged(sli, "0+40x60", "0+20x60"), "1h", "1h", "6h", "3d"),
        case("without a bad request ever counted", judged(sli, "0+40x60", None), "1h"),
        case("without traffic", judged(sli, "500x60", "20x60"), "1h"),
        case("without the series", {'up{namespace="models"}': "1x60"}, "1h"),
    ]
    close = [
        case("7 times the budget pages by the longer pair", judged(sli, "0+93x72", "0+14x72"), "6h", "6h", "3d", interval="5m"),
        case("twice the budget for three days is a ticket", judged(sli, "0+98x144", "0+4x144"), "3d", "3d", interval="30m"),
        case("half the budget is none of our business", judged(sli, "0+199x144", "0+2x144"), "3d", interval="30m"),
        case("a burn that is over pages nobody", judged(sli, "0+40x90", "0+20x30 600x60"), "80m", "3d"),
        case("four bad requests at night wake nobody", judged(sli, "0x60", "0x10 1 2 3 4x50"), "1h"),
        case("an outage with little traffic pages", judged(sli, "0x60", "0+0.2x60"), "1h", "1h", "6h", "3d"),
    ]
    return shared + (close if closely else [])


def pair(alert: str, *, firing: Series, healthy: Series, at: str, severity: str, quiet: Series | None = None) -> list[Case]:
    cases = [
        Case(alert=alert, what="fires", series=firing, at=at, fires=(severity,)),
        Case(alert=alert, what="does not fire", series=healthy, at=at),
    ]
    return cases + ([] if quiet is None else [Case(alert=alert, what="is quiet without traffic", series=quiet, at=at)])


MODEL = 'namespace="models",model="chat"'
NOTHING: Series = {'up{namespace="models"}': "1x90"}


def workers(state: str, count: str) -> Series:
    return {f'pagoda_router_workers{{{MODEL},variant="default",state="{state}",pod="r{n}"}}': count for n in (0, 1)}


def rejected(reason: str, values: str, requests: str = "0+60x90") -> Series:
    return {
        f'pagoda_router_rejected_total{{{MODEL},reason="{reason}",pod="r0"}}': values,
        f'pagoda_router_requests_total{{{MODEL},endpoint="chat",code="200",pod="r0"}}': requests,
    }


def reconciled(outcome: str, values: str) -> Series:
    return {f'pagoda_operator_reconcile_seconds_count{{namespace="pagoda-system",unit="model",outcome="{outcome}"}}': values}


KV = 'vllm:kv_cache_usage_perc{namespace="models",model_name="chat",pod="w%d"}'
RESTARTS = 'pagoda_engine_restarts_total{namespace="models",model_name="chat",pod="w0"}'
SESSIONS = 'pagoda_router_sessions_ended_total{namespace="models",pod="r0"}'
OLDEST = 'pagoda_operator_queue_oldest_seconds{namespace="pagoda-system",pod="o0"}'
LEADER = 'pagoda_operator_leader{namespace="pagoda-system",pod="o%d"}'

CASES = [
    *burns("PagodaAvailabilityBurn", "availability", closely=True),
    *burns("PagodaTtftBurn", "ttft"),
    *burns("PagodaTpotBurn", "tpot"),
    *pair(
        "PagodaNoReadyWorker",
        firing=workers("routable", "0x90") | workers("unready", "1x90"),
        healthy=workers("routable", "1x90") | workers("unready", "1x90"),
        quiet=workers("routable", "0x90") | workers("unready", "0x90") | {f"pagoda_router_queue_requests{{{MODEL}}}": "0x90"},
        at="10m",
        severity="page",
    ),
    Case(
        alert="PagodaNoReadyWorker",
        what="fires for a model that was to wake",
        series=workers("routable", "0x90") | {f'pagoda_router_queue_requests{{{MODEL},class="latency",pod="r0"}}': "3x90"},
        at="10m",
        fires=("page",),
    ),
    Case(
        alert="PagodaNoReadyWorker",
        what="waits for a worker that loads",
        series=workers("routable", "1x5 0x4 1x90") | workers("unready", "1x90"),
        at="9m",
    ),
    *pair("PagodaEngineRestarts", firing={RESTARTS: "0x10 1x20 2x60"}, healthy={RESTARTS: "0x10 1x80"}, at="50m", severity="ticket"),
    *pair(
        "PagodaKvCacheSaturated",
        firing={KV % 0: "0.99x90", KV % 1: "0.97x90"},
        healthy={KV % 0: "0.99x90", KV % 1: "0.6x90"},
        quiet={KV % 0: "0x90"},
        at="30m",
        severity="ticket",
    ),
    *pair(
        "PagodaQueueFull",
        firing=rejected("queue_full", "0+1x90"),
        healthy=rejected("queue_full", "0x20 5x70"),
        quiet=rejected("queue_full", "7x90", "500x90"),
        at="60m",
        severity="page",
    ),
    *pair(
        "PagodaRejections",
        firing=rejected("unavailable", "0+6x90"),
        healthy=rejected("unavailable", "0+2x90"),
        quiet=rejected("unavailable", "7x90", "500x90"),
        at="60m",
        severity="ticket",
    ),
    Case(alert="PagodaRejections", what="one of two requests at night", series=rejected("deadline", "0x50 1x40", "0x50 2x40"), at="60m"),
    *pair(
        "PagodaRouterSessionLosses",
        firing=workers("routable", "2x90") | {SESSIONS: "0+2x90"},
        healthy=workers("routable", "20x90") | {SESSIONS: "0+2x90"},
        quiet=workers("routable", "2x90") | {SESSIONS: "40x90"},
        at="60m",
        severity="ticket",
    ),
    *pair("PagodaOperatorNotReconciling", firing={OLDEST: "0+60x90"}, healthy={OLDEST: "30x90"}, at="60m", severity="ticket"),
    Case(
        alert="PagodaOperatorNotReconciling",
        what="fires when most reconciles fail",
        series=reconciled("failed", "0+3x90") | reconciled("changed", "0+1x90"),
        at="60m",
        fires=("ticket",),
    ),
    Case(
        alert="PagodaOperatorNotReconciling",
        what="some fail",
        series=reconciled("failed", "0+1x90") | reconciled("changed", "0+3x90"),
        at="60m",
    ),
    Case(
        alert="PagodaOperatorNotReconciling",
        what="nothing to do",
        series=reconciled("failed", "5x90") | reconciled("changed", "9x90"),
        at="60m",
    ),
    Case(
        alert="PagodaOperatorNotReconciling",
        what="fires when a watch is silent",
        series={'pagoda_operator_watch_age_seconds{namespace="pagoda-system",resource="pods"}': "0+60x90"},
        at="60m",
        fires=("ticket",),
    ),
    *pair(
        "PagodaLeaderMissing",
        firing={LEADER % 0: "1x10 0x80", LEADER % 1: "0x90"},
        healthy={LEADER % 0: "0x90", LEADER % 1: "1x90"},
        at="30m",
        severity="page",
    ),
    # the one alert that speaks when its series are not there
    Case(alert="PagodaLeaderMissing", what="fires without any operator", series=NOTHING, at="30m", fires=("page",)),
    *(
        Case(alert=name, what="is quiet without its series", series=NOTHING, at="60m")
        for name in (
            "PagodaEngineRestarts",
            "PagodaKvCacheSaturated",
            "PagodaNoReadyWorker",
            "PagodaOperatorNotReconciling",
            "PagodaQueueFull",
            "PagodaRejections",
            "PagodaRouterSessionLosses",
        )
    ),
]
