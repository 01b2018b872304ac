"""The measured parts of docs/tour/: tables between two markers, made from the result file alone, so that a test can hold them against it.

Pure but for `write_pages`. The prose around the markers is written by hand.
"""

from collections.abc import Iterator
from pathlib import Path

from pagoda_bench.hardware import Hardware
from pagoda_bench.marked import replaced
from pagoda_bench.results import FOLDER, Result, Row
from pagoda_bench.tour.measure import PEER
from pagoda_bench.tour.stages import STAGES, Stage, figure, label

PAGES = FOLDER.parents[1] / "docs" / "tour"
"""docs/tour of this checkout."""
BEGIN, END = "<!-- measured: written by `pagoda bench tour`, not by hand -->", "<!-- /measured -->"
AIMS = {
    "speedup_over_one_at_a_time": "static batching over one request at a time",
    "speedup_over_transformers": "static batching over transformers' `generate` with the same batches",
    "arrivals_e2e_gain_over_static": "dynamic over static batching, time to last token with arrivals",
    "speedup_over_static": "continuous over static batching",
    "kv_filled_ratio": "KV cache written, of what is held, with pages",
}


def write_pages(result: Result, folder: Path) -> list[Path]:
    """Replaces what lies between the markers of each page. Raises ResultFormatError for a page without them."""
    paths = []
    for name, section in sections(result).items():
        path = folder / name
        path.write_text(replaced(path.read_text(), BEGIN, END, section, f"tour/{name}"))
        paths.append(path)
    return paths


def sections(result: Result) -> dict[str, str]:
    """By file name."""
    found = _Figures(result)
    by_page = {"README.md": "\n".join([*_overview(found), "", *_aims(found), "", _measured_where(result)])}
    for before, stage in zip((None, *STAGES), STAGES, strict=False):
        if found.row(stage, stage.gain) is None:
            by_page[stage.page] = f"{_why_absent(stage)}."
            continue
        lines = [*_stage_table(found, stage, before), "", f"![{stage.title}: {label(stage.gain)}](plots/{stage.slug}.svg)"]
        by_page[stage.page] = "\n".join(lines)
    return by_page


class _Figures:
    def __init__(self, result: Result) -> None:
        self._rows = {row.key: row for row in result.rows}

    def row(self, stage: Stage, metric: str, system: str = "pagoda") -> Row | None:
        return self._rows.get((stage.slug, system, metric))

    def cell(self, stage: Stage, metric: str, *, spread: bool = False) -> str:
        row = self.row(stage, metric)
        return "" if row is None else shown(row, spread=spread)

    def with_aims(self) -> Iterator[Row]:
        return (row for row in self._rows.values() if row.metric in AIMS and row.aim)

    def same_tokens(self) -> bool:
        return all(row.met for row in self._rows.values() if row.metric == "same_tokens_ratio")


def shown(row: Row, *, spread: bool = False) -> str:
    """`4.1 ms`, `1 620`, `97 %`, and with `spread` the extremes of the rounds."""
    text = _number(row.value, row.metric, row.unit)
    if spread and row.low is not None and row.high is not None and row.low != row.high:
        text += f" ({_number(row.low, row.metric, row.unit)} to {_number(row.high, row.metric, row.unit)})"
    return text


def _number(value: float, metric: str, unit: str) -> str:
    if unit == "s":
        return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.0f} ms" if value >= 0.02 else f"{value * 1e3:.1f} ms"
    if unit == "ratio":
        return f"{value:.2f}"
    if metric.endswith("_ratio"):
        return f"{value:.0%}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _overview(found: _Figures) -> Iterator[str]:
    yield "| stage | output tokens/s | low to high | over the stage before | first token, p50, arrivals | longest gaps (p99) |"
    yield "|---|---:|---:|---:|---:|---:|"
    for stage in STAGES:
        speed = found.row(stage, "output_tokens_per_s")
        if speed is None:
            yield f"| [{stage.title}]({stage.page}) | {_why_absent(stage)} | | | | |"
            continue
        spread = f"{speed.low:,.0f} to {speed.high:,.0f}" if speed.low != speed.high else "measured once"
        over = found.cell(stage, "speedup_over_previous")
        cells = [f"[{stage.title}]({stage.page})", shown(speed), spread, f"×{over}" if over else ""]
        cells += [found.cell(stage, "arrivals_ttft_p50_s") or "–", found.cell(stage, "itl_p99_s")]
        yield f"| {' | '.join(cells)} |"


def _why_absent(stage: Stage) -> str:
    return "needs a GPU" if stage.cuda_only else "not measured yet"


def _aims(found: _Figures) -> Iterator[str]:
    yield "| aimed at | at least | measured | met |"
    yield "|---|---:|---:|---|"
    for row in found.with_aims():
        least, met = (row.aim or "").removeprefix("≥ "), "yes" if row.met else "**no**"
        yield f"| {AIMS[row.metric]} | {least} | {shown(row, spread=True)} | {met} |"
    same = "yes" if found.same_tokens() else "**no**"
    yield f"| every stage writes the first stage's tokens | all | {'all' if found.same_tokens() else 'not all'} | {same} |"


def _stage_table(found: _Figures, stage: Stage, before: Stage | None) -> Iterator[str]:
    metrics = [metric for metric in (stage.gain, *stage.shows) if found.row(stage, metric) is not None]
    if before is None:
        yield f"| | {stage.title.lower()} |"
        yield "|---|---:|"
        for metric in metrics:
            yield f"| {label(metric)} | {found.cell(stage, metric)} |"
        return
    yield f"| | {_lower(before.title)} | {_lower(stage.title)} | |"
    yield "|---|---:|---:|---:|"
    for metric in metrics:
        cells = [found.cell(before, metric, spread=True) or "–", found.cell(stage, metric, spread=True)]
        if metric == "output_tokens_per_s":
            times = f"× {found.cell(stage, 'speedup_over_previous')}"
        else:
            times = _times(found.row(before, metric), found.row(stage, metric), metric)
        yield f"| {label(metric)} | {' | '.join(cells)} | {times} |"
    if peer := found.row(stage, "output_tokens_per_s", system=PEER):
        yield f"| the same of transformers' `generate`, in the same batches | | {shown(peer, spread=True)} | |"


def _times(before: Row | None, after: Row | None, metric: str) -> str:
    """How many times as much; what is better as it gets less is turned around, and said."""
    if before is None or after is None or not before.value or not after.value:
        return ""
    if figure(metric).more_is_better is False and after.value < before.value:
        return f"÷ {before.value / after.value:.2f}"
    return f"× {after.value / before.value:.2f}"


def _lower(title: str) -> str:
    return title if title.startswith(("KV", "CUDA")) else title[0].lower() + title[1:]


def _measured_where(result: Result) -> str:
    machine = Hardware(**{**result.hardware, "commit": result.commit, "date": result.date}).line()
    return (
        f"`{result.command}` · {machine}, commit {result.commit}, {result.date}. {' '.join(f'{_sentence(note)}' for note in result.notes)}"
    )


def _sentence(note: str) -> str:
    return f"{note[0].upper()}{note[1:]}."
