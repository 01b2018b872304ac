"""What one streamed answer has told so far: when its chunks came, its text, its usage, how it ended. Pure; the client feeds it.

Knows both endpoints' chunks and nothing of sockets or clocks.
"""

from array import array
from typing import Any

import msgspec

from pagoda_bench.load.sse import EventSplitter


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


class StreamReading:
    """One answer of one choice. `arrivals` has the time of every chunk that carried text (or reasoning, or a piece of a tool call): the
    role that opens a chat stream and the usage that closes it are no tokens."""

    __slots__ = ("_events", "arrivals", "done", "error", "finish_reason", "finished_s", "texts", "usage")

    def __init__(self, *, keep_text: bool = False) -> None:
        self._events = EventSplitter()
        self.arrivals: array[float] = array("d")
        self.texts: list[str] | None = [] if keep_text else None
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.finished_s: float | None = None
        """When the finish_reason came: the last token was there by then, even if it had no text."""
        self.done = False
        """[DONE] was seen: nothing is missing."""
        self.error: str | None = None
        """An error event, or a chunk that is no JSON."""

    def feed(self, body: bytes, now: float) -> None:
        """`now`: when the bytes arrived; all chunks in them arrived then."""
        for event in self._events.feed(body):
            if event == b"[DONE]":
                self.done = True
                continue
            try:
                chunk = _decode(event)
            except msgspec.DecodeError as error:
                self.error = self.error or f"not a chunk: {error}"
                continue
            self._take(chunk, now)

    def _take(self, chunk: _Chunk, now: float) -> None:
        if chunk.error is not None:
            message = chunk.error.get("message") if isinstance(chunk.error, dict) else chunk.error
            self.error = self.error or str(message)
        if chunk.usage is not None:
            self.usage = chunk.usage
        for choice in chunk.choices:
            text, delta = choice.text, choice.delta
            if delta is not None:
                text = delta.content or delta.reasoning_content or delta.reasoning
            if text or (delta is not None and delta.tool_calls):
                self.arrivals.append(now)
                if self.texts is not None and text:
                    self.texts.append(text)
            if choice.finish_reason is not None:
                self.finish_reason, self.finished_s = choice.finish_reason, now

    @property
    def failure(self) -> str | None:
        """Kind of error that makes a 200 a failed request, else None."""
        if self.error is not None:
            return "stream_error"
        if not self.done:
            return "truncated"
        return None if self.arrivals else "no_text"
