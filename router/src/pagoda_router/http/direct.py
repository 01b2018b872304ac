"""What our uvicorn's connections can do beyond ASGI: read and write without waiting where they need not, and tell that the client left.

In ASGI each piece is a coroutine's turn, and a task of its own has to wait for the disconnect; together that costs more than all writing.
Exchange (asgi.py) looks for this in the scope's extensions, and goes ASGI's way where it is not. Knows nothing of what is written.
"""

from collections.abc import Callable, Sequence
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from pagoda_router.http.cohort import Cohort, Member

EXTENSION = "pagoda.direct"
Headers = Sequence[tuple[bytes, bytes]]


class DirectResponse:
    """One request's answer, on the connection that it came by."""

    __slots__ = ("_cycle", "is_gone", "member", "on_gone")

    def __init__(self, cycle: RequestResponseCycle, member: Member) -> None:
        self.member = member
        self.is_gone = False
        """The connection is lost."""
        self.on_gone: Callable[[], None] | None = None
        """Called once when it is, on the event loop."""
        self._cycle = cycle

    @property
    def takes_more(self) -> bool:
        """The next piece need not wait: headers have left, and the client reads what it is sent."""
        cycle = self._cycle
        return bool(cycle.chunked_encoding) and not (cycle.flow.write_paused or cycle.response_complete or self.is_gone)

    def whole_body(self) -> bytes | None:
        """Of the request; None: not all of it is here, and `receive` waits for the rest."""
        cycle = self._cycle
        if cycle.more_body or self.is_gone:
            return None
        cycle.message_event.clear()
        cycle.flow.resume_reading()
        body, cycle.body = bytes(cycle.body), bytearray()  # the connection keeps its last cycle
        return body

    # Headers are our own words. Where one of these says False nothing was written, and `send` has to wait.

    def answer(self, status: int, headers: Headers, body: bytes) -> bool:
        """A whole answer; its length is among the headers."""
        if not self._may_start():
            return False
        self._cycle.transport.write(self._head(status, headers) + b"\r\n" + body)
        self._complete()
        return True

    def start(self, status: int, headers: Headers) -> bool:
        """One of pieces."""
        if not self._may_start():
            return False
        self._cycle.chunked_encoding = True
        self._cycle.transport.write(self._head(status, headers) + b"transfer-encoding: chunked\r\n\r\n")
        return True

    def write(self, piece: bytes) -> None:
        """Only while it takes more. An empty piece would end the answer, so none is written."""
        if piece:
            self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))

    def finish(self, piece: bytes) -> None:
        """The last one, which may not be empty. Only while it takes more."""
        self._cycle.transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(piece), piece))
        self._complete()

    def _may_start(self) -> bool:
        return not (self._cycle.response_started or self._cycle.flow.write_paused or self.is_gone)

    def _head(self, status: int, headers: Headers) -> bytes:
        cycle = self._cycle
        cycle.response_started, cycle.waiting_for_100_continue = True, False
        lines = [STATUS_LINE[status], *[b"%b: %b\r\n" % header for header in headers]]
        return b"".join(lines if cycle.keep_alive else [*lines, b"connection: close\r\n"])

    def _complete(self) -> None:
        cycle = self._cycle
        cycle.response_complete = True
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()

    def lost(self) -> None:
        self.is_gone = True
        self.member.leave()
        if self.on_gone is not None:
            self.on_gone()


class DirectProtocol(HttpToolsProtocol):
    """uvicorn's own. Of pipelined requests the one that is being answered is told."""

    cohort: Cohort
    _direct: DirectResponse | None = None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._direct = DirectResponse(cycle, Member(self.cohort))
        cycle.scope["extensions"] = {EXTENSION: self._direct}  # type: ignore[dict-item]
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        if self._direct is not None:
            self._direct.member.leave()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._direct is not None:
            self._direct.lost()


def protocol_of(cohort: Cohort) -> type[DirectProtocol]:
    """For uvicorn's `http` setting, which takes a class. cohort: of the listener's requests."""
    return type("ListenersProtocol", (DirectProtocol,), {"cohort": cohort})
