"""Finds the programs of Kubernetes and what else a cluster needs from this machine. Builds nothing: see build.py."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from devcluster.errors import Missing

HYPERKUBE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl")
"""One binary under seven names; it looks at its own."""
CONTROL_PLANE = ("etcd", "kube-apiserver", "kubectl")
FULL = (*HYPERKUBE, "coredns")

PACKAGES = {
    "openssl": "openssl",
    "ip": "iproute2",
    "iptables": "iptables",
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
    "/usr/lib/cni/portmap": "containernetworking-plugins",
}
"""Program → Debian package."""
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def built_folder() -> Path:
    """Where `make devcluster-build` puts what it built: a cache, kept between clusters and shared by checkouts."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "pagoda" / "kube-bin"


def find(names: Iterable[str]) -> Path:
    """The folder that holds all `names`: PAGODA_KUBE_BIN's, else the one that `make devcluster-build` filled."""
    wanted = tuple(names)
    given = os.environ.get("PAGODA_KUBE_BIN")
    folders = [Path(given).resolve()] if given else []
    folders.append(built_folder())
    for folder in folders:
        if all(os.access(folder / name, os.X_OK) for name in wanted):
            return folder
    lacking = [name for name in wanted if not os.access(folders[0] / name, os.X_OK)]
    raise Missing(
        f"{folders[0]} lacks {' '.join(lacking)}: set PAGODA_KUBE_BIN to a folder that has them, or build them with `make devcluster-build`"
    )


def environment() -> dict[str, str]:
    """For commands that use another cluster: the caller's own, with kubectl and helm of our folders where PATH has none, and without
    DEVCLUSTER_DIR, by which they would take it for ours."""
    folders = [os.environ.get("PATH", ""), os.environ.get("PAGODA_KUBE_BIN", ""), str(built_folder())]
    kept = {name: value for name, value in os.environ.items() if name != "DEVCLUSTER_DIR"}
    return kept | {"PATH": ":".join(folder for folder in folders if folder)}


def require(*commands: str) -> None:
    """Fail, with the apt-get line to run, when one of PACKAGES' programs is not here."""
    missing = sorted({PACKAGES[command] for command in commands if not _here(command)})
    if missing:
        raise Missing(f"this machine lacks Debian packages: apt-get install -y {' '.join(missing)}")


def _here(command: str) -> bool:
    return shutil.which(command, path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}") is not None
