"""`pagoda bench costs`: what parts of the engine cost or win, each in a minute or two; result file, and its table in a document."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console

from pagoda_bench.costs.documents import DOCS, DOCUMENTS, write_table
from pagoda_bench.costs.loading import adapter_loading
from pagoda_bench.costs.measure import Place, Say, adapters, batch_invariance, host_tier, kv_use, quantized_kv
from pagoda_bench.costs.ranks import tensor_parallel
from pagoda_bench.errors import SettingsError
from pagoda_bench.hardware import read_hardware
from pagoda_bench.load.engine import builtin_tiny
from pagoda_bench.peers.cases import threads_for
from pagoda_bench.peers.environment import environments
from pagoda_bench.results import FOLDER, Row, result_here, write
from pagoda_bench.tour.pages import shown


def run(what: Sequence[str], *, rounds: int, output: Path | None, command: str) -> None:
    """`output`: a folder in place of bench/results and docs/, which then stay as they are. Raises BenchError."""
    if unknown := set(what) - set(DOCUMENTS):
        raise SettingsError(f"{', '.join(sorted(unknown))}: write {', '.join(DOCUMENTS)}, or nothing for all of them")
    if output is None and not DOCS.is_dir():
        raise SettingsError(f"there is no {DOCS} to write tables into: run this in a checkout, or say --output FOLDER")
    console, device = Console(), "cuda" if torch.cuda.is_available() else "cpu"
    for name in what or DOCUMENTS:
        load, heard = os.getloadavg()[0], _Heard(console)
        with tempfile.TemporaryDirectory(prefix="pagoda-costs-") as scratch:
            rows = list(_rows(name, device=device, rounds=rounds, scratch=Path(scratch), say=heard))
        notes = [f"on {device}", f"medians of {rounds} round(s) in turning order, in brackets the extremes", *heard.told]
        notes.append(f"load average of the machine before: {load:.1f}")
        typed = f"pagoda bench costs {name}" if not what else command
        result = result_here(name, rows, command=typed, packages=("torch",), notes=notes)
        written = [(FOLDER if output is None else output) / f"{name}.json"]
        write(result, written[0])
        if output is None:
            written.append(write_table(result, DOCS))
        for row in rows:
            console.print(f"{row.case}, {row.system}: {row.metric} {shown(row, spread=True)}{_aimed(row)}", soft_wrap=True)
        console.print(f"wrote {' '.join(os.path.relpath(path) for path in written)}", soft_wrap=True)


class _Heard:
    """Says everything, and keeps what a reader of the result must know: what could not be measured."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.told: list[str] = []

    def __call__(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)
        if not line.startswith("round "):
            self.told.append(line)


def _rows(name: str, *, device: str, rounds: int, scratch: Path, say: Say) -> Iterator[Row]:
    cores = read_hardware(()).cores
    places = {
        model: Place(folder=folder, device=device, threads=threads_for(model, cores), scratch=scratch)
        for model, folder in (("tiny", builtin_tiny()), ("0.45b", environments() / "models" / "llama-0.45b"))
        if (folder / "config.json").exists()
    }
    if name == "kv-use":
        return kv_use(places["tiny"], rounds=rounds, say=say)
    if name == "host-tier":
        return host_tier(places["tiny"], rounds=rounds, say=say)
    largest = "0.45b" if "0.45b" in places else "tiny"
    if name == "tensor-parallel":
        return tensor_parallel(places[largest], largest, rounds=rounds, say=say)
    if name == "adapter-loading":
        return adapter_loading(places[largest], largest, rounds=rounds, say=say)
    if name == "quantized-kv":
        return quantized_kv(places, rounds=rounds, say=say)
    if name == "adapters":
        return adapters(places, rounds=rounds, say=say)
    return batch_invariance(places, rounds=rounds, say=say)


def _aimed(row: Row) -> str:
    return "" if row.aim is None else f" (aimed at {row.aim}: {'met' if row.met else 'missed'})"
