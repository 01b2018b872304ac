"""The form that an answer must have: response_format, vLLM's structured_outputs and its older guided_… fields → one Structured. Pure.

prepare.py calls it. Whether a schema, regex or grammar can be enforced is the worker's to say; here only its place and type are checked.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from pagoda_router.errors import BadRequest
from pagoda_router.generation import Structured
from pagoda_router.openai.schemas import CommonRequest

MAX_CHOICES = 1024
_WITHOUT_EFFECT = ("disable_fallback", "disable_any_whitespace", "disable_additional_properties", "whitespace_pattern", "structural_tag")
"""Of structured_outputs: refused when set, since an answer would not keep to them."""


def structured_of(request: CommonRequest) -> tuple[Structured, str] | None:
    """The form and the field that asks for it. Raises BadRequest when two fields do, or one is not of its kind."""
    found = [*_response_format(request.response_format), *_structured_outputs(request.structured_outputs)]
    for kind in ("json", "regex", "choice", "grammar"):
        value = getattr(request, f"guided_{kind}")
        if value is not None and value not in ({}, "", []):
            found.append((_KINDS[kind](value, f"guided_{kind}"), f"guided_{kind}"))
    if len(found) > 1:
        names = " and ".join(field for _, field in found)
        raise BadRequest(f"{names} each ask for a form of the answer: send one", param=found[1][1])
    return found[0] if found else None


def schema_text(schema: Any, field: str) -> str:
    """A JSON schema as text, given as an object or as text of one."""
    if isinstance(schema, str):
        try:
            schema = msgspec.json.decode(schema)
        except (msgspec.DecodeError, RecursionError):
            raise BadRequest(f"{field} is text, but not JSON: send a schema", param=field) from None
    if not isinstance(schema, dict):
        raise BadRequest(f"{field} is not a JSON schema: send an object", param=field)
    return msgspec.json.encode(schema).decode()


def _response_format(form: dict[str, Any] | None) -> list[tuple[Structured, str]]:
    kind = None if form is None else form.get("type")
    if form is None or kind == "text":
        return []
    if kind == "json_object":
        return [(Structured(json_object=True), "response_format")]
    if kind != "json_schema":
        raise BadRequest(f"response_format.type is {str(kind)[:40]!r}: use text, json_object or json_schema", param="response_format.type")
    named = form.get("json_schema")
    if not isinstance(named, dict) or "schema" not in named:
        raise BadRequest(
            'response_format.json_schema.schema is missing: send {"name": …, "schema": {…}}', param="response_format.json_schema"
        )
    return [(_json(named["schema"], "response_format.json_schema.schema"), "response_format")]


def _structured_outputs(outputs: dict[str, Any] | None) -> list[tuple[Structured, str]]:
    found: list[tuple[Structured, str]] = []
    for name, value in (outputs or {}).items():
        field = f"structured_outputs.{name}"
        if value is None or value is False:
            continue
        if name == "json_object":
            found.append((Structured(json_object=True), field))
        elif name in _KINDS:
            found.append((_KINDS[name](value, field), field))
        elif name in _WITHOUT_EFFECT:
            raise BadRequest(f"{field} is not supported: leave it out", param=field)
        else:
            raise BadRequest(f"{field[:80]} is not known: use json, regex, choice, grammar or json_object", param="structured_outputs")
    return found


def _json(value: Any, field: str) -> Structured:
    return Structured(json_schema=schema_text(value, field))


def _text(value: Any, field: str, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise BadRequest(f"{field} is not {what}: send a string", param=field)
    return value


def _choice(value: Any, field: str) -> Structured:
    if not isinstance(value, list) or not value or not all(isinstance(choice, str) and choice for choice in value):
        raise BadRequest(f"{field} is not a list of choices: send strings that are not empty", param=field)
    if len(value) > MAX_CHOICES:
        raise BadRequest(f"{field} has {len(value)} choices: send at most {MAX_CHOICES}", param=field)
    return Structured(choices=tuple(value))


_KINDS: dict[str, Callable[[Any, str], Structured]] = {
    "json": _json,
    "regex": lambda value, field: Structured(regex=_text(value, field, "a regular expression")),
    "choice": _choice,
    "grammar": lambda value, field: Structured(grammar=_text(value, field, "a Lark grammar")),
}
