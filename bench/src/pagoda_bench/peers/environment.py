"""A virtual environment per peer, outside the tree: made from bench/peers/<name>/, used again while the recipe stays the same.

A recipe is `requirements.txt`, and where it needs them `overrides.txt` (uv's --override) and `finish.py`, run last by the environment's own
Python. Nothing is ever installed into the interpreter that runs this.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from pagoda_bench.peers.system import PeerUnavailable

RECIPES = Path(__file__).parents[3] / "peers"
"""bench/peers of this checkout."""
INSTALL_TIMEOUT_S = 1800


def environments() -> Path:
    """PAGODA_PEERS_HOME, or a folder in the user's cache: it survives the checkout."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("PAGODA_PEERS_HOME") or cache / "pagoda" / "peers")


def interpreter(name: str) -> Path:
    """The Python of this peer's environment, installed first when it is missing or its recipe changed.

    Raises PeerUnavailable with the installer's last line.
    """
    recipe = RECIPES / name
    folder = environments() / name
    python, stamp = folder / "bin" / "python", folder / "recipe.sha256"
    digest = recipe_digest(recipe)
    if python.exists() and stamp.exists() and stamp.read_text() == digest:
        return python
    print(f"installing {name} into {folder} (its recipe: bench/peers/{name})", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "venv", "--without-pip", str(folder)], name)
    install = [str(Path(sys.executable).parent / "uv"), "pip", "install", "--quiet", "--python", str(python)]
    install += ["--requirement", str(recipe / "requirements.txt")]
    if (recipe / "overrides.txt").exists():
        install += ["--override", str(recipe / "overrides.txt")]
    _run(install, name)
    if (recipe / "finish.py").exists():
        _run([str(python), str(recipe / "finish.py")], name)
    stamp.write_text(digest)
    return python


def recipe_digest(recipe: Path) -> str:
    """Over the files that decide what is installed; a README may change freely. Raises PeerUnavailable when there is no such recipe."""
    if not (recipe / "requirements.txt").exists():
        raise PeerUnavailable(f"bench/peers/{recipe.name}/requirements.txt is missing")
    digest = hashlib.sha256(sys.version.encode())
    for file in ("requirements.txt", "overrides.txt", "finish.py"):
        if (recipe / file).exists():
            digest.update(file.encode() + (recipe / file).read_bytes())
    return digest.hexdigest()


def versions(python: Path, distributions: tuple[str, ...]) -> dict[str, str]:
    """Of these distributions in that environment; `absent` where there is none."""
    script = (
        "import importlib.metadata as m, json, sys\n"
        "have = {d.name.lower(): d.version for d in m.distributions()}\n"
        "print(json.dumps({n: have.get(n, 'absent') for n in sys.argv[1:]}))"
    )
    done = subprocess.run([str(python), "-c", script, *distributions], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _run(command: list[str], name: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerUnavailable(f"installing {name} failed: {error}") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        raise PeerUnavailable(f"installing {name} failed: {said[-1].strip()}")
