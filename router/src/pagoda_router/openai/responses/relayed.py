"""A response that a foreign backend makes: the chat it is asked as, and its chat's events as those of a response. Pure.

The backend streams in either case, so that what a client leaves is billed for what came; relay.py feeds what it brings. Logprobs are
refused: an event of theirs names no token ids.
"""

import time
from typing import Any

import msgspec

from pagoda_router.errors import BadRequest, RouterError, UpstreamFailed
from pagoda_router.generation import Usage
from pagoda_router.openai.answer_parts import WholeChoice
from pagoda_router.openai.reply.pieces import CallDelta
from pagoda_router.openai.responses.asking import chat_of
from pagoda_router.openai.responses.form import ResponseFormat
from pagoda_router.openai.responses.request import ResponsesRequest
from pagoda_router.openai.responses.snapshot import new_id
from pagoda_router.openai.sequence import Delta


def relayed_chat(asked: ResponsesRequest, backend: str) -> bytes:
    """The body of the chat that answers it. Raises BadRequest in the response's words."""
    chat = chat_of(asked)
    if chat.logprobs:
        raise BadRequest(f"include: logprobs of a {backend} worker come with /v1/chat/completions only: leave them out", param="include")
    fields = {name: value for name, value in msgspec.to_builtins(chat).items() if value is not None}
    fields |= {"messages": _said(fields["messages"]), "stream": True, "stream_options": {"include_usage": True}}
    del fields["logprobs"]
    return msgspec.json.encode(fields)


def _said(value: Any) -> Any:
    """Messages without what they do not say."""
    if isinstance(value, list):
        return [_said(each) for each in value]
    return {name: _said(each) for name, each in value.items() if each is not None} if isinstance(value, dict) else value


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    function: _Function
    index: int = 0
    id: str | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    """The older name."""
    tool_calls: list[_Call] | _Call | None = None
    """TGI has one where others have a list."""


class _Choice(msgspec.Struct):
    delta: _Delta
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None


class RelayedResponse:
    """Written once, from the first event to the last."""

    def __init__(self, asked: ResponsesRequest) -> None:
        self._format = ResponseFormat(asked, new_id("resp_"), int(time.time()), None)
        self._choice = WholeChoice()
        self._places: dict[int, int] = {}
        """Of calls: the backend's index → ours."""
        self.usage = Usage(0, 0, 0)
        """As far as it was told."""

        self._has_opened = False

    def failed(self, error: RouterError) -> bytes:
        return self._format.failed(error)

    def feed(self, events: bytes) -> bytes:
        """Whole events of the chat's stream in, the response's out: none before its first output. Raises UpstreamFailed."""
        written = b""
        for event in events.split(b"\n\n"):
            if event.startswith(b"data:"):
                written += self._take(event[5:])
        return written

    def _take(self, payload: bytes) -> bytes:
        try:
            chunk = msgspec.json.decode(payload, type=_Chunk)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UpstreamFailed(f"the worker's answer was not understood: {error}") from None
        if chunk.usage is not None:
            self.usage = _told(chunk.usage)
        written = b""
        for choice in chunk.choices:
            delta = self._delta(choice)
            self._choice.add(delta)
            if not self._has_opened and (delta.text or delta.reasoning or delta.calls or delta.finish_reason):
                self._has_opened = True
                written += self._format.opening()
            written += self._format.chunk(delta, None)
        return written

    def _delta(self, choice: _Choice) -> Delta:
        said = choice.delta
        calls = said.tool_calls if isinstance(said.tool_calls, list) else [said.tool_calls] if said.tool_calls is not None else []
        return Delta(
            index=0,
            text=said.content or "",
            reasoning=said.reasoning or said.reasoning_content or "",
            calls=[self._call(call) for call in calls],
            finish_reason=choice.finish_reason,
        )

    def _call(self, call: _Call) -> CallDelta:
        arguments = call.function.arguments or ""
        if call.index in self._places:
            return CallDelta(self._places[call.index], arguments)
        place = self._places[call.index] = len(self._places)
        return CallDelta(place, arguments, call.id or new_id("call_"), call.function.name or "")

    def closing(self) -> bytes:
        return self._format.closing(self, None)

    def whole(self) -> bytes:
        return self._format.whole([self._choice], self, None)


def _told(usage: _Usage) -> Usage:
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    return Usage(
        usage.prompt_tokens or 0,
        (prompt.cached_tokens if prompt is not None else None) or 0,
        usage.completion_tokens or 0,
        completion.reasoning_tokens if completion is not None else None,
    )
