"""Discovery against a real API server and etcd: objects made by hand, an outage, a deleted endpoint. Needs their programs."""

import asyncio
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from test_kubernetes import Seen, endpoint_slice, entry, links, model

from pagoda_router.discovery.api import KubernetesApi
from pagoda_router.discovery.kubernetes import KubernetesDiscovery, Timing

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("etcd", "kube-apiserver")
FOLDER = os.environ.get("PAGODA_KUBE_BIN", "")
MODELS = "/apis/pagoda.dev/v1alpha1/namespaces/ns/inferencemodels"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/ns/endpointslices"

pytestmark = pytest.mark.skipif(
    not FOLDER or not all((Path(FOLDER) / name).exists() for name in PROGRAMS),
    reason=f"PAGODA_KUBE_BIN names no folder with {' and '.join(PROGRAMS)}",
)


class Plane:
    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        self._process = process
        self.facts = json.loads(process.stdout.readline())
        trust, bearer = ssl.create_default_context(cafile=self.facts["ca"]), {"Authorization": f"Bearer {self.facts['token']}"}
        self.client = httpx.Client(base_url=self.facts["url"], verify=trust, headers=bearer, trust_env=False, timeout=30)

    def tell(self, command: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline()

    def create(self, path: str, document: dict[str, Any]) -> None:
        answer = self.client.post(path, json=document)
        assert answer.status_code == 201, answer.text

    def patch(self, path: str, change: dict[str, Any]) -> None:
        answer = self.client.patch(path, content=json.dumps(change), headers={"Content-Type": "application/merge-patch+json"})
        assert answer.status_code == 200, answer.text

    def delete(self, path: str) -> None:
        assert self.client.delete(path).status_code == 200

    def install(self) -> None:
        crd = yaml.safe_load((ROOT / "crds/inferencemodels.yaml").read_text())
        self.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
        self.create("/api/v1/namespaces", {"metadata": {"name": "ns"}})
        ends_s = time.monotonic() + 30
        while self.client.get(MODELS).status_code != 200:
            assert time.monotonic() < ends_s, "the CRD is not established"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    folder = tmp_path_factory.mktemp("plane") / "state"
    command = [sys.executable, str(ROOT / "ops/devcluster"), "control-plane", "--dir", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # closing its input ends it
        made = Plane(process)
        made.install()
        yield made
        made.client.close()


@pytest.fixture
def objects(plane: Plane) -> Iterator[Plane]:
    """One model and one worker; nothing is left behind."""
    plane.create(MODELS, {"apiVersion": "pagoda.dev/v1alpha1", "kind": "InferenceModel", **model()})
    plane.create(SLICES, endpoint_slice("tiny-default-1", entry("tiny-default-1", "10.0.0.1")))
    yield plane
    for path in (MODELS, SLICES):
        plane.client.delete(path)


@asynccontextmanager
async def discovering(plane: Plane, timing: Timing | None = None) -> AsyncIterator[tuple[KubernetesDiscovery, Seen]]:
    api, seen = await KubernetesApi.connect(plane.facts["kubeconfig"]), Seen()
    discovery = KubernetesDiscovery(api, "ns", seen, timing=timing or Timing(last_backoff_s=0.5))
    task = asyncio.create_task(discovery.run())
    try:
        yield discovery, seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await api.close()


async def test_a_real_watch_tells_of_every_change(objects: Plane) -> None:
    """Nothing is listed again while this test runs: what is heard was watched, from the list's own version on."""
    async with discovering(objects, Timing(relist_s=300)) as (_, seen):
        await seen.until(lambda s: links(s) == {"tiny-default-1": ("10.0.0.1:9000", True)} and s.models[0].name == "tiny")
        leaving = endpoint_slice("tiny-default-1", entry("tiny-default-1", "10.0.0.1", terminating=True))["endpoints"]
        await asyncio.to_thread(objects.patch, f"{SLICES}/tiny-default-1", {"endpoints": leaving})
        await seen.until(lambda s: links(s) == {"tiny-default-1": ("10.0.0.1:9000", False)})
        await asyncio.to_thread(objects.delete, f"{SLICES}/tiny-default-1")
        await seen.until(lambda s: not s.endpoints)
        await asyncio.to_thread(objects.delete, f"{MODELS}/tiny")
        await seen.until(lambda s: not s.models)


async def test_slices_of_other_components_are_not_read(objects: Plane) -> None:
    other = endpoint_slice("router", entry("router-1", "10.0.0.9"))
    other["metadata"]["labels"]["app.kubernetes.io/component"] = "router"
    objects.create(SLICES, other)
    async with discovering(objects) as (_, seen):
        await seen.until(lambda s: len(s.models) == 1)
        assert set(links(seen.snapshots[-1])) == {"tiny-default-1"}


async def test_an_outage_changes_nothing_and_what_happened_meanwhile_is_read_after_it(objects: Plane) -> None:
    async with discovering(objects) as (_, seen):
        await seen.until(lambda s: len(s.models) == len(s.endpoints) == 1)
        known = seen.snapshots[-1]
        await asyncio.to_thread(objects.tell, "stop kube-apiserver")
        await asyncio.sleep(2)
        assert seen.snapshots[-1] is known
        async with discovering(objects) as (restarted, nothing):
            await asyncio.sleep(1)
            assert not restarted.loaded, "a router that starts now is not ready"
            assert nothing.snapshots == []
            await asyncio.to_thread(objects.tell, "start kube-apiserver")
            await nothing.until(lambda s: s == known)
        await asyncio.to_thread(objects.delete, f"{SLICES}/tiny-default-1")
        await seen.until(lambda s: not s.endpoints)


async def test_a_short_watch_is_followed_by_a_list(objects: Plane) -> None:
    async with discovering(objects, Timing(relist_s=1)) as (_, seen):
        await seen.until(lambda s: len(s.endpoints) == 1)
        await asyncio.sleep(2.5)
        assert len(seen.snapshots) == 1, "nothing has changed"
        await asyncio.to_thread(objects.delete, f"{SLICES}/tiny-default-1")
        await seen.until(lambda s: not s.endpoints)
