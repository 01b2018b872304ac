"""One load from beginning to end as a person sees it: a bar while it runs, tables, files. Called by `pagoda bench run` and `make bench`."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from pagoda_bench.load import report
from pagoda_bench.load.files import write_all
from pagoda_bench.load.run import run
from pagoda_bench.load.settings import RunSettings
from pagoda_bench.load.watching import watching


def measure_and_write(
    settings: RunSettings, output: Path, *, command: str, plots: bool = True, packages: tuple[str, ...] = (), notes: Sequence[str] = ()
) -> None:
    """Runs, shows a bar and the tables, writes the files. Raises BenchError."""
    with watching(Console(stderr=True)) as watch:
        measured = run(settings, watch)
    print(report.rates_table(measured), report.latency_table(measured), sep="\n\n")
    for note in measured.notes:
        print(f"note: {note}")
    paths = write_all(measured, output, command=command, packages=packages, notes=notes, with_plots=plots)
    print(f"wrote {' '.join(str(path) for path in paths)}")
