"""HTTP/2 (RFC 9113) as far as one gRPC call on a connection of its own needs it: bytes in, messages out, and bytes to be written. Pure.

grpc.aio takes some 30 µs for each message each way, two threads and a turn of the event loop beside the work, a third of what a token costs
a router (docs/decisions/own-session-transport.md). This reads all that came with one read and writes all that waits with one write.
session_call.py owns the socket and calls it.
"""

from collections import deque
from typing import Any, NamedTuple
from urllib.parse import unquote

import hpack

DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 5, 6, 7, 8, 9
END_STREAM = ACK = 0x1
END_HEADERS, PADDED, PRIORITY = 0x4, 0x8, 0x20
STREAM = 1
"""The only one, and the first that a client may open."""
INITIAL_WINDOW_BYTES, LARGEST_WINDOW_BYTES = 65_535, 2**31 - 1
OUR_WINDOW_BYTES = 2**26
"""What the worker may send ahead: all is handled as it is read, so this bounds no queue, it only must not stop a large message."""
ACKNOWLEDGED_BYTES = 2**20
"""After so many the window is filled up again."""
OUR_FRAME_BYTES = LEAST_FRAME_BYTES = 2**14
LARGEST_FRAME_BYTES = 2**24 - 1
MOST_HEADER_BYTES = 2**16
LONGEST_HEADER = 126
"""Of those that we send: one byte tells the length."""
STATUS_NAMES = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED"),
    *("RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"),
    "UNAUTHENTICATED",
)
"""gRPC's, by number."""
CANCELLED, UNKNOWN, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 1, 2, 12, 13, 14
_OF_CONNECTION = frozenset((SETTINGS, PING, GOAWAY))
_SIZES = {RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
"""Of frames of one size only."""
_RESET_STATUS = {7: UNAVAILABLE, 8: CANCELLED}
"""RST_STREAM's REFUSED_STREAM and CANCEL; all others are INTERNAL (gRPC over HTTP2, "HTTP2 Transport Mapping")."""


class Http2Error(Exception):
    """The other side does not speak HTTP/2, or not gRPC in it."""


class CallEnd(NamedTuple):
    status: int
    message: str

    @property
    def sentence(self) -> str:
        name = STATUS_NAMES[self.status] if self.status < len(STATUS_NAMES) else f"status {self.status}"
        return self.message or name if self.status == UNAVAILABLE else f"{name}: {self.message}"


class Http2Call:
    def __init__(self, path: str, authority: str, *, most_message_bytes: int) -> None:
        self.end: CallEnd | None = None
        """The call is over; nothing that is received later counts."""
        self._most_message_bytes = most_message_bytes
        self._out: list[bytes | memoryview] = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
        """Joined once, when it leaves: a prompt's ids are half a megabyte."""
        self._in = bytearray()
        self._body = bytearray()
        """Of a message that has not come whole, and…"""
        self._body_needs_bytes = 5
        """…how much of it must be there before it is looked at again: a large one is not copied with each of its frames."""
        self._headers: Any = hpack.Decoder(max_header_list_size=MOST_HEADER_BYTES)  # gives text, though its annotations say bytes
        self._block: bytearray | None = None
        """Of headers that have not come whole, and…"""
        self._block_ends_stream = False
        self._is_answered = False
        self._unacknowledged_bytes = 0
        self._frame_bytes = LEAST_FRAME_BYTES
        self._stream_window = self._window = INITIAL_WINDOW_BYTES
        """What we may still send; the stream's may be negative for a while."""
        self._stream_window_at_first = INITIAL_WINDOW_BYTES
        self._waiting: deque[memoryview] = deque()
        """For a window."""
        settings = ((2, 0), (4, OUR_WINDOW_BYTES))  # no push; the stream's window
        self._frame(SETTINGS, 0, 0, b"".join(name.to_bytes(2) + value.to_bytes(4) for name, value in settings))
        self._frame(WINDOW_UPDATE, 0, 0, (OUR_WINDOW_BYTES - INITIAL_WINDOW_BYTES).to_bytes(4))
        self._frame(HEADERS, END_HEADERS, STREAM, _request_headers(path, authority))

    # ------------------------------------------------------------ what we send

    def to_write(self) -> bytes:
        """All that has to go out now."""
        if not self._out:
            return b""
        out, self._out = self._out, []
        return b"".join(out)

    def send(self, message: bytes) -> None:
        head = b"\0" + len(message).to_bytes(4)
        if not self._waiting and len(head) + len(message) <= min(self._frame_bytes, self._window, self._stream_window):
            self._data(head + message)
            return
        self._waiting += (memoryview(head), memoryview(message))
        self._send_waiting()

    def _send_waiting(self) -> None:
        while self._waiting and (room := min(self._frame_bytes, self._window, self._stream_window)) > 0:
            first = self._waiting.popleft()
            self._data(first[:room])
            if len(first) > room:
                self._waiting.appendleft(first[room:])

    def _data(self, piece: bytes | memoryview) -> None:
        self._window -= len(piece)
        self._stream_window -= len(piece)
        self._frame(DATA, 0, STREAM, piece)

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes | memoryview) -> None:
        self._out += (len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4), payload)

    # ------------------------------------------------------------ what we receive

    def receive(self, data: bytes) -> list[bytes]:
        """Messages that are whole now, in order. Raises Http2Error; what came before it in the same data is lost."""
        messages: list[bytes] = []
        held = self._in
        if held:
            held += data
            data = bytes(held)
            held.clear()
        start, length = 0, len(data)
        while length - start >= 9 and self.end is None:
            size = int.from_bytes(data[start : start + 3])
            if size > OUR_FRAME_BYTES:
                raise Http2Error(f"a frame of {size} bytes came where {OUR_FRAME_BYTES} are allowed")
            stop = start + 9 + size
            if stop > length:
                break
            kind, flags = data[start + 3], data[start + 4]
            stream = int.from_bytes(data[start + 5 : start + 9]) & LARGEST_WINDOW_BYTES
            if kind == DATA:
                self._received(data[start + 9 : stop], flags, stream, messages)
            else:
                self._control(kind, flags, stream, data[start + 9 : stop])
            start = stop
        if start < length and self.end is None:
            held += data[start:]
        return messages

    def _received(self, payload: bytes, flags: int, stream: int, messages: list[bytes]) -> None:
        if stream != STREAM or self._block is not None or not self._is_answered:
            raise Http2Error("data came where none belongs")
        self._unacknowledged_bytes += len(payload)
        if self._unacknowledged_bytes >= ACKNOWLEDGED_BYTES:
            update = self._unacknowledged_bytes.to_bytes(4)
            self._frame(WINDOW_UPDATE, 0, 0, update)
            self._frame(WINDOW_UPDATE, 0, STREAM, update)
            self._unacknowledged_bytes = 0
        if flags & PADDED:
            payload = _unpadded(payload)
        if self._body:
            self._body += payload
            payload = bytes(self._body) if len(self._body) >= self._body_needs_bytes else b""
            if payload:
                self._body.clear()
        start, needs_bytes = 0, 5
        while len(payload) - start >= 5:
            size = int.from_bytes(payload[start + 1 : start + 5])
            if payload[start] or size > self._most_message_bytes:
                raise Http2Error("a message is compressed" if payload[start] else f"a message of {size} bytes came")
            if len(payload) - start - 5 < size:
                needs_bytes = 5 + size
                break
            messages.append(payload[start + 5 : start + 5 + size])
            start += 5 + size
        if start < len(payload):
            self._body += payload[start:]
            self._body_needs_bytes = needs_bytes
        if flags & END_STREAM:
            self.end = CallEnd(UNKNOWN, "the stream ended without a status")

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if self._block is not None and kind != CONTINUATION:
            raise Http2Error("headers broke off")
        if (kind in _OF_CONNECTION and stream != 0) or len(payload) != _SIZES.get(kind, len(payload)):
            raise Http2Error(f"a frame of kind {kind} is malformed")
        if kind in (HEADERS, CONTINUATION):
            self._header_block(kind, flags, stream, payload)
        elif kind == SETTINGS and not flags & ACK:
            self._settings(payload)
            # First told, then used: gRPC's servers hold us to the old bounds until they have read this.
            self._frame(SETTINGS, ACK, 0, b"")
            self._send_waiting()
        elif kind == PING and not flags & ACK:
            self._frame(PING, ACK, 0, payload)
        elif kind == WINDOW_UPDATE:
            self._widened(stream, int.from_bytes(payload) & LARGEST_WINDOW_BYTES)
        elif kind == RST_STREAM and stream == STREAM:
            code = int.from_bytes(payload)
            self.end = CallEnd(_RESET_STATUS.get(code, INTERNAL), f"the stream was reset (code {code})")
        elif kind == GOAWAY and len(payload) >= 8:
            # One that is to end later lets the stream go on; one that never took it says so.
            if int.from_bytes(payload[:4]) & LARGEST_WINDOW_BYTES < STREAM:
                self.end = CallEnd(UNAVAILABLE, payload[8:].decode(errors="replace") or "the server takes no calls")
        elif kind == PUSH_PROMISE:
            raise Http2Error("it pushed, which was not allowed")

    def _settings(self, payload: bytes) -> None:
        if len(payload) % 6:
            raise Http2Error("settings are cut off")
        for at in range(0, len(payload), 6):
            name, value = int.from_bytes(payload[at : at + 2]), int.from_bytes(payload[at + 2 : at + 6])
            if name == 4:  # of the stream's window, in retrospect
                if value > LARGEST_WINDOW_BYTES:
                    raise Http2Error("the window is too large")
                self._stream_window += value - self._stream_window_at_first
                self._stream_window_at_first = value
            elif name == 5:
                if not LEAST_FRAME_BYTES <= value <= LARGEST_FRAME_BYTES:
                    raise Http2Error(f"frames of {value} bytes are none")
                self._frame_bytes = value

    def _widened(self, stream: int, by_bytes: int) -> None:
        if stream == 0:
            self._window += by_bytes
        elif stream == STREAM:
            self._stream_window += by_bytes
        if not by_bytes or max(self._window, self._stream_window) > LARGEST_WINDOW_BYTES:
            raise Http2Error("a window grew by nothing, or beyond its bound")
        self._send_waiting()

    # ------------------------------------------------------------ headers

    def _header_block(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if stream != STREAM or (kind == CONTINUATION) != (self._block is not None):
            raise Http2Error("headers came where none belong")
        if kind == HEADERS:
            payload = _unpadded(payload) if flags & PADDED else payload
            payload = payload[5:] if flags & PRIORITY else payload
            self._block, self._block_ends_stream = bytearray(), bool(flags & END_STREAM)
        assert self._block is not None
        self._block += payload
        if len(self._block) > MOST_HEADER_BYTES:
            raise Http2Error("its headers are too large")
        if flags & END_HEADERS:
            block, self._block = bytes(self._block), None
            self._told(block)

    def _told(self, block: bytes) -> None:
        try:
            told: dict[str, str] = dict(self._headers.decode(block))
        except (hpack.HPACKError, UnicodeDecodeError) as error:
            raise Http2Error(f"its headers cannot be read: {error}") from error
        if not self._is_answered and told.get(":status", "").startswith("1") and not self._block_ends_stream:
            return  # an interim answer; the real one follows
        if self._is_answered and not self._block_ends_stream:
            raise Http2Error("it answered twice")
        if not self._is_answered and told.get(":status") != "200":
            raise Http2Error(f"it answered with HTTP status {told.get(':status', 'none')[:10]}")
        self._is_answered = True
        if self._block_ends_stream:
            status = told.get("grpc-status", "")
            code = int(status) if status.isascii() and status.isdigit() and len(status) < 4 else UNKNOWN
            self.end = CallEnd(code, unquote(told.get("grpc-message", "")))


def _unpadded(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise Http2Error("padding is longer than its frame")
    return payload[1 : len(payload) - payload[0]]


def _request_headers(path: str, authority: str) -> bytes:
    """Each as it is, neither indexed nor compressed: once for a session (RFC 7541, 6.2.2)."""
    headers = (
        (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", authority), ("te", "trailers"),
        ("content-type", "application/grpc"), ("user-agent", "pagoda-router"),
    )  # fmt: skip
    return b"".join(b"\0" + _short(name) + _short(value) for name, value in headers)


def _short(text: str) -> bytes:
    """Raises ValueError for what is longer than one byte of length can tell."""
    raw = text.encode("ascii")
    if len(raw) > LONGEST_HEADER:
        raise ValueError(f"{text[:40]}… is too long for a header here")
    return bytes((len(raw),)) + raw
