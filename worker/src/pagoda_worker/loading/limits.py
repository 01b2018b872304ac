"""What this process may use, from the control groups it is in: memory, CPUs, and how often the kernel killed for memory. Reads files only.

Versions 1 and 2 of control groups; the strictest of the group and those above it holds. Knows no torch; used by settings, loader and front.
"""

import math
import os
from collections.abc import Iterable, Iterator, Set
from pathlib import Path

_UNLIMITED = 1 << 60
"""Version 1 writes a number near 2**63 where it means none."""


class Limits:
    """`root` is where the file system is looked at; tests give a folder that looks like one."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def memory_bytes(self) -> int | None:
        """None: no limit but the machine's."""
        found = [_number(folder / name) for folder, name in self._files("memory", "memory.max", "memory.limit_in_bytes")]
        return min((each for each in found if each is not None and each < _UNLIMITED), default=None)

    def memory_used_bytes(self) -> int:
        """By all processes of this group, without the file pages that the kernel gives back when it must."""
        for folder, name in self._files("memory", "memory.current", "memory.usage_in_bytes"):
            used = _number(folder / name)
            if used is not None:
                stat = _words(folder / "memory.stat")
                own = "total_" if name == "memory.usage_in_bytes" else ""
                return max(used - stat.get(f"{own}active_file", 0) - stat.get(f"{own}inactive_file", 0), 0)
        return 0

    def memory_available_bytes(self) -> int:
        """Of the machine, whatever the group's limit."""
        for line in _read(self._root / "proc/meminfo").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return 8 << 30

    def memory_kills(self) -> int:
        """Processes of this group that the kernel killed for memory so far."""
        for folder, name in self._files("memory", "memory.events", "memory.oom_control"):
            return _words(folder / name).get("oom_kill", 0)
        return 0

    def cores(self, allowed: Iterable[int]) -> list[int]:
        """Of these logical CPUs the first of each physical core: two threads of one core share its multipliers and take them in turn."""
        chosen: dict[str, int] = {}
        for cpu in sorted(allowed):
            siblings = _read(self._root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").strip()
            chosen.setdefault(siblings or f"cpu{cpu}", cpu)
        return list(chosen.values())

    def owned_cpus(self, allowed: Set[int]) -> bool:
        """These are fewer than the machine has, as when a cluster gives a container CPUs of its own."""
        online = _read(self._root / "sys/devices/system/cpu/online").strip()
        return bool(online) and len(allowed) < _count(online)

    def cpus(self) -> int | None:
        """The quota in whole CPUs, rounded up, at least 1; None without one."""
        quotas = []
        for folder, name in self._files("cpu", "cpu.max", "cpu.cfs_quota_us"):
            if name == "cpu.max":
                quota, _, period = _read(folder / name).strip().partition(" ")
            else:
                quota, period = _read(folder / name).strip(), _read(folder / "cpu.cfs_period_us").strip()
            if quota.isdigit() and period.isdigit() and int(quota) and int(period):
                quotas.append(int(quota) / int(period))
        return max(1, math.ceil(min(quotas))) if quotas else None

    def _files(self, controller: str, unified: str, legacy: str) -> Iterator[tuple[Path, str]]:
        """(folder, file name) where the file is there: from this process's own group up to the root."""
        for line in _read(self._root / "proc/self/cgroup").splitlines() or ["0::/"]:
            _, controllers, path = line.split(":", 2)
            if not controllers:
                mount, name = self._root / "sys/fs/cgroup", unified
            elif controller in controllers.split(","):
                mount, name = self._root / "sys/fs/cgroup" / controllers, legacy
                if not mount.is_dir():
                    mount = self._root / "sys/fs/cgroup" / controller
            else:
                continue
            own = Path(os.path.normpath("/" + path.strip("/")).strip("/"))
            for folder in (own, *own.parents):
                if (mount / folder / name).is_file():
                    yield mount / folder, name


class SharedLimits(Limits):
    """Of one of several processes that divide what there is evenly."""

    def __init__(self, whole: Limits, processes: int) -> None:
        super().__init__(whole._root)
        self._processes = processes

    def memory_bytes(self) -> int | None:
        limit = super().memory_bytes()
        return None if limit is None else limit // self._processes

    def memory_used_bytes(self) -> int:
        return super().memory_used_bytes() // self._processes

    def memory_available_bytes(self) -> int:
        return super().memory_available_bytes() // self._processes


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdigit() else None


def _words(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    pairs = (line.split() for line in _read(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _count(ranges: str) -> int:
    """Of the numbers in `0-3,8`."""
    ends = [part.split("-") for part in ranges.split(",")]
    return sum(int(each[-1]) - int(each[0]) + 1 for each in ends)
