"""A foreign backend's answer on its way through: whole events out, the model under its served name, usage and ends noticed by a byte scan.

Pure. Nothing is parsed but the one event that has the usage, and errors; openai_stream.py feeds it what the network brings. Nearly all
events of a stream differ in a few words of text only, and what is around these is looked at once (`_Usual`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from pagoda_router.generation import Usage

LARGEST_EVENT_BYTES = 16 * 2**20
_MODEL = re.compile(rb'"model"\s*:\s*"(?:[^"\\]|\\.)*"')
_FINISH = re.compile(rb'"finish_reason"\s*:\s*"(\w+)"')
_BEFORE_TEXT = re.compile(rb'"delta":\{"content":"|"text":"')
_IS_ERROR = re.compile(rb'\A\s*\{\s*"(?:error"\s*:\s*["{]|object"\s*:\s*"error")')


@dataclass(frozen=True, slots=True)
class Manners:
    """Where a server's answers differ from OpenAI's."""

    finish_reasons: Mapping[bytes, bytes] = field(default_factory=dict)
    """Its JSON of a finish reason to OpenAI's, member and value: within a text the quotes would be escaped, so bytes are enough."""
    usage_per_choice: bool = False
    """A stream tells the usage of each choice where that one ends, not of all of them at the end."""

    def in_openais_words(self, payload: bytes) -> bytes:
        for theirs, openais in self.finish_reasons.items():
            payload = payload.replace(theirs, openais)
        return payload


OPENAIS = Manners()


NONE = msgspec.Raw(b"")


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: _Details | None = None


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None
    choices: list[_Choice] = []


class _ListedToken(msgspec.Struct):
    """As TGI answers /tokenize."""

    id: int
    start: int


class _Whole(_Answer):
    """Besides: what an answer without choices has. Vectors, tokens or text, in vLLM's words, or a chat's tokens in TGI's."""

    data: msgspec.Raw = NONE
    tokens: msgspec.Raw = NONE
    prompt: msgspec.Raw = NONE
    tokenize_response: msgspec.Raw = NONE


WHOLE_ANSWERS = msgspec.json.Decoder(_Whole | list[_ListedToken])
"""Made once: a union's decoder takes longer to make than an answer to read."""


class NotAnAnswer(Exception):
    """One sentence: what came instead."""


@dataclass(slots=True)
class Piece:
    """What one read from the network added."""

    data: bytes = b""
    """Whole events for the client; [DONE] is not among them."""
    tokens: int = 0
    finish_reasons: tuple[str, ...] = ()
    error: bytes | None = None
    """The payload of an error event; nothing after it counts."""
    done: bool = False


@dataclass(frozen=True, slots=True)
class _Usual:
    """What is around the text of an event that says nothing but text, theirs and ours."""

    before: bytes
    after: bytes
    our_before: bytes
    our_after: bytes

    def rewritten(self, chunk: bytes) -> bytes | None:
        """One such event. None: it is something else, or more than one, or its text has a quotation mark."""
        if chunk.startswith(self.before) and chunk.endswith(self.after):
            text = chunk[len(self.before) : -len(self.after)]
            if b'"' not in text:
                return self.our_before + text + self.our_after
        return None


