"""What a result file must say about where it was measured: CPU model and flags that matter, cores, memory, versions, commit."""

import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FLAGS_THAT_MATTER = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
"""bf16 and int8 speed differ up to tenfold between these."""


@dataclass(frozen=True, slots=True)
class Hardware:
    cpu: str
    cores: int
    memory_bytes: int
    flags: tuple[str, ...]
    flags_absent: tuple[str, ...]
    python: str
    packages: dict[str, str]
    commit: str
    date: str

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    def line(self) -> str:
        present, absent = " ".join(self.flags), " ".join(self.flags_absent)
        return f"{self.cpu}, {self.cores} cores, {self.memory_bytes >> 30} GiB ({present}; without {absent or 'none of the named'})"


def read_hardware(packages: tuple[str, ...]) -> Hardware:
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set(fields.get("flags", "").split())
    return Hardware(
        cpu=fields.get("model name", platform.processor()),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        flags=tuple(flag for flag in FLAGS_THAT_MATTER if flag in flags),
        flags_absent=tuple(flag for flag in FLAGS_THAT_MATTER if flag not in flags),
        python=platform.python_version(),
        packages={name: _version(name) for name in packages},
        commit=_commit(),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _commit() -> str:
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return git.stdout.strip() or "unknown"
