"""Splits a byte stream of server-sent events into their data, wherever the network cut it. Pure; called by reading.py."""


class EventSplitter:
    """One per answer. Lines end with LF, CRLF or CR; comments and fields other than `data` are dropped, as the HTML standard says."""

    __slots__ = ("_data", "_rest", "_skip_lf")

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._skip_lf = False
        """The last piece ended with CR: an LF that follows belongs to it."""

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of every event that this piece completes."""
        if self._skip_lf and piece:
            self._skip_lf = False
            if piece[:1] == b"\n":
                piece = piece[1:]
        if b"\r" in piece:
            self._skip_lf = piece[-1:] == b"\r"
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = (self._rest + piece).split(b"\n")
        self._rest = lines.pop()
        events: list[bytes] = []
        for line in lines:
            if line[:5] == b"data:":
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data.clear()
            elif line == b"data":
                self._data.append(b"")
        return events
