"""The product on this machine, started the way a user starts it (`pagoda up`), in a state folder of its own. For benchmarks and tests."""

import errno
import os
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pagoda_bench.lifeline import Lifeline, Mark

OURS = (10_240, 32_768)
"""Ports, from and below; browsers refuse some that are lower."""


@dataclass(frozen=True)
class LocalStack:
    home: Path
    """PAGODA_HOME: state, logs, fleet.json."""
    port: int
    """The router's, on loopback."""
    extra_env: Mapping[str, str]
    program: Path = Path(sys.executable).parent / "pagoda"
    """The `pagoda` command; a benchmark that compares two checkouts names the other one's."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def pagoda(self, *arguments: str, timeout_s: float = 300, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs one `pagoda` command against this stack. Raises RuntimeError with what it printed when it fails and `check`."""
        command = [str(self.program), *arguments]
        env = {**os.environ, "PAGODA_HOME": str(self.home), "PORT": str(self.port), **self.extra_env}
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=timeout_s, check=False)
        if check and done.returncode != 0:
            raise RuntimeError(f"pagoda {' '.join(arguments)} failed with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done


def free_port(address: str = "127.0.0.1") -> int:
    """Below those that the kernel gives to connections and to servers that ask it for one: none has it before ours listens."""
    while True:
        port = random.randrange(*OURS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return port


@contextmanager
def local_stack(
    manifest: Path, *, extra_env: Mapping[str, str] | None = None, timeout_s: float = 300, program: Path | None = None
) -> Iterator[LocalStack]:
    """Up before, down after, whatever happened between, even to this process; the state folder (with the logs) is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="pagoda-") as folder:
        stack = LocalStack(home=Path(folder), port=free_port(), extra_env=extra_env or {}, program=program or LocalStack.program)
        lifeline = Lifeline(Mark("PAGODA_HOME", folder), folder=stack.home)
        try:
            stack.pagoda("up", "--port", str(stack.port), str(manifest), timeout_s=timeout_s)
            yield stack
        finally:
            try:
                stack.pagoda("down", timeout_s=120)
            finally:
                lifeline.close()
