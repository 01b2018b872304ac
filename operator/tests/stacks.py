"""A local stack of stand-ins: the real command line, supervisor and executor run tests/stand_ins/ instead of router and worker."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from forked_commands import ForkedCommands

from pagoda_operator.local.home import Home
from pagoda_operator.local.ports import PortPool

STAND_INS = Path(__file__).parent / "stand_ins"
OPERATOR = Path(__file__).parents[1] / "src"
PAGODA = Path(sys.executable).parent / "pagoda"


free_port = PortPool().free


def stand_in_environment(home: Path) -> dict[str, str]:
    """PYTHONPATH comes before the installed distributions, in the supervisor's children too: the stand-ins, and the operator that is
    tested, which is another than the installed one in another checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PAGODA_", "XDG_", "PORT"))}
    return {**kept, "PAGODA_HOME": str(home), "PYTHONPATH": f"{STAND_INS}{os.pathsep}{OPERATOR}"}


def model_folder(folder: Path, **behaviour: Any) -> Path:
    """A folder that looks like a model; `behaviour` is what its stand-in worker does (see stand_ins/pagoda_worker)."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    behave(folder, **behaviour)
    return folder


def behave(folder: Path, **behaviour: Any) -> None:
    partial = folder / ".behaviour.json"
    partial.write_text(json.dumps(behaviour))
    partial.replace(folder / "behaviour.json")


def manifest(folder: Path, *, name: str = "m", **spec: Any) -> Path:
    """Beside the model folder, which it names by a relative path."""
    document = {
        "apiVersion": "pagoda.dev/v1alpha1",
        "kind": "InferenceModel",
        "metadata": {"name": name},
        "spec": {"model": {"source": f"file://./{folder.name}"}, **spec},
    }
    path = folder.parent / f"{name}.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@contextmanager
def started(command: list[str], environment: dict[str, str]) -> Iterator["subprocess.Popen[str]"]:
    """A process that does not outlive the block, whatever fails in it. It hears Ctrl-C even when the tests run in the background of a
    shell, which makes its children ignore it."""
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@dataclass
class Stack:
    home: Home
    commands: ForkedCommands
    port: int = field(default_factory=free_port)

    def pagoda(self, *arguments: str, expect: int = 0, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        done = self.commands.run(arguments, stand_in_environment(self.home.path) | environment, stdin)
        assert done.returncode == expect, f"{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def up(self, *arguments: str, expect: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.pagoda("up", "--port", str(self.port), "--timeout", "30", *arguments, expect=expect, **environment)


async def eventually(condition: Callable[[], Any], *, within_s: float = 20) -> Any:
    """The first true answer. Looks often: what is waited for is another process's doing, which nothing else tells of."""
    async with asyncio.timeout(within_s):
        while not (answer := condition()):
            await asyncio.sleep(0.01)
    return answer
