"""Writes one run: rows of the result format, a CSV with a line for each request, and Markdown that states what every figure means.

Called by command.py and quick.py; the figures are measure.py's, the pictures plots.py's.
"""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean

from pagoda_bench import results
from pagoda_bench.load.client import Target
from pagoda_bench.load.lateness import P50_BOUND_S, P99_BOUND_S
from pagoda_bench.load.measure import DEFINITIONS, Figures, counted
from pagoda_bench.load.run import LevelResult, Measured
from pagoda_bench.load.scenarios import DESCRIPTIONS
from pagoda_bench.load.statistic import Estimate
from pagoda_bench.results import Result, Row

COLUMNS = (
    *("case", "round", "request", "counted", "due_s", "sent_s", "first_chunk_s", "last_token_s", "ended_s"),
    *("ttft_s", "tpot_s", "itl_mean_s", "itl_max_s", "e2e_s", "late_s"),
    *("prompt_tokens_asked", "prompt_tokens", "cached_tokens", "output_tokens_asked", "output_tokens", "client_output_tokens", "chunks"),
    *("error", "detail"),
)
"""Times from the round's first request on; empty where there is no value."""


def rows(measured: Measured) -> list[Row]:
    return [row for level in measured.levels for row in _level_rows(level, measured.system)]


def _level_rows(level: LevelResult, system: str) -> Iterator[Row]:
    figures = level.figures
    assert figures is not None

    def row(metric: str, estimate: Estimate, unit: str) -> Row:
        return Row(case=level.case, system=system, metric=metric, value=estimate.value, unit=unit, low=estimate.low, high=estimate.high)

    for name, estimate in figures.rates.items():
        yield row(name, estimate, "tokens/s" if "tokens" in name else "requests/s")
    for name, statistics in figures.latencies.items():
        for statistic, estimate in statistics.items():
            yield row(f"{name}_{statistic}_s", estimate, "s")
    for statistic, estimate in figures.send_late_s.items():
        yield row(f"send_late_{statistic}_s", estimate, "s")
    plain = {"errors": (float(sum(figures.errors.values())), "requests"), "requests_counted": (float(figures.counted), "requests")}
    if figures.good_ratio is not None:
        plain["good_ratio"] = (figures.good_ratio, "1")
    late = level.lateness
    plain |= {
        "generator_late_p50_s": (late.p50_s, "s"),
        "generator_late_p99_s": (late.p99_s, "s"),
        "generator_late_max_s": (late.max_s, "s"),
    }
    for metric, (value, unit) in plain.items():
        yield Row(case=level.case, system=system, metric=metric, value=value, unit=unit)


def result(measured: Measured, *, benchmark: str, command: str, packages: tuple[str, ...] = (), notes: Iterable[str] = ()) -> Result:
    intervals = "low and high: 95 % bootstrap over requests (latencies)" + (
        "; lowest and highest round (rates)" if measured.settings.rounds > 1 else "; 95 % bootstrap over tenths of the window (rates)"
    )
    said = [*notes, *setting_notes(measured), *measured.notes, intervals]
    return results.result_here(benchmark, rows(measured), command=command, packages=packages, notes=said)


def setting_notes(measured: Measured) -> list[str]:
    settings, dialect = measured.settings, measured.dialect
    lengths = settings.lengths
    changed = [f"{name} {value}" for name, value in (("in", lengths.prompt_tokens), ("out", lengths.output_tokens)) if value is not None]
    scenario = f"scenario {settings.scenario}: {DESCRIPTIONS[settings.scenario]}" + (f"; changed: {', '.join(changed)}" if changed else "")
    prompt = (
        "token ids" if dialect.token_ids else "text, verified with the tokenizer" if settings.tokenizer else "text, lengths not verified"
    )
    special = "shown" if dialect.special_text else "not shown"
    length = "forced by ignore_eos and min_tokens" if dialect.forced_length else "not forced"
    how = f"model {measured.model}, endpoint {dialect.endpoint}, prompts as {prompt}, output length {length}, special tokens {special}"
    notes = [f"{how}, greedy, {settings.rounds} round(s), seed {settings.seed}, prompt seed {settings.prompt_seed}", scenario]
    if Target.parse(settings.url).host not in ("127.0.0.1", "localhost", "::1"):
        notes.append("hardware is the load generator's: the server is on another machine, and the network between them is in the latencies")
    return notes


