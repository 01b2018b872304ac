"""`python -m pagoda_bench.load.selfcheck`: holds the load generator against a mock server that knows when it sent what.

A thousand streams at once, closed and open loop; writes bench/results/load-generator.json. Truth is the mock's own stamps on the clock that
both processes share, so a busy machine can make the mock late, but not the comparison wrong.
"""

import argparse
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

from pagoda_bench import results
from pagoda_bench.load.measure import counted
from pagoda_bench.load.records import Record
from pagoda_bench.load.run import LevelResult, run
from pagoda_bench.load.scenarios import Lengths
from pagoda_bench.load.settings import Level, RunSettings
from pagoda_bench.load.statistic import STATISTICS
from pagoda_bench.results import FOLDER, Row

Truth = Mapping[str, Sequence[float]]
"""Request id → when the mock received it, and when it sent each chunk; seconds of CLOCK_MONOTONIC."""
BOUND_S, BOUND_RATIO = 0.001, 0.02


@dataclass(frozen=True, slots=True)
class Errors:
    """Measured − true, of the same requests."""

    ttft_s: Mapping[str, float]
    """Of each percentile: that of the measured values minus that of the true ones."""
    ttft_true_s: Mapping[str, float]
    itl_s: Mapping[str, float]
    itl_true_s: Mapping[str, float]
    request_s: Sequence[float]
    """From our stamp of sending to the mock's of receiving: both sides' part, since the mock can be late to read."""
    delivery_s: Sequence[float]
    """From the mock's write of each chunk to our stamp of it."""

    def within_bounds(self, metric: str, statistic: str) -> bool:
        """Within 1 ms or 2 % of the truth, whichever is more."""
        error, true = (self.ttft_s, self.ttft_true_s) if metric == "ttft" else (self.itl_s, self.itl_true_s)
        return abs(error[statistic]) <= max(BOUND_S, BOUND_RATIO * true[statistic])


