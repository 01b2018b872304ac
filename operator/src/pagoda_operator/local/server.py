"""The supervisor's unix socket: one JSON object a line in, one out. Knows the operations' names and fields, not what they do."""

import asyncio
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pagoda_operator.local.errors import LocalError, Refused
from pagoda_operator.local.supervisor import Supervisor

log = logging.getLogger(__name__)
LONGEST_LINE_BYTES = 16 * 2**20


class Server:
    def __init__(self, supervisor: Supervisor) -> None:
        self._operations: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "hello": lambda _: supervisor.hello(),
            "apply": lambda ask: supervisor.apply(ask["objects"], ask.get("choices"), ask.get("apiKey")),
            "delete": lambda ask: supervisor.delete(ask["name"]),
            "get": lambda _: supervisor.get(),
            "router": lambda _: supervisor.router(),
            "events": lambda ask: supervisor.events(ask.get("subjects")),
            "shutdown": lambda ask: supervisor.shutdown(forget=bool(ask.get("forget"))),
        }
        self._connections: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, path: Path) -> None:
        """Only the user who started the supervisor may connect."""
        make_way(path)
        before = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, path, limit=LONGEST_LINE_BYTES)
        finally:
            os.umask(before)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in list(self._connections):
                writer.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            while line := await reader.readline():
                writer.write(json.dumps(self.answer(line)).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError):
            pass  # the client went away, or sent a line beyond the limit: either way there is nobody to answer
        finally:
            self._connections.discard(writer)
            writer.close()

    def answer(self, line: bytes) -> dict[str, Any]:
        try:
            ask = json.loads(line)
            operation = self._operations.get(ask["op"])
            if operation is None:
                raise Refused(f"the supervisor knows no operation {ask['op']!r}; it knows {', '.join(self._operations)}")
            return {"ok": True, **operation(ask)}
        except LocalError as error:
            return {"ok": False, "error": str(error)}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.exception("a request could not be answered")
            return {"ok": False, "error": f"the supervisor could not read the request: {error!r}"}


def make_way(path: Path) -> None:
    """A private folder for the socket, without the socket of an earlier run."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    if path.parent.stat().st_uid != os.getuid():
        raise OSError(f"{path.parent} belongs to another user: set TMPDIR or a shorter PAGODA_HOME")
    path.unlink(missing_ok=True)
