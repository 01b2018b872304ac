"""The bodies of /v1/chat/completions and /v1/completions as typed structs, and reading them with errors that name the field.

Shapes and types only: ranges are checks.py's, unknown fields fields.py's.
"""

import re
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


class ContentPart(msgspec.Struct, kw_only=True):
    type: str
    text: str | None = None


class ChatMessage(msgspec.Struct, kw_only=True):
    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class ChatRequest(CommonRequest, kw_only=True):
    messages: list[ChatMessage]
    logprobs: bool | None = None
    top_logprobs: int | None = None
    max_completion_tokens: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None


class CompletionRequest(CommonRequest, kw_only=True):
    prompt: str | list[str | int | list[int]]
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = None


Request = TypeVar("Request", ChatRequest, CompletionRequest)

_WHERE = re.compile(r"(?:Object missing required field `(?P<missing>[^`]*)`)?(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)
MAX_FIELDS = 256
"""Top-level fields of one body; OpenAI's and vLLM's together are about 80."""


def parse_request(body: bytes, request_type: type[Request]) -> Request:
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        request = msgspec.json.decode(body, type=request_type)
    except msgspec.ValidationError as error:
        raise _wrong_field(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the request body is not valid JSON: {error}", code="invalid_json") from None
    if len(fields) > MAX_FIELDS:
        raise BadRequest(f"the request has {len(fields)} fields; at most {MAX_FIELDS} are read")
    check_unknown_fields(fields, request_type.__struct_fields__)
    return request


def _wrong_field(message: str) -> BadRequest:
    match = _WHERE.match(message)
    assert match is not None
    path = (match["path"] or "").lstrip(".").replace("[...]", "")
    if match["missing"] is not None:
        param = f"{path}.{match['missing']}" if path else match["missing"]
        return BadRequest(f"{param} is required", param=param)
    what = match["what"].replace("`", "").replace("Expected", "expected")
    if not path:
        return BadRequest(f"the request body must be a JSON object: {what}")
    return BadRequest(f"{path}: {what}", param=path)
