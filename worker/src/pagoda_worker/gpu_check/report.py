"""What the check says: lines for a person as each part ends, and one result file in the format of everything under bench/results/.

The writer is the check's own: the benchmarks' distribution is not there on a bare GPU machine.
"""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pagoda_worker.errors import ConfigError
from pagoda_worker.gpu_check.speed import Figure
from pagoda_worker.gpu_check.truth import Check


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    case: str
    system: str
    metric: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None


@dataclass(slots=True)
class Report:
    """Written after every part, so that a run that is cut off leaves what it had."""

    command: str
    hardware: dict[str, Any]
    path: Path | None
    """None: nothing is written."""
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    kept: list[Row] = field(default_factory=list)
    """Of an earlier run, and of those only what this one has not measured."""

    def keep_others(self, only: Sequence[str]) -> None:
        """Before a run of some parts: rows that the file has of others stay, those measured again are replaced. Raises ConfigError where
        the file is of another machine."""
        self.notes.append(f"parts with {', '.join(repr(words) for words in only)} in their names are of {_commit()}")
        if self.path is None or not self.path.exists():
            return
        found = json.loads(self.path.read_text())
        if found["hardware"].get("device") != self.hardware.get("device"):
            raise ConfigError(f"{self.path} is of {found['hardware'].get('device')}, this is {self.hardware.get('device')}: give --output")
        others = [note for note in found["notes"] if not any(words in note.split(":")[0] for words in only)]
        self.notes = [*others, f"parts without are of {found['commit']}", *self.notes]
        self.kept = [Row(**row) for row in found["rows"]]

    def line(self, text: str) -> None:
        print(text, flush=True)

    def add_check(self, check: Check) -> None:
        self.line(f"{'met' if check.met else 'NOT MET':8} {check.name}: {check.detail}")
        self.rows.append(Row(case=check.name, system="pagoda", metric="met", value=float(check.met), unit="bool"))
        if not check.met:
            self.failures.append(check.name)
        self.write()

    def add_figure(self, figure: Figure) -> None:
        self.line(
            f"{figure.case:58} {figure.value:12.1f} {figure.unit}, roofline {figure.roofline:12.1f}, reached {100 * figure.share:5.1f} %"
        )
        case, metric, unit = figure.case, figure.metric, figure.unit
        ours = Row(case=case, system="pagoda", metric=metric, value=figure.value, unit=unit, low=figure.low, high=figure.high)
        self.rows += [ours, Row(case=case, system="roofline", metric=metric, value=figure.roofline, unit=unit)]
        self.write()

    def add_value(self, case: str, system: str, metric: str, value: float, unit: str) -> None:
        self.line(f"{case:58} {value:12.4g} {unit} ({metric})")
        self.add_row(case, system, metric, value, unit)

    def add_row(self, case: str, system: str, metric: str, value: float, unit: str) -> None:
        """Without a line."""
        self.rows.append(Row(case=case, system=system, metric=metric, value=value, unit=unit))
        self.write()

    def skip(self, part: str, why: str) -> None:
        self.line(f"skipped  {part}: {why}")
        self.notes.append(f"skipped {part}: {why}")
        self.write()

    def fail(self, part: str, error: BaseException) -> None:
        self.line(f"FAILED   {part}: {type(error).__name__}: {error}")
        self.notes.append(f"failed {part}: {type(error).__name__}: {error}")
        self.failures.append(part)
        self.write()

    def write(self) -> None:
        if self.path is None:
            return
        head = {
            "benchmark": "gpu-check",
            "commit": _commit(),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "hardware": self.hardware,
            "command": self.command,
            "notes": self.notes,
        }
        mine = {(row.case, row.system, row.metric) for row in self.rows}
        every = [row for row in self.kept if (row.case, row.system, row.metric) not in mine] + self.rows
        rows = ",\n".join("  " + json.dumps(asdict(row)) for row in every)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(f'{json.dumps(head, indent=1)[:-2]},\n "rows": [\n{rows}\n ]\n}}\n')


def _commit() -> str:
    """Of the checkout the code lies in; a copy without git has none."""
    try:
        git = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
        )
    except FileNotFoundError:
        return "unknown"
    return git.stdout.strip() or "unknown"
