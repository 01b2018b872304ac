"""The cluster under the operator: a real API server, controller-manager and scheduler, and fake nodes by kwok.

The bench runs itself again in a namespace of its own, where every pod's address is this machine: so that the operator's questions to pods
reach fleet.py and nothing ever leaves.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[4]
POD_NETWORK = "10.128.0.0/9"
_INSIDE = "PAGODA_BENCH_INSIDE"


def run_inside_own_network(arguments: Sequence[str]) -> None:
    """Returns only inside; outside it becomes that process."""
    if os.environ.get(_INSIDE):
        for words in (["link", "set", "lo", "up"], ["route", "add", "local", POD_NETWORK, "dev", "lo"]):
            subprocess.run(["ip", *words], check=True)
        return
    namespaces = ["--net"] if os.geteuid() == 0 else ["--net", "--user", "--map-root-user"]
    command = ["unshare", *namespaces, sys.executable, "-m", "pagoda_bench.operator_scale", *arguments]
    os.execvpe("unshare", command, os.environ | {_INSIDE: "1"})  # noqa: S606  a shell is what must not be in between


@contextmanager
def control_plane(folder: Path) -> Iterator[Mapping[str, Any]]:
    """Yields what `ops/devcluster control-plane` says of itself."""
    command = [sys.executable, str(ROOT / "ops" / "devcluster"), "control-plane", "--dir", str(folder)]
    command += ["--controller-manager", "--scheduler", "--kwok"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        line = process.stdout.readline()
        if not line:
            raise SystemExit("operator_scale: no control plane; its own message is above")
        yield json.loads(line)
    finally:
        process.communicate(timeout=60)


class Api:
    """The few calls of the bench, as admin. Its user agent keeps them apart from the operator's."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self._client = httpx.Client(
            base_url=facts["url"],
            verify=_context(facts["ca"]),
            headers={"Authorization": f"Bearer {facts['token']}", "User-Agent": "pagoda-bench"},
            timeout=60,
            trust_env=False,
        )

    def get(self, path: str, **query: str) -> Any:
        return self._json(self._client.get(path, params=query))

    def create(self, path: str, document: Mapping[str, Any]) -> Any:
        return self._json(self._client.post(path, json=document))

    def patch(self, path: str, document: Mapping[str, Any]) -> Any:
        return self._json(self._client.patch(path, json=document, headers={"Content-Type": "application/merge-patch+json"}))

    def table(self, path: str, **query: str) -> Any:
        """A list as kubectl prints it, from the API server's memory."""
        accept = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
        return self._json(self._client.get(path, params={"includeObject": "None", "resourceVersion": "0", **query}, headers=accept))

    @contextmanager
    def watch(self, path: str, version: str, **query: str) -> Iterator[Iterator[Any]]:
        """Open when entered: what happens from then on is not missed."""
        with self._client.stream("GET", path, params={"watch": "1", "resourceVersion": version, **query}, timeout=120) as response:
            response.raise_for_status()
            yield (json.loads(line) for line in response.iter_lines() if line)

    @staticmethod
    def _json(response: httpx.Response) -> Any:
        if response.is_error:
            raise RuntimeError(f"{response.request.method} {response.request.url}: {response.status_code} {response.text[:500]}")
        return response.json()


def _context(ca: str) -> Any:
    import ssl

    return ssl.create_default_context(cafile=ca)


def add_nodes(api: Api, count: int) -> None:
    amounts = {"cpu": "1000", "memory": "8Ti", "pods": "250", "nvidia.com/gpu": "250", "ephemeral-storage": "100Ti"}
    for number in range(count):
        document = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": f"fake-{number}"},
            "spec": {
                "podCIDR": f"10.{128 + number // 256}.{number % 256}.0/24",
                "podCIDRs": [f"10.{128 + number // 256}.{number % 256}.0/24"],
            },
            "status": {"capacity": amounts, "allocatable": amounts},
        }
        api.create("/api/v1/nodes", document)


def apply_crds(facts: Mapping[str, Any]) -> None:
    kubectl = [f"{facts['programs']}/kubectl", "--kubeconfig", facts["kubeconfig"]]
    subprocess.run([*kubectl, "apply", "--server-side", "-f", str(ROOT / "crds")], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([*kubectl, "wait", "--for=condition=Established", "crd", "--all"], check=True, stdout=subprocess.DEVNULL)
