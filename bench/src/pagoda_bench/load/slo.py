"""A service level objective for one request, as the user writes it: `ttft=500ms,tpot=50ms`. Pure."""

import re
from dataclasses import dataclass, fields

from pagoda_bench.errors import SettingsError
from pagoda_bench.load.records import Record

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


def duration_s(text: str) -> float:
    """`500ms`, `1.5s`, `2m`. Raises SettingsError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms|s|m)", text.strip())
    if match is None:
        raise SettingsError(f"{text!r} is no duration: write a number with ms, s or m, like 500ms")
    return float(match[1]) * _UNITS[match[2]]


@dataclass(frozen=True, slots=True)
class Slo:
    """A request is good when it ended without an error and kept every limit that is given."""

    ttft: float | None = None
    tpot: float | None = None
    e2e: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Slo":
        """Raises SettingsError."""
        limits: dict[str, float] = {}
        for part in text.split(","):
            name, equals, value = part.strip().partition("=")
            if not equals or name not in {field.name for field in fields(cls)}:
                raise SettingsError(f"{part!r} is no objective: write ttft=…, tpot=… or e2e=…, like ttft=500ms,tpot=50ms")
            limits[name] = duration_s(value)
        return cls(**limits)

    def met_by(self, record: Record) -> bool:
        """A request without a TPOT (a single token) cannot break that limit."""
        if record.error is not None:
            return False
        pairs = ((record.ttft_s, self.ttft), (record.tpot_s, self.tpot), (record.e2e_s, self.e2e))
        return all(limit is None or value is None or value <= limit for value, limit in pairs)

    def __str__(self) -> str:
        limits = ((field.name, getattr(self, field.name)) for field in fields(self))
        return " and ".join(f"{name.upper()} ≤ {limit * 1e3:g} ms" for name, limit in limits if limit is not None)
