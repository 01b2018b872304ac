"""Whether a worker pod's readiness gate is to change. Pure; loop.py asks after every report and pod event, apply.py writes.

Once set it is taken back only on clear word: routers answer, and for a while one of them has not counted the pod. Silence changes nothing.
"""

from collections.abc import Collection, Mapping
from typing import Any

from pagoda_operator.observed.pods import ROUTED_CONDITION
from pagoda_operator.observed.world import RouterReport

TAKEN_BACK_AFTER_S = 10.0


def gate_of(pod: Mapping[str, Any], routers: Collection[str], reports: Mapping[str, RouterReport], since: float) -> bool | None:
    """`routers`: names of the ready ones whose word is needed; `reports`: of those that answered lately; `since`: seconds for which the pod
    was not counted by all of them. None: leave the gate as it is."""
    answering = [reports[router] for router in routers if router in reports]
    if not answering or not has_gate(pod):
        return None
    if counted_by_all(pod, answering):
        # a router that has just come, or that a new operator has not asked yet, may not know the pod: its answer is waited for
        return None if is_routed(pod) or len(answering) < len(routers) else True
    return False if is_routed(pod) and since >= TAKEN_BACK_AFTER_S else None


def counted_by_all(pod: Mapping[str, Any], reports: Collection[RouterReport]) -> bool:
    name = pod["metadata"]["name"]
    return all(name in report.workers and report.workers[name].routable for report in reports)


def has_gate(pod: Mapping[str, Any]) -> bool:
    return any(gate.get("conditionType") == ROUTED_CONDITION for gate in pod["spec"].get("readinessGates") or ())


def is_routed(pod: Mapping[str, Any]) -> bool:
    return any(each["type"] == ROUTED_CONDITION and each["status"] == "True" for each in pod["status"].get("conditions") or ())
