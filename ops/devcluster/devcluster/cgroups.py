"""The one cgroup under which all pods of a cluster live, in every hierarchy of cgroup v1 (or the one of v2)."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


def create(name: str) -> None:
    """kubelet wants its cgroupRoot to exist in every hierarchy."""
    for hierarchy in _hierarchies():
        folder = hierarchy / name
        folder.mkdir(exist_ok=True)
        for setting in ("cpuset.cpus", "cpuset.mems"):  # a new cpuset of v1 is empty, and no task may join an empty one
            if (folder / setting).exists() and _is_v1():
                (folder / setting).write_text((hierarchy / setting).read_text())


def processes(name: str) -> set[int]:
    return {int(pid) for folder in _folders(name) for pid in _lines(folder / "cgroup.procs")}


def delete(name: str, timeout_s: float = 10.0) -> bool:
    """Leaves first. A cgroup whose last process has just died may be busy for a moment more. False: something is still there."""
    deadline = time.monotonic() + timeout_s
    while left := list(_folders(name)):
        for folder in left:
            try:
                folder.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.02)
    return True


def _is_v1() -> bool:
    return not (_ROOT / "cgroup.controllers").exists()


def _hierarchies() -> list[Path]:
    if not _is_v1():
        return [_ROOT]
    return [folder for folder in _ROOT.iterdir() if not folder.is_symlink() and (folder / "cgroup.procs").exists()]


def _folders(name: str) -> Iterator[Path]:
    """Every cgroup of ours, children before parents."""
    for hierarchy in _hierarchies():
        for folder, _, _ in os.walk(hierarchy / name, topdown=False):
            yield Path(folder)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
