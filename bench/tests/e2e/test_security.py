"""Least privilege as it was really used: the API server's audit log against the roles, the flows that were seen against the policies."""

import json
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, SYSTEM, Installation
from foreign import IN_DEVCLUSTER
from kube import Object, run

OPERATOR = f"system:serviceaccount:{SYSTEM.name}:pagoda-operator"
ROUTER = "system:serviceaccount:models:pagoda-router"
EVERYWHERE, IN_MODELS = "--all-namespaces", "--namespace=models"
"""Where a right is asked for. A router's account has none everywhere, whatever its Role says: it must be asked for in its namespace."""


@pytest.fixture(scope="module")
def audit() -> list[Object]:
    if not IN_DEVCLUSTER:
        pytest.skip("only the development cluster's audit log can be read from here")
    status = json.loads(run("python3", str(ROOT / "ops/devcluster"), "status", "--json"))
    lines = Path(status["auditLog"]).read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def calls(audit: list[Object], user: str) -> set[tuple[str, str, str]]:
    """(verb, group/resource/subresource, code family) of everything that account asked for."""
    seen = set()
    for entry in audit:
        if entry["user"].get("username") == user and "objectRef" in entry:
            ref = entry["objectRef"]
            name = "/".join(part for part in (ref.get("apiGroup", ""), ref["resource"], ref.get("subresource", "")) if part)
            seen.add((entry["verb"], name, str(entry.get("responseStatus", {}).get("code", ""))))
    return seen


def test_no_call_of_operator_or_router_was_forbidden(installation: Installation, audit: list[Object]) -> None:
    for user in (OPERATOR, ROUTER):
        made = calls(audit, user)
        assert made, f"{user} made no call: the audit log or the account's name is wrong"
        assert [call for call in made if call[2] == "403"] == []


def test_nobody_of_ours_ever_read_a_secret(installation: Installation, audit: list[Object]) -> None:
    for user, scopes in ((OPERATOR, (EVERYWHERE, IN_MODELS, f"--namespace={SYSTEM.name}")), (ROUTER, (IN_MODELS,))):
        assert {verb for verb, resource, _ in calls(audit, user) if resource == "secrets"} <= {"create"}
        for verb in ("get", "list", "watch"):
            assert [scope for scope in scopes if not may_not(user, verb, "secrets", scope)] == []


def test_routers_may_only_look_at_models_and_endpoints(installation: Installation, audit: list[Object]) -> None:
    made = {(verb, resource) for verb, resource, _ in calls(audit, ROUTER)}
    readable = {"pagoda.dev/inferencemodels", "discovery.k8s.io/endpointslices"}
    assert {resource for _, resource in made} <= readable
    assert {verb for verb, _ in made} <= {"get", "list", "watch"}
    for verb, resource in (("create", "pods"), ("get", "pods"), ("patch", "inferencemodels"), ("list", "configmaps")):
        assert may_not(ROUTER, verb, resource, IN_MODELS)
    assert not may_not(ROUTER, "list", "inferencemodels", IN_MODELS), "the question is one that has a yes"


def test_workers_hold_no_token(installation: Installation) -> None:
    for pod in installation.models.pods("worker"):
        mounts = {mount["mountPath"] for container in pod["spec"]["containers"] for mount in container.get("volumeMounts", ())}
        assert "/var/run/secrets/kubernetes.io/serviceaccount" not in mounts


def may_not(user: str, verb: str, resource: str, scope: str) -> bool:
    words = ["kubectl", "auth", "can-i", verb, resource, f"--as={user}", scope]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.strip() == "no"
