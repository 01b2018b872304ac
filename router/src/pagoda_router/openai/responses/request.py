"""The body of /v1/responses as a typed struct, what of it is refused, and errors in its own words. Shapes only.

What is kept between requests at OpenAI (stored answers, conversations, prompt templates) is not kept here, and tools that a server runs are
not run: fields that ask for one of them are refused by name.
"""

from typing import Any

import msgspec

from pagoda_router.errors import BadRequest
from pagoda_router.openai.fields import FORM, LENGTH, NOTHING, REFUSED, check_unknown_fields
from pagoda_router.openai.schemas import decode_body


class Reasoning(msgspec.Struct, kw_only=True):
    effort: str | None = None
    summary: str | None = None


class TextSettings(msgspec.Struct, kw_only=True):
    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponsesRequest(msgspec.Struct, kw_only=True):
    """OpenAI's fields, then vLLM's extras."""

    model: str
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    stream: bool | None = None
    text: TextSettings | None = None
    reasoning: Reasoning | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    priority: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None


KNOWN = frozenset(ResponsesRequest.__struct_fields__)
_NOT_KEPT = "nothing is kept between requests: send the earlier items in input"
_OUTPUT_LENGTH = "use max_output_tokens"
_OUTPUT_FORM = "use text.format"
_CHATS = "only chats and completions take it: use /v1/chat/completions"
RESPONSES_REFUSED: dict[str, tuple[str, tuple[Any, ...]]] = {
    # field: (why and what to do, values that ask for nothing), as in fields.py, whose advice holds unless it names a field of chats
    **{name: entry for name, entry in REFUSED.items() if name not in KNOWN},
    **{name: (_OUTPUT_LENGTH, allowed) for name, (why, allowed) in REFUSED.items() if why == LENGTH and name not in KNOWN},
    **{name: (_OUTPUT_FORM, allowed) for name, (why, allowed) in REFUSED.items() if why == FORM},
    **dict.fromkeys(("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"), (_OUTPUT_FORM, NOTHING)),
    **dict.fromkeys(("stop_token_ids", "allowed_token_ids", "bad_words", "include_stop_str_in_output"), (_CHATS, NOTHING)),
    **dict.fromkeys(("prompt_logprobs", "truncate_prompt_tokens", "return_token_ids", "continue_final_message"), (_CHATS, NOTHING)),
    **dict.fromkeys(("skip_special_tokens", "add_generation_prompt", "include_reasoning"), (_CHATS, (None, True))),
    "add_special_tokens": (_CHATS, (None, False)),
    "system": ("use instructions", NOTHING),
    "system_prompt": ("use instructions", NOTHING),
    "n_probs": ("use top_logprobs", (None, 0)),
    "options": ("send what it holds beside input: temperature, max_output_tokens, …", NOTHING),
    "store": ("responses are not kept: send false, or leave it out", (None, False)),
    "previous_response_id": (_NOT_KEPT, (None, "")),
    "conversation": (_NOT_KEPT, (None, "")),
    "background": ("an answer is made while you wait: leave it out, or stream it", (None, False)),
    "prompt": ("no prompt templates are kept: send input", (None,)),
    "truncation": ("items of a conversation are never left out: send disabled", (None, "disabled")),
    "context_management": ("a conversation is not compacted: leave it out", NOTHING),
    "moderation": ("there is no moderation: leave it out", (None,)),
    "n": ("a response is one answer: leave it out", (None, 1)),
    "messages": ("use input", NOTHING),
    "max_tokens": (_OUTPUT_LENGTH, (None,)),
    "response_format": (_OUTPUT_FORM, (None,)),
    "reasoning_effort": ("use reasoning.effort", (None,)),
    "logprobs": ("use include: message.output_text.logprobs, and top_logprobs", (None, False)),
}
RESPONSES_HARMLESS = frozenset(
    {
        *("service_tier", "stream_options", "prompt_cache_retention", "prompt_cache_options", "max_tool_calls"),
        *("request_id", "session_id"),
    }
)

LOGPROBS = "message.output_text.logprobs"
_INCLUDES = frozenset({LOGPROBS, "reasoning.encrypted_content"})
"""The second changes nothing: thinking is shown, so nothing of it has to be encrypted to come back."""
_WORDS = (
    ("max_completion_tokens", "max_output_tokens"),
    ("response_format.json_schema", "text.format"),
    ("response_format", "text.format"),
    ("messages", "input"),
    ("reasoning_effort", "reasoning.effort"),
    (".function.", "."),
)


def parse_responses(body: bytes) -> ResponsesRequest:
    """Raises BadRequest."""
    request, _ = decode_body(
        body,
        ResponsesRequest,
        lambda fields: check_unknown_fields(fields, KNOWN, harmless=RESPONSES_HARMLESS, refused=RESPONSES_REFUSED),
    )
    for name in request.include or []:
        if name not in _INCLUDES:
            raise BadRequest(f"include: {name[:60]!r} is not known here: {LOGPROBS} is", param="include")
    return request


def in_own_words(error: BadRequest) -> BadRequest:
    """A response is answered as a chat; what a chat's checks find wrong is told by the names that the client wrote."""
    for chats, ours in _WORDS:
        error.message = error.message.replace(chats, ours)
        error.param = error.param and error.param.replace(chats, ours)
    return error
