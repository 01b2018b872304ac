"""What the operator's benchmark makes of its numbers."""

import copy
from typing import Any

import pytest

from pagoda_bench.operator_scale.fleet import Pods
from pagoda_bench.operator_scale.measure import Spread
from pagoda_bench.operator_scale.report import aims

SIZE = {"models": 20, "change_s": {"p50": 0.1, "p99": 0.9}, "api_calls_per_change_total": 20.0}
WITHIN: dict[str, Any] = {
    "sizes": {"small": copy.deepcopy(SIZE), "full": copy.deepcopy(SIZE)},
    "restart": {"converged_s": 30.0},
    "failover": {"leads_s": 11.0, "changed_child_s": 14.0},
    "peak_memory_mib": 300,
}


def test_a_run_within_all_aims_meets_them_all() -> None:
    assert all(row.met for row in aims(WITHIN))


@pytest.mark.parametrize(
    ("path", "value", "missed"),
    [
        (("sizes", "full", "change_s", "p99"), 2.0, "change_p99_s"),
        (("sizes", "full", "change_s", "p50"), 0.2, "change_p50_ratio"),
        (("sizes", "full", "api_calls_per_change_total"), 25.0, "api_calls_per_change_ratio"),
        (("restart", "converged_s"), 60.0, "converged_s"),
        (("peak_memory_mib",), 512, "peak_memory_mib"),
        (("failover", "leads_s"), 15.0, "leads_s"),
        (("failover", "changed_child_s"), 15.0, "changed_child_s"),
    ],
)
def test_a_number_past_its_aim_is_said_to_miss_it(path: tuple[str, ...], value: float, missed: str) -> None:
    result = copy.deepcopy(WITHIN)
    place = result
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert [row.metric for row in aims(result) if not row.met] == [missed]


def test_the_99th_percentile_of_a_hundred_leaves_out_one() -> None:
    assert Spread.of([*[0.1] * 98, 0.5, 9.0]) == Spread(p50=0.1, p99=0.5, worst=9.0, count=100)


def test_a_router_reports_the_running_workers_of_its_own_namespace() -> None:
    pods = Pods()

    def pod(name: str, namespace: str, component: str, address: str, phase: str = "Running") -> dict[str, Any]:
        labels = {"app.kubernetes.io/component": component, "pagoda.dev/model": "tiny"}
        return {"metadata": {"name": name, "namespace": namespace, "labels": labels}, "status": {"phase": phase, "podIP": address}}

    pods.hear("ADDED", pod("router", "a", "router", "10.128.0.1"))
    pods.hear("ADDED", pod("one", "a", "worker", "10.128.0.2"))
    pods.hear("ADDED", pod("pending", "a", "worker", "10.128.0.3", phase="Pending"))
    pods.hear("ADDED", pod("elsewhere", "b", "worker", "10.128.0.4"))
    report = pods.report("10.128.0.1")
    assert report is not None
    assert b'"one"' in report
    assert b"pending" not in report
    assert b"elsewhere" not in report
    pods.hear("DELETED", pod("one", "a", "worker", "10.128.0.2"))
    assert b'"one"' not in (pods.report("10.128.0.1") or b"")
    assert pods.report("10.128.0.2") is None, "a worker is no router"
