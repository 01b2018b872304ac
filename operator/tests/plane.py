"""A real API server with etcd for tests, and what tests do with it: apply, read, wait. Started once for all tests by conftest.py."""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from kubernetes.aio.client import Configuration
from rights import ACCOUNT, OWN_NAMESPACE

from pagoda_operator.cluster.client import APPLY_PATCH, MERGE_PATCH, STRATEGIC_PATCH, Api
from pagoda_operator.cluster.errors import NotFound
from pagoda_operator.cluster.metrics import Metrics
from pagoda_operator.cluster.resources import Resource

REPOSITORY = Path(__file__).parents[2]
WAIT_S = 20.0
IN_CORE = {"Namespace": "namespaces", "ResourceQuota": "resourcequotas", "Pod": "pods", "Secret": "secrets", "Node": "nodes"}
PLURALS = {
    **IN_CORE,
    "ServiceAccount": "serviceaccounts",
    "Service": "services",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "ClusterRole": "clusterroles",
    "ClusterRoleBinding": "clusterrolebindings",
    "Role": "roles",
    "RoleBinding": "rolebindings",
    "NetworkPolicy": "networkpolicies",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "Deployment": "deployments",
    "CustomResourceDefinition": "customresourcedefinitions",
    "InferenceModel": "inferencemodels",
    "Event": "events",
    "Lease": "leases",
}
API_VERSIONS = {
    "Role": "rbac.authorization.k8s.io/v1",
    "RoleBinding": "rbac.authorization.k8s.io/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "PodDisruptionBudget": "policy/v1",
    "Deployment": "apps/v1",
    "InferenceModel": "pagoda.dev/v1alpha1",
    "CustomResourceDefinition": "apiextensions.k8s.io/v1",
    "Event": "events.k8s.io/v1",
    "Lease": "coordination.k8s.io/v1",
}
MADE_KINDS = (
    "ServiceAccount",
    "Role",
    "RoleBinding",
    "NetworkPolicy",
    "Service",
    "PersistentVolumeClaim",
    "PodDisruptionBudget",
    "Deployment",
    "Secret",
)


