"""What the table is written in: kinds of values, rules with their sentence, and the predicates that rules share."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pagoda_operator.errors import InvalidQuantity
from pagoda_operator.manifest.quantities import parse_duration, parse_percentage, parse_quantity

Kind = Literal["object", "string", "integer", "number", "boolean", "quantity", "list"]

KIND_MESSAGES: Mapping[Kind, str] = {
    "object": "write an object: its fields indented below it",
    "string": "write a string; quote it when it looks like a number",
    "integer": "write a whole number, without quotes",
    "number": "write a number, without quotes",
    "boolean": "write true or false, without quotes",
    "quantity": "write a whole number or a quoted quantity",
    "list": "write a list",
}
"""For values of the wrong type. The API server has its own words for these; only the field agrees."""


@dataclass(frozen=True, slots=True)
class Rule:
    holds: Callable[[Any], bool]
    """Called only with values of the field's kind."""
    message: str


@dataclass(frozen=True, slots=True)
class Field:
    kind: Kind
    rules: tuple[Rule, ...] = ()
    required: bool = False
    max_size: int | None = None
    """Characters of a string, items of a list. Bounds the cost of the CRD's expressions."""


def one_of(*values: Any) -> Callable[[Any], bool]:
    return lambda given: given in values


def between(low: int, high: int) -> Callable[[Any], bool]:
    return lambda given: low <= given <= high


def matches(pattern: str) -> Callable[[Any], bool]:
    """RE2 and Python agree on what these patterns use."""
    compiled = re.compile(pattern)
    return lambda given: compiled.fullmatch(given) is not None


def at_least(quantity: str) -> Callable[[Any], bool]:
    least = parse_quantity(quantity)

    def holds(given: Any) -> bool:
        try:
            return parse_quantity(given) >= least
        except InvalidQuantity:
            return False

    return holds


def lasts(shortest: str, longest: str) -> Callable[[Any], bool]:
    low, high = parse_duration(shortest), parse_duration(longest)

    def holds(given: Any) -> bool:
        try:
            return low <= parse_duration(given) <= high
        except InvalidQuantity:
            return False

    return holds


def share_between(low: str, high: str) -> Callable[[Any], bool]:
    """Both ends excluded."""
    least, most = parse_percentage(low), parse_percentage(high)

    def holds(given: Any) -> bool:
        try:
            return least < parse_percentage(given) < most
        except InvalidQuantity:
            return False

    return holds


def unique(values: Sequence[Any]) -> bool:
    return all(values.count(value) == 1 for value in values)


def only_with(name: str, *schemes: str) -> Callable[[Any], bool]:
    """Of spec.model: the field is given only beside a source of these schemes."""
    beginnings = tuple(f"{scheme}://" for scheme in schemes)
    return lambda model: name not in model or model["source"].startswith(beginnings)


def merged(base: Any, override: Any) -> Any:
    """Objects field by field, anything else as a whole; what the override leaves out stays."""
    if not isinstance(base, Mapping) or not isinstance(override, Mapping):
        return override
    return {**base, **{name: merged(base[name], value) if name in base else value for name, value in override.items()}}
