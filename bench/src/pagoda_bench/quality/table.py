"""Tables made of a result's rows alone, so that a test can hold a document against its file. Pure but for the CSV and the document.

One line a format: memory, quality, speed. And all of the drift, by path and by what is judged.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from pagoda_bench.hardware import Hardware
from pagoda_bench.marked import replaced
from pagoda_bench.quality.engine import PATHS
from pagoda_bench.results import Result, Row

BEGIN, END = "<!-- quality: written by `make quality`, not by hand -->", "<!-- quality: end -->"
DRIFT = ("perplexity", "perplexity_ratio", "kl_mean_nats", "kl_p50_nats", "kl_p99_nats", "kl_max_nats", "top1_agreement_ratio")


class Figures:
    """The rows of one result by what they tell."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = {row.key: row for row in rows}
        self.labels = list(dict.fromkeys(row.system for row in rows))
        self.texts = list(dict.fromkeys(row.case for row in rows if row.metric == "perplexity"))
        """Cases that have drifts."""
        self.name = self.texts[0].removesuffix(" prefill").removesuffix(" decode") if self.texts else ""
        self.speed_cases = list(dict.fromkeys(row.case for row in rows if row.metric == "output_tokens_per_s"))

    def row(self, case: str, label: str, metric: str) -> Row | None:
        return self._rows.get((case, label, metric))

    def within(self, case: str) -> str:
        """The case without the model's name."""
        return case.removeprefix(f"{self.name} ")

    def value(self, case: str, label: str, metric: str) -> float | None:
        row = self.row(case, label, metric)
        return None if row is None else row.value

    def worst(self, label: str, metric: str, *, all_places: bool) -> float | None:
        """Of the paths, the one that is further from the first model."""
        whole = [f"{self.name} all places, {path}" for path in PATHS]
        cases = whole if all_places and any(case in self.texts for case in whole) else [f"{self.name} {path}" for path in PATHS]
        values = [value for case in cases if (value := self.value(case, label, metric)) is not None]
        return (min if metric == "top1_agreement_ratio" else max)(values, default=None)


def overview(rows: Sequence[Row]) -> list[str]:
    """Markdown: format × memory × quality × speed."""
    found = Figures(rows)
    speeds = [f"tokens/s, {case.rpartition('=')[2]} stream{'' if case.endswith('=1') else 's'}" for case in found.speed_cases]
    head = [
        "format",
        "linear layers",
        "whole model",
        "KV cache a token",
        "exact match",
        "perplexity",
        "KL, mean",
        "KL, p99",
        "same top token",
    ]
    lines = [f"| {' | '.join([*head, *speeds])} |", "|---|" + "---:|" * (len(head) + len(speeds) - 1)]
    for label in found.labels:
        cells = [*_memory(found, label), *_quality(found, label), *(_speed(found, case, label) for case in found.speed_cases)]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def _memory(found: Figures, label: str) -> Iterator[str]:
    for metric in ("linear_bytes", "model_bytes", "kv_bytes_per_token"):
        case = f"{found.name} memory"
        value, ratio = found.value(case, label, metric), found.value(case, label, f"{metric}_ratio")
        yield "" if value is None or ratio is None else f"{_bytes(value)} ({ratio:.2f}×)"


def _quality(found: Figures, label: str) -> Iterator[str]:
    exact, perplexity = (
        found.value(f"{found.name} questions", label, "exact_match_percent"),
        found.worst(label, "perplexity", all_places=False),
    )
    yield "" if exact is None else f"{exact:.1f} %"
    ratio = found.worst(label, "perplexity_ratio", all_places=False)
    yield "" if perplexity is None or ratio is None else f"{perplexity:.6g} ({_change(ratio)})"
    for metric in ("kl_mean_nats", "kl_p99_nats"):
        value = found.worst(label, metric, all_places=True)
        yield "" if value is None else _nats(value)
    same = found.worst(label, "top1_agreement_ratio", all_places=True)
    yield "" if same is None else f"{same:.2%}"


def _speed(found: Figures, case: str, label: str) -> str:
    value, times = found.value(case, label, "output_tokens_per_s"), found.value(case, label, "speedup")
    return "" if value is None else f"{value:,.0f}" + ("" if times is None else f" ({times:.2f}×)")


