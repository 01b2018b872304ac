"""The cluster's own network namespace: nothing in it is reachable from outside, and nothing in it reaches the outside.

    [ namespace  lo | node0 10.55.0.1/24 ═ node1 | one veth per pod, 10.66.0.0/24 | kube-proxy's iptables rules ]

Entered with setns(2) rather than `ip netns exec`, which remounts /sys and hides the cgroups from kubelet and runc.
"""

import ctypes
import os
import subprocess
from pathlib import Path

from devcluster.errors import DevclusterError

NODE_ADDRESS = "10.55.0.1"
POD_RANGE = "10.66.0.0/24"
_NAMESPACES = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def exists(name: str) -> bool:
    return inode(name) is not None


def inode(name: str) -> int | None:
    """What /proc/PID/ns/net shows for processes in it; None when there is no such namespace (an unmounted leftover file is none)."""
    path = _NAMESPACES / name
    try:
        found, outside = path.stat(), _NAMESPACES.stat()
    except OSError:
        return None
    return found.st_ino if found.st_dev != outside.st_dev else None


def create(name: str) -> None:
    """With loopback, a node address and a default route (the API server wants one), forwarding on."""
    _ip("netns", "add", name)
    _ip("-n", name, "link", "set", "lo", "up")
    _ip("-n", name, "link", "add", "node0", "type", "veth", "peer", "name", "node1")
    _ip("-n", name, "link", "set", "node1", "up")
    _ip("-n", name, "link", "set", "node0", "up")
    _ip("-n", name, "address", "add", f"{NODE_ADDRESS}/24", "dev", "node0")
    _ip("-n", name, "route", "add", "default", "dev", "node0")


def enter(name: str) -> None:
    """This process and all it starts from now on."""
    with (_NAMESPACES / name).open() as namespace:
        if _libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
            raise DevclusterError(f"cannot enter the network namespace {name}: {os.strerror(ctypes.get_errno())} (root is needed)")


def allow_forwarding() -> None:
    """In the namespace that this process is in."""
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def delete(name: str) -> None:
    if exists(name):
        _ip("netns", "delete", name)
    (_NAMESPACES / name).unlink(missing_ok=True)
    if _NAMESPACES.is_dir() and not any(_NAMESPACES.iterdir()):
        # `ip netns add` had made the folder and mounted it on itself; while it holds nobody's namespace it is only litter
        _libc.umount2(os.fsencode(_NAMESPACES), 0)
        _NAMESPACES.rmdir()


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DevclusterError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
