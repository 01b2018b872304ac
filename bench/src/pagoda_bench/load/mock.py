"""An OpenAI-compatible server with known latencies, to hold a load generator against: `python -m pagoda_bench.load.mock --ttft-ms 200`.

It computes nothing: the first token leaves TTFT after the request came, each other one ITL after the one before. What it really sent, and
when, is at GET /truth, on the clock (CLOCK_MONOTONIC) that all processes of a machine share; so a busy machine makes it late but not wrong.
"""

import argparse
import asyncio
import json
import signal
import socket
import time
from dataclasses import dataclass, field

import httptools
import uvloop

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Latencies:
    ttft_s: float
    itl_s: float
    tokens_per_chunk: int = 1


@dataclass(slots=True)
class Sent:
    """One answer's truth."""

    received_s: float
    chunks_s: list[float] = field(default_factory=list)


class _Answering(asyncio.Protocol):
    def __init__(self, latencies: Latencies, truth: dict[str, Sent], refuse: frozenset[str]) -> None:
        self._latencies = latencies
        self._truth = truth
        self._refuse = refuse
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._received_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._received_s = time.monotonic()
        self._parser.feed_data(data)

    # ------------------------------------------------------------ httptools

    def on_message_begin(self) -> None:
        self._path, self._body, self._id = b"", bytearray(), ""

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-request-id":
            self._id = value.decode()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        path = self._path.decode()
        if path == "/v1/models":
            self._whole(200, {"object": "list", "data": [{"id": "mock", "object": "model", "owned_by": "mock"}]})
        elif path == "/truth":
            self._whole(200, {name: [sent.received_s, *sent.chunks_s] for name, sent in self._truth.items()})
        elif path in ("/v1/completions", "/v1/chat/completions"):
            self._generate(json.loads(self._body), is_chat="chat" in path)
        else:
            self._whole(404, {"error": {"message": f"no {path} here"}})

    # ------------------------------------------------------------ answers

    def _whole(self, status: int, content: object) -> None:
        assert self._transport is not None
        body = json.dumps(content).encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)

    def _generate(self, request: dict[str, object], *, is_chat: bool) -> None:
        if refused := sorted(self._refuse & set(request)):
            self._whole(400, {"error": {"message": f"unknown field {refused[0]}"}})
            return
        prompt = request.get("prompt") or " ".join(m["content"] for m in request.get("messages", []))  # type: ignore[attr-defined]
        prompt_tokens = len(prompt.split() if isinstance(prompt, str) else prompt)  # type: ignore[arg-type]
        total = int(request["max_tokens"])  # type: ignore[call-overload]
        sent = self._truth[self._id] = Sent(self._received_s)
        begin = _HEAD + (_chunk(b'{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}') if is_chat else b"")
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": total, "total_tokens": prompt_tokens + total}
        per_chunk, latencies = self._latencies.tokens_per_chunk, self._latencies

        def send(done: int, due_s: float) -> None:
            assert self._transport is not None
            count = min(per_chunk, total - done)
            end = b"" if done + count < total else b'"length"'
            text = b" ok" * count
            content = b'"delta":{"content":"%b"}' % text if is_chat else b'"text":"%b"' % text
            chunk = _chunk(b'{"choices":[{"index":0,%b,"finish_reason":%b}]}' % (content, end or b"null"))
            if end:
                closing = json.dumps({"choices": [], "usage": usage}).encode()
                chunk += (_chunk(closing) if "stream_options" in request else b"") + _chunk(b"[DONE]") + b"0\r\n\r\n"
            # stamped before it is written: an arrival can then never precede its truth
            sent.chunks_s.append(time.monotonic())
            self._transport.write(chunk)
            if not end:
                due_s += latencies.itl_s
                self._timer = self._loop.call_at(due_s, send, done + count, due_s)

        if self._transport is not None:
            # headers leave at once: a client that takes them, or the role, for the first token measures a TTFT near 0
            self._transport.write(begin)
        first_s = self._loop.time() + latencies.ttft_s
        self._timer = self._loop.call_at(first_s, send, 0, first_s)


def _chunk(data: bytes) -> bytes:
    event = b"data: " + data + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event)


async def serve(listening: socket.socket, latencies: Latencies, refuse: frozenset[str] = frozenset()) -> None:
    """Until SIGTERM."""
    truth: dict[str, Sent] = {}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Answering(latencies, truth, refuse), sock=listening)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    await ended.wait()
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ttft-ms", type=float, default=200.0)
    parser.add_argument("--itl-ms", type=float, default=50.0)
    parser.add_argument("--tokens-per-chunk", type=int, default=1)
    parser.add_argument("--refuse", action="append", default=[], help="answer 400 to requests with this field")
    args = parser.parse_args()
    listening = socket.create_server(("127.0.0.1", args.port), backlog=4096)
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    uvloop.run(serve(listening, Latencies(args.ttft_ms / 1e3, args.itl_ms / 1e3, args.tokens_per_chunk), frozenset(args.refuse)))


if __name__ == "__main__":
    main()
