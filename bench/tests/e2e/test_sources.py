"""Weights from elsewhere: a hub, and a cache that replicas share. The hub is this test's own, on the node's address; its client is real."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, UNBOUND, Installation, quickstart, ready_workers
from foreign import IN_DEVCLUSTER
from kube import Object, eventually, run

sys.path.insert(0, str(ROOT / "worker/tests"))
from hub_server import TOKEN, ModelServer, Repository, model_server

pytestmark = pytest.mark.usefixtures("addresses")

TINY = ROOT / "worker/src/pagoda_worker/builtin/tiny"


@pytest.fixture(scope="module")
def hub() -> Iterator[ModelServer]:
    if not IN_DEVCLUSTER:
        pytest.skip("pods of another cluster cannot reach a server in this process")
    files = {path.name: path.read_bytes() for path in TINY.iterdir() if path.is_file()}
    with model_server(run("kubectl", "get", "nodes", "-o", "jsonpath={.items[0].status.addresses[0].address}")) as server:
        server.repositories = {"pagoda/tiny": Repository(files), "pagoda/gated": Repository(files, gated=True)}
        yield server


def model(name: str, hub: ModelServer, repository: str = "pagoda/tiny", **fields: Object) -> Object:
    source = {"source": f"hf://{repository}", "endpoint": hub.url}
    return quickstart(name=name, spec={"model": source | fields.pop("model", {}), "resources": UNBOUND, **fields})


def remove(installation: Installation, name: str) -> None:
    if installation.recorder is not None:  # a model that was here for three seconds: else nobody would know that its policies were
        installation.recorder.look()
    installation.models.delete("inferencemodel", name)
    eventually(lambda: not installation.models.all("pods", f"pagoda.dev/model={name}"), within_s=60, of=f"{name} is gone")


def test_a_model_from_a_hub_tells_its_bytes_while_it_loads_and_then_answers(installation: Installation, hub: ModelServer) -> None:
    models = installation.models
    hub.behaviour.pause_at = 3_000_000
    models.apply(model("fetched", hub))
    try:
        assert hub.behaviour.standing.wait(timeout=90), "the download has begun"

        def told() -> Object | None:
            condition = models.condition("fetched", "ModelAvailable")
            return condition if condition["reason"] == "WeightsDownload" and "%" in condition["message"] else None

        condition = eventually(told, within_s=10, of="the status tells how far the download is")
        assert condition["status"] == "False"
        assert "WeightsDownload" in models.kubectl("get", "im", "fetched")
    finally:
        hub.behaviour.pause_at = None
        hub.behaviour.go_on.set()
    eventually(lambda: models.is_ready("fetched"), within_s=120, of="the fetched model is Ready")
    assert "42" in installation.sum("fetched", 20, 22)
    (pod,) = models.pods("worker", "fetched")
    environment = {entry["name"] for entry in pod["spec"]["containers"][0]["env"]}
    assert not environment & {"PAGODA_HF_TOKEN", "PAGODA_MODEL_ENDPOINT"}, "the worker itself knows of no hub"
    remove(installation, "fetched")


def test_a_gated_model_asks_for_a_token_and_takes_it_from_a_secret(installation: Installation, hub: ModelServer) -> None:
    models = installation.models
    models.apply(model("gated", hub, "pagoda/gated"))
    eventually(lambda: models.get("im", "gated")["status"]["ready"] == "Unauthorized", within_s=90, of="READY shows Unauthorized")
    assert "tokenSecretRef" in models.condition("gated", "ModelAvailable")["message"]
    models.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hub"}, "stringData": {"token": TOKEN}})
    models.apply(model("gated", hub, "pagoda/gated", model={"tokenSecretRef": {"name": "hub", "key": "token"}}))
    eventually(lambda: models.is_ready("gated"), within_s=150, of="with the token it is Ready")
    remove(installation, "gated")
    models.delete("secret", "hub")


def test_a_revision_that_is_not_there(installation: Installation, hub: ModelServer) -> None:
    models = installation.models
    models.apply(model("revision", hub, model={"revision": "v9"}))
    eventually(lambda: models.get("im", "revision")["status"]["ready"] == "ModelNotFound", within_s=90, of="READY shows ModelNotFound")
    assert "v9" in models.condition("revision", "ModelAvailable")["message"]
    remove(installation, "revision")


@pytest.fixture
def claim(installation: Installation, tmp_path: Path) -> Iterator[str]:
    """A volume of the node's disk, as there is no provisioner here. Empty but for the tiny model in the folder `models/tiny`."""
    folder = tmp_path / "cache"
    shutil.copytree(TINY, folder / "models/tiny")
    os.chown(folder, 10001, 10001)
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    size = {"storage": "1Gi"}
    volume = {"capacity": size, "accessModes": ["ReadWriteMany"], "storageClassName": "", "hostPath": {"path": str(folder)}}
    made = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "shared"}, "spec": volume}
    run("kubectl", "apply", "-f", "-", stdin=json.dumps(made))
    wanted = {"accessModes": ["ReadWriteMany"], "storageClassName": "", "volumeName": "shared", "resources": {"requests": size}}
    installation.models.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "shared"}, "spec": wanted})
    yield "shared"
    installation.models.delete("pvc", "shared")
    run("kubectl", "delete", "pv", "shared")
    shutil.rmtree(folder)


def test_replicas_share_one_download(installation: Installation, hub: ModelServer, claim: str) -> None:
    models = installation.models
    before = hub.bytes_sent
    models.apply(model("shared", hub, model={"cache": {"claim": claim}}, scaling={"min": 2, "max": 2}))
    eventually(lambda: len(ready_workers(models, "shared")) == 2, within_s=180, of="both replicas are ready")
    size = sum(len(content) for content in hub.repositories["pagoda/tiny"].files.values())
    assert hub.bytes_sent - before <= size
    remove(installation, "shared")


def test_a_folder_of_a_claim_is_read_where_it_lies(installation: Installation, claim: str) -> None:
    models = installation.models
    models.apply(quickstart(name="claimed", spec={"model": {"source": f"pvc://{claim}/models/tiny"}, "resources": UNBOUND}))
    eventually(lambda: models.is_ready("claimed"), within_s=120, of="the model of the claim is Ready")
    assert "42" in installation.sum("claimed", 20, 22)
    (pod,) = models.pods("worker", "claimed")
    assert not pod["spec"].get("initContainers"), "nothing is fetched"
    remove(installation, "claimed")
