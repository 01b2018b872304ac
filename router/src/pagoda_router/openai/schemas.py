"""The bodies of chats, completions, embeddings, /tokenize and /detokenize as typed structs, read with errors that name the field.

Shapes and types only: ranges are checks.py's, unknown fields fields.py's.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from pagoda_router.errors import BadRequest
from pagoda_router.openai.fields import check_unknown_fields


class StreamOptions(msgspec.Struct, kw_only=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class CommonRequest(msgspec.Struct, kw_only=True):
    """What both endpoints share: OpenAI's sampling fields, then vLLM's extras."""

    model: str
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    max_tokens: int | None = None
    n: int | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None

    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    add_special_tokens: bool | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: int | None = None
    priority: int | None = None
    return_token_ids: bool | None = None

    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None


class ContentPart(msgspec.Struct, kw_only=True):
    type: str
    text: str | None = None
    refusal: str | None = None
    """Of an assistant that said no; text all the same."""


class SaidFunction(msgspec.Struct, kw_only=True):
    name: str
    arguments: str | dict[str, Any] = ""
    """Text, as OpenAI says, or the object itself, as some clients send."""


class SaidCall(msgspec.Struct, kw_only=True):
    """Of an earlier answer, sent back."""

    function: SaidFunction
    id: str | None = None
    type: str = "function"


class ChatMessage(msgspec.Struct, kw_only=True):
    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[SaidCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None


class Function(msgspec.Struct, kw_only=True, omit_defaults=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, kw_only=True):
    type: str
    function: Function


class ChatRequest(CommonRequest, kw_only=True):
    messages: list[ChatMessage]
    logprobs: bool | None = None
    top_logprobs: int | None = None
    max_completion_tokens: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool | None = None
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None


class CompletionRequest(CommonRequest, kw_only=True):
    prompt: str | list[str | int | list[int]]
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = None


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    model: str
    input: str | list[str | int | list[int]]
    encoding_format: str | None = None
    dimensions: int | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    priority: int | None = None


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """A prompt, or a chat's messages with what shapes them."""

    model: str | None = None
    """May be left out where the key may ask one model only."""
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Tool] | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    tokens: list[int]
    model: str | None = None


Request = TypeVar("Request", ChatRequest, CompletionRequest, EmbeddingRequest, TokenizeRequest, DetokenizeRequest)

Body = TypeVar("Body")

_WHERE = re.compile(r"(?:Object missing required field `(?P<missing>[^`]*)`)?(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)
_POSITION = re.compile(r"\[\d+\]")
_FORMS = {
    "tools.function": 'only functions can be called, and here each is {"type": "function", "function": {"name": …, "parameters": {…}}}',
    "tools.name": 'here a function is flat: {"type": "function", "name": …, "parameters": {…}}',
}
"""Of fields that are missing where a client speaks the other endpoint's dialect: the form."""
MAX_FIELDS = 256
"""Top-level fields of one body; OpenAI's and vLLM's together are about 80."""


class _Named(msgspec.Struct):
    model: str


class _MaybeNamed(msgspec.Struct):
    model: str | None = None


def model_named(body: bytes) -> str:
    """The model of a body of which nothing else is read yet. Raises BadRequest."""
    return _decoded(body, _Named).model


def model_named_if_any(body: bytes) -> str | None:
    """The same of a body that may leave it out."""
    return _decoded(body, _MaybeNamed).model


def parse_request(body: bytes, request_type: type[Request]) -> Request:
    request, _ = decode_body(body, request_type, lambda fields: check_unknown_fields(fields, request_type.__struct_fields__))
    return request


def decode_body(
    body: bytes, request_type: type[Body], check: Callable[[Mapping[str, msgspec.Raw]], None] | None = None
) -> tuple[Body, dict[str, msgspec.Raw]]:
    """With every top-level field as it was written. `check` sees these first: who sends prompt where messages belong has to hear of
    prompt, not that messages is required. Raises BadRequest."""
    if not body.strip():
        raise BadRequest("the request body is empty: send a JSON object", code="invalid_json")
    fields = _decoded(body, dict[str, msgspec.Raw])
    if len(fields) > MAX_FIELDS:
        raise BadRequest(f"the request has {len(fields)} fields; at most {MAX_FIELDS} are read")
    if check is not None:
        check(fields)
    return _decoded(body, request_type), fields


def _decoded(body: bytes, kind: type[Body]) -> Body:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise wrong_field(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the request body is not valid JSON: {error}", code="invalid_json") from None


def wrong_field(message: str, under: str = "") -> BadRequest:
    """msgspec's message in our words; `under`: where in the body the value lies that it is about."""
    match = _WHERE.match(message)
    assert match is not None
    path = f"{under}{match['path'] or ''}".lstrip(".").replace("[...]", "")
    if match["missing"] is not None:
        param = f"{path}.{match['missing']}" if path else match["missing"]
        form = _FORMS.get(_POSITION.sub("", param))
        return BadRequest(f"{param} is required{f': {form}' if form else ''}", param=param)
    what = match["what"].replace("`", "").replace("Expected", "expected")
    if not path:
        return BadRequest(f"the request body must be a JSON object: {what}")
    return BadRequest(f"{path}: {what}", param=path)
