"""Fields of a config.json, read strictly: missing, of another kind, or not computed by this engine are three different sentences.

Called by the parsers of the architectures and of quantized layouts. Knows none of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pagoda_worker.errors import ModelError, UnsupportedModel


@dataclass(frozen=True, slots=True)
class ConfigFields:
    raw: Mapping[str, Any]
    place: str = "config.json"
    subject: str = ""
    """What a sentence is about; empty: the architecture."""

    @property
    def architecture(self) -> str:
        """The registry has seen that there is exactly one."""
        return str(self.raw["architectures"][0])

    def integer(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        """null and a missing field are the default. Raises ModelError."""
        value = self.raw.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            kind = "a positive integer" if least == 1 else f"an integer of at least {least}"
            raise ModelError(f"{self.place}: {name} must be {kind}, it is {value!r}")
        return value

    def number(self, name: str, default: float) -> float:
        value = self.raw.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise ModelError(f"{self.place}: {name} must be a positive number, it is {value!r}")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.raw.get(name)
        if value is not None and not isinstance(value, bool):
            raise ModelError(f"{self.place}: {name} must be true or false, it is {value!r}")
        return default if value is None else value

    def names(self, name: str) -> tuple[str, ...]:
        """null and a missing field are none. Raises ModelError."""
        value = self.raw.get(name)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise ModelError(f"{self.place}: {name} must be a list of names, it is {value!r}")
        return tuple(value)

    def mapping(self, name: str) -> Mapping[str, Any] | None:
        """Raises ModelError."""
        value = self.raw.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise ModelError(f"{self.place}: {name} must be an object, it is {value!r}")
        return value

    def only(self, name: str, *possible: object) -> None:
        """Other values would be computed wrongly; a missing field or null is fine. Raises UnsupportedModel."""
        value = self.raw.get(name)
        if value is not None and value not in possible:
            raise self.unsupported(f"{name} {value!r}", " or ".join(map(repr, possible)) or "null")

    def unsupported(self, what: str, only: str) -> UnsupportedModel:
        return UnsupportedModel(f"{self.subject or self.architecture} with {what} is not supported; only {only} is")
