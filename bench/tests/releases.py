"""The charts as they were: what an upgrade starts from."""

import io
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Earlier:
    revision: str
    name: str
    """How it is called: a release, or a commit as long as there is none."""
    is_release: bool

    def unpack_charts(self, folder: Path) -> Path:
        with tarfile.open(fileobj=io.BytesIO(_git("archive", self.revision, "charts"))) as archive:
            archive.extractall(folder, filter="data")
        return folder / "charts"


def earlier_version() -> Earlier | None:
    """The newest release, else the charts before their last change. None in a shallow clone."""
    if tags := _git("tag", "--list", "v*", "--sort=-version:refname").decode().split():
        return Earlier(tags[0], f"release {tags[0]}", is_release=True)
    changes = _git("log", "--format=%H", "-2", "--", "charts/pagoda").decode().split()
    if len(changes) < 2:
        return None
    return Earlier(changes[1], f"commit {changes[1][:9]}, as there is no release yet", is_release=False)


def _git(*words: str) -> bytes:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, check=False, timeout=60).stdout
