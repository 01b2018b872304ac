"""What routers answer to GET /internal/v1/fleet, of this version and of an older one."""

import pytest

from pagoda_operator.observed.routers import report_of
from pagoda_operator.observed.world import ModelReport, WorkerReport

BODY = {
    "models": {
        "chat": {
            "routable": {"a1": 2},
            "inFlight": 3,
            "waiting": 4,
            "queuedTokens": 500,
            "waitingByVariant": {"": 3, "canary": 1},
            "idleS": 0.0,
            "ttftS": {"p50": 0.1, "p95": 0.7, "count": 9},
            "arrivals": 12,
        },
        "old": {"routable": {}, "inFlight": 0, "queuedTokens": 0, "waiting": 0},
    },
    "workers": [{"name": "chat-0", "routable": True, "reason": "", "inFlight": 3, "kvCapacityTokens": 100, "kvAvailableTokens": 40}],
}


def test_demand_and_workers_are_read() -> None:
    report = report_of(BODY)
    assert report.models["chat"] == ModelReport(
        in_flight=3, waiting=4, queued_tokens=500, idle_s=0.0, ttft_p95_s=0.7, waiting_by_variant={"": 3, "canary": 1}
    )
    assert report.workers["chat-0"] == WorkerReport(routable=True, in_flight=3, kv_capacity_tokens=100, kv_available_tokens=40)


def test_what_requests_hold_of_a_cache_is_read() -> None:
    told = report_of({"workers": [{**BODY["workers"][0], "kvReservedTokens": 20, "kvUsedTokens": 16}]}).workers["chat-0"]
    assert (told.kv_reserved_tokens, told.kv_used_tokens) == (20, 16)


def test_a_worker_that_sleeps_is_told_of() -> None:
    assert report_of({"workers": [{**BODY["workers"][0], "sleeps": True}]}).workers["chat-0"].sleeps is True


def test_what_an_older_router_does_not_tell_is_unknown() -> None:
    assert report_of(BODY).workers["chat-0"].sleeps is False
    assert report_of(BODY).workers["chat-0"].kv_reserved_tokens is None
    assert report_of(BODY).models["old"].waiting_by_variant is None
    assert report_of(BODY).models["old"].ttft_p95_s is None


NO_FLEETS = [
    [],
    None,
    {"models": {"chat": 1}},
    {"models": [1]},
    {"workers": [1]},
    {"workers": [{}]},
    {"workers": 3},
    {"models": {"chat": {"waiting": float("inf")}}},
    {"models": {"chat": {"waiting": "many"}}},
]


@pytest.mark.parametrize("body", NO_FLEETS, ids=str)
def test_what_is_no_fleet_is_one_kind_of_error(body) -> None:
    with pytest.raises(ValueError, match=r"fleet|invalid literal"):
        report_of(body)