class Plane:
    """The processes. `stop` and `start` are an outage of the API server."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, str(REPOSITORY / "ops/devcluster"), "control-plane", "--dir", str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the control plane did not start"
        self.facts: dict[str, Any] = json.loads(line)

    def stop(self) -> None:
        self._tell("stop kube-apiserver")

    def start(self) -> None:
        self._tell("start kube-apiserver")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def configuration(self, token: str | None = None) -> Configuration:
        configuration = Configuration(host=self.facts["url"])
        configuration.ssl_ca_cert = self.facts["ca"]
        configuration.api_key["BearerToken"] = f"Bearer {token or self.facts['token']}"
        configuration.client_session_kwargs = {"trust_env": False}
        return configuration

    def audit(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in Path(self.facts["auditLog"]).read_text().splitlines()]

    def _tell(self, words: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(words + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert "error" not in answer, answer


@dataclass
class Cluster:
    """Somebody with all rights, at the API server."""

    plane: Plane
    api: Api
    account_token: str = ""

    async def apply(self, *documents: Mapping[str, Any], manager: str = "kubectl", force: bool = True) -> None:
        for document in documents:
            query = {"fieldManager": manager, "force": str(force).lower()}
            await self.api.call("PATCH", path_of(document), query=query, body=dict(document), content_type=APPLY_PATCH)

    async def create(self, document: Mapping[str, Any]) -> dict[str, Any]:
        metadata = document["metadata"]
        path = resource(document["kind"], document["apiVersion"]).path(metadata.get("namespace"))
        return await self.api.call("POST", path, body=dict(document))

    async def replace(self, document: Mapping[str, Any]) -> dict[str, Any]:
        return await self.api.call("PUT", path_of(document), body=dict(document))

    async def patch(
        self, kind: str, namespace: str, name: str, patch: Any, *, subresource: str | None = None, manager: str = "kubectl-edit"
    ) -> Any:
        path = resource(kind).path(namespace, name, subresource)
        content = STRATEGIC_PATCH if kind in ("Pod", "Deployment") else MERGE_PATCH
        return await self.api.call("PATCH", path, query={"fieldManager": manager}, body=patch, content_type=content)

    async def get(self, kind: str, namespace: str | None, name: str) -> dict[str, Any]:
        return await self.api.get(resource(kind).path(namespace, name))

    async def find(self, kind: str, namespace: str | None, name: str) -> dict[str, Any] | None:
        try:
            return await self.get(kind, namespace, name)
        except NotFound:
            return None

    async def list(self, kind: str, namespace: str) -> list[dict[str, Any]]:
        found = await self.api.get(resource(kind).path(namespace))
        return [{"kind": kind, **item} for item in found["items"]]

    async def delete(self, kind: str, namespace: str | None, name: str) -> None:
        await self.api.call("DELETE", resource(kind).path(namespace, name), body={"gracePeriodSeconds": 0})

    async def made(self, namespace: str) -> dict[str, Any]:
        """Everything of ours in a namespace, without what differs between two clean runs."""
        found = {}
        for kind in MADE_KINDS:
            for item in await self.list(kind, namespace):
                if (item["metadata"].get("labels") or {}).get("app.kubernetes.io/managed-by") == "pagoda-operator":
                    found[FINGERPRINT.sub(r"\1", f"{kind}/{item['metadata']['name']}")] = normal(item)
        return found

    async def model(self, namespace: str, name: str) -> dict[str, Any]:
        return await self.get("InferenceModel", namespace, name)

    async def condition(self, namespace: str, name: str, kind: str) -> tuple[str, str, str]:
        status = (await self.model(namespace, name)).get("status") or {}
        found = [each for each in status.get("conditions") or () if each["type"] == kind]
        return (found[0]["status"], found[0]["reason"], found[0]["message"]) if found else ("", "", "")

    async def make_account_token(self) -> None:
        path = resource("ServiceAccount").path(OWN_NAMESPACE, ACCOUNT, "token")
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 7200}}
        self.account_token = (await self.api.call("POST", path, body=body))["status"]["token"]

    async def close(self) -> None:
        await self.api.close()


def cluster_of(plane: Plane) -> Cluster:
    return Cluster(plane, Api(plane.configuration(), Metrics(), user_agent="tests"))


async def prepare(cluster: Cluster, *documents: Mapping[str, Any]) -> None:
    """Definitions, then what tests need, once they are served."""
    for file in sorted((REPOSITORY / "crds").glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            await cluster.apply(document)
            await eventually(lambda name=document["metadata"]["name"]: established(cluster, name))
    await cluster.apply(*documents)
    await cluster.make_account_token()


async def established(cluster: Cluster, name: str) -> bool:
    definition = await cluster.api.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")
    conditions = (definition.get("status") or {}).get("conditions") or ()
    return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)


async def eventually(check: Callable[[], Awaitable[Any]], *, within_s: float = WAIT_S, every_s: float = 0.02) -> Any:
    """The first true answer. Fails with the last one."""
    until = time.monotonic() + within_s
    answer = None
    while time.monotonic() < until:
        if answer := await check():
            return answer
        await asyncio.sleep(every_s)
    raise AssertionError(f"not within {within_s:g} s; last answer: {answer!r}")


def resource(kind: str, api_version: str | None = None) -> Resource:
    return Resource(kind, api_version or API_VERSIONS.get(kind, "v1"), PLURALS[kind])


def path_of(document: Mapping[str, Any]) -> str:
    metadata = document["metadata"]
    return resource(document["kind"], document["apiVersion"]).path(metadata.get("namespace"), metadata["name"])


FINGERPRINT = re.compile(r"(pagoda-(?:session|internal))-[0-9a-f]{8}")
"""Tokens, and with them the names of their secrets and the templates that name these, differ between namespaces."""
TEMPLATE_HASH = re.compile(r'(?<="pagoda.dev/template": ")[0-9a-f]+')
SERVER_SIDE = ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields", "selfLink")


def normal(item: Mapping[str, Any]) -> dict[str, Any]:
    """Without uids, versions, moments, addresses that the API server chose, status, and the namespace's own name."""
    metadata = {key: value for key, value in item["metadata"].items() if key not in SERVER_SIDE}
    metadata["owners"] = sorted(owner["kind"] + "/" + owner["name"] for owner in metadata.pop("ownerReferences", ()))
    kept = {key: value for key, value in item.items() if key not in ("metadata", "status", "apiVersion")} | {"metadata": metadata}
    if item["kind"] == "Service":
        kept["spec"] = {key: value for key, value in item["spec"].items() if key not in ("clusterIP", "clusterIPs")}
    if item["kind"] == "Secret":
        kept["data"] = dict.fromkeys(item["data"], "…")
    if item["kind"] == "Deployment":
        annotations = metadata.get("annotations") or {}
        annotations.pop("deployment.kubernetes.io/revision", None)
    text = json.dumps(kept, sort_keys=True).replace(item["metadata"]["namespace"], "NAMESPACE")
    return json.loads(TEMPLATE_HASH.sub("HASH", FINGERPRINT.sub(r"\1", text)))  # type: ignore[no-any-return]


def kube_bin() -> str | None:
    return os.environ.get("PAGODA_KUBE_BIN")
