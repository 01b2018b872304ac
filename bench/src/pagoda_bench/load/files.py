"""Puts one run into a folder: NAME.json, NAME.md, NAME.csv and pictures. Called by command.py and quick.py."""

from collections.abc import Iterable
from pathlib import Path

from pagoda_bench import results
from pagoda_bench.load import report
from pagoda_bench.load.run import Measured


def write_all(
    measured: Measured,
    output: Path,
    *,
    command: str,
    packages: tuple[str, ...] = (),
    notes: Iterable[str] = (),
    with_plots: bool = True,
) -> list[Path]:
    """`output` is a path without suffix, whose last part names the benchmark. Returns what was written."""
    output.parent.mkdir(parents=True, exist_ok=True)
    result = report.result(measured, benchmark=output.name, command=command, packages=packages, notes=notes)
    paths = [output.with_name(f"{output.name}{suffix}") for suffix in (".json", ".md", ".csv")]
    results.write(result, paths[0])
    report.write_csv(measured, paths[2])
    plots: list[Path] = []
    if with_plots:
        from pagoda_bench.load.plots import draw

        plots = draw(measured, output.parent, output.name, f"{measured.system}, {measured.model}, {measured.settings.case_prefix}")
    paths[1].write_text(report.markdown(measured, result, plots))
    return [*paths, *plots]
