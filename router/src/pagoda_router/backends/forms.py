"""The form that a request asks an answer to have, by vLLM's fields, for servers that know it by other ones. Pure; dialects use it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from pagoda_router.errors import BadRequest

STRUCTURED = "structured_outputs"
OLDER_SPELLING = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "guided_whitespace_pattern": "whitespace_pattern",
}
"""Of STRUCTURED's members."""
_KINDS = ("json", "regex", "choice", "grammar", "json_object")
_META = re.compile(r"[.^$*+?{}()|\[\]\\/-]")


@dataclass(frozen=True, slots=True)
class Form:
    kind: str
    """json, regex or grammar: choices are a regex, any object is a schema of one."""
    value: Any
    field: str
    """By which it was asked for."""


def said(fields: Mapping[str, msgspec.Raw], name: str) -> bool:
    return bytes(fields.get(name, b"null")) != b"null"


def older_spelling(fields: Mapping[str, msgspec.Raw]) -> list[str]:
    """The older fields that the request has. Raises BadRequest where the newer one is beside them."""
    older = [name for name in OLDER_SPELLING if said(fields, name)]
    if older and said(fields, STRUCTURED):
        raise BadRequest(f"{older[0]} and {STRUCTURED} both ask for a form: leave one out", param=older[0])
    return older


def take_form(fields: dict[str, msgspec.Raw]) -> Form | None:
    """Out of the fields, whichever spelling it has. Raises BadRequest for two, and for one that is not known."""
    older = older_spelling(fields)
    told = {OLDER_SPELLING[name]: fields[name] for name in older}
    field = older[0] if older else STRUCTURED
    if said(fields, STRUCTURED):
        try:
            told = msgspec.json.decode(fields[STRUCTURED], type=dict[str, msgspec.Raw])
        except msgspec.ValidationError:
            raise BadRequest(f"{STRUCTURED} is not an object: send one of {', '.join(_KINDS)} in it", param=STRUCTURED) from None
    for name in (STRUCTURED, *OLDER_SPELLING):
        fields.pop(name, None)
    asked = [kind for kind in _KINDS if kind in told and bytes(told[kind]) not in (b"null", b"false")]
    if not told:
        return None
    if len(asked) != 1:
        raise BadRequest(f"{field} asks for {len(asked)} forms: send one of {', '.join(_KINDS)}", param=field)
    (kind,) = asked
    if "response_format" in fields and msgspec.json.decode(fields["response_format"]) not in (None, {"type": "text"}):
        raise BadRequest(f"response_format and {field} both ask for a form: leave one out", param=field)
    return _form(kind, msgspec.json.decode(told[kind]), field)


def _form(kind: str, value: Any, field: str) -> Form:
    if kind == "json_object":
        return Form("json", {"type": "object"}, field)
    if kind == "json" and isinstance(value, str):
        try:
            return Form("json", msgspec.json.decode(value), field)
        except msgspec.DecodeError as error:
            raise BadRequest(f"{field} is not a JSON schema: {error}", param=field) from None
    if kind == "choice":
        if not isinstance(value, list) or not value or not all(isinstance(choice, str) for choice in value):
            raise BadRequest(f"{field} is not a list of texts: send at least one", param=field)
        return Form("regex", "(" + "|".join(_META.sub(r"\\\g<0>", choice) for choice in value) + ")", field)
    return Form(kind, value, field)
