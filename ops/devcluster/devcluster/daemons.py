"""Processes that outlive the command that started them, known by a file with pid and start time: no later process is mistaken for one."""

import json
import os
import signal
import time
from collections.abc import Collection, Mapping
from pathlib import Path

from devcluster import processes
from devcluster.components import Command


class Daemons:
    """Owns run/NAME.json and NAME.log below one state folder."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = environment

    def log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def pid(self, name: str) -> int | None:
        """Of the running one; None when there is none."""
        try:
            record = json.loads(self._record(name).read_text())
        except (OSError, ValueError):
            return None
        pid = int(record["pid"])
        return pid if processes.start_time(pid) == record["started"] else None

    def start(self, command: Command) -> None:
        """Unless it runs already."""
        if self.pid(command.name) is not None:
            return
        pid = processes.start(command, self.log(command.name), environment=self._environment).pid
        self._record(command.name).parent.mkdir(exist_ok=True)
        self._record(command.name).write_text(json.dumps({"pid": pid, "started": processes.start_time(pid)}))

    def stop(self, name: str, grace_s: float = 5.0) -> None:
        pid = self.pid(name)
        if pid is None:
            return
        deadline = time.monotonic() + grace_s
        os.kill(pid, signal.SIGTERM if grace_s else signal.SIGKILL)
        while self.pid(name) is not None:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def _record(self, name: str) -> Path:
        return self._folder / "run" / f"{name}.json"


def resident_bytes(pid: int) -> int:
    """Without what the processes of one binary share; 0 for one that has gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) << 10


def in_network_namespace(inode: int) -> set[int]:
    """Every process in it, whoever started it: also shims of containers, and children of daemons that were killed."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "ns" / "net").stat().st_ino == inode:
                    found.add(int(entry.name))
            except OSError:
                continue
    return found


def kill_all(pids: Collection[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def ourselves() -> set[int]:
    """This process and its ancestors: `down` may be called from a shell inside the namespace, which must survive it."""
    found, pid = set(), os.getpid()
    while pid > 1:
        found.add(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return found
