"""How a model writes its tool calls: one form per family, chosen by what its chat template says. Pure tables.

toolset.py chooses, calls.py reads.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CallForm:
    """A sequence of JSON objects with `name` and `arguments` or `parameters`, and what stands around them."""

    name: str
    marker: str = ""
    """Begins calls, anywhere in the text. Empty: the whole reply is calls."""
    bracket: str = ""
    """Follows the marker, before the first object."""
    separator: str = ""
    """Between two objects; empty: each has its own marker."""
    closing: str = ""
    """Behind the last object."""
    starts_bare: bool = False
    """An object at the reply's very beginning needs no marker, when its name is that of a known tool."""
    short_ids: bool = False
    """Templates of this family take ids of nine letters and digits only."""


HERMES = CallForm(name="hermes", marker="<tool_call>", closing="</tool_call>")
MISTRAL = CallForm(name="mistral", marker="[TOOL_CALLS]", bracket="[", separator=",", closing="]", short_ids=True)
LLAMA = CallForm(name="llama", marker="<|python_tag|>", separator=";", starts_bare=True)
FORCED = CallForm(name="forced", bracket="[", separator=",", closing="]")
"""What a constraint makes a model write that must call a tool, whatever its own form is."""

UNREAD = ("<function=", "[ARGS]")
"""Qwen3-Coder and others tag the name and each argument; later Mistral models write the name before its arguments."""


def form_of(template: str) -> CallForm | None:
    """None: the template shows the model no tools, or in a form that is not read here."""
    if "tools" not in template or any(mark in template for mark in UNREAD):
        return None
    if HERMES.marker in template:
        return HERMES
    if MISTRAL.marker in template:
        return MISTRAL
    if LLAMA.marker in template or ("<|start_header_id|>" in template and '"parameters"' in template):
        return LLAMA
    return None
