"""A foreign backend whose every answer the test writes: real HTTP on loopback, recorded exchanges behind it.

`recorded.py` has what vLLM, TGI and TensorRT-LLM answer. The test says what a path answers (`answers`), awaits what the router sent
(`next_request`), and that it hung up in the middle of an answer (`next_hang_up`).
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import msgspec

from pagoda_router.discovery.snapshot import Endpoint
from pagoda_router.generation import ModelName


@dataclass(frozen=True)
class Answer:
    """`parts` are written one after another; an event is waited for between them. Chunked, as streams are."""

    status: int = 200
    parts: Sequence[bytes | asyncio.Event] = ()
    type: str = "application/json"
    breaks: bool = False
    """The connection closes after the last part, in the middle of the answer."""


def stream(*parts: bytes | asyncio.Event, breaks: bool = False) -> Answer:
    return Answer(200, parts, "text/event-stream; charset=utf-8", breaks)


def json_answer(document: object, status: int = 200) -> Answer:
    return Answer(status, (document if isinstance(document, bytes) else msgspec.json.encode(document),))


@dataclass(frozen=True)
class Asked:
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


@dataclass
class ForeignServer:
    """`answers`: path → what it answers, each time the same."""

    backend: str
    answers: dict[str, Answer]
    name: str = "chat-default-0"
    variant: str = "default"
    model: str = "chat"
    port: int = 0
    asked: "asyncio.Queue[Asked]" = field(default_factory=asyncio.Queue)
    """What was posted; looks only get."""
    looks: int = 0
    _gone: "asyncio.Queue[str]" = field(default_factory=asyncio.Queue)
    _tasks: "set[asyncio.Task[None]]" = field(default_factory=set)
    _server: asyncio.Server | None = None
    _is_ending: bool = False

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(
            name=self.name,
            model=ModelName(self.model),
            variant=self.variant,
            template="t",
            host="127.0.0.1",
            port=self.port,
            backend=self.backend,
        )

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def stop_listening(self) -> None:
        """What runs goes on; no connection is taken, and none is kept for another request."""
        assert self._server is not None
        self._server.close()
        self._is_ending = True

    async def next_request(self) -> Asked:
        async with asyncio.timeout(10):
            return await self.asked.get()

    async def next_hang_up(self) -> str:
        """The path whose answer was being written when the router closed the connection."""
        async with asyncio.timeout(10):
            return await self._gone.get()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._exchange(reader, writer) and not self._is_ending:
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if method == "POST":
            self.asked.put_nowait(Asked(path, headers, body))
        else:
            self.looks += path == "/health"
        answer = self.answers.get(path, Answer(404, (b'{"detail":"Not Found"}',)))
        return await self._write(path, answer, reader, writer)

    async def _write(self, path: str, answer: Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(f"HTTP/1.1 {answer.status} X\r\ncontent-type: {answer.type}\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        left = asyncio.create_task(reader.read(1))
        try:
            for part in answer.parts:
                if isinstance(part, asyncio.Event):
                    waiting = asyncio.create_task(part.wait())
                    await asyncio.wait([waiting, left], return_when=asyncio.FIRST_COMPLETED)
                    waiting.cancel()
                    if left.done():
                        self._gone.put_nowait(path)
                        return False
                elif part:  # an empty chunk would end the answer
                    writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
                    await writer.drain()
            if answer.breaks:
                return False
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        finally:
            left.cancel()
            await asyncio.gather(left, return_exceptions=True)
        return True
