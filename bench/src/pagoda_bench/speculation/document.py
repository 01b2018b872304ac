"""The table within docs/speculation.md, made from the result file alone, so that a test can hold them against each other. Pure."""

from collections.abc import Iterator, Mapping

from pagoda_bench.hardware import Hardware
from pagoda_bench.marked import replaced
from pagoda_bench.results import FOLDER, Result, Row
from pagoda_bench.speculation.work import DRAFT_TOKENS
from pagoda_bench.tour.pages import shown

DOCUMENT = FOLDER.parents[1] / "docs" / "speculation.md"
RESULTS = ("speculation", "speculation-large")
"""Result files that have a table of their own here."""


def markers(benchmark: str) -> tuple[str, str]:
    return f"<!-- {benchmark}: written by `make bench-{benchmark}`, not by hand -->", f"<!-- {benchmark}: end -->"


def with_table(text: str, result: Result) -> str:
    """Raises ResultFormatError for a document without markers."""
    return replaced(text, *markers(result.benchmark), "\n".join([*_lines(result), "", _where(result)]), DOCUMENT.name)


def _lines(result: Result) -> Iterator[str]:
    by_key = {row.key: row for row in result.rows}
    yield "| case | guessing | output tokens/s | over none | tokens a step | accepted at place 1, 2, … of a guess |"
    yield "|---|---|---:|---:|---:|---|"
    for case, system in dict.fromkeys((case, system) for case, system, _ in by_key):
        cells = [_cell(by_key.get((case, system, metric))) for metric in ("output_tokens_per_s", "gain", "tokens_per_step")]
        yield f"| {case} | {system} | {' | '.join(cells)} | {_accepted(by_key, case, system)} |"


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    missed = f", aimed at {row.aim}" if row.met is False else ""
    return shown(row, spread=row.metric == "gain") + missed


def _accepted(by_key: Mapping[tuple[str, str, str], Row], case: str, system: str) -> str:
    places = [by_key.get((case, system, f"accepted_at_{place}_ratio")) for place in range(1, DRAFT_TOKENS + 1)]
    return ", ".join(f"{row.value:.0%}" for row in places if row is not None)


def _where(result: Result) -> str:
    machine = Hardware(**{**result.hardware, "commit": result.commit, "date": result.date}).line()
    notes = " ".join(f"{note[0].upper()}{note[1:]}." for note in result.notes)
    return f"`{result.command}` · {machine}, commit {result.commit}, {result.date}. {notes}"
