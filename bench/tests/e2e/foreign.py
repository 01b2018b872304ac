"""What the tests must know where the cluster may be somebody else's (KUBECONFIG): what cannot be done there, and what must not be.

Every complaint is one line that names what to do. Called by conftest.py and as marks of single tests.
"""

import os
import shutil
import socket
from collections.abc import Iterable

import pytest
from kube import Namespace, run

IN_DEVCLUSTER = "DEVCLUSTER_DIR" in os.environ
"""`python3 ops/devcluster exec` sets it for our own cluster only."""
needs_devcluster = pytest.mark.skipif(not IN_DEVCLUSTER, reason="only the development cluster is ours to break and look into")

REGISTRY = os.environ.get("IMAGE_REGISTRY", "").strip("/")
OURS = ("crd/inferencemodels.pagoda.dev", "namespace/pagoda-system", "namespace/models")
NO_IMAGE = ("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName")


def check() -> None:
    """Ends the run where it cannot work, or would end somebody's installation: the last test deletes every InferenceModel."""
    for program in ("kubectl", "helm"):
        if shutil.which(program) is None:
            pytest.exit(f"e2e: there is no {program} in PATH: install it, or name a folder that has it by PAGODA_KUBE_BIN", returncode=1)
    if not IN_DEVCLUSTER and (there := run("kubectl", "get", *OURS, "--ignore-not-found", "-o", "name").split()):
        words = "and these tests uninstall Pagoda and delete every InferenceModel at their end: remove it first, or use another cluster"
        pytest.exit(f"e2e: the cluster of KUBECONFIG has {' '.join(there)} already, {words}", returncode=1)


def complain_of_images(*namespaces: Namespace) -> None:
    """Ends the run when pods wait for images that their nodes cannot get; returns when that is not the trouble."""
    pods = [pod for namespace in namespaces for pod in namespace.all("pods")]
    statuses = [status for pod in pods for key in ("initContainerStatuses", "containerStatuses") for status in pod["status"].get(key, ())]
    if lacking := _not_pulled(statuses):
        remedy = "make images-load" if IN_DEVCLUSTER else f"push them to a registry and set IMAGE_REGISTRY (now {REGISTRY or 'empty'})"
        pytest.exit(f"e2e: the nodes cannot get {' '.join(lacking)}: {remedy}", returncode=1)


def _not_pulled(statuses: Iterable[dict[str, object]]) -> list[str]:
    found = set()
    for status in statuses:
        match status:
            case {"image": str(image), "state": {"waiting": {"reason": reason}}} if reason in NO_IMAGE:
                found.add(image)
    return sorted(found)


def connects(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True