class EventRewriter:
    def __init__(self, served_name: str, *, wants_usage: bool, manners: Manners = OPENAIS) -> None:
        self.usage: Usage | None = None
        """The last that was told, or the sum of what was told of each choice."""
        self._manners = manners
        self._model = b'"model":' + msgspec.json.encode(served_name)
        self._their_model = self._model
        """As the last event had it: found by a search only when it changes."""
        self._wants_usage = wants_usage
        self._rest = b""
        self._usual: _Usual | None = None

    def feed(self, chunk: bytes) -> Piece:
        """Raises NotAnAnswer when an event does not end."""
        if not self._rest and self._usual is not None and (usual := self._usual.rewritten(chunk)) is not None:
            return Piece(usual, 1)
        data = self._rest + chunk
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        end = data.rfind(b"\n\n")
        self._rest = data if end < 0 else data[end + 2 :]
        if len(self._rest) > LARGEST_EVENT_BYTES:
            raise NotAnAnswer(f"an event of its stream is larger than {LARGEST_EVENT_BYTES} bytes")
        piece = Piece()
        for event in data[:end].split(b"\n\n") if end >= 0 else ():
            payload = _payload(event)
            if payload == b"[DONE]":
                piece.done = True
            elif payload:
                self._take(payload, piece)
            if piece.done or piece.error is not None:
                break
        return piece

    def _take(self, payload: bytes, piece: Piece) -> None:
        if b'error"' in payload[:32] and _IS_ERROR.match(payload):
            piece.error = payload
            return
        payload = self._manners.in_openais_words(payload)
        has_choices = b'"choices":[]' not in payload and b'"choices": []' not in payload
        if b'"usage":{' in payload or b'"usage": {' in payload:
            self._told_usage(usage_of(payload))
            if not has_choices and not self._wants_usage:
                return  # the router asked for it, not the client
            is_usual = False
        else:
            is_usual = has_choices
        if has_choices:
            piece.tokens += 1
            if b'"finish_reason":"' in payload or b'"finish_reason": "' in payload:
                piece.finish_reasons += tuple(reason.decode() for reason in _FINISH.findall(payload))
                is_usual = False
        piece.data += b"data: " + self._renamed(payload) + b"\n\n"
        if is_usual:
            self._learn(payload)

    def _learn(self, payload: bytes) -> None:
        """What is around its text, where the model is named before that."""
        if (found := _BEFORE_TEXT.search(payload)) is None or self._their_model not in (before := payload[: found.end()]):
            return
        text, quote, after = payload[found.end() :].partition(b'"')
        if quote and not text.endswith(b"\\"):  # or it may be part of the text
            before, after = b"data: " + before, quote + after + b"\n\n"
            self._usual = _Usual(before, after, self._renamed(before), after)

    def _told_usage(self, told: Usage | None) -> None:
        before = self.usage
        if told is None:
            return
        if before is None or not self._manners.usage_per_choice:
            self.usage = told
        else:
            prompt_tokens, cached_tokens = before.prompt_tokens + told.prompt_tokens, before.cached_tokens + told.cached_tokens
            self.usage = Usage(prompt_tokens, cached_tokens, before.completion_tokens + told.completion_tokens)

    def _renamed(self, payload: bytes) -> bytes:
        if self._their_model not in payload:
            found = _MODEL.search(payload)
            if found is None:
                return payload
            self._their_model = found[0]
        return payload if self._their_model == self._model else payload.replace(self._their_model, self._model, 1)


def whole_answer(body: bytes, served_name: str, manners: Manners = OPENAIS) -> tuple[bytes, Usage | None, tuple[str, ...]]:
    """Of an answer that is no stream: the body under the served name, its usage, its finish reasons. Raises NotAnAnswer."""
    body = manners.in_openais_words(body)
    try:
        answer = WHOLE_ANSWERS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NotAnAnswer(f"its answer is not a completion: {error}") from None
    if isinstance(answer, list) and answer:
        return body, None, ()
    if isinstance(answer, list) or not (answer.choices or answer.data or answer.tokens or answer.prompt or answer.tokenize_response):
        raise NotAnAnswer("its answer has no choices")
    model = b'"model":' + msgspec.json.encode(served_name)
    reasons = tuple(choice.finish_reason or "stop" for choice in answer.choices)
    return _MODEL.sub(lambda _: model, body, count=1), _usage(answer.usage), reasons


def usage_of(payload: bytes) -> Usage | None:
    try:
        return _usage(msgspec.json.decode(payload, type=_Answer).usage)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _usage(told: _Usage | None) -> Usage | None:
    if told is None:
        return None
    cached = told.prompt_tokens_details.cached_tokens if told.prompt_tokens_details is not None else None
    return Usage(told.prompt_tokens, cached or 0, told.completion_tokens or 0)


def _payload(event: bytes) -> bytes:
    """Of its data line; comments, names and ids are dropped: an id would break clients that meet a comment later."""
    if b"\n" in event:
        event = next((line for line in event.split(b"\n") if line.startswith(b"data:")), b"")
    return event[5:].strip() if event.startswith(b"data:") else b""
