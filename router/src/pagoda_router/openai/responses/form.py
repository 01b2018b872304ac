"""Deltas and choices as a response: typed events of a stream, and whole answers. One per request; answers.py uses it as any other format.

A response is a list of items, each opened, filled and closed in turn: thinking, text, calls. An event names its item and its place in the
stream; of the common one, a piece of text, only the text and that number are encoded.
"""

import time
from collections.abc import Sequence
from typing import Any, Protocol

from pagoda_router.errors import RouterError
from pagoda_router.generation import Usage
from pagoda_router.openai.answer_parts import WholeChoice, encode, token_logprobs
from pagoda_router.openai.reply.pieces import CallDelta
from pagoda_router.openai.responses.request import ResponsesRequest
from pagoda_router.openai.responses.snapshot import (
    CUT,
    Snapshot,
    call_item,
    message_item,
    new_id,
    reasoning_item,
    reasoning_part,
    text_part,
)
from pagoda_router.openai.sequence import Delta, TokenEntry
from pagoda_router.text.tokens import TokenText


class Billed(Protocol):
    @property
    def usage(self) -> Usage: ...


class _Events:
    """Numbers them."""

    def __init__(self) -> None:
        self._next = 0

    def event(self, kind: str, **fields: Any) -> bytes:
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), encode({"type": kind, **fields, "sequence_number": self._number()}))

    def piece(self, head: bytes, text: str) -> bytes:
        """`head` ends with `"delta":`."""
        return b'%b%b,"sequence_number":%d}\n\n' % (head, encode(text), self._number())

    def _number(self) -> int:
        self._next += 1
        return self._next - 1


class _Item:
    """One that is open: what it is made of, and the events that tell of it."""

    def __init__(self, events: _Events, index: int, prefix: str) -> None:
        self._events = events
        self.item_id = new_id(prefix)
        self._at: dict[str, Any] = {"item_id": self.item_id, "output_index": index}
        self._index = index
        self._pieces: list[str] = []

    def opened(self) -> bytes:
        return self._events.event("response.output_item.added", output_index=self._index, item=self.shown("in_progress"))

    def closed(self, status: str) -> bytes:
        return self._events.event("response.output_item.done", output_index=self._index, item=self.shown(status))

    def shown(self, status: str) -> dict[str, Any]:
        raise NotImplementedError

    def _piece_head(self, kind: str, **at: Any) -> bytes:
        fields = encode({"type": kind, **self._at, **at})
        return b"event: %b\ndata: %b" % (kind.encode(), fields[:-1] + b',"delta":')


class _Text(_Item):
    """A message, of one part."""

    def __init__(self, events: _Events, index: int, text: TokenText | None) -> None:
        super().__init__(events, index, "msg_")
        self._text = text
        self._logprobs: list[dict[str, Any]] = []
        self._is_open = False
        self._place = {**self._at, "content_index": 0}
        self._head = self._piece_head("response.output_text.delta", content_index=0, logprobs=[])

    def opened(self) -> bytes:
        item = super().opened()
        self._is_open = True
        return item + self._events.event("response.content_part.added", **self._place, part=text_part("", []))

    def add(self, text: str, entries: Sequence[TokenEntry]) -> bytes:
        self._pieces.append(text)
        if not entries:
            return self._events.piece(self._head, text)
        logprobs = _logprobs(entries, self._text)
        self._logprobs += logprobs
        return self._events.event("response.output_text.delta", **self._place, delta=text, logprobs=logprobs)

    def closed(self, status: str) -> bytes:
        text = "".join(self._pieces)
        done = self._events.event("response.output_text.done", **self._place, text=text, logprobs=self._logprobs)
        done += self._events.event("response.content_part.done", **self._place, part=text_part(text, self._logprobs))
        return done + super().closed(status)

    def shown(self, status: str) -> dict[str, Any]:
        parts = [text_part("".join(self._pieces), self._logprobs)] if self._is_open else []
        return message_item(self.item_id, status, parts)


class _Thought(_Item):
    def __init__(self, events: _Events, index: int) -> None:
        super().__init__(events, index, "rs_")
        self._is_open = False
        self._place = {**self._at, "content_index": 0}
        self._head = self._piece_head("response.reasoning_text.delta", content_index=0)

    def opened(self) -> bytes:
        item = super().opened()
        self._is_open = True
        return item + self._events.event("response.content_part.added", **self._place, part=reasoning_part(""))

    def add(self, text: str) -> bytes:
        self._pieces.append(text)
        return self._events.piece(self._head, text)

    def closed(self, status: str) -> bytes:
        text = "".join(self._pieces)
        done = self._events.event("response.reasoning_text.done", **self._place, text=text)
        done += self._events.event("response.content_part.done", **self._place, part=reasoning_part(text))
        return done + super().closed(status)

    def shown(self, status: str) -> dict[str, Any]:
        return reasoning_item(self.item_id, status, [reasoning_part("".join(self._pieces))] if self._is_open else [])


