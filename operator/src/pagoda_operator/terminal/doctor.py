"""`pagoda doctor`: checks of this machine, each with its result and what to do. Reads only; changes nothing. Called by commands.py."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pagoda_operator.local.client import call
from pagoda_operator.local.errors import LocalError, NotRunning
from pagoda_operator.local.home import Home
from pagoda_operator.local.orphans import processes_of
from pagoda_operator.local.ports import holder, is_free
from pagoda_operator.local.version import code_version

OLDEST_PYTHON = (3, 11)
DISK_BYTES = 2 * 10**9
SHARED_MEMORY = "/dev/shm"  # noqa: S108  looked at, never written
SHARED_MEMORY_BYTES = 64 * 2**20


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    level: Level
    subject: str
    text: str
    """What was found and, unless ok, what to do."""


def examine(home: Home, host: str, port: int, environment: Mapping[str, str]) -> Iterator[Finding]:
    yield _python()
    yield from _distributions()
    yield from _space(home)
    yield _gpu(environment)
    yield from _supervisor(home, host, port)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= OLDEST_PYTHON:
        return Finding(Level.OK, "python", version)
    return Finding(Level.FAIL, "python", f"{version}: Pagoda needs 3.11 or newer")


def _distributions() -> Iterator[Finding]:
    for package in ("pagoda_router", "pagoda_worker"):
        spec = importlib.util.find_spec(package)
        if spec is None:
            name = package.replace("_", "-")
            yield Finding(Level.FAIL, package, f"not installed: run `make setup`, or {sys.executable} -m pip install {name}")
        else:
            yield Finding(Level.OK, package, "installed")
        if spec is not None and package == "pagoda_worker":
            yield _builtin_model(Path(next(iter(spec.submodule_search_locations or ["."]))))


def _builtin_model(package: Path) -> Finding:
    folder = package / "builtin/tiny"
    missing = [name for name in ("config.json", "model.safetensors", "tokenizer.json") if not (folder / name).is_file()]
    if missing:
        return Finding(Level.FAIL, "builtin://tiny", f"{', '.join(missing)} missing in {folder}: install pagoda-worker again")
    return Finding(
        Level.OK, "builtin://tiny", f"{sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.1f} MB in the worker package"
    )


def _space(home: Home) -> Iterator[Finding]:
    existing = next(folder for folder in (home.path, *home.path.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if not os.access(existing, os.W_OK):
        yield Finding(Level.FAIL, "state folder", f"{home.path} cannot be written: set PAGODA_HOME to a folder of yours")
    elif free < DISK_BYTES:
        yield Finding(Level.WARN, "state folder", f"{home.path}: only {free / 1e9:.1f} GB free; logs and caches may fill the disk")
    else:
        yield Finding(Level.OK, "state folder", f"{home.path}, {free / 1e9:.0f} GB free")
    shared = Path(SHARED_MEMORY)
    if not shared.is_dir():
        yield Finding(Level.WARN, SHARED_MEMORY, "missing: several GPUs of one model talk through it; mount a tmpfs there")
    elif (size := shutil.disk_usage(shared).free) < SHARED_MEMORY_BYTES:
        yield Finding(Level.WARN, SHARED_MEMORY, f"only {size / 2**20:.0f} MiB free: in a container start it with --shm-size=1g")
    else:
        yield Finding(Level.OK, SHARED_MEMORY, f"{size / 2**20:.0f} MiB free")


def _gpu(environment: Mapping[str, str]) -> Finding:
    devices = sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))
    asked = environment.get("PAGODA_DEVICE", "auto")
    if devices:
        return Finding(Level.OK, "GPU", f"{', '.join(devices)}; PAGODA_DEVICE={asked}")
    if asked == "cuda":
        return Finding(Level.FAIL, "GPU", "PAGODA_DEVICE=cuda but there is no /dev/nvidia0: load the driver, or leave PAGODA_DEVICE away")
    return Finding(Level.OK, "GPU", "none; models run on the CPU")


def _supervisor(home: Home, host: str, port: int) -> Iterator[Finding]:
    try:
        hello = call(home, "hello")
    except NotRunning:
        yield Finding(Level.OK, "supervisor", "not running; `pagoda up` starts it")
        if left := processes_of(home):
            pids = ", ".join(str(process.pid) for process in left)
            yield Finding(Level.WARN, "orphans", f"processes of an earlier run are left (pid {pids}): run `pagoda down`")
        yield _port(host, port)
        return
    except LocalError as error:
        yield Finding(Level.FAIL, "supervisor", str(error))
        return
    if hello["version"] == code_version():
        yield Finding(Level.OK, "supervisor", f"pid {hello['pid']}, {hello['endpoint']}, version {hello['version']}")
    else:
        yield Finding(Level.WARN, "supervisor", f"runs {hello['version']}, this is {code_version()}: `pagoda up` restarts it")


def _port(host: str, port: int) -> Finding:
    if is_free(host, port):
        return Finding(Level.OK, "port", f"{port} is free")
    by = f" by {who}" if (who := holder(port)) else ""
    return Finding(Level.FAIL, "port", f"{port} is taken{by}: choose another with --port or PORT=")
