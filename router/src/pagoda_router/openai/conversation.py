"""A chat's messages and tools → the prompt's text, and how the reply to it is to be read. Pure apart from the template cache it is given.

prepare.py and tokenize.py call it. Knows no token.
"""

from functools import lru_cache
from typing import Any

import msgspec

from pagoda_router.catalog import TextAssets
from pagoda_router.errors import BadRequest
from pagoda_router.http.surface import SurfaceSettings
from pagoda_router.openai.checks import check_effort
from pagoda_router.openai.reply.reader import ReplyPlan
from pagoda_router.openai.reply.thinking import CLOSE, OPEN
from pagoda_router.openai.schemas import ChatMessage, ChatRequest, SaidCall
from pagoda_router.openai.toolset import Toolset
from pagoda_router.text.chat import ChatTemplates


def check_messages(messages: list[ChatMessage], settings: SurfaceSettings) -> None:
    if not messages:
        raise BadRequest("messages is empty: send at least one", param="messages")
    if len(messages) > settings.max_messages:
        raise BadRequest(f"messages has {len(messages)} entries: send at most {settings.max_messages}", param="messages")


def template_of(model: str, assets: TextAssets) -> str:
    if assets.chat_template is None:
        raise BadRequest(f"{model} has no chat template: send plain text to /v1/completions", param="model")
    return assets.chat_template


def render(templates: ChatTemplates, request: ChatRequest, assets: TextAssets, toolset: Toolset | None) -> str:
    """The messages are checked. Raises BadRequest with the template's own words when it refuses them."""
    template = template_of(request.model, assets)
    continues = bool(request.continue_final_message)
    if continues and request.add_generation_prompt:
        raise BadRequest("continue_final_message and add_generation_prompt exclude each other: send one", param="continue_final_message")
    variables = dict(request.chat_template_kwargs or {})
    if request.reasoning_effort is not None:
        check_effort(request)
        variables["reasoning_effort"] = request.reasoning_effort
        if request.reasoning_effort == "none":  # how templates of models that think say it, Qwen's for one
            variables.setdefault("enable_thinking", False)
    if toolset is not None:
        variables["tools"] = toolset.shown
    knows_developer = _knows_developer(template)
    return templates.render(
        template,
        [_template_message(i, message, knows_developer) for i, message in enumerate(request.messages)],
        special_tokens=assets.special_tokens,
        variables=variables,
        add_generation_prompt=request.add_generation_prompt is not False and not continues,
        continue_final_message=continues,
    )


def reply_plan(request: ChatRequest, assets: TextAssets, toolset: Toolset | None, prompt: str, *, is_constrained: bool) -> ReplyPlan | None:
    """None: the reply is plain text. A constrained reply is answer from its first token: no form leaves room for thinking."""
    opened = _ends_thinking(request, prompt)
    thinks = (opened or _names_thinking(assets.chat_template or "")) and not is_constrained
    if toolset is None and not thinks:
        return None
    return ReplyPlan(
        thinks=thinks,
        opened=opened,
        shows_thinking=request.include_reasoning is not False,
        form=None if toolset is None else toolset.form,
        forced_name=None if toolset is None else toolset.forced_name,
        known_names=frozenset() if toolset is None else toolset.names,
        only_one_call=toolset is not None and toolset.only_one_call,
    )


@lru_cache(maxsize=256)
def _names_thinking(template: str) -> bool:
    return OPEN in template


@lru_cache(maxsize=256)
def _knows_developer(template: str) -> bool:
    return "developer" in template


def _ends_thinking(request: ChatRequest, prompt: str) -> bool:
    """The template, or the message that is continued, has opened the thinking; what other messages say of it does not count."""
    if request.continue_final_message:
        text = content_text(len(request.messages) - 1, request.messages[-1])
        return text.rfind(OPEN) > text.rfind(CLOSE)
    return request.add_generation_prompt is not False and prompt.rstrip().endswith(OPEN)


def content_text(position: int, message: ChatMessage) -> str:
    """Text parts are joined with newlines."""
    content = message.content
    if content is None:
        if message.role == "assistant" and (message.tool_calls or message.refusal):
            return message.refusal or ""
        raise BadRequest(
            f"messages[{position}].content is missing: send a string or a list of text parts", param=f"messages[{position}].content"
        )
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for part in content:
        text = part.refusal if part.type == "refusal" else part.text if part.type == "text" else None
        if text is None:
            raise BadRequest(
                f"messages[{position}] holds a part of type {part.type[:40]!r}: this model takes text parts only", param="messages"
            )
        texts.append(text)
    return "\n".join(texts)


def _template_message(position: int, message: ChatMessage, knows_developer: bool) -> dict[str, Any]:
    """What templates read; developer is the newer name of system."""
    shown: dict[str, Any] = {"role": message.role, "content": content_text(position, message)}
    if message.role == "developer" and not knows_developer:
        shown["role"] = "system"
    for name in ("name", "tool_call_id"):
        value = getattr(message, name)
        if value is not None:
            shown[name] = value
    if message.tool_calls:
        shown["tool_calls"] = [_template_call(position, i, call) for i, call in enumerate(message.tool_calls)]
    thought = message.reasoning_content if message.reasoning_content is not None else message.reasoning
    if thought is not None:
        shown["reasoning_content"] = thought
    return shown


def _template_call(position: int, number: int, call: SaidCall) -> dict[str, Any]:
    """Arguments as an object: templates write them with `tojson`, which would quote a text once more."""
    arguments = call.function.arguments
    if isinstance(arguments, str):
        param = f"messages[{position}].tool_calls[{number}].function.arguments"
        try:
            arguments = msgspec.json.decode(arguments, type=dict[str, Any]) if arguments.strip() else {}
        except (msgspec.DecodeError, RecursionError):
            raise BadRequest(f"{param} is not a JSON object: send the arguments as they came", param=param) from None
    shown: dict[str, Any] = {"type": call.type, "function": {"name": call.function.name, "arguments": arguments}}
    return shown if call.id is None else {"id": call.id, **shown}