@contextmanager
def mock_server(*arguments: str) -> Iterator[str]:
    """Its URL, while it runs in a process of its own."""
    command = [sys.executable, "-m", "pagoda_bench.load.mock", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def read_truth(url: str) -> Truth:
    with urllib.request.urlopen(f"{url}/truth", timeout=60) as answer:  # noqa: S310  # the mock's own address
        truth: Truth = json.load(answer)
    return truth


def errors(records: Sequence[Record], truth: Truth) -> Errors:
    """Raises KeyError for a request that the mock has not seen."""
    true = [truth[record.name] for record in records]
    ttft_true = [sent[1] - sent[0] for sent in true]
    itl_true = list(chain.from_iterable(_gaps(sent[1:]) for sent in true))
    ttft = [record.arrivals[0] - record.sent_s for record in records]
    itl = list(chain.from_iterable(record.gaps_s for record in records))
    delivery = [
        at - sent for record, stamps in zip(records, true, strict=True) for at, sent in zip(record.arrivals, stamps[1:], strict=True)
    ]
    return Errors(
        ttft_s={name: _of(ttft, name) - _of(ttft_true, name) for name in STATISTICS},
        ttft_true_s={name: _of(ttft_true, name) for name in STATISTICS},
        itl_s={name: _of(itl, name) - _of(itl_true, name) for name in STATISTICS},
        itl_true_s={name: _of(itl_true, name) for name in STATISTICS},
        request_s=[sent[0] - record.sent_s for record, sent in zip(records, true, strict=True)],
        delivery_s=delivery,
    )


def _of(values: Sequence[float], statistic: str) -> float:
    import numpy as np

    return STATISTICS[statistic](np.asarray(values))


def _gaps(stamps: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(stamps)]


def rows(level: LevelResult, found: Errors) -> Iterator[Row]:
    figures, late = level.figures, level.lateness
    assert figures is not None

    def row(metric: str, value: float, unit: str) -> Row:
        return Row(case=level.case, system="load generator", metric=metric, value=value, unit=unit)

    yield row("peak_streams", float(peak_streams(level)), "streams")
    yield row("requests", float(figures.counted), "requests")
    yield row("errors", float(sum(figures.errors.values())), "requests")
    yield row("chunks_per_s", figures.rates["output_tokens_per_s"].value, "chunks/s")
    for name, value in (("p50", late.p50_s), ("p99", late.p99_s), ("max", late.max_s)):
        yield row(f"loop_late_{name}_s", value, "s")
    for name in ("p50", "p99"):
        yield row(f"delivery_{name}_s", _of(found.delivery_s, name), "s")
        yield row(f"request_way_{name}_s", _of(found.request_s, name), "s")
    for name in ("mean", "p50", "p95", "p99"):
        for metric, error, true in (("ttft", found.ttft_s, found.ttft_true_s), ("itl", found.itl_s, found.itl_true_s)):
            yield row(f"{metric}_{name}_true_s", true[name], "s")
            yield row(f"{metric}_{name}_error_s", error[name], "s")
            yield row(f"{metric}_{name}_within_1ms_or_2pct", float(found.within_bounds(metric, name)), "1 = yes")


def peak_streams(level: LevelResult) -> int:
    """Streams open at once, by the client's own stamps."""
    records = [record for one in level.runs for record in one.records]
    edges = sorted([(record.sent_s, 1) for record in records] + [(record.ended_s, -1) for record in records])
    peak = open_now = 0
    for _, step in edges:
        open_now += step
        peak = max(peak, open_now)
    return peak


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--ttft-ms", type=float, default=200.0)
    parser.add_argument("--itl-ms", type=float, default=100.0)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--requests", type=int, default=3, help="of each user, after its warm-up")
    parser.add_argument("--output", type=Path, default=FOLDER / "load-generator.json")
    parser.add_argument("--note", action="append", default=[], help="what a reader must know of the machine")
    args = parser.parse_args()
    answer_s = (args.ttft_ms + args.itl_ms * (args.output_tokens - 1)) / 1e3
    levels = (Level("closed", 1), Level("closed", args.streams), Level("poisson", round(args.streams / answer_s)))
    with mock_server("--ttft-ms", str(args.ttft_ms), "--itl-ms", str(args.itl_ms)) as url:
        settings = {"url": url, "requests_per_user": args.requests, "duration_s": 3 * answer_s, "ramp_s": answer_s}
        measured = [
            run(RunSettings(levels=(level,), label="mock", lengths=Lengths(32, args.output_tokens), **settings)).levels[0]
            for level in levels
        ]
        truths = read_truth(url)
    found = [(level, errors([r for r in counted(level.runs[0]) if r.error is None], truths)) for level in measured]
    for level, error in found:
        print(f"{level.case:14} peak {peak_streams(level):5} streams, loop late {level.lateness}")
        for metric, off, true in (("TTFT", error.ttft_s, error.ttft_true_s), ("ITL", error.itl_s, error.itl_true_s)):
            print("  ", metric, ", ".join(f"{name} {true[name] * 1e3:.2f} {off[name] * 1e3:+.2f} ms" for name in STATISTICS))
        for way, late in (("request on its way", error.request_s), ("chunk on its way", error.delivery_s)):
            print(f"   {way}: p50 {_of(late, 'p50') * 1e3:.2f} ms, p99 {_of(late, 'p99') * 1e3:.2f} ms")
    notes = [
        "error = measured − true, the truth being the mock's own stamps; 1 in …_within_1ms_or_2pct means that the bound is kept",
        *args.note,
    ]
    measured_with = {name: value for name, value in vars(args).items() if name not in ("note", "output")}
    changed = [f"--{name.replace('_', '-')} {value:g}" for name, value in measured_with.items() if value != parser.get_default(name)]
    command = " ".join(["python -m pagoda_bench.load.selfcheck", *changed])
    content = chain.from_iterable(rows(level, error) for level, error in found)
    results.write(
        results.result_here("load-generator", content, command=command, packages=("uvloop", "httptools"), notes=notes), args.output
    )
    print(f"wrote {args.output}")
    return 0 if all(error.within_bounds(metric, "p50") for _, error in found for metric in ("ttft", "itl")) else 1


if __name__ == "__main__":
    sys.exit(main())