def drifts(rows: Sequence[Row]) -> list[str]:
    """Markdown: a line for each path and part of the text."""
    found = Figures(rows)
    lines = [
        "| format | text | perplexity | 95 % interval of its ratio | KL mean | p50 | p99 | max | same top token |",
        "|---|---|" + "---:|" * 7,
    ]
    for label in found.labels:
        for case in found.texts:
            ratio = found.row(case, label, "perplexity_ratio")
            if ratio is None or ratio.low is None or ratio.high is None:
                continue
            values = [found.value(case, label, metric) or 0.0 for metric in DRIFT]
            cells = [
                f"{values[0]:.6g}{_limit(ratio)}",
                f"{_change(ratio.low)} to {_change(ratio.high)}",
                *map(_nats, values[2:6]),
                f"{values[6]:.2%}",
            ]
            lines.append(f"| {label} | {found.within(case)} | {' | '.join(cells)} |")
    return lines


def exact_matches(rows: Sequence[Row]) -> list[str]:
    """Markdown: percent by kind of question; nothing where none was asked."""
    found = Figures(rows)
    kinds = list(dict.fromkeys(row.case for row in rows if row.metric == "exact_match_percent"))[:-1]
    if not kinds:
        return []
    lines = [f"| exact match, % | {' | '.join(found.within(kind) for kind in kinds)} |", "|---|" + "---:|" * len(kinds)]
    for label in found.labels:
        values = [found.value(kind, label, "exact_match_percent") for kind in kinds]
        if any(value is not None for value in values):
            lines.append(f"| {label} | {' | '.join('' if value is None else f'{value:.1f}' for value in values)} |")
    return lines


def gates(rows: Sequence[Row]) -> list[str]:
    """Markdown: what was promised; nothing where nothing was."""
    found, promised = Figures(rows), [row for row in rows if row.aim is not None]
    lines = ["| format | figure | limit | measured | met |", "|---|---|---:|---:|---|"] if promised else []
    for row in promised:
        figure = f"{row.metric.removesuffix('_ratio').replace('_', ' ')}, {found.within(row.case)}"
        unit, digits = ("×", 4) if row.unit == "ratio" else (f" {row.unit}", 2)
        lines.append(f"| {row.system} | {figure} | {row.aim}{unit} | {row.value:.{digits}f}{unit} | {'yes' if row.met else '**no**'} |")
    return lines


def markdown(result: Result, pictures: Sequence[str] = ()) -> str:
    sections = [
        "# Quality by format",
        f"`{result.command}` · {machine_line(result)}",
        "\n".join(f"- {note}" for note in result.notes),
        "\n".join(overview(result.rows)),
        *(f"![{picture}]({picture})" for picture in pictures),
        "\n".join(exact_matches(result.rows)),
        "## Drift from the first model\n\n" + "\n".join(drifts(result.rows)),
        "## Limits\n\n" + "\n".join(gates(result.rows)) if any(row.aim for row in result.rows) else "",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def with_tables(document: str, result: Result) -> str:
    """Raises ResultFormatError for a document without the markers."""
    said = " ".join(f"{note[0].upper()}{note[1:]}." for note in result.notes)
    parts = ["\n".join(overview(result.rows)), "\n".join(gates(result.rows)), f"`{result.command}` · {machine_line(result)}. {said}"]
    return replaced(document, BEGIN, END, "\n\n".join(part for part in parts if part), "quantization.md")


def machine_line(result: Result) -> str:
    return f"{Hardware(**{**result.hardware, 'commit': result.commit, 'date': result.date}).line()}, commit {result.commit}, {result.date}"


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """A line for each figure, as in the result file: whatever reads tables can turn it as it likes."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("case", "format", "metric", "value", "unit", "low", "high", "aim", "met"))
        writer.writerows((r.case, r.system, r.metric, r.value, r.unit, r.low, r.high, r.aim, r.met) for r in rows)


def _limit(row: Row) -> str:
    return "" if row.met is not False else f" (**{row.aim}× missed**)"


def _change(ratio: float) -> str:
    percent = 100 * (ratio - 1)
    return f"{percent:+.3f} %" if abs(percent) < 0.1 else f"{percent:+.2f} %"


def _nats(value: float) -> str:
    return "0" if value < 5e-9 else f"{value:.2g}"


def _bytes(value: float) -> str:
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.2f} MB" if value >= 1e6 else f"{value:,.0f} B"
