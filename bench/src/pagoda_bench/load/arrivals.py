"""When the requests of an open loop are due: a Poisson process, or a recorded trace. Pure but for reading the trace's file."""

import csv
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pagoda_bench.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Arrival:
    at_s: float
    """After the start."""
    prompt_tokens: int | None = None
    """As recorded; None: the scenario decides."""
    output_tokens: int | None = None


def poisson(rate_per_s: float, duration_s: float, random_source: random.Random) -> list[Arrival]:
    """Gaps are exponential with mean 1/rate, so bursts are as frequent as among independent users. At least one arrival."""
    arrivals: list[Arrival] = []
    at_s = random_source.expovariate(rate_per_s)
    while at_s < duration_s or not arrivals:
        arrivals.append(Arrival(at_s))
        at_s += random_source.expovariate(rate_per_s)
    return arrivals


# name of the time column: (unit or None for a calendar date, prompt column, output column)
_FORMS: dict[str, tuple[float | None, str, str]] = {
    "at_s": (1.0, "prompt_tokens", "output_tokens"),  # our own
    "timestamp": (0.001, "input_length", "output_length"),  # Mooncake's JSONL, in milliseconds
    "TIMESTAMP": (None, "ContextTokens", "GeneratedTokens"),  # Azure's CSV, dates
}


def read_trace(path: Path, *, speed: float = 1.0, max_requests: int | None = None) -> list[Arrival]:
    """A CSV with a header, or JSONL; the first arrival is at 0, and `speed` 2 halves every gap. Raises SettingsError."""
    try:
        with path.open(newline="") as file:
            rows = [json.loads(line) for line in file if line.strip()] if path.suffix == ".jsonl" else list(csv.DictReader(file))
        return arrivals_of(rows[:max_requests], speed=speed)
    except OSError as error:
        raise SettingsError(f"the trace {path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise SettingsError(f"the trace {path}: {error}") from error


def arrivals_of(rows: list[Mapping[str, Any]], *, speed: float = 1.0) -> list[Arrival]:
    """Raises ValueError that says which columns are known."""
    form = next((name for name in _FORMS if rows and name in rows[0]), None)
    if form is None:
        known = "; ".join(f"{at},{prompt},{output}" for at, (_, prompt, output) in _FORMS.items())
        raise ValueError(f"it has no rows or no known time column: write a header (CSV) or keys (JSONL) like {known}")
    unit, prompt, output = _FORMS[form]
    times = [datetime.fromisoformat(row[form]).timestamp() if unit is None else float(row[form]) * unit for row in rows]
    sizes = [(_count(row, prompt), _count(row, output)) for row in rows]
    first = min(times)
    return [Arrival((at - first) / speed, *size) for at, size in sorted(zip(times, sizes, strict=True), key=lambda pair: pair[0])]


def _count(row: Mapping[str, Any], column: str) -> int | None:
    value = row.get(column)
    return None if value in (None, "") else max(1, int(value))
