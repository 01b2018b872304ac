"""Which rights the operator used in the tests before this file, by the API server's own audit log, against what the chart gives it.

The file's name makes it the last of the folder. Run alone, it only compares the tables.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from plane import REPOSITORY, Plane, kube_bin
from rights import ACCOUNT, HANDED_ON, LEASES, OWN_NAMESPACE, TABLE

USER = f"system:serviceaccount:{OWN_NAMESPACE}:{ACCOUNT}"
ENOUGH_TESTS = 20

Right = tuple[str, str, str]
"""Group, resource with its subresource, verb."""

NEEDS_MORE = {("", "persistentvolumeclaims", verb) for verb in ("get", "create", "patch", "delete")}
"""Needs a model with a cache."""

DECISION = "authorization.k8s.io/decision"
UNREAD = f'clusterrole.rbac.authorization.k8s.io "{ACCOUNT}" not found'
FOR_EVERYBODY = {("authentication.k8s.io", "selfsubjectreviews", "create")}
"""What Kubernetes itself grants to whoever is known: to ask who that is."""


def table() -> set[Right]:
    return {(*key, verb) for part in (TABLE, LEASES) for key, verbs in part.items() for verb in verbs}


def used(plane: Plane) -> dict[Right, set[str]]:
    """Every right that was asked for, with the authorizer's decisions, allow and forbid; a quota's 403 is none of its.

    What an API server forbids that has just started does not count: it forbids what is granted as long as it has not read the roles.
    """
    found: dict[Right, set[str]] = {}
    is_ready = False
    for event in plane.audit():
        reference, answer = event.get("objectRef"), event["responseStatus"]
        if event["requestURI"] == "/readyz":
            is_ready = answer["code"] == 200
        if event["user"]["username"] != USER or reference is None or "resource" not in reference:
            continue
        decision = event["annotations"][DECISION]
        if decision == "forbid" and (not is_ready or UNREAD in answer.get("message", "")):
            continue
        subresource = reference.get("subresource")
        resource = f"{reference['resource']}/{subresource}" if subresource else reference["resource"]
        found.setdefault((reference.get("apiGroup", ""), resource, event["verb"]), set()).add(decision)
    return found


def test_only_rights_of_the_table_are_used_and_none_is_refused(plane: Plane) -> None:
    asked = used(plane)
    # creating by apply is a patch to whoever reads the log, and needs both rights; the API server checks the second without a trace
    assert asked.keys() <= table() | FOR_EVERYBODY, asked.keys() - table() - FOR_EVERYBODY
    assert {right for right, decisions in asked.items() if decisions != {"allow"}} == set()


def test_no_right_is_held_in_vain(plane: Plane, request: pytest.FixtureRequest) -> None:
    if request.session.testscollected < ENOUGH_TESTS:
        pytest.skip("only with the whole folder's tests before it")
    made_by_apply = {(group, resource, "create") for group, resource, verb in used(plane) if verb == "patch"}
    unused = table() - used(plane).keys() - made_by_apply - HANDED_ON - NEEDS_MORE
    assert not unused


def test_the_chart_gives_exactly_these_rights() -> None:
    """Reading nodes and pods one by one is the chart's only addition."""
    assert chart_rights() - table() <= {("", "pods", "get"), ("", "nodes", "get")}
    assert table() <= chart_rights()


def chart_rights() -> set[Right]:
    programs = kube_bin()
    if programs is None or not (helm := Path(programs) / "helm").exists():
        pytest.skip("PAGODA_KUBE_BIN has no helm")
    chart = REPOSITORY / "charts/pagoda"
    command = [
        str(helm),
        "template",
        "x",
        str(chart),
        "--kube-version",
        "1.34.0",
        "--set",
        "metrics.serviceMonitor=true",
        "--set",
        "metrics.rules=true",
    ]
    rendered = subprocess.run([*command, "--namespace", OWN_NAMESPACE], capture_output=True, text=True, check=True).stdout
    roles = [each for each in yaml.safe_load_all(rendered) if each and each["kind"] in ("ClusterRole", "Role")]
    return {right for role in roles for rule in role["rules"] for right in _rights(rule)}


def _rights(rule: dict[str, Any]) -> set[Right]:
    assert "*" not in json.dumps(rule)
    return {(group, resource, verb) for group in rule["apiGroups"] for resource in rule["resources"] for verb in rule["verbs"]}
