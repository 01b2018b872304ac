"""`build`: compiles the programs from Go modules pinned in ops/devcluster/go and here; 25 minutes on two cores, once, into a cache."""

import os
import shutil
import subprocess
from pathlib import Path

from devcluster import programs
from devcluster.errors import DevclusterError, Missing

KUBERNETES = "v1.34.4"
MODULES = {
    "helm": "helm.sh/helm/v3/cmd/helm@v3.19.5",
    "kwok": "sigs.k8s.io/kwok/cmd/kwok@v0.8.0",
    "coredns": "github.com/coredns/coredns@v1.12.4",
}
_SOURCE = Path(__file__).resolve().parent.parent / "go"


def run(wanted: list[str]) -> None:
    """`wanted`: of hyperkube, helm, kwok, coredns; empty: what the folder lacks of all four."""
    if shutil.which("go") is None:
        raise Missing("building needs Go 1.26 or newer in PATH (or set PAGODA_KUBE_BIN to a folder with the programs)")
    folder = programs.built_folder()
    folder.mkdir(parents=True, exist_ok=True)
    for name in wanted or [name for name in ("hyperkube", *MODULES) if not (folder / name).exists()]:
        print(f"devcluster: building {name} (minutes)", flush=True)
        if name == "hyperkube":
            _build_hyperkube(folder)
        else:
            _go(["install", "-trimpath", "-ldflags=-s -w", MODULES[name]], GOBIN=str(folder))
    print(f"devcluster: the programs are in {folder}")


def _build_hyperkube(folder: Path) -> None:
    major, minor = KUBERNETES.removeprefix("v").split(".")[:2]
    values = {"gitVersion": KUBERNETES, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    stamps = " ".join(f"-X k8s.io/component-base/version.{name}={value}" for name, value in values.items())
    _go(["build", "-trimpath", f"-ldflags=-s -w {stamps}", "-o", str(folder / "hyperkube"), "."], cwd=_SOURCE)
    for name in programs.HYPERKUBE:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("hyperkube")


def _go(arguments: list[str], cwd: Path | None = None, **environment: str) -> None:
    # Static programs: CoreDNS then runs in an image of its own without a C library.
    done = subprocess.run(["go", *arguments], cwd=cwd, env=os.environ | {"CGO_ENABLED": "0"} | environment, check=False)
    if done.returncode != 0:
        raise DevclusterError(f"go {arguments[0]} failed with status {done.returncode}: its own message is above")
