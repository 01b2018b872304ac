"""Removes whatever a cluster left on the machine, however it ended. Needs nothing of the cluster to work, only its folder and its name."""

import contextlib
import ctypes
import json
import os
import shutil
import socket
import time
from pathlib import Path

from devcluster import cgroups, daemons, network, processes
from devcluster.errors import DevclusterError

_MNT_DETACH = 2
_DEVICE_PLUGINS = Path("/var/lib/kubelet/device-plugins")
_PLUGINS_BEFORE = "device-plugins-before"
"""In the state folder: what lay there before our kubelet ran, as a JSON list of names; null: no folder. It may be a stopped kubelet's."""
_libc = ctypes.CDLL(None, use_errno=True)


def remove(folder: Path, name: str) -> None:
    """Processes first, then what they held: mounts, namespace, cgroups, files outside the folder, the folder."""
    _kill(name)
    _unmount(folder)
    network.delete(name)
    if not cgroups.delete(name):
        raise DevclusterError(
            f"the cgroup {name} still has processes that cannot be killed: see cgroup.procs below /sys/fs/cgroup/*/{name}"
        )
    _remove_files_elsewhere(folder)
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        raise DevclusterError(f"{folder} could not be removed: delete it by hand")


def found(folder: Path, name: str) -> list[str]:
    """What is there, in words; empty when nothing is."""
    facts = [
        ("the state folder", folder.exists()),
        ("its network namespace", network.exists(name)),
        ("pods' processes", bool(cgroups.processes(name))),
        ("mounts", bool(_mounts(folder))),
    ]
    return [words for words, there in facts if there]


def remember_device_plugins(folder: Path, plugins: Path = _DEVICE_PLUGINS) -> None:
    """Before our kubelet runs. What is there now is somebody else's, and `remove` leaves it."""
    names = sorted(path.name for path in plugins.iterdir()) if plugins.is_dir() else None
    (folder / _PLUGINS_BEFORE).write_text(json.dumps(names))


def remove_device_plugins(folder: Path, plugins: Path = _DEVICE_PLUGINS) -> None:
    """What came since. Nothing where nobody remembered: then no kubelet of ours has run."""
    remembered = folder / _PLUGINS_BEFORE
    if not remembered.is_file() or not plugins.is_dir():
        return
    before: list[str] | None = json.loads(remembered.read_text())
    for path in plugins.iterdir():
        if path.name not in (before or ()) and not path.is_dir():  # a kubelet makes no folder there
            path.unlink()
    if before is None:
        with contextlib.suppress(OSError):
            plugins.rmdir()


def another_kubelet() -> bool:
    """Whether one listens where every kubelet does; ours would take its device plugins away, and removing the socket too."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(_DEVICE_PLUGINS / "kubelet.sock"))
        except OSError:
            return False
        return True


def _kill(name: str, timeout_s: float = 20.0) -> None:
    """Until none is left: a supervisor (kubelet, containerd, a shim) may have started one more while we looked."""
    inode, spared = network.inode(name), daemons.ourselves()
    deadline = time.monotonic() + timeout_s
    while True:
        left = cgroups.processes(name) | (daemons.in_network_namespace(inode) if inode is not None else set())
        left = {pid for pid in left - spared if _alive(pid)}
        if not left:
            return
        if time.monotonic() > deadline:
            raise DevclusterError(f"processes {sorted(left)} of the cluster could not be killed within {timeout_s:.0f} s")
        daemons.kill_all(left)
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    return processes.start_time(pid) is not None


def _unmount(folder: Path) -> None:
    for mount in reversed(_mounts(folder)):
        _libc.umount2(os.fsencode(mount), _MNT_DETACH)
    if left := _mounts(folder):  # deleting through a mount would delete somebody else's files
        raise DevclusterError(f"{left[0]} is still mounted: umount it, then run down again")


def _mounts(folder: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    return [point for point in points if Path(point).is_relative_to(folder)]


def _remove_files_elsewhere(folder: Path) -> None:
    """Paths that containerd, CNI and kubelet have built in."""
    for address in folder.glob("containerd/state/io.containerd.runtime.v2.task/*/*/address"):
        Path(address.read_text().removeprefix("unix://")).unlink(missing_ok=True)
    for sandbox in (folder / "containerd" / "root").glob("io.containerd.grpc.v1.cri/sandboxes/*"):
        for result in Path("/var/lib/cni/results").glob(f"*-{sandbox.name}-*"):
            result.unlink()
    deadline = time.monotonic() + 2
    while another_kubelet() and time.monotonic() < deadline:  # ours, until the last thread of the killed process has gone
        time.sleep(0.02)
    if not another_kubelet():
        remove_device_plugins(folder)
    for link in Path("/var/log/containers").glob("*.log"):
        if link.is_symlink() and link.readlink().is_relative_to(folder):
            link.unlink()
    for parent in (
        "/run/containerd/s",
        "/run/containerd",
        "/var/lib/cni/results",
        "/var/lib/cni",
        "/var/log/containers",
        "/var/lib/kubelet",
    ):
        try:
            Path(parent).rmdir()
        except OSError:  # not there, or another's files are in it
            continue
