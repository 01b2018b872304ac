"""An API server over real HTTP: it keeps objects, lists and watches them, and breaks its promises when told to."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

MODELS, SLICES = "inferencemodels", "endpointslices"
Watch = tuple[str, asyncio.Queue[bytes | None]]


class ScriptedApi:
    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {MODELS: {}, SLICES: {}}
        self.version = 100
        self.url = ""
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.lists = {MODELS: 0, SLICES: 0}
        self.refuses_with: int | None = None
        self.answer: bytes | None = None
        """Instead of every list."""
        self.deaf = False
        """Events are lost."""
        self.watches: list[Watch] = []
        self.watched = asyncio.Event()
        """Set when a watch begins."""

    # ------------------------------------------------------------ the cluster changes

    def put(self, kind: str, item: dict[str, Any]) -> None:
        name = item["metadata"]["name"]
        event = "MODIFIED" if name in self.objects[kind] else "ADDED"
        self.objects[kind][name] = item
        self._tell(kind, event, item)

    def delete(self, kind: str, name: str) -> None:
        self._tell(kind, "DELETED", self.objects[kind].pop(name))

    def bookmark(self) -> None:
        for kind in self.objects:
            self._tell(kind, "BOOKMARK", {"metadata": {}})

    def expire_watches(self) -> None:
        """410: what they knew is too old."""
        for kind in self.objects:
            self._tell(kind, "ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"})

    def send_raw(self, line: bytes) -> None:
        for _, queue in self.watches:
            queue.put_nowait(line)

    def break_watches(self) -> None:
        """In the middle of a line, without the end of the chunked body."""
        for _, queue in self.watches:
            queue.put_nowait(b'{"type": "MODI')
            queue.put_nowait(None)

    def _tell(self, kind: str, event: str, item: dict[str, Any]) -> None:
        self.version += 1
        item["metadata"] = {**item.get("metadata", {}), "resourceVersion": str(self.version)}
        if not self.deaf:
            for watched, queue in self.watches:
                if watched == kind:
                    queue.put_nowait(json.dumps({"type": event, "object": item}).encode() + b"\n")

    # ------------------------------------------------------------ HTTP

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                target = urlsplit(head.split(" ", 2)[1])
                query = {name: values[0] for name, values in parse_qs(target.query).items()}
                self.requests.append((target.path, query))
                kind = target.path.rpartition("/")[2]
                if self.refuses_with is not None:
                    body = json.dumps({"kind": "Status", "message": "not for you"}).encode()
                    self._respond(writer, self.refuses_with, body)
                elif query.get("watch") == "true":
                    await self._watch(kind, query, reader, writer)
                    return
                else:
                    self.lists[kind] += 1
                    body = {"metadata": {"resourceVersion": str(self.version)}, "items": list(self.objects[kind].values())}
                    self._respond(writer, 200, self.answer if self.answer is not None else json.dumps(body).encode())
                await writer.drain()
        writer.close()

    def _respond(self, writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
        writer.write(f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)

    async def _watch(self, kind: str, query: dict[str, str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        watch = (kind, queue)
        self.watches.append(watch)
        self.watched.set()
        leaving = asyncio.create_task(reader.read())
        leaving.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
            async with asyncio.timeout(float(query["timeoutSeconds"])):
                while (line := await queue.get()) is not None:
                    writer.write(b"%x\r\n%s\r\n" % (len(line), line))
                    await writer.drain()
        except TimeoutError:
            writer.write(b"0\r\n\r\n")
        finally:
            leaving.cancel()
            self.watches.remove(watch)
            writer.close()


@asynccontextmanager
async def scripted_api() -> AsyncIterator[ScriptedApi]:
    api = ScriptedApi()
    connections: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            await api._serve(reader, writer)
        except asyncio.CancelledError:
            writer.close()
        finally:
            connections.discard(task)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    api.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield api
    finally:
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
