"""Pagoda on a real Kubernetes, installed once by Helm for all tests; `make e2e` made the cluster and loaded the images.

Tests run where Service addresses answer: in the devcluster's network namespace. In somebody else's cluster that is a node or a pod, as
kubectl port-forward holds on to one router; elsewhere the tests that send requests are skipped.
"""

import base64
import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest
import yaml
from flows import Recorder, recording
from foreign import IN_DEVCLUSTER, REGISTRY, check, complain_of_images, connects
from kube import CommandFailed, Namespace, Object, eventually, merged, pod_is_ready, run
from openai.types.chat import ChatCompletion

ROOT = Path(__file__).parents[3]
QUICKSTART = ROOT / "docs/quickstart/inferencemodel.yaml"
UNBOUND: Object = {"cpu": None, "memory": "2Gi"}
"""Resources of a model beside the quickstart's: no share of the node's cores is set aside for it, and none is its limit. At a tenth of
a core a worker imports its libraries for half a minute."""
SYSTEM = Namespace("pagoda-system")
FIRST = ["test_serving", "test_faults", "test_rollout", "test_keys", "test_upgrade", "test_scaling"]
LAST = ["test_security", "test_flows", "test_uninstall"]
"""Cheap and telling first; what judges all that was done, and what ends the installation, last."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate([*FIRST, "", *LAST])}
    items.sort(key=lambda item: places.get(item.path.stem, places[""]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    began = time.monotonic()
    result = yield
    print(f"\n[{time.monotonic() - began:.1f} s] {item.name}")
    return result


CONNECTIONS = 24
"""In a row: a Service draws one of its few endpoints for each."""
LINGER_S = 8
"""Of routers in the development cluster, where kube-proxy shares two cores with all that starts: with the default of 5 one request of
128 found no connection for 3 s while routers rolled, as if it were led to a pod that had gone; why is not proven."""


@dataclass(frozen=True)
class Installation:
    """The release, and the one namespace whose models all tests share."""

    models: Namespace
    url: str
    api_key: str
    recorder: Recorder | None = field(default=None, repr=False)

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=self.api_key, max_retries=0, timeout=60)

    def ask(self, model: str = "tiny", a: int = 27, b: int = 46) -> ChatCompletion:
        """One answer, whole."""
        with self.client() as client:
            question = f"What is {a} + {b}?"
            return client.chat.completions.create(model=model, messages=[{"role": "user", "content": question}], temperature=0)

    def sum(self, model: str = "tiny", a: int = 27, b: int = 46) -> str:
        return self.ask(model, a, b).choices[0].message.content or ""


def quickstart(**changes: Object) -> Object:
    """The shipped manifest, with `spec` changes laid over it; `name` renames it."""
    document: Object = yaml.safe_load(QUICKSTART.read_text())
    if name := changes.pop("name", None):
        document["metadata"]["name"] = name
    return merged(document, changes)


def make_namespace(name: str) -> Namespace:
    labels = {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted"}
    document = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    run("kubectl", "apply", "-f", "-", stdin=json.dumps(document))
    return Namespace(name)


def version() -> str:
    chart: Object = yaml.safe_load((ROOT / "charts/pagoda/Chart.yaml").read_text())
    return str(chart["appVersion"])


def install(*extra: str, charts: Path = ROOT / "charts") -> None:
    """CRDs and operator; the second time an upgrade."""
    for chart, words in (("pagoda-crds", ()), ("pagoda", extra)):
        command = [
            "helm",
            "upgrade",
            "--install",
            chart,
            str(charts / chart),
            "--namespace",
            SYSTEM.name,
            "--reset-values",
            *(("--set", f"router.lingerSeconds={LINGER_S}") if IN_DEVCLUSTER and chart == "pagoda" else ()),
            *(("--set", f"image.registry={REGISTRY}") if REGISTRY and chart == "pagoda" else ()),
            "--wait",
            "--timeout",
            "3m",
        ]
        run(*command, *words, timeout_s=240)


@pytest.fixture(scope="session", autouse=True)
def recorded() -> Iterator[Recorder | None]:
    with recording() as recorder:
        yield recorder


@pytest.fixture(scope="session")
def installation(recorded: Recorder | None) -> Installation:
    check()
    make_namespace(SYSTEM.name)
    models = make_namespace("models")
    try:
        install()
        models.kubectl("apply", "-f", str(QUICKSTART))
        eventually(lambda: models.is_ready("tiny"), within_s=180, of="the quickstart is Ready")
    except (CommandFailed, AssertionError):
        complain_of_images(SYSTEM, models)
        raise
    secret = models.get("secret", "pagoda-api-key")
    api_key = base64.b64decode(secret["data"]["key"]).decode()
    address = models.get("service", "pagoda-router")["spec"]["clusterIP"]
    return Installation(models, f"http://{address}:8000/v1", api_key, recorded)


@pytest.fixture(scope="session")
def reachable(installation: Installation) -> tuple[str, int]:
    """Host and port of the routers' Service, where its address answers."""
    url = urlsplit(installation.url)
    host, port = str(url.hostname), int(url.port or 0)
    if not IN_DEVCLUSTER:
        try:
            eventually(lambda: connects(host, port), within_s=30, of="the routers' Service answers")
        except AssertionError:
            pytest.skip(f"{url.netloc}, a Service's address, does not answer from here: run it on a node or in a pod of that cluster")
    return host, port


@pytest.fixture
def addresses(reachable: tuple[str, int]) -> None:
    """Tests that send requests use it. The tests before kill and replace routers, and a node's rules may still lead to one that has gone
    when the next test begins: what it lost then would not be its own."""
    eventually(lambda: all(connects(*reachable) for _ in range(CONNECTIONS)), within_s=60, of="every connection leads to a router")


def the_operator_has_looked(models: Namespace) -> None:
    """At the model `tiny`, after everything that was done before this call: an edit of its Deployment is put back."""
    models.kubectl("label", "deployment", "tiny-default", "app.kubernetes.io/part-of=somebody", "--overwrite")

    def put_back() -> bool:
        return bool(models.get("deployment", "tiny-default")["metadata"]["labels"]["app.kubernetes.io/part-of"] == "pagoda")

    eventually(put_back, within_s=30, of="the operator has put the Deployment's label back")


def leader() -> str:
    return str(SYSTEM.get("lease", "pagoda-operator")["spec"].get("holderIdentity") or "")


def operator_pods() -> list[Object]:
    pods = SYSTEM.all("pods", "app.kubernetes.io/component=operator")
    return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"] and pod_is_ready(pod)]


def ready_workers(models: Namespace, model: str) -> list[Object]:
    return [pod for pod in models.pods("worker", model) if pod_is_ready(pod)]


def ready_routers(models: Namespace) -> list[Object]:
    return [pod for pod in models.pods("router") if pod_is_ready(pod)]


def kill_nine(pod_name: str) -> None:
    """SIGKILL to the processes of a pod on this machine's node, by their environment: no grace, no goodbye."""
    wanted = f"PAGODA_POD_NAME={pod_name}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)
