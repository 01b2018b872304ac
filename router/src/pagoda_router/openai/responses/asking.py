"""A response's request → the chat that answers it. Pure; answers.py calls `chat_of` and prepares the chat as any other."""

from typing import Any

import msgspec

from pagoda_router.errors import BadRequest
from pagoda_router.openai.responses.items import messages_of
from pagoda_router.openai.responses.request import LOGPROBS, ResponsesRequest
from pagoda_router.openai.schemas import ChatRequest, Tool, wrong_field

_SAME = (
    *("temperature", "top_p", "stream", "parallel_tool_calls", "top_k", "min_p", "frequency_penalty", "presence_penalty"),
    *("repetition_penalty", "logit_bias", "seed", "stop", "min_tokens", "ignore_eos", "priority", "chat_template_kwargs"),
)
"""Fields that mean in a chat what they mean here."""
_CHOICES = ("none", "auto", "required")


def chat_of(request: ResponsesRequest) -> ChatRequest:
    """Raises BadRequest in the response's words."""
    wants_logprobs = LOGPROBS in (request.include or ()) or bool(request.top_logprobs)
    tools, tool_choice = _tools_of(request)
    return ChatRequest(
        model=request.model,
        messages=messages_of(request.instructions, request.input),
        max_completion_tokens=request.max_output_tokens,
        logprobs=wants_logprobs,
        top_logprobs=request.top_logprobs if wants_logprobs else None,
        reasoning_effort=None if request.reasoning is None else request.reasoning.effort,
        response_format=_response_format(request),
        tools=tools,
        tool_choice=tool_choice,
        **{name: getattr(request, name) for name in _SAME},
    )


def _response_format(request: ResponsesRequest) -> dict[str, Any] | None:
    form = None if request.text is None else request.text.format
    if form is None or form.get("type") != "json_schema":
        return form
    if "schema" not in form:
        raise BadRequest(
            'text.format.schema is missing: send {"type": "json_schema", "name": …, "schema": {…}}', param="text.format.schema"
        )
    return {"type": "json_schema", "json_schema": {"name": form.get("name"), "schema": form["schema"]}}


def _tools_of(request: ResponsesRequest) -> tuple[list[Tool] | None, str | dict[str, Any] | None]:
    if request.tools is None:
        return None, _tool_choice(request.tool_choice)
    tools: list[Tool] = []
    for position, tool in enumerate(request.tools):
        kind = tool.get("type")
        if kind != "function":
            param = f"tools[{position}].type"
            raise BadRequest(f"{param} is {str(kind)[:40]!r}: only functions, which you run yourself, can be called", param=param)
        function = {name: tool[name] for name in ("name", "description", "parameters", "strict") if tool.get(name) is not None}
        try:
            tools.append(msgspec.convert({"type": "function", "function": function}, Tool))
        except msgspec.ValidationError as error:
            raise wrong_field(str(error).replace("$.function", "$"), f"tools[{position}]") from None
    return tools, _tool_choice(request.tool_choice)


def _tool_choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    """Functions are named one level higher than in a chat."""
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools" and isinstance(choice.get("tools"), list):
        named = [{"function": tool} for tool in choice["tools"]]
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode", "auto"), "tools": named}}
    if isinstance(choice, dict):
        name = choice.get("name")
        if choice.get("type") != "function" or not isinstance(name, str):
            raise BadRequest(
                f'tool_choice is not a function: send {{"type": "function", "name": …}}, or {", ".join(_CHOICES)}', param="tool_choice"
            )
        return {"type": "function", "function": {"name": name}}
    if choice is not None and choice not in _CHOICES:
        raise BadRequest(f"tool_choice is {choice[:40]!r}: use {', '.join(_CHOICES)} or a function", param="tool_choice")
    return choice
