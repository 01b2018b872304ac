"""The full one-node cluster: up, down, stop and start of one component. `up` is a list of steps, each a no-op when done already."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from devcluster import access, api, certificates, cgroups, components, dns, images, leftovers, network, node, processes, programs
from devcluster.components import Command, Site
from devcluster.daemons import Daemons, resident_bytes
from devcluster.errors import DevclusterError

READY_TIMEOUT_S = 60.0
NAMES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "containerd", "kubelet", "kube-proxy")
TOOLS = ("openssl", "ip", "iptables", "containerd", "ctr", "runc", "/usr/lib/cni/ptp", "/usr/lib/cni/portmap")


def state_folder() -> Path:
    """DEVCLUSTER_DIR, else one folder per machine: never in the repository, whose tools would walk through gigabytes of images."""
    return Path(os.environ.get("DEVCLUSTER_DIR") or "/tmp/pagoda-devcluster").resolve()  # noqa: S108  made 0700 and checked for our mark


@dataclass(frozen=True)
class Component:
    name: str
    running: bool
    memory_bytes: int


class Cluster:
    """Owns the state folder and all that runs for it."""

    def __init__(self, folder: Path, found: Path) -> None:
        self.folder = folder
        self.name = cluster_name(folder)
        self.site = Site(folder=folder, programs=found, address=network.NODE_ADDRESS)
        self.node = node.Node(self.site, self.name)
        # containerd looks for runc and CNI's plugins for iptables in PATH
        self._daemons = Daemons(folder, processes.clean_environment(found))

    @property
    def kubeconfig(self) -> Path:
        return self.site.kubeconfig()

    @property
    def made(self) -> bool:
        """Whether `up` got as far as having a complete state folder and a namespace."""
        return (self.folder / _COMPLETE).exists() and network.exists(self.name)

    def up(self) -> None:
        if not self.made:
            down(self.folder)
            self._make()
        self.enter()
        network.allow_forwarding()
        commands = self._commands()
        for name in ("etcd", "containerd"):
            self._daemons.start(commands[name])
        self._wait("etcd", lambda: api.etcd_ready(self.site))
        self._daemons.start(commands["kube-apiserver"])
        self._wait("containerd", self._containerd_answers)
        self._load_own_images()
        self._wait("kube-apiserver", lambda: api.ready(self.site))
        for name in ("kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"):
            self._daemons.start(commands[name])
        self._apply_dns()
        self._wait(
            "kubelet", lambda: api.condition(self.site, f"/api/v1/nodes/{access.NODE}", "Ready"), failure="the node did not become Ready"
        )
        deployment = f"/apis/apps/v1/namespaces/{dns.NAMESPACE}/deployments/{dns.NAME}"
        self._wait("kubelet", lambda: api.condition(self.site, deployment, "Available"), failure="CoreDNS did not become available")

    def enter(self) -> None:
        """From now on this process is in the cluster's network."""
        network.enter(self.name)

    def start(self, name: str) -> None:
        self.enter()
        self._daemons.start(self._commands()[name])
        ready: dict[str, Callable[[], bool]] = {
            "etcd": lambda: api.etcd_ready(self.site),
            "kube-apiserver": lambda: api.ready(self.site),
            "containerd": self._containerd_answers,
        }
        if name in ready:
            self._wait(name, ready[name])

    def stop(self, name: str) -> None:
        self._daemons.stop(name)

    def load(self, archive: str) -> None:
        """A docker-archive or OCI tar; `-` reads it from our standard input, so that large images need not touch the disk twice."""
        done = subprocess.run(
            self._ctr("images", "import", archive), check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        if done.returncode != 0:
            raise DevclusterError(f"containerd did not take the image: {done.stderr.strip()[-300:] or 'no message'}")

    def images(self) -> dict[str, str]:
        """Names and IDs, which are the digests of their configurations: the same with every builder and runtime."""

        def read(*arguments: str) -> str:
            return subprocess.run(self._ctr(*arguments), capture_output=True, text=True, check=True).stdout

        rows = [line.split() for line in read("images", "ls").splitlines()[1:]]
        return {row[0]: json.loads(read("content", "get", row[2]))["config"]["digest"] for row in rows if not row[0].startswith("sha256:")}

    def components(self) -> list[Component]:
        pids = {name: self._daemons.pid(name) for name in NAMES}
        return [Component(name, pid is not None, resident_bytes(pid) if pid else 0) for name, pid in pids.items()]

    def environment(self) -> dict[str, str]:
        """For commands that use the cluster: the caller's own, plus kubeconfig and programs."""
        path = f"{self.site.programs}:{os.environ.get('PATH', '')}:{programs.SYSTEM_PATH}"
        return os.environ | {"KUBECONFIG": str(self.kubeconfig), "PATH": path, "DEVCLUSTER_DIR": str(self.folder)}

    def _make(self) -> None:
        programs.require(*TOOLS)
        if leftovers.another_kubelet():
            raise DevclusterError(
                "another kubelet runs on this machine, and two would fight over its device plugins: stop it, or use a machine of its own"
            )
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.folder / _MARK).touch()
        leftovers.remember_device_plugins(self.folder)
        addresses = ("127.0.0.1", network.NODE_ADDRESS, components.KUBERNETES_SERVICE)
        certificates.make_all(self.site.certificates, addresses)
        access.make_all(self.folder, self.site.url)
        for name, text in ({"audit-policy.yaml": components.AUDIT_POLICY} | node.files(self.node)).items():
            (self.folder / name).parent.mkdir(exist_ok=True)
            (self.folder / name).write_text(text)
        network.create(self.name)
        cgroups.create(self.name)
        (self.folder / _PROGRAMS).write_text(str(self.site.programs))
        (self.folder / _COMPLETE).touch()

    def _commands(self) -> dict[str, Command]:
        plane = (components.etcd, components.api_server, components.controller_manager, components.scheduler)
        on_node = (node.containerd, node.kubelet, node.kube_proxy)
        return {command.name: command for command in (*(make(self.site) for make in plane), *(make(self.node) for make in on_node))}

    def _load_own_images(self) -> None:
        loaded = subprocess.run(self._ctr("images", "ls", "--quiet"), capture_output=True, text=True, check=False).stdout.split()
        archive = self.folder / "image.tar"
        if images.PAUSE not in loaded:
            images.write_pause(archive)
            self.load(str(archive))
        if images.COREDNS not in loaded:
            images.write_program(archive, images.COREDNS, self.site.programs / "coredns", "/coredns")
            self.load(str(archive))
        archive.unlink(missing_ok=True)

    def _apply_dns(self) -> None:
        kubectl = [str(self.site.programs / "kubectl"), "--kubeconfig", str(self.kubeconfig), "apply", "-f", "-"]
        done = subprocess.run(kubectl, input=json.dumps(dns.manifest()), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise DevclusterError(f"CoreDNS could not be created: {done.stderr.strip()[-300:]}")

    def _containerd_answers(self) -> bool:
        return subprocess.run(self._ctr("version"), capture_output=True, check=False).returncode == 0

    def _ctr(self, *arguments: str) -> list[str]:
        return ["ctr", "--address", self.node.containerd_socket, "--namespace", "k8s.io", *arguments]

    def _wait(self, name: str, answers: Callable[[], bool], failure: str | None = None) -> None:
        log = self._daemons.log(name)
        processes.wait_until(
            answers, lambda: self._daemons.pid(name) is not None, name=name, log=log, timeout_s=READY_TIMEOUT_S, failure=failure
        )


_MARK = ".pagoda-devcluster"
"""Ours to delete."""
_COMPLETE = ".complete"
_PROGRAMS = "programs-folder"
"""Where `up` found them, so that later commands need no PAGODA_KUBE_BIN."""


def cluster_name(folder: Path) -> str:
    """Of the network namespace, the cgroup and the CNI network: one per state folder, so that two clusters do not meet."""
    return f"pagoda-{sha256(str(folder).encode()).hexdigest()[:6]}"


def programs_of(folder: Path) -> Path | None:
    """The folder of programs of the cluster in this state folder; None where there is no cluster."""
    recorded = folder / _PROGRAMS
    return Path(recorded.read_text()) if recorded.exists() else None


def down(folder: Path) -> bool:
    """Also of a cluster that was killed, or never came up. False: there was nothing."""
    name = cluster_name(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARK).exists():
        raise DevclusterError(f"{folder} is not empty and holds no cluster of ours: set DEVCLUSTER_DIR to a folder of its own")
    if not leftovers.found(folder, name):
        return False
    leftovers.remove(folder, name)
    return True


def require_root() -> None:
    if os.geteuid() != 0:
        raise DevclusterError("a cluster with a node needs root (namespaces, cgroups, mounts); control-plane does not")


@contextmanager
def alone(folder: Path, timeout_s: float = 180.0) -> Iterator[None]:
    """One up or down at a time for one folder. A name in the abstract socket space: gone with its process, and no file to leave behind."""
    deadline = time.monotonic() + timeout_s
    with socket.socket(socket.AF_UNIX) as lock:
        while True:
            try:
                lock.bind(f"\0{cluster_name(folder)}")
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise DevclusterError(f"another devcluster command has been at work on {folder} for {timeout_s:.0f} s") from None
                time.sleep(0.1)
        yield
