"""What is compared: a model and how the engine shall hold it, as typed on the command line. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pagoda_bench.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Candidate:
    source: str
    """A Hugging Face folder, or `builtin://tiny` and the like."""
    engine: Mapping[str, Any]
    """As `spec.engine` of a manifest has it."""
    label: str


def parse(text: str) -> Candidate:
    """`builtin://tiny,quantization=int8,kvCache.dtype=int8`, a dot for each level; `label=…` names it in tables. Raises SettingsError."""
    source, *settings = text.split(",")
    label, engine, told = "", dict[str, Any](), list[str]()
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name.strip("."):
            raise SettingsError(f"{text}: {setting!r} is no setting; write MODEL,name=value such as builtin://tiny,quantization=int8")
        if name == "label":
            label = value
            continue
        told.append(setting)
        *levels, last = name.split(".")
        inner = engine
        for level in levels:
            inner = inner.setdefault(level, {})
        inner[last] = _scalar(value)
    return Candidate(source, engine, label or ", ".join(told) or source.partition("://")[2] or source.rstrip("/").rpartition("/")[2])


def parse_all(texts: Sequence[str]) -> list[Candidate]:
    """Raises SettingsError, also where two would have one name in the tables."""
    candidates = [parse(text) for text in texts]
    labels = [candidate.label for candidate in candidates]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise SettingsError(f"{', '.join(sorted(twice))}: two models would have this name; add ,label=NAME to one of them")
    return candidates


def _scalar(text: str) -> Any:
    """A number, true or false where it is one, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
