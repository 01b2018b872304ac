"""Another commit of this repository in a temporary folder: for the gate's other side with an environment of its own, else its files alone.

Reads git; knows no figures. Called by `gate`, and by the router's benchmark.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pagoda_bench.errors import BenchError, SettingsError

CHECKOUT = Path(__file__).parents[4]
SETUP_TIMEOUT_S = 900


class BaselineUnusable(BenchError):
    """The earlier checkout cannot be built or started."""


@dataclass(frozen=True, slots=True)
class Baseline:
    commit: str
    why: str
    """Which rule chose it, for the report's first line."""


def choose(*, given: str | None, last_tag: str | None, dirty: bool, head: str, merge_base: str | None, parent: str | None) -> Baseline:
    """Given, else the last release (tag), else the last thing that differs from the working tree: HEAD when there are changes,
    where the branch left main, or HEAD's first parent. Raises SettingsError when there is nothing to compare with."""
    if given:
        return Baseline(given, "asked for")
    if last_tag:
        return Baseline(last_tag, "the last release")
    if merge_base and merge_base != head:
        return Baseline(merge_base, "no release is tagged: where this branch left main")
    if dirty:
        return Baseline(head, "no release is tagged: the commit below the changes in the working tree")
    if parent:
        return Baseline(parent, "no release is tagged: the parent of this commit")
    raise SettingsError("there is no earlier commit to compare with: name one with --against")


def baseline(given: str | None) -> Baseline:
    """Raises SettingsError when the given ref is none."""
    if given:
        commit_of(given, "--against")
    return choose(
        given=given,
        last_tag=_git("describe", "--tags", "--abbrev=0"),
        dirty=bool(_git("status", "--porcelain", "--untracked-files=no")),
        head=_git("rev-parse", "HEAD") or "",
        merge_base=_git("merge-base", "HEAD", "main"),
        parent=_git("rev-parse", "--verify", "--quiet", "HEAD^"),
    )


def commit_of(given: str, option: str) -> str:
    """Its whole name. Raises SettingsError, which names the option, when there is none."""
    found = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{given}^{{commit}}")
    if found is None:
        raise SettingsError(f"{option} {given}: no such commit here")
    return found


@contextmanager
def files_of(commit: str, folder: Path) -> Iterator[Path]:
    """A worktree of that commit, removed at the end. Raises BaselineUnusable."""
    if _git("worktree", "add", "--detach", "--force", str(folder), commit) is None:
        raise BaselineUnusable(f"git cannot check {commit} out into {folder}")
    try:
        yield folder
    finally:
        _git("worktree", "remove", "--force", str(folder))


@contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """The `pagoda` command of that commit, set up by its own `make setup`; the worktree is removed at the end. Raises BaselineUnusable."""
    with files_of(commit, folder):
        env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "VIRTUAL_ENV"))}
        done = subprocess.run(["make", "setup"], cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=SETUP_TIMEOUT_S)
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
            raise BaselineUnusable(f"make setup of {commit} failed: {said[-1]}")
        yield folder / ".venv" / "bin" / "pagoda"


def _git(*arguments: str) -> str | None:
    """None when git says no."""
    done = subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
