"""The charts on a real API server: installed, upgraded, taken away. Skips with one line where its programs are not, also under
PAGODA_REQUIRE_ALL. Pods do not run here: that is e2e's part."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helm import CHARTS, ROOT, HelmFailed, Object, find_program, helm, plain_environment
from releases import earlier_version

MISSING = [name for name in ("helm", "kubectl", "etcd", "kube-apiserver") if find_program(name) is None]
if MISSING:
    pytest.skip(f"needs {', '.join(MISSING)}: PAGODA_KUBE_BIN names no folder that has them", allow_module_level=True)

NAMESPACED = (
    "deployments,services,secrets,serviceaccounts,roles,rolebindings,leases,networkpolicies,poddisruptionbudgets,inferencemodels,"
    "ingresses,configmaps"
)
WITHOUT_DEFINITIONS = NAMESPACED.replace("inferencemodels,", "")
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Server:
    kubeconfig: str
    audit_log: Path

    def helm(self, *words: str) -> str:
        return helm(*words, "--kubeconfig", self.kubeconfig)

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        program = find_program("kubectl")
        assert program is not None
        command = [program, "--kubeconfig", self.kubeconfig, *words]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def get(self, *words: str) -> Object:
        found: Object = json.loads(self.kubectl("get", *words, "-o", "json"))
        return found

    def names(self, kinds: str, *words: str) -> list[str]:
        """Without what the API server itself puts everywhere."""
        return [name for name in self.kubectl("get", kinds, "-o", "name", *words).split() if "pagoda" in name or "helm" in name]

    def may(self, account: str, *asked: "Asked") -> list[bool]:
        """All in one call: kubectl takes longer to start than the API server to answer."""
        reviews = [{**REVIEW, "spec": {"user": account, "resourceAttributes": each.attributes()}} for each in asked]
        document = json.dumps({"apiVersion": "v1", "kind": "List", "items": reviews})
        answers = self.kubectl("create", "-o", 'jsonpath={.status.allowed}{"\\n"}', "-f", "-", stdin=document)
        return [answer == "true" for answer in answers.split()]


REVIEW = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview"}


class Asked(NamedTuple):
    verb: str
    resource: str
    """group/resource/name; group and name may be empty."""
    namespace: str

    def attributes(self) -> dict[str, str]:
        group, resource, name = self.resource.split("/")
        resource, _, part = resource.partition(":")
        found = {"verb": self.verb, "group": group, "resource": resource, "subresource": part, "name": name}
        return {"namespace": self.namespace} | {key: value for key, value in found.items() if value}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("control-plane") / "files"
    command = [sys.executable, str(ROOT / "ops/devcluster"), "control-plane", "--dir", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the control plane did not start"
        try:
            facts = json.loads(line)
            yield Server(facts["kubeconfig"], Path(facts["auditLog"]))
        finally:
            process.stdin.close()
            process.wait(timeout=30)


@pytest.fixture
def namespace(server: Server) -> str:
    return make_namespace(server, f"system-{next(_numbers)}")


def make_namespace(server: Server, name: str) -> str:
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    server.kubectl("apply", "-f", "-", stdin=json.dumps(namespace_object(name, labels)))
    return name


def namespace_object(name: str, labels: dict[str, str]) -> Object:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


@contextmanager
def definitions(server: Server, namespace: str, *words: str, chart: Path = CHARTS / "pagoda-crds") -> Iterator[None]:
    server.helm("install", "pagoda-crds", str(chart), "-n", namespace, *words)
    server.kubectl("wait", "--for=condition=Established", "crd/inferencemodels.pagoda.dev", "--timeout=30s")
    try:
        yield
    finally:
        server.helm("uninstall", "pagoda-crds", "-n", namespace, "--wait")


@pytest.fixture
def defined(server: Server) -> None:
    """The definitions are there, be it from the test before: to install them and to wait for their end takes seconds."""
    if not server.names("crds"):
        server.helm("install", "pagoda-crds", str(CHARTS / "pagoda-crds"), "-n", "definitions", "--create-namespace")
        server.kubectl("wait", "--for=condition=Established", "crd/inferencemodels.pagoda.dev", "--timeout=30s")


@pytest.fixture
def undefined(server: Server) -> None:
    """For tests of the definitions themselves."""
    if server.names("crds"):
        server.helm("uninstall", "pagoda-crds", "-n", "definitions", "--wait")


def set_json(**values: Any) -> list[str]:
    return [word for path, value in values.items() for word in ("--set-json", f"{path.replace('__', '.')}={json.dumps(value)}")]


def quickstart(server: Server, namespace: str) -> Object:
    server.kubectl("apply", "-n", namespace, "-f", str(ROOT / "docs/quickstart/inferencemodel.yaml"))
    return server.get("im", "tiny", "-n", namespace)


@pytest.mark.usefixtures("undefined")
def test_install_upgrade_uninstall_leaves_nothing(server: Server, namespace: str) -> None:
    with definitions(server, namespace):
        said = server.helm("install", "pagoda", str(CHARTS / "pagoda"), "-n", namespace)
        assert "kubectl get secret pagoda-api-key" in said
        key = server.get("secret", "pagoda-operator", "-n", namespace)["data"]
        assert len(server.names("clusterroles,clusterrolebindings")) == 2

        more = set_json(operator__replicas=3, ingress__routes=[{"namespace": namespace, "host": "models.example.org", "tlsSecret": "tls"}])
        server.helm("upgrade", "pagoda", str(CHARTS / "pagoda"), "-n", namespace, *more)
        assert server.get("deployment", "pagoda-operator", "-n", namespace)["spec"]["replicas"] == 3
        assert server.get("secret", "pagoda-operator", "-n", namespace)["data"] == key, "a new key would roll every pod"
        assert server.names("ingresses", "-n", namespace)

        server.helm("uninstall", "pagoda", "-n", namespace)
        assert [name for name in server.names(NAMESPACED, "-n", namespace) if "pagoda-crds" not in name] == []
        assert server.names("clusterroles,clusterrolebindings") == []
    assert server.names(WITHOUT_DEFINITIONS, "-n", namespace) == []
    assert server.names("crds") == []


@pytest.mark.usefixtures("undefined")
def test_definitions_are_kept_on_request_with_their_objects(server: Server, namespace: str) -> None:
    with definitions(server, namespace, "--set", "keep=true"):
        quickstart(server, namespace)
    assert server.get("im", "tiny", "-n", namespace)
    # The next installation takes them over again.
    with definitions(server, namespace):
        assert server.get("im", "tiny", "-n", namespace)
    assert server.names("crds") == []


@pytest.mark.usefixtures("undefined")
def test_an_upgrade_of_the_definitions_reaches_the_cluster(server: Server, namespace: str, tmp_path: Path) -> None:
    older = shutil.copytree(CHARTS / "pagoda-crds", tmp_path / "pagoda-crds")
    file = older / "files/inferencemodels.yaml"
    file.write_text(file.read_text().replace("shortNames: [im]", "shortNames: [im, old]"))
    with definitions(server, namespace, chart=older):
        model = quickstart(server, namespace)
        assert server.get("crd", "inferencemodels.pagoda.dev")["spec"]["names"]["shortNames"] == ["im", "old"]
        server.helm("upgrade", "pagoda-crds", str(CHARTS / "pagoda-crds"), "-n", namespace)
        assert server.get("crd", "inferencemodels.pagoda.dev")["spec"]["names"]["shortNames"] == ["im"]
        assert server.get("inferencemodels", "tiny", "-n", namespace)["metadata"]["uid"] == model["metadata"]["uid"]


@pytest.mark.usefixtures("undefined")
def test_without_the_definitions_the_operator_is_refused_in_a_sentence_that_says_what_is_missing(server: Server, namespace: str) -> None:
    with pytest.raises(HelmFailed, match="ensure CRDs are installed first"):
        server.helm("install", "pagoda", str(CHARTS / "pagoda"), "-n", namespace)
    assert server.names(WITHOUT_DEFINITIONS, "-n", namespace) == []


@pytest.mark.usefixtures("undefined")
def test_upgrading_from_the_last_release_keeps_models_and_key(server: Server, namespace: str, tmp_path: Path) -> None:
    earlier = earlier_version()
    if earlier is None:
        pytest.skip("no earlier version of the charts in this clone to upgrade from")
    print(f"upgrading from {earlier.name}")
    charts = earlier.unpack_charts(tmp_path)
    models = make_namespace(server, f"{namespace}-models")
    with definitions(server, namespace, chart=charts / "pagoda-crds"):
        server.helm("install", "pagoda", str(charts / "pagoda"), "-n", namespace)
        model, key = quickstart(server, models), server.get("secret", "pagoda-operator", "-n", namespace)["data"]
        server.helm("upgrade", "pagoda-crds", str(CHARTS / "pagoda-crds"), "-n", namespace)
        server.helm("upgrade", "pagoda", str(CHARTS / "pagoda"), "-n", namespace)
        after = server.get("im", "tiny", "-n", models)
        assert (after["metadata"]["uid"], after["spec"]) == (model["metadata"]["uid"], model["spec"])
        assert server.get("secret", "pagoda-operator", "-n", namespace)["data"] == key
        server.helm("uninstall", "pagoda", "-n", namespace)
    assert server.names(WITHOUT_DEFINITIONS, "-n", namespace) == []
    assert server.names("clusterroles,clusterrolebindings,crds") == []


@pytest.mark.usefixtures("defined")
def test_the_operators_pod_passes_the_restricted_profile_of_its_namespace(server: Server, namespace: str) -> None:
    server.helm("install", "pagoda", str(CHARTS / "pagoda"), "-n", namespace)
    template = server.get("deployment", "pagoda-operator", "-n", namespace)["spec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {**template["metadata"], "name": "operator"}, "spec": template["spec"]}
    try:
        server.kubectl("create", "-n", namespace, "--dry-run=server", "-f", "-", stdin=json.dumps(pod))
    finally:
        server.helm("uninstall", "pagoda", "-n", namespace)


@pytest.mark.usefixtures("defined")
def test_uninstalling_the_operator_touches_no_model(server: Server, namespace: str) -> None:
    models = make_namespace(server, f"{namespace}-models")
    server.helm("install", "pagoda", str(CHARTS / "pagoda"), "-n", namespace)
    model = quickstart(server, models)
    server.helm("uninstall", "pagoda", "-n", namespace)
    assert server.get("im", "tiny", "-n", models)["metadata"]["uid"] == model["metadata"]["uid"]
    server.kubectl("delete", "im", "tiny", "-n", models)


@pytest.mark.usefixtures("defined")
def test_in_named_namespaces_the_operator_may_do_its_work_and_nothing_elsewhere(server: Server, namespace: str) -> None:
    inside, outside = make_namespace(server, f"{namespace}-inside"), make_namespace(server, f"{namespace}-outside")
    account = f"system:serviceaccount:{namespace}:pagoda-operator"
    server.helm("install", "pagoda", str(CHARTS / "pagoda"), "-n", namespace, *set_json(watchNamespaces=[inside]))
    try:
        leases = "coordination.k8s.io/leases/"
        work = [
            ("create", "apps/deployments/"),
            ("patch", "pagoda.dev/inferencemodels:status/"),
            ("create", "/secrets/"),
            ("list", "/pods/"),
        ]
        allowed = [Asked(*each, inside) for each in work] + [Asked("update", f"{leases}pagoda-operator", namespace)]
        refused = [Asked(*each, outside) for each in work] + [Asked("create", "apps/deployments/", namespace)]
        refused += [Asked("update", f"{leases}other", namespace)]
        refused += [
            Asked(verb, "/secrets/", where)
            for verb in ("get", "list", "watch", "patch", "update", "delete")
            for where in (inside, namespace)
        ]
        assert server.may(account, *allowed, *refused) == [True] * len(allowed) + [False] * len(refused)
    finally:
        server.helm("uninstall", "pagoda", "-n", namespace)
    for each in (inside, namespace):
        assert server.names("roles,rolebindings", "-n", each) == []


@pytest.mark.usefixtures("defined")
def test_the_operator_may_hand_its_routers_their_rights(server: Server, namespace: str) -> None:
    """The API server lets nobody grant what he does not hold."""
    account = f"system:serviceaccount:{namespace}:pagoda-operator"
    rules = [
        {"apiGroups": ["pagoda.dev"], "resources": ["inferencemodels"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]},
    ]
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "router"}, "rules": rules}
    greedy = role | {"rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]}
    server.helm("install", "pagoda", str(CHARTS / "pagoda"), "-n", namespace)
    try:
        server.kubectl("create", "-n", namespace, "--dry-run=server", "--as", account, "-f", "-", stdin=json.dumps(role))
        with pytest.raises(AssertionError, match="attempting to grant RBAC permissions not currently held"):
            server.kubectl("create", "-n", namespace, "--dry-run=server", "--as", account, "-f", "-", stdin=json.dumps(greedy))
    finally:
        server.helm("uninstall", "pagoda", "-n", namespace)


@contextmanager
def operator(server: Server, namespace: str, folder: Path) -> Iterator[None]:
    """The real process, beside the cluster: with the variables that the chart wrote, as the account that the chart made."""
    config = json.loads(server.kubectl("config", "view", "--raw", "-o", "json"))
    token = server.kubectl("create", "token", "pagoda-operator", "-n", namespace).strip()
    config["users"] = [{"name": user["name"], "user": {"token": token}} for user in config["users"]]
    kubeconfig = folder / "operator.kubeconfig"
    kubeconfig.write_text(json.dumps(config))
    given = plain_environment(server.get("deployment", "pagoda-operator", "-n", namespace))
    key = server.get("secret", "pagoda-operator", "-n", namespace)["data"]["master-key"]
    given |= {"PAGODA_MASTER_KEY": base64.b64decode(key).decode(), "PAGODA_POD_NAME": "one", "PAGODA_POD_NAMESPACE": namespace}
    given |= {"PAGODA_HEALTH_PORT": "0", "PAGODA_METRICS_PORT": "0", "KUBECONFIG": str(kubeconfig)}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PAGODA_", "KUBE"))}
    log = folder / "operator.log"
    with log.open("w") as file, subprocess.Popen([sys.executable, "-m", "pagoda_operator"], env=kept | given, stderr=file) as process:
        try:
            yield
        except AssertionError as error:
            error.add_note(log.read_text()[-3000:])
            raise
        finally:
            process.terminate()
            process.wait(timeout=30)


def eventually(look: Callable[[], Any], *, within_s: float = 30) -> None:
    until = time.monotonic() + within_s
    while not (found := look()):
        assert time.monotonic() < until, f"not within {within_s:g} s; last seen: {found!r}"
        time.sleep(0.2)


MADE = "deployments,services,poddisruptionbudgets,networkpolicies,roles,rolebindings,serviceaccounts"


@pytest.mark.parametrize("named", [False, True], ids=["cluster", "namespaces"])
@pytest.mark.usefixtures("defined")
def test_the_real_operator_needs_no_other_rights_and_removes_what_models_shared(
    server: Server, namespace: str, tmp_path: Path, named: bool
) -> None:
    models = make_namespace(server, f"{namespace}-models")
    account = f"system:serviceaccount:{namespace}:pagoda-operator"
    ours = ["-n", models, "-l", "app.kubernetes.io/managed-by=pagoda-operator"]
    server.helm("install", "pagoda", str(CHARTS / "pagoda"), "-n", namespace, *set_json(watchNamespaces=[models] if named else []))
    with operator(server, namespace, tmp_path):
        quickstart(server, models)
        eventually(lambda: len(server.get("deployments", *ours)["items"]) == 2)
        eventually(lambda: server.get("im", "tiny", "-n", models).get("status", {}).get("conditions"))
        assert server.get("secret", "pagoda-api-key", "-n", models)
        eventually(lambda: server.get("im", "pagoda-canary", "-n", namespace).get("status", {}).get("beat"))
        # As docs/install.md says.
        server.kubectl("delete", "im", "-n", models, "-l", "pagoda.dev/canary!=true")
        # Nobody collects garbage here: what the model owned stays. What the models shared is the operator's to remove.
        server.kubectl("wait", "--for=delete", "serviceaccounts", *ours, "--timeout=30s")
        assert [each for each in server.names(MADE, *ours) if "tiny" not in each] == []
    calls = [json.loads(line) for line in server.audit_log.read_text().splitlines() if account in line]
    made = [call for call in calls if call["user"]["username"] == account]
    assert made
    refused = {(call["verb"], call["objectRef"]["resource"]) for call in made if call["responseStatus"]["code"] == 403}
    assert refused <= ({("list", "nodes")} if named else set())
    (owner,) = server.get("lease", "pagoda-operator", "-n", namespace)["metadata"]["ownerReferences"]
    service_account = server.get("serviceaccount", "pagoda-operator", "-n", namespace)
    assert owner["uid"] == service_account["metadata"]["uid"], "the Lease goes with the account, whoever made it and when"
    server.helm("uninstall", "pagoda", "-n", namespace)
    server.kubectl("delete", "im,lease", "--all", "-n", namespace)  # nobody collects garbage here
    assert server.names(WITHOUT_DEFINITIONS, "-n", namespace) == []
