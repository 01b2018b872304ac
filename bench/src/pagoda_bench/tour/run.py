"""`pagoda bench tour`: all stages on one workload, then the table, the result file, the pages' tables and the pictures."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pagoda_bench.errors import BenchError, SettingsError
from pagoda_bench.hardware import read_hardware
from pagoda_bench.load.engine import model_folder, model_name
from pagoda_bench.peers.cases import Model, threads_for
from pagoda_bench.results import Result, Row, result_here, write
from pagoda_bench.tour.measure import Measured, measure
from pagoda_bench.tour.pages import shown, write_pages
from pagoda_bench.tour.rows import rows
from pagoda_bench.tour.stages import BATCH, CONTEXT, STAGES
from pagoda_bench.tour.workload import ARRIVING, requests

BENCHMARK = "tour"
_COLUMNS = (
    ("tok/s", "output_tokens_per_s"),
    ("gain", "speedup_over_previous"),
    ("TTFT", "ttft_p50_s"),
    ("ITL p99", "itl_p99_s"),
    ("TTFT*", "arrivals_ttft_p50_s"),
    ("E2E*", "arrivals_e2e_mean_s"),
)


class TokensDiffer(BenchError):
    """Two stages wrote different answers: a defect of the engine, whatever the speeds are. The files were written."""


def run(source: str, *, count: int, rounds: int, device: str | None, output: Path, pages: Path | None, command: str) -> None:
    """`pages`: docs/tour, or None. Raises BenchError."""
    if count < ARRIVING or count % BATCH:
        raise SettingsError(f"--requests {count}: a multiple of {BATCH}, at least {ARRIVING}")
    if pages is not None and not pages.is_dir():
        raise SettingsError(f"there is no {pages} to write tables into: run this in a checkout, or say --output FILE")
    console, load = Console(), os.getloadavg()[0]
    with model_folder(source) as folder, tempfile.TemporaryDirectory(prefix="pagoda-tour-") as scratch:
        name = model_name(source)
        model = Model(name, folder, source, threads_for(name, read_hardware(()).cores))
        measured = measure(model, requests(count), rounds=rounds, device=device, scratch=Path(scratch), say=console.print)
    result = result_here(
        BENCHMARK,
        rows(measured),
        command=command,
        packages=("torch", "transformers"),
        notes=_notes(measured, model, count=count, rounds=rounds, load=load),
    )
    write(result, output)
    console.print(table(result.rows))
    written = [output]
    if pages is not None:
        from pagoda_bench.tour.plots import draw

        written += [*write_pages(result, pages), *draw(result, pages / "plots")]
    console.print(f"wrote {' '.join(os.path.relpath(path) for path in written)}", soft_wrap=True)
    _check(result, console)


def _notes(measured: Measured, model: Model, *, count: int, rounds: int, load: float) -> list[str]:
    return [
        f"{model.name} in fp32 on {measured.device}, {model.threads} compute thread(s)",
        f"a KV cache of {BATCH} × {CONTEXT} tokens in every stage",
        f"{count} requests at once, and with arrivals {ARRIVING} of them, one every {measured.interval_s * 1e3:.0f} ms",
        f"medians of {rounds} rounds in turning order, low and high the extremes; the first stage is measured once",
        f"load average of the machine before the run: {load:.1f}",
    ]


def table(found: Sequence[Row]) -> Table:
    by_key = {(row.case, row.metric): row for row in found if row.system == "pagoda"}
    drawn = Table(title="From the minimal loop to the full engine", title_justify="left", caption="* requests come one by one")
    drawn.add_column("stage", no_wrap=True)
    for title, _ in _COLUMNS:
        drawn.add_column(title, justify="right", no_wrap=True)
    for stage in STAGES:
        cells = [by_key.get((stage.slug, metric)) for _, metric in _COLUMNS]
        if not any(cells):
            drawn.caption = f"{drawn.caption}; {stage.title}: needs a GPU"
            continue
        drawn.add_row(stage.title, *("" if row is None else shown(row) for row in cells))
    return drawn


def _check(result: Result, console: Console) -> None:
    for row in result.rows:
        if row.met is False:
            console.print(f"not met: {row.case} {row.metric} is {row.value:.2f}, aimed at {row.aim}", soft_wrap=True)
    if different := [row.case for row in result.rows if row.metric == "same_tokens_ratio" and not row.met]:
        raise TokensDiffer(f"the tokens of {', '.join(different)} differ from those of the first stage")
