"""Passes the engine's stderr on to the front's own and remembers its last line: what a crash said before it happened.

Through a pipe, since what matters most (CUDA, the C++ runtime, faulthandler) writes to the file descriptor, past any logging.
"""

import asyncio
import json
import os
import re
from collections.abc import Callable

MAX_LINE = 300
_CHUNK_BYTES = 64 * 1024
_LOGGED = re.compile(r'\bmsg=(?P<msg>"(?:[^"\\]|\\.)*")(?: trace=(?P<trace>"(?:[^"\\]|\\.)*"))?')


def _write_to_stderr(data: bytes) -> None:
    os.write(2, data)


class EngineStderr:
    """`last_line` is empty until the engine has said something."""

    def __init__(self, write: Callable[[bytes], None] = _write_to_stderr) -> None:
        self._write = write
        self._rest = b""
        self.last_line = ""

    async def pass_on(self, stream: asyncio.StreamReader) -> None:
        """Until the engine's end is closed."""
        while data := await stream.read(_CHUNK_BYTES):
            self._write(data)
            *lines, rest = (self._rest + data).split(b"\n")
            self._rest = rest[-_CHUNK_BYTES:]
            for line in reversed(lines):
                if text := said(line.decode("utf-8", "replace")):
                    self.last_line = text
                    break


def said(line: str) -> str:
    """The gist of one line: of our own log lines the message, or the error under a trace; of others the line."""
    text = line.strip()
    if logged := _LOGGED.search(text):
        try:
            trace = json.loads(logged["trace"]).rstrip() if logged["trace"] else ""
            text = json.loads(logged["msg"])
        except ValueError:  # it only looked like one of ours
            trace = ""
        text = f"{text}: {trace.splitlines()[-1]}" if trace else text
    return text if len(text) <= MAX_LINE else f"{text[:MAX_LINE]}…"