class _Call(_Item):
    def __init__(self, events: _Events, index: int, call: CallDelta) -> None:
        super().__init__(events, index, "fc_")
        self._call = call
        self._head = self._piece_head("response.function_call_arguments.delta")

    def add(self, arguments: str) -> bytes:
        self._pieces.append(arguments)
        return self._events.piece(self._head, arguments)

    def closed(self, status: str) -> bytes:
        arguments, name = "".join(self._pieces), self._call.name
        done = self._events.event("response.function_call_arguments.done", **self._at, name=name, arguments=arguments)
        return done + super().closed(status)

    def shown(self, status: str) -> dict[str, Any]:
        return call_item(self.item_id, status, self._call.call_id, self._call.name, "".join(self._pieces))


class ResponseFormat:
    """Implements answer_parts.Format for one choice."""

    def __init__(self, request: ResponsesRequest, answer_id: str, created: int, text: TokenText | None) -> None:
        """`text`: for logprobs; None where there are none."""
        self._text = text
        self._snapshot = Snapshot(request, answer_id, created)
        self._events = _Events()
        self._done: list[dict[str, Any]] = []
        self._open: _Text | _Thought | _Call | None = None
        self._finish_reason: str | None = None
        self._has_opened = False

    # ------------------------------------------------------------ a stream

    def opening(self) -> bytes:
        self._has_opened = True
        begun = self._snapshot.in_progress()
        return self._events.event("response.created", response=begun) + self._events.event("response.in_progress", response=begun)

    def chunk(self, delta: Delta, usage: Usage | None) -> bytes:
        written = b""
        if delta.reasoning:
            written += self._reach(_Thought)
            assert isinstance(self._open, _Thought)
            written += self._open.add(delta.reasoning)
        if delta.text or (delta.entries and not delta.reasoning and not delta.calls):
            written += self._reach(_Text)
            assert isinstance(self._open, _Text)
            written += self._open.add(delta.text, delta.entries)
        for call in delta.calls:
            if call.name is not None:
                written += self._begin(_Call(self._events, self._next_index(), call))
            if call.arguments and isinstance(self._open, _Call):
                written += self._open.add(call.arguments)
        if delta.finish_reason is not None:
            self._finish_reason = delta.finish_reason
            if self._open is None:  # an answer of no token at all is an empty text
                written += self._reach(_Text)
            written += self._close("incomplete" if delta.finish_reason == CUT else "completed")
        return written

    def closing(self, progress: Billed, trace: dict[str, Any] | None) -> bytes:
        """There is no [DONE]: the last event says that it is the last."""
        response = self._snapshot.ended(self._done, progress.usage, self._finish_reason)
        if trace is not None:
            response["pagoda_trace"] = trace
        return self._events.event(f"response.{response['status']}", response=response)

    def failed(self, error: RouterError) -> bytes:
        """The last event of a stream that broke."""
        written = b"" if self._has_opened else self.opening()
        if self._open is not None:
            written += self._close("incomplete")
        return written + self._events.event("response.failed", response=self._snapshot.failed(self._done, error))

    def _reach(self, kind: type[_Text] | type[_Thought]) -> bytes:
        """The open item is of this kind afterwards."""
        if isinstance(self._open, kind):
            return b""
        ended = self._close("completed")
        index = self._next_index()
        return ended + self._begin(_Text(self._events, index, self._text) if kind is _Text else _Thought(self._events, index))

    def _begin(self, item: _Text | _Thought | _Call) -> bytes:
        ended = self._close("completed")
        self._open = item
        return ended + item.opened()

    def _close(self, status: str) -> bytes:
        item, self._open = self._open, None
        if item is None:
            return b""
        self._done.append(item.shown(status))
        return item.closed(status)

    def _next_index(self) -> int:
        return len(self._done) + (self._open is not None)

    # ------------------------------------------------------------ a whole answer

    def whole(self, choices: Sequence[WholeChoice], progress: Billed, trace: dict[str, Any] | None) -> bytes:
        (choice,) = choices
        items: list[dict[str, Any]] = []
        if thought := "".join(choice.reasoning):
            items.append(reasoning_item(new_id("rs_"), "completed", [reasoning_part(thought)]))
        text = "".join(choice.texts)
        if text or not (choice.calls or items):
            items.append(message_item(new_id("msg_"), "completed", [text_part(text, _logprobs(choice.entries, self._text))]))
        for parts in choice.calls:
            arguments = "".join(part.arguments for part in parts)
            items.append(call_item(new_id("fc_"), "completed", parts[0].call_id, parts[0].name, arguments))
        if choice.finish_reason == CUT:
            items[-1]["status"] = "incomplete"
        response = self._snapshot.ended(items, progress.usage, choice.finish_reason)
        return encode(response if trace is None else {**response, "pagoda_trace": trace})


def _logprobs(entries: Sequence[TokenEntry], text: TokenText | None) -> list[dict[str, Any]]:
    return [] if text is None else token_logprobs(entries, text)


def failed_early(request: ResponsesRequest, error: RouterError) -> bytes:
    """Of a stream whose headers left while it waited for a worker, and that never got one."""
    snapshot, events = Snapshot(request, new_id("resp_"), int(time.time())), _Events()
    created = events.event("response.created", response=snapshot.in_progress())
    return created + events.event("response.failed", response=snapshot.failed([], error))
