"""The full cluster, for real: root and Debian's containerd, runc, CNI plugins and iptables, else a skip that names what is missing."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Command, found

from devcluster import cluster, images, leftovers, network, programs
from devcluster.errors import Missing

WORKLOAD = Path(__file__).parent / "workload.yaml"
OUTSIDE = (
    "/run/netns",
    "/run/containerd",
    "/var/lib/cni",
    "/var/lib/kubelet",
    "/var/log/containers",
    "/var/log/pods",
    "/opt/containerd",
    "/usr/libexec/kubernetes",
)


@pytest.fixture(autouse=True)
def needs(devcluster: Command, tmp_path: Path) -> Iterator[None]:
    found(programs.FULL)
    if os.geteuid() != 0:
        pytest.skip("a cluster with a node needs root")
    try:
        programs.require(*cluster.TOOLS)
    except Missing as error:
        pytest.skip(str(error))
    if leftovers.another_kubelet():
        pytest.skip("another kubelet runs on this machine")
    yield
    devcluster("down")


def _machine() -> dict[str, object]:
    """What a cluster could leave behind, outside its own folder."""
    return {
        "mounts": Path("/proc/self/mountinfo").read_text().count("\n"),
        "cgroups": sorted(str(path) for path in Path("/sys/fs/cgroup").glob("*/pagoda-*")),
        "links": sorted(path.name for path in Path("/sys/class/net").iterdir()),
        "rules": subprocess.run(["iptables-save"], capture_output=True, text=True, check=False).stdout.count("-A "),
        "files": {folder: sorted(str(path) for path in Path(folder).rglob("*")) for folder in OUTSIDE},
        "forwarding": Path("/proc/sys/net/ipv4/ip_forward").read_text(),
    }


def patiently(holds: Callable[[], bool], timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _folder(tmp_path: Path) -> Path:
    return tmp_path / "cluster"


def _load_client(devcluster: Command, tmp_path: Path) -> None:
    image = tmp_path / "kubectl.tar"
    images.write_program(image, "pagoda-test/kubectl:1", found(("kubectl",)) / "kubectl", "/kubectl")
    with image.open() as archive:
        assert devcluster("load", "-", stdin=archive).returncode == 0


def test_it_runs_restricted_pods_that_find_each_other_by_name_and_leaves_nothing(devcluster: Command, tmp_path: Path) -> None:
    before = _machine()

    def kubectl(*words: str) -> str:
        done = devcluster("exec", "--", "kubectl", "-n", "strict", *words, PAGODA_KUBE_BIN="")  # `up` has remembered it
        assert done.returncode == 0, done.stderr
        return done.stdout

    up = devcluster("up")
    assert up.returncode == 0, up.stderr
    assert "kubectl get nodes" in up.stdout
    assert devcluster("up").returncode == 0, "up is a no-op when the cluster runs"

    _load_client(devcluster, tmp_path)
    kubectl("apply", "-f", str(WORKLOAD))
    kubectl("rollout", "status", "deployment/web", "deployment/client", "--timeout=60s")
    client = ("exec", "deployment/client", "--", "/kubectl")
    # kube-proxy learns of a ready pod a moment after the Deployment does
    patiently(
        lambda: (
            devcluster("exec", "--", "kubectl", "-n", "strict", *client, "--server=http://web", "get", "--raw", "/health").returncode == 0
        )
    )
    for name in ("web", "web.strict", "web.strict.svc.cluster.local"):
        assert kubectl(*client, f"--server=http://{name}", "get", "--raw", "/health") == "OK", "by DNS and through kube-proxy"
    assert "v1" in kubectl(*client, "get", "--raw", "/api"), "a pod's own token at the API server"
    assert "CoreDNS" in kubectl("logs", "deployment/web")
    refused = devcluster("exec", "--", "kubectl", "-n", "strict", "run", "root", "--image=pagoda-test/kubectl:1")
    assert 'violates PodSecurity "restricted' in refused.stderr

    down = devcluster("down")
    assert (down.returncode, down.stdout) == (0, "devcluster: removed\n")
    assert not _folder(tmp_path).exists()
    assert _machine() == before
    assert devcluster("down").stdout == "devcluster: nothing to remove\n"


def test_the_api_server_can_be_stopped_and_started_while_pods_run_on(devcluster: Command) -> None:
    assert devcluster("up").returncode == 0
    get = (
        "exec",
        "--",
        "kubectl",
        "-n",
        "kube-system",
        "get",
        "pods",
        "-o",
        "jsonpath={.items[*].status.containerStatuses[*].restartCount}",
    )
    assert devcluster("stop", "apiserver").returncode == 0
    assert "refused" in devcluster(*get).stderr
    status = json.loads(devcluster("status", "--json").stdout)
    assert [name for name, item in status["components"].items() if not item["running"]] == ["kube-apiserver"]
    assert devcluster("start", "apiserver").returncode == 0
    assert devcluster(*get).stdout == "0"
    assert '"resource":"pods"' in Path(status["auditLog"]).read_text()


def test_down_removes_a_cluster_whose_processes_were_killed_in_the_middle(devcluster: Command, tmp_path: Path) -> None:
    before = _machine()
    assert devcluster("up").returncode == 0
    for name in ("containerd", "kubelet", "etcd"):
        os.kill(json.loads((_folder(tmp_path) / "run" / f"{name}.json").read_text())["pid"], signal.SIGKILL)
    assert devcluster("down").returncode == 0
    assert _machine() == before


def test_a_killed_up_is_finished_by_the_next_one(devcluster: Command, tmp_path: Path) -> None:
    before = _machine()
    assert devcluster("up").returncode == 0
    (_folder(tmp_path) / ".complete").unlink()  # as if killed before its files and namespace were all there
    assert devcluster("up").returncode == 0
    assert devcluster("exec", "--", "kubectl", "get", "nodes").stdout.count(" Ready ") == 1
    assert devcluster("down").returncode == 0
    assert _machine() == before


def test_what_runs_inside_the_namespace_is_found_by_it(devcluster: Command, tmp_path: Path) -> None:
    assert devcluster("up").returncode == 0
    inode = network.inode(cluster.cluster_name(_folder(tmp_path)))
    seen = devcluster("exec", "--", "stat", "-L", "-c", "%i", "/proc/self/ns/net")
    assert int(seen.stdout) == inode
