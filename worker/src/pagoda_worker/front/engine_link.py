"""One life of the engine process: start it, exchange messages, learn how it ended. Knows no clients.

Called by the supervisor, which decides what to do about it.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence

from pagoda_worker.channel import LENGTH, Cancelled, Down, Drafted, Start, Submitted, Up, decode_up, pack
from pagoda_worker.config import EngineConfig
from pagoda_worker.errors import EXIT_RANK_KILLED, EXIT_RANK_LOST
from pagoda_worker.front.engine_stderr import EngineStderr
from pagoda_worker.request import Request

ENGINE_COMMAND = (sys.executable, "-m", "pagoda_worker.engine_process")
PATIENT_THREADS = {"GOMP_SPINCOUNT": "100"}
"""torch's CPU threads meet at every operator. Spinning there while router, front and whoever else use the same cores made steps up to 40
times slower; so they soon sleep. Must be set before torch is imported; the user's own setting wins."""
EXIT_S = 3.0
"""An engine whose pair was closed has this long to leave before it is killed."""
STACKS_S = 0.5
"""For writing the stacks of a hung engine into the log."""

log = logging.getLogger(__name__)


class EngineLink:
    """Sends to and reads from one engine process. `open` starts it, `close` ends it whatever state it is in."""

    def __init__(self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert process.stderr is not None
        self._stderr = EngineStderr()
        self._listening = asyncio.create_task(self._stderr.pass_on(process.stderr), name="engine-stderr")
        self._process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, config: EngineConfig, command: Sequence[str] = ENGINE_COMMAND) -> "EngineLink":
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                "--fd",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env={**PATIENT_THREADS, **os.environ},
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        link = cls(process, reader, writer)
        link.send(Start(config))
        return link

    @property
    def pid(self) -> int:
        return self._process.pid

    def submit(self, request: Request) -> None:
        self.send(Submitted([request]))

    def cancel(self, request_id: str, sequence: int | None) -> None:
        self.send(Cancelled(request_id, sequence))

    def draft(self, request_id: str, sequence: int, position: int, token_ids: list[int]) -> None:
        self.send(Drafted(request_id, sequence, position, token_ids))

    async def messages(self) -> AsyncIterator[Up]:
        """Until the engine's end is closed, which is the engine's end."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
                yield decode_up(await self._reader.readexactly(length))

    async def kill(self, *, with_stacks: bool) -> None:
        """For an engine that does not answer. SIGUSR1 makes faulthandler write every thread's stack to stderr."""
        with contextlib.suppress(ProcessLookupError):
            if with_stacks:
                self._process.send_signal(signal.SIGUSR1)
                await asyncio.sleep(STACKS_S)
            self._process.kill()

    @property
    def last_line(self) -> str:
        """Of the engine's stderr; complete after `close`."""
        return self._stderr.last_line

    async def close(self) -> int:
        """The exit status; negative for a signal, as subprocess has it."""
        try:
            return await self._end()
        finally:
            await asyncio.wait([self._listening], timeout=STACKS_S)
            self._listening.cancel()

    async def _end(self) -> int:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
        try:
            return await asyncio.wait_for(self._process.wait(), EXIT_S)
        except TimeoutError:
            log.warning("engine process %d did not leave within %.0f s and is killed", self.pid, EXIT_S)
            await self.kill(with_stacks=False)
            return await self._process.wait()

    def send(self, message: Down) -> None:
        """Never waits: what is under way is bounded by the calls that sessions may hold."""
        if not self._writer.is_closing():
            self._writer.write(pack(message))


_LOST_RANKS = {EXIT_RANK_LOST: "a rank of the engine was lost", EXIT_RANK_KILLED: "a rank of the engine was ended by SIGKILL"}


def describe_exit(status: int) -> str:
    if status in _LOST_RANKS:
        return _LOST_RANKS[status]
    if status < 0:
        return f"the engine process was ended by {signal.Signals(-status).name}"
    return f"the engine process ended with status {status}"