def write_csv(measured: Measured, path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for level in measured.levels:
            for number, run in enumerate(level.runs):
                counts = {record.name for record in counted(run)}
                start_s = min((record.due_s for record in run.records), default=0.0)
                for record in sorted(run.records, key=lambda record: record.due_s):
                    ok, gaps = record.error is None, record.gaps_s
                    arrivals = [at - start_s for at in (record.arrivals[0], record.last_s)] if record.arrivals else [None] * 2
                    itl = (fmean(gaps), max(gaps)) if gaps else (None, None)
                    latencies = (record.ttft_s, record.tpot_s, *itl, record.e2e_s) if ok else [None] * 5
                    writer.writerow(
                        [
                            *(level.case, number, record.name, int(record.name in counts)),
                            *(record.due_s - start_s, record.sent_s - start_s, *arrivals, record.ended_s - start_s),
                            *latencies,
                            *(record.lateness_s, record.prompt_tokens_asked, record.prompt_tokens, record.cached_tokens),
                            *(record.output_tokens_asked, record.output_tokens, record.client_output_tokens, len(record.arrivals)),
                            *(record.error, record.detail),
                        ]
                    )


def markdown(measured: Measured, result: Result, plots: Iterable[Path] = ()) -> str:
    hardware = result.hardware
    packages = ", ".join(f"{name} {version}" for name, version in hardware["packages"].items())
    machine = f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_bytes'] >> 30} GiB, Python {hardware['python']}"
    sections = [
        f"# Load on {measured.system}, model {measured.model}",
        f"`{result.command}` · {result.date} · commit {result.commit} · {', '.join(part for part in (machine, packages) if part)}",
        "\n".join(f"- {note}" for note in result.notes),
        "## Rates\n\n" + rates_table(measured),
        "## Latencies, milliseconds\n\n" + latency_table(measured),
        "## What the figures mean\n\n" + _definitions(measured),
        "\n".join(f"![{path.stem}]({path.name})" for path in plots),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def rates_table(measured: Measured) -> str:
    slo = measured.settings.slo
    head = ["case", "output tokens/s", "input tokens/s", "requests/s", *([f"goodput, requests/s ({slo})", "good"] if slo else [])]
    head += ["requests", "errors", "window s", "generator late p50 / p99 / max ms"]
    body = []
    for level in measured.levels:
        figures, late = _figures(level), level.lateness
        names = ["output_tokens_per_s", "input_tokens_per_s", "requests_per_s"]
        cells = [level.case, *(_rate(figures, name) for name in names)]
        if slo:
            good = figures.good_ratio
            cells += [_rate(figures, "goodput_requests_per_s"), "–" if good is None else f"{good:.0%}"]
        errors = ", ".join(f"{count} {kind}" for kind, count in sorted(figures.errors.items())) or "0"
        late_ms = " / ".join(f"{value * 1e3:.2f}" for value in (late.p50_s, late.p99_s, late.max_s))
        body.append([*cells, str(figures.counted), errors, f"{figures.window_s:.1f}", late_ms])
    return _table(head, body)


def latency_table(measured: Measured) -> str:
    body = []
    for level in measured.levels:
        for name, statistics in _figures(level).latencies.items():
            cells = [f"{estimate.value * 1e3:.1f}" for estimate in statistics.values()]
            p50 = statistics["p50"]
            body.append([level.case, name.upper(), *cells, f"{p50.low * 1e3:.1f} to {p50.high * 1e3:.1f}"])
    return _table(["case", "", "mean", "p50", "p90", "p95", "p99", "95 % interval of p50"], body)


def _definitions(measured: Measured) -> str:
    counting = [_figures(level).counting for level in measured.levels]
    if all(one.one_token_a_chunk for one in counting if one.requests):
        itl = "Every chunk carried one token here, so ITL is between tokens."
    else:
        per_chunk = ", ".join(f"{level.case} {one.tokens_per_chunk:.2f}" for level, one in zip(measured.levels, counting, strict=True))
        itl = f"Chunks carried several tokens, or tokens without text, so ITL is between chunks, not tokens. Tokens a chunk: {per_chunk}."
    lines = [f"- **{name}** = {formula}" for name, formula in DEFINITIONS.items()]
    lines += [
        f"- {sentence}" for sentence in (_DUE, _WINDOW, _LATE, "Tokens are the server's usage; percentiles interpolate linearly.", itl)
    ]
    return "\n".join(lines)


_DUE = (
    "*due*: when the arrival process said so (open loop), or when the user was free to ask (closed loop); sending late, connecting and "
    "waiting in the generator are part of the latency. Chunks are stamped when their bytes reach the process."
)
_WINDOW = (
    "*window* (steady state): closed loop from when all users are there and their warm-up conversations have ended until the first user "
    "has nothing more to ask; open loop from the end of the warm-up to the last arrival. Latencies are of all requests due after the "
    "warm-up and before the window's end, however long they took."
)
_LATE = (
    "*generator late*: from another process writing a byte to this event loop reading it, every 5 ms under the load; a note above says "
    f"when p50 was over {P50_BOUND_S * 1e3:g} ms or p99 over {P99_BOUND_S * 1e3:g} ms. "
    "How late requests were sent is send_late_… in the JSON."
)


def _figures(level: LevelResult) -> Figures:
    assert level.figures is not None
    return level.figures


def _rate(figures: Figures, name: str) -> str:
    estimate = figures.rates.get(name)
    return "–" if estimate is None else f"{estimate.value:.1f}" if estimate.value >= 10 else f"{estimate.value:.2f}"


def _table(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
