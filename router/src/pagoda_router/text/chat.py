"""Chat templates: messages → prompt text, in Jinja's immutable sandbox, as transformers renders them, but bounded.

A template comes with a model and is not trusted: loops, multiplication and output are counted against one budget per rendering.
Knows no tokens and no HTTP; openai/ calls `ChatTemplates.render`.
"""

import json
import re
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.filters import do_indent
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pagoda_router.errors import BadRequest

BUDGET = "render budget"
"""Where the budget lies in a template's variables: a name that no template can spell."""
MAX_PRODUCT = 1_000_000
"""Characters, items or digits that one multiplication may make."""


MAX_INDENT = 64
PADDING = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs"})
"""String methods that make memory from a number; no chat template needs them."""


class _OverBudget(Exception):
    """Not a TemplateError: those carry the template's own words."""


class _Budget:
    def __init__(self, *, timeout_s: float, max_chars: int) -> None:
        self._deadline = time.monotonic() + timeout_s
        self._timeout_s = timeout_s
        self._max_chars = max_chars
        self._chars = 0

    def spend(self, chars: int = 0) -> None:
        self._chars += chars
        if self._chars > self._max_chars:
            raise _OverBudget(f"it made more than {self._max_chars} characters")
        if time.monotonic() > self._deadline:
            raise _OverBudget(f"it ran longer than {self._timeout_s:g} s")


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for some, times in ((left, right), (right, left)):
                if isinstance(some, (str, list, tuple)) and isinstance(times, int) and len(some) * times > MAX_PRODUCT:
                    raise _OverBudget("it multiplied a text or list too often")
        elif operator == "**" and not (abs(left) < MAX_PRODUCT and abs(right) < 64):
            raise _OverBudget("it computed too large a power")
        elif operator == "%" and isinstance(left, str):
            _check_widths(left)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Any:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_widths(value.__self__)
        return wrapped

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in PADDING and super().is_safe_attribute(obj, attr, value)


def _check_widths(form: str) -> None:
    if re.search(r"\d{4,}|\*|\{[^}]*\{", form):
        raise _OverBudget("it formatted a text to too large a width")


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks assistant text for training; here it is just its content."""

    tags = {"generation"}  # noqa: RUF012 (jinja's own class attribute)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _TemplateDict:
    """`dict(…)` for templates without the type's own attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    if isinstance(width, int) and width > MAX_INDENT:
        raise _OverBudget("it indented too far")
    return do_indent(text, width, first, blank)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
    # Jinja's own filter escapes HTML characters, which are text to a model.
    if indent is not None and indent > MAX_INDENT:
        raise _OverBudget("it indented too far")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@jinja2.pass_context
def _counted(context: jinja2.runtime.Context, items: Iterable[Any]) -> Iterator[Any]:
    budget = context.resolve(BUDGET)
    for item in items:
        budget.spend()
        yield item


def _environment() -> _Sandbox:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation])
    environment.filters["tojson"] = _tojson
    environment.filters["indent"] = _indent
    environment.filters["pagoda_counted"] = _counted
    for name in ("center", "format", "wordwrap"):
        environment.filters.pop(name)
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_TemplateDict())
    environment.globals.pop("lipsum")
    return environment


_ENVIRONMENT = _environment()


def _compile(source: str) -> jinja2.Template:
    tree = _ENVIRONMENT.parse(source)
    for loop in tree.find_all(nodes.For):
        loop.iter = nodes.Filter(loop.iter, "pagoda_counted", [], [], None, None, lineno=loop.lineno)
    code = _ENVIRONMENT.compile(tree)
    # A plain dictionary: a rendering begins with a copy of it, which of make_globals' ChainMap takes longer than most renderings.
    return jinja2.Template.from_code(_ENVIRONMENT, code, dict(_ENVIRONMENT.globals))


class ChatTemplates:
    """Compiled templates by source; the least recently used leave beyond the bound."""

    def __init__(self, *, timeout_s: float, max_chars: int, max_templates: int = 64) -> None:
        self._timeout_s = timeout_s
        self._max_chars = max_chars
        self._max_templates = max_templates
        self._compiled: OrderedDict[str, jinja2.Template] = OrderedDict()

    def render(
        self,
        source: str,
        messages: Sequence[Mapping[str, Any]],
        *,
        special_tokens: Mapping[str, str],
        variables: Mapping[str, Any],
        add_generation_prompt: bool,
        continue_final_message: bool = False,
    ) -> str:
        """Raises BadRequest with the template's own words when it refuses the conversation."""
        given = {**variables, **special_tokens, "messages": messages, "add_generation_prompt": add_generation_prompt}
        given.setdefault("tools", None)
        given.setdefault("documents", None)
        budget = _Budget(timeout_s=self._timeout_s, max_chars=self._max_chars)
        pieces: list[str] = []
        try:
            for piece in self._template(source).generate({**given, BUDGET: budget}):
                budget.spend(len(piece))
                pieces.append(piece)
        except _OverBudget as error:
            raise BadRequest(f"the model's chat template was stopped: {error}; shorten the conversation", param="messages") from error
        except jinja2.TemplateError as error:
            raise BadRequest(f"the model's chat template refuses these messages: {error.message}", param="messages") from error
        except RecursionError as error:
            raise BadRequest("the model's chat template calls itself without end", param="messages") from error
        except Exception as error:  # a template is a program: it can fail on a conversation it did not expect in any way
            raise BadRequest(
                f"the model's chat template cannot render these messages: {type(error).__name__}: {error}", param="messages"
            ) from error
        text = "".join(pieces)
        return _cut_after_final_message(text, messages) if continue_final_message else text

    def _template(self, source: str) -> jinja2.Template:
        template = self._compiled.get(source)
        if template is None:
            template = self._compiled[source] = _compile(source)
            while len(self._compiled) > self._max_templates:
                self._compiled.popitem(last=False)
        else:
            self._compiled.move_to_end(source)
        return template


def _cut_after_final_message(text: str, messages: Sequence[Mapping[str, Any]]) -> str:
    """As transformers does for continue_final_message: the prompt ends where the last message's content ends."""
    content = messages[-1].get("content")
    core = content.strip() if isinstance(content, str) else ""
    start = text.rfind(core) if core else -1
    if start < 0:
        raise BadRequest(
            "continue_final_message needs a last message with text, and a chat template that shows it unchanged",
            param="continue_final_message",
        )
    kept = content.lstrip() if isinstance(content, str) else ""
    end = start + len(kept) if text.startswith(kept, start) else start + len(core)
    return text[:end]
