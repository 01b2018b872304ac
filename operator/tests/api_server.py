"""The few requests to a real API server that tests of the CRD and of plans need. plane.py has its processes."""

import json
import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from plane import Plane

from pagoda_operator.observed.world import ref_of
from pagoda_operator.render.kinds import KINDS, ApiKind

PROGRAMS = ("etcd", "kube-apiserver")
ALL_KINDS = {**KINDS, "InferenceModel": ApiKind("pagoda.dev/v1alpha1", "inferencemodels"), "Pod": ApiKind("v1", "pods")}


def absent() -> str | None:
    """Why there can be no server here, in a line."""
    folder = os.environ.get("PAGODA_KUBE_BIN")
    if folder and all((Path(folder) / name).exists() for name in PROGRAMS):
        return None
    return f"PAGODA_KUBE_BIN names no folder with {' and '.join(PROGRAMS)}"


class ApiServer:
    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def namespace(self, name: str, **labels: str) -> None:
        metadata = {"name": name, "labels": {f"pod-security.kubernetes.io/{mode}": level for mode, level in labels.items()}}
        answer = self._client.post("/api/v1/namespaces", json={"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        assert answer.status_code in (201, 409), answer.text

    def tried(self, document: Mapping[str, Any]) -> httpx.Response:
        """Creates without storing, as strict as kubectl's --validate and --dry-run=server."""
        kind, namespace = ALL_KINDS[document["kind"]], document["metadata"].get("namespace", "default")
        return self._client.post(kind.path(namespace), params={"dryRun": "All", "fieldValidation": "Strict"}, json=dict(document))

    def apply(self, document: Mapping[str, Any], manager: str = "pagoda-operator") -> dict[str, Any]:
        ref = ref_of(document)
        answer = self._client.patch(
            ALL_KINDS[ref.kind].path(ref.namespace, ref.name),
            params={"fieldManager": manager, "force": "true", "fieldValidation": "Strict"},
            content=json.dumps(document),
            headers={"Content-Type": "application/apply-patch+yaml"},
        )
        assert answer.status_code in (200, 201), answer.text
        assert "Warning" not in answer.headers, answer.headers["Warning"]
        stored: dict[str, Any] = answer.json()
        return stored

    def patch(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        return self._client.patch(path, content=json.dumps(body), headers={"Content-Type": "application/merge-patch+json"})

    def delete(self, path: str) -> None:
        answer = self._client.delete(path)
        assert answer.status_code == 200, answer.text


@contextmanager
def client_of(plane: Plane) -> Iterator[ApiServer]:
    """With all rights."""
    trust, bearer = ssl.create_default_context(cafile=plane.facts["ca"]), {"Authorization": f"Bearer {plane.facts['token']}"}
    with httpx.Client(base_url=plane.facts["url"], verify=trust, headers=bearer, trust_env=False, timeout=30) as client:
        yield ApiServer(client)
