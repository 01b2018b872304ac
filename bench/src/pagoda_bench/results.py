"""The one format of every result file under bench/results/: reader and writer, so that any two files can be compared.

Knows nothing of how a figure was measured. Called by every benchmark and by `pagoda bench compare`.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pagoda_bench.errors import ResultFormatError
from pagoda_bench.hardware import read_hardware

FOLDER = Path(__file__).parents[2] / "results"
"""bench/results of this checkout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure. `case` like `0.45b c=32`, `system` like `pagoda` or `vllm`, `metric` with its unit in the name: `ttft_p95_s`."""

    case: str
    system: str
    metric: str
    value: float
    unit: str
    low: float | None = None
    """Lower end of what was seen or of the interval, as the benchmark's notes say; None: measured once."""
    high: float | None = None
    aim: str | None = None
    """What it should be, such as `< 2`, where somebody promised that; None: nobody did."""
    met: bool | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        return self.case, self.system, self.metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    benchmark: str
    """Names the file: peers, engine, router, sim, …"""
    commit: str
    date: str
    """UTC, YYYY-MM-DD."""
    hardware: Mapping[str, Any]
    command: str
    """What a reader types to get these figures again."""
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    """What a reader must know to judge the figures: a shared machine, what low and high are."""


def result_here(benchmark: str, rows: Iterable[Row], *, command: str, packages: tuple[str, ...] = (), notes: Iterable[str] = ()) -> Result:
    """A result measured on this machine, from this commit, today. `packages`: distributions whose versions matter."""
    hardware = read_hardware(packages).as_dict()
    commit, date = str(hardware.pop("commit")), str(hardware.pop("date"))
    return Result(benchmark=benchmark, commit=commit, date=date, hardware=hardware, command=command, rows=tuple(rows), notes=tuple(notes))


def write(result: Result, path: Path) -> None:
    """One row a line, so that a changed figure is one changed line. A result without notes has no key of that name."""
    head = {key: value for key, value in asdict(result).items() if key != "rows" and (key != "notes" or value)}
    lines = json.dumps(head, indent=1)[:-2]
    rows = ",\n".join("  " + json.dumps(_shown(row)) for row in result.rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{lines},\n "rows": [\n{rows}\n ]\n}}\n')


def _shown(row: Row) -> dict[str, Any]:
    return {key: value for key, value in asdict(row).items() if value is not None or key not in ("aim", "met")}


def read(path: Path) -> Result:
    """Raises ResultFormatError with the path and what is wrong with it."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise ResultFormatError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ResultFormatError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ResultFormatError(f"{path} is no result file: a JSON object is expected")
    try:
        return _result(content)
    except (TypeError, ValueError) as error:
        raise ResultFormatError(f"{path} is no result file: {error}") from error


def _result(content: dict[str, Any]) -> Result:
    _check_keys("the result", content, Result, optional={"notes"})
    rows = tuple(_row(number, row) for number, row in enumerate(content["rows"]))
    return Result(**{**content, "rows": rows, "notes": tuple(content.get("notes", ()))})


def _row(number: int, content: Any) -> Row:
    if not isinstance(content, dict):
        raise ValueError(f"row {number} is not an object")
    _check_keys(f"row {number}", content, Row, optional={"low", "high", "aim", "met"})
    if not isinstance(content["value"], int | float):
        raise ValueError(f"row {number} has the value {content['value']!r}, which is no number")
    return Row(**content)


def _check_keys(what: str, content: dict[str, Any], kind: type[Row | Result], optional: set[str]) -> None:
    known = {field.name for field in fields(kind)}
    if missing := known - optional - set(content):
        raise ValueError(f"{what} lacks {', '.join(sorted(missing))}")
    if unknown := set(content) - known:
        raise ValueError(f"{what} has unknown {', '.join(sorted(unknown))}")
