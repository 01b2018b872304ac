"""`python -m pagoda_bench.case_study`: the figures at the end of docs/case-study.md, taken from the result files as they are.

Measures nothing; a file that is not there gives no line. A test holds the document against the files.
"""

from collections.abc import Iterator
from pathlib import Path

from pagoda_bench.marked import replaced
from pagoda_bench.results import FOLDER, Result, Row, read
from pagoda_bench.tour.pages import shown

DOCUMENT = FOLDER.parents[1] / "docs" / "case-study.md"
BEGIN, END = "<!-- figures: written by `python -m pagoda_bench.case_study`, not by hand -->", "<!-- figures: end -->"
SINGLE: tuple[tuple[str, str, str, str, str], ...] = (
    # file, case, system, metric, what it is
    ("tour", "03-static-batching", "pagoda", "speedup_over_one_at_a_time", "static batching over one request at a time"),
    ("tour", "05-continuous-batching", "pagoda", "speedup_over_static", "continuous over static batching"),
    ("tour", "03-static-batching", "pagoda", "speedup_over_transformers", "static batching over transformers' `generate`"),
    ("kv-use", "paged", "pagoda", "kv_written_of_held_ratio", "KV cache written, of what is held, under load"),
    ("kv-use", "paged", "pagoda", "kv_held_of_capacity_ratio", "KV cache held, of all, while somebody waits"),
    ("host-tier", "with", "pagoda", "ttft_gain_over_without", "first token with the host's tier for prefixes, times as early"),
    (
        "batch-invariance",
        "tiny bf16 c=16",
        "auto",
        "throughput_lost_ratio",
        "throughput that batch invariance costs, tiny in bf16",
    ),
)


def main() -> None:
    DOCUMENT.write_text(with_figures(DOCUMENT.read_text(), FOLDER))


def with_figures(text: str, folder: Path) -> str:
    """Raises ResultFormatError for a document without the markers, or a file that is no result."""
    lines = [*_peers(_result(folder, "peers")), "", *_singles(folder)]
    return replaced(text, BEGIN, END, "\n".join(lines), "case-study.md")


def _result(folder: Path, name: str) -> Result | None:
    path = folder / f"{name}.json"
    return read(path) if path.exists() else None


def _peers(result: Result | None) -> Iterator[str]:
    if result is None:
        return
    systems = list(dict.fromkeys(row.system for row in result.rows if row.metric == "pagoda_speedup"))
    by_key = {row.key: row for row in result.rows}
    yield f"| [peers](../bench/results/peers.md), {_when(result)} | Pagoda, tokens/s | {' | '.join(f'÷ {system}' for system in systems)} |"
    yield "|---|---:|" + "---:|" * len(systems)
    for case in dict.fromkeys(row.case for row in result.rows if row.metric == "pagoda_speedup"):
        speed = by_key.get((case, "pagoda", "output_tokens_per_s"))
        ratios = [by_key.get((case, system, "pagoda_speedup")) for system in systems]
        yield f"| {case} | {'' if speed is None else shown(speed)} | {' | '.join('' if row is None else shown(row) for row in ratios)} |"


def _singles(folder: Path) -> Iterator[str]:
    yield "| what | measured | aim | from |"
    yield "|---|---:|---:|---|"
    for name, case, system, metric, what in SINGLE:
        result = _result(folder, name)
        row = None if result is None else next((row for row in result.rows if row.key == (case, system, metric)), None)
        if result is not None and row is not None:
            yield f"| {what} | {shown(row, spread=True)} | {_aim(row)} | [{name}.json](../bench/results/{name}.json), {_when(result)} |"


def _aim(row: Row) -> str:
    return "" if row.aim is None else f"{row.aim}: {'met' if row.met else '**missed**'}"


def _when(result: Result) -> str:
    return f"commit {result.commit}, {result.date}"


if __name__ == "__main__":
    main()
