"""tools, tool_choice and parallel_tool_calls → what the template shows, what the output is constrained to, how it is read. Pure.

prepare.py calls it. A call that is asked for, not only allowed, is forced by a constraint, as vLLM does: the arguments of the one named
function, or an array of calls.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from pagoda_router.errors import BadRequest
from pagoda_router.generation import Structured
from pagoda_router.openai.reply.forms import FORCED, CallForm, form_of
from pagoda_router.openai.schemas import ChatRequest, Tool

MAX_TOOLS = 256
_NAME = re.compile(r"[\w.:/-]{1,128}")
_ANY_OBJECT = {"type": "object"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolset:
    """The tools that a model may call, and how."""

    shown: Sequence[dict[str, Any]]
    """For the template, as they were sent."""
    names: frozenset[str]
    form: CallForm
    forced: Structured | None = None
    forced_name: str | None = None
    only_one_call: bool = False


def toolset_of(request: ChatRequest, template: str) -> Toolset | None:
    """None: no tools, or none to be called. Raises BadRequest for what this model cannot do, too."""
    choice, names = check_tools(request)
    if not request.tools or choice == "none":
        return None
    form = form_of(template)
    if form is None:
        raise BadRequest(
            f"tools: the chat template of {request.model} shows the model no tools in a form that is known here: leave tools out",
            param="tools",
        )
    only_one = request.parallel_tool_calls is False
    tools = [tool for tool in request.tools if tool.function.name in names]
    shown = [msgspec.to_builtins(tool) for tool in tools]
    if choice == "auto":
        return Toolset(shown=shown, names=names, form=form, only_one_call=only_one)
    if choice == "required":
        forced = Structured(json_schema=_array_of_calls(tools, only_one=only_one))
        return Toolset(shown=shown, names=names, form=FORCED, forced=forced, only_one_call=only_one)
    name = choice.removeprefix("=")
    parameters = next(tool.function.parameters for tool in tools if tool.function.name == name)
    schema = msgspec.json.encode(_ANY_OBJECT if parameters is None else parameters).decode()
    return Toolset(shown=shown, names=names, form=form, forced=Structured(json_schema=schema), forced_name=name)


def check_tools(request: ChatRequest) -> tuple[str, frozenset[str]]:
    """What can be said of them without knowing the model. Returns the choice, as _choice_of does, and the names of tools that it allows."""
    names = _names(request.tools or [])
    if isinstance(request.tool_choice, dict) and request.tool_choice.get("type") == "allowed_tools":
        return _allowed(request.tool_choice, names)
    choice = _choice_of(request)
    if not names and choice not in ("none", "auto"):
        raise BadRequest("tool_choice asks for a call, but there are no tools: send tools", param="tool_choice")
    if choice.startswith("=") and choice[1:] not in names:
        known = ", ".join(sorted(names))[:200]
        raise BadRequest(f"tool_choice names {choice[1:61]!r}, which is not among tools: {known}", param="tool_choice")
    return choice, names


def _choice_of(request: ChatRequest) -> str:
    """ "none", "auto", "required", or the name of a function behind "="."""
    choice = request.tool_choice
    if choice is None:
        return "auto"
    if isinstance(choice, str):
        if choice not in ("none", "auto", "required"):
            raise BadRequest(f"tool_choice is {choice[:40]!r}: use none, auto, required or a function", param="tool_choice")
        return choice
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if choice.get("type") != "function" or not isinstance(name, str):
        raise BadRequest(
            'tool_choice is not a function: send {"type": "function", "function": {"name": …}}, or none, auto, required',
            param="tool_choice",
        )
    return "=" + name


def _allowed(choice: dict[str, Any], names: frozenset[str]) -> tuple[str, frozenset[str]]:
    """OpenAI's way to allow a few of the tools: the model is shown only those."""
    asked = choice.get("allowed_tools")
    mode, tools = (asked.get("mode", "auto"), asked.get("tools")) if isinstance(asked, dict) else (None, None)
    if mode not in ("auto", "required") or not isinstance(tools, list) or not tools:
        raise BadRequest("tool_choice: allowed_tools needs a mode, auto or required, and tools, a list of functions", param="tool_choice")
    functions = [tool.get("function") if isinstance(tool, dict) else None for tool in tools]
    allowed = {str(function.get("name")) if isinstance(function, dict) else "" for function in functions}
    for name in sorted(allowed - names):
        raise BadRequest(
            f"tool_choice allows {name[:60]!r}, which is not among tools: {', '.join(sorted(names))[:200]}", param="tool_choice"
        )
    return mode, frozenset(allowed)


def _names(tools: Sequence[Tool]) -> frozenset[str]:
    if len(tools) > MAX_TOOLS:
        raise BadRequest(f"tools has {len(tools)} entries: send at most {MAX_TOOLS}", param="tools")
    names: set[str] = set()
    for position, tool in enumerate(tools):
        name, param = tool.function.name, f"tools[{position}].function.name"
        if tool.type != "function":
            raise BadRequest(f"tools[{position}].type is {tool.type[:40]!r}: only functions can be called", param=f"tools[{position}].type")
        if not _NAME.fullmatch(name):
            raise BadRequest(f"{param} is {name[:40]!r}: use 1 to 128 letters, digits and any of _ . : / -", param=param)
        if name in names:
            raise BadRequest(f"{param}: there are two functions {name}: give each a name of its own", param=param)
        names.add(name)
    return frozenset(names)


def _array_of_calls(tools: Sequence[Tool], *, only_one: bool) -> str:
    """The schema of FORCED. References count from a schema's root, so definitions move there."""
    definitions: dict[str, dict[str, Any]] = {"$defs": {}, "definitions": {}}
    calls: list[dict[str, Any]] = []
    for position, tool in enumerate(tools):
        parameters = dict(_ANY_OBJECT if tool.function.parameters is None else tool.function.parameters)
        for keyword, common in definitions.items():
            own = parameters.pop(keyword, None)
            for name, definition in own.items() if isinstance(own, dict) else ():
                if common.setdefault(name, definition) != definition:
                    param = f"tools[{position}].function.parameters"
                    raise BadRequest(f"{param}: another function has another {keyword}.{name[:60]}: rename one", param=param)
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.function.name}, "parameters": parameters},
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
        )
    schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": calls} if len(calls) > 1 else calls[0]}
    if only_one:
        schema["maxItems"] = 1
    schema |= {keyword: common for keyword, common in definitions.items() if common}
    return msgspec.json.encode(schema).decode()
