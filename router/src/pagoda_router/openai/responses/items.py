"""The items of a response's `input` → a chat's messages. Pure; asking.py calls it.

One message of the assistant is one turn of the model: thinking, text and calls that follow each other as items are one message.
"""

from typing import Any

import msgspec

from pagoda_router.errors import BadRequest
from pagoda_router.openai.schemas import ChatMessage, SaidCall, SaidFunction

ROLES = ("user", "assistant", "system", "developer")
_TEXT_PARTS = frozenset({"input_text", "output_text", "text"})
_SHOWN_CHARS = 40


def messages_of(instructions: str | None, given: str | list[dict[str, Any]]) -> list[ChatMessage]:
    """Raises BadRequest naming the item, and what of it, in `param`."""
    reader = _Reader()
    if instructions:
        reader.messages.append(ChatMessage(role="system", content=instructions))
    if isinstance(given, str):
        reader.messages.append(ChatMessage(role="user", content=given))
        return reader.messages
    if not given:
        raise BadRequest("input is empty: send text, or at least one item", param="input")
    for position, item in enumerate(given):
        reader.take(item, f"input[{position}]")
    reader.end()
    return reader.messages


class _Reader:
    def __init__(self) -> None:
        self.messages: list[ChatMessage] = []
        self._thought: str | None = None
        """Of the message that the next items make."""
        self._turn: ChatMessage | None = None
        """The assistant's, which following calls belong to."""
        self._calls: set[str] = set()

    def take(self, item: dict[str, Any], param: str) -> None:
        kind = item.get("type", "message")
        if kind == "message":
            self._message(item, param)
        elif kind == "function_call":
            self._call(item, param)
        elif kind == "function_call_output":
            self._output(item, param)
        elif kind == "reasoning":
            self._reasoning(item, param)
        elif kind == "item_reference":
            raise BadRequest(f"{param} refers to an item, and nothing is kept between requests: send the item itself", param=param)
        else:
            raise BadRequest(
                f"{param}.type is {str(kind)[:_SHOWN_CHARS]!r}: use message, function_call, function_call_output or reasoning",
                param=f"{param}.type",
            )

    def end(self) -> None:
        """Thinking that nothing followed is a turn of its own."""
        if self._thought is not None:
            self._assistant("")

    def _message(self, item: dict[str, Any], param: str) -> None:
        role = item.get("role")
        if role not in ROLES:
            raise BadRequest(f"{param}.role is {str(role)[:_SHOWN_CHARS]!r}: use {', '.join(ROLES)}", param=f"{param}.role")
        text = _text_of(item.get("content"), f"{param}.content")
        if role == "assistant":
            self._turn = None
            self._assistant(text)
        else:
            self._other(ChatMessage(role=role, content=text))

    def _assistant(self, text: str) -> ChatMessage:
        message = ChatMessage(role="assistant", content=text, reasoning_content=self._thought)
        self.messages.append(message)
        self._turn, self._thought = message, None
        return message

    def _other(self, message: ChatMessage) -> None:
        self.end()
        self._turn = None
        self.messages.append(message)

    def _reasoning(self, item: dict[str, Any], param: str) -> None:
        parts = item.get("content") or []
        texts = [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise BadRequest(f"{param}.content is not a list of parts of type reasoning_text", param=f"{param}.content")
        if not texts and item.get("encrypted_content"):
            raise BadRequest(f"{param}.encrypted_content cannot be read here: leave the item out", param=f"{param}.encrypted_content")
        self.end()
        self._turn = None
        self._thought = "".join(str(text) for text in texts) if texts else None

    def _call(self, item: dict[str, Any], param: str) -> None:
        call_id, name, arguments = (_string(item, field, param) for field in ("call_id", "name", "arguments"))
        try:
            parsed = msgspec.json.decode(arguments, type=dict[str, Any]) if arguments.strip() else {}
        except (msgspec.DecodeError, RecursionError):
            raise BadRequest(f"{param}.arguments is not a JSON object: send them as they came", param=f"{param}.arguments") from None
        turn = self._turn if self._turn is not None and self._thought is None else self._assistant("")
        turn.tool_calls = [*(turn.tool_calls or []), SaidCall(id=call_id, function=SaidFunction(name=name, arguments=parsed))]
        self._calls.add(call_id)

    def _output(self, item: dict[str, Any], param: str) -> None:
        call_id = _string(item, "call_id", param)
        if call_id not in self._calls:
            raise BadRequest(
                f"{param}.call_id: there is no call {call_id[:_SHOWN_CHARS]!r} before it: send that item too", param=f"{param}.call_id"
            )
        self._other(ChatMessage(role="tool", tool_call_id=call_id, content=_text_of(item.get("output"), f"{param}.output")))


def _string(item: dict[str, Any], field: str, param: str) -> str:
    value = item.get(field)
    if not isinstance(value, str):
        raise BadRequest(f"{param}.{field} is missing: send a string", param=f"{param}.{field}")
    return value


def _text_of(content: Any, param: str) -> str:
    """Text parts are joined with newlines, as a chat's are."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRequest(f"{param} is missing: send a string or a list of text parts", param=param)
    texts: list[str] = []
    for position, part in enumerate(content):
        where = f"{param}[{position}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in _TEXT_PARTS and kind != "refusal":
            raise BadRequest(
                f"{where}.type is {str(kind)[:_SHOWN_CHARS]!r}: only text goes in: use input_text, or output_text", param=f"{where}.type"
            )
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise BadRequest(f"{where}.text is missing: send a string", param=f"{where}.text")
        texts.append(text)
    return "\n".join(texts)
