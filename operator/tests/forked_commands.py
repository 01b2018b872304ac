"""The `pagoda` command without the start of Python: a process that has imported all of it forks for each command, which so has a process of
its own, with its own environment, input, output and exit status. A start takes a third of a second of CPU, and tests run a hundred.
"""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

TIMEOUT_S = 60.0

PROGRAM = """
import json, os, sys, traceback
from pagoda_operator import commands
from pagoda_operator.cli import main

def run(arguments, environment, files):
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["pagoda", *arguments]
    for number, path in enumerate(files):
        os.dup2(os.open(path, os.O_RDWR), number)
    try:
        main()
    except SystemExit as end:
        return end.code
    except BaseException:
        traceback.print_exc()
    return 1

asked, told = open(int(sys.argv[1])), open(int(sys.argv[2]), "w")
for line in asked:
    if (child := os.fork()) == 0:
        status = run(*json.loads(line))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(child, file=told, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=told, flush=True)
"""


class ForkedCommands:
    """Owns the process that forks. One command at a time."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """`environment` is that of the imports; each command brings its own."""
        theirs, ours = os.pipe(), os.pipe()
        command = [sys.executable, "-c", PROGRAM, str(theirs[0]), str(ours[1])]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(command, env=dict(environment), stdin=quiet, stdout=quiet, pass_fds=(theirs[0], ours[1]))
        os.close(theirs[0])
        os.close(ours[1])
        self._ask: IO[bytes] = os.fdopen(theirs[1], "wb", buffering=0)
        self._told: IO[bytes] = os.fdopen(ours[0], "rb", buffering=0)

    def run(self, arguments: Sequence[str], environment: Mapping[str, str], stdin: str | None) -> "subprocess.CompletedProcess[str]":
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / name for name in ("stdin", "stdout", "stderr")]
            for file, text in zip(files, (stdin or "", "", ""), strict=True):
                file.write_text(text)
            self._ask.write(f"{json.dumps([arguments, dict(environment), [str(file) for file in files]])}\n".encode())
            child = int(self._told.readline())
            if not select.select([self._told], [], [], TIMEOUT_S)[0]:
                os.kill(child, signal.SIGKILL)
            status = int(self._told.readline())
            stdout, stderr = (file.read_text() for file in files[1:])
        return subprocess.CompletedProcess(["pagoda", *arguments], status, stdout, stderr)

    def close(self) -> None:
        self._ask.close()
        self._process.wait(timeout=30)
        self._told.close()
