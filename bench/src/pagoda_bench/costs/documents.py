"""The tables of `costs` within documents, made from the result file alone, so that a test can hold them against it.

Pure but for `write_table`. The prose around the markers is written by hand.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from pagoda_bench.costs.jobs import INVARIANT
from pagoda_bench.costs.ranks import RANKS
from pagoda_bench.hardware import Hardware
from pagoda_bench.marked import replaced
from pagoda_bench.results import FOLDER, Result, Row
from pagoda_bench.tour.pages import shown

DOCS = FOLDER.parents[1] / "docs"
DOCUMENTS: Mapping[str, str] = {
    "kv-use": "bench.md",
    "host-tier": "decisions/host-memory-for-blocks.md",
    "batch-invariance": "batch-invariance.md",
    "quantized-kv": "decisions/quantized-kv-cache.md",
    "adapters": "adapters.md",
    "adapter-loading": "adapters.md",
    "tensor-parallel": "tensor-parallel.md",
}
"""By benchmark, the document below docs/ that shows it."""
_KV_USE = ("kv_written_of_held_ratio", "kv_held_of_capacity_ratio", "sequences_per_step", "preemptions", "output_tokens_per_s")
_TIER = ("prefix_hit_ratio", "host_prefix_hit_ratio", "computed_tokens", "ttft_p50_s", "ttft_p95_s")
_LABELS = {
    "kv_written_of_held_ratio": "written, of what is held",
    "kv_held_of_capacity_ratio": "held while somebody waits, of all",
    "sequences_per_step": "sequences in a step, mean",
    "preemptions": "preemptions",
    "output_tokens_per_s": "output tokens/s",
    "prefix_hit_ratio": "prompt tokens found in either cache",
    "host_prefix_hit_ratio": "prompt tokens found on the host",
    "computed_tokens": "tokens computed",
    "ttft_p50_s": "time to first token, p50",
    "ttft_p95_s": "time to first token, p95",
}


def markers(benchmark: str) -> tuple[str, str]:
    return f"<!-- {benchmark}: written by `pagoda bench costs {benchmark}`, not by hand -->", f"<!-- {benchmark}: end -->"


def write_table(result: Result, docs: Path) -> Path:
    """Raises ResultFormatError for a document without markers."""
    path = docs / DOCUMENTS[result.benchmark]
    path.write_text(with_table(path.read_text(), result))
    return path


def with_table(text: str, result: Result) -> str:
    begin, end = markers(result.benchmark)
    return replaced(text, begin, end, "\n".join([*_lines(result), "", _measured_where(result)]), DOCUMENTS[result.benchmark])


def _lines(result: Result) -> Iterator[str]:
    by_key = {row.key: row for row in result.rows}
    if result.benchmark == "batch-invariance":
        yield from _ways(by_key)
        return
    if result.benchmark == "tensor-parallel":
        yield from _ranks(by_key)
        return
    if result.benchmark == "quantized-kv":
        yield from _kv_dtypes(by_key)
        return
    if result.benchmark == "adapters":
        yield from _adapters(by_key)
        return
    if result.benchmark == "adapter-loading":
        yield from _pauses(by_key)
        return
    cases = list(dict.fromkeys(row.case for row in result.rows))
    yield f"| | {' | '.join(cases)} |"
    yield "|---|" + "---:|" * len(cases)
    for metric in _KV_USE if result.benchmark == "kv-use" else _TIER:
        yield f"| {_LABELS[metric]} | {' | '.join(_cell(by_key.get((case, 'pagoda', metric))) for case in cases)} |"


def _ways(by_key: Mapping[tuple[str, str, str], Row]) -> Iterator[str]:
    yield "| case | way | output tokens/s | decode step | first tokens of all | throughput lost by batch invariance |"
    yield "|---|---|---:|---:|---:|---:|"
    for case, way in dict.fromkeys((case, way) for case, way, _ in by_key):
        metrics = ("output_tokens_per_s", "decode_step_s", "ttft_max_s", "throughput_lost_ratio")
        cells = [_cell(by_key.get((case, way, metric))) for metric in metrics]
        yield f"| {case} | {f'**{way}**' if way == INVARIANT else way} | {' | '.join(cells)} |"


def _ranks(by_key: Mapping[tuple[str, str, str], Row]) -> Iterator[str]:
    yield "| case | way | output tokens/s | decode step | first tokens of all | speed of 2 ranks over it |"
    yield "|---|---|---:|---:|---:|---:|"
    for case, way in dict.fromkeys((case, way) for case, way, _ in by_key):
        metrics = ("output_tokens_per_s", "decode_step_s", "ttft_max_s", "speed_of_ranks_ratio")
        cells = [_cell(by_key.get((case, way, metric))) for metric in metrics]
        yield f"| {case} | {f'**{way}**' if way == RANKS else way} | {' | '.join(cells)} |"


def _kv_dtypes(by_key: Mapping[tuple[str, str, str], Row]) -> Iterator[str]:
    yield "| case | kvCache.dtype | KV cache of a token | attention of a decode step | faster than auto | decode step | faster than auto |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    for case, kv_dtype in dict.fromkeys((case, kv_dtype) for case, kv_dtype, _ in by_key):
        metrics = ("kv_bytes_per_token", "attention_s", "attention_gain_over_auto", "decode_step_s", "decode_step_gain_over_auto")
        yield f"| {case} | {kv_dtype} | {' | '.join(_cell(by_key.get((case, kv_dtype, metric))) for metric in metrics)} |"


def _adapters(by_key: Mapping[tuple[str, str, str], Row]) -> Iterator[str]:
    yield "| case | requests of | output tokens/s | decode step | throughput lost |"
    yield "|---|---|---:|---:|---:|"
    for case, way in dict.fromkeys((case, way) for case, way, _ in by_key):
        metrics = ("output_tokens_per_s", "decode_step_s", "throughput_lost_ratio")
        yield f"| {case} | {way} | {' | '.join(_cell(by_key.get((case, way, metric))) for metric in metrics)} |"


def _pauses(by_key: Mapping[tuple[str, str, str], Row]) -> Iterator[str]:
    yield "| case | meanwhile | pause between tokens, p50 | p99 | longest | one took |"
    yield "|---|---|---:|---:|---:|---:|"
    for case, phase in dict.fromkeys((case, phase) for case, phase, _ in by_key):
        metrics = ("itl_p50_s", "itl_p99_s", "itl_max_s", "each_took_s")
        yield f"| {case} | {phase} | {' | '.join(_cell(by_key.get((case, phase, metric))) for metric in metrics)} |"


def _cell(row: Row | None) -> str:
    return "" if row is None else shown(row, spread=True)


def _measured_where(result: Result) -> str:
    machine = Hardware(**{**result.hardware, "commit": result.commit, "date": result.date}).line()
    notes = " ".join(f"{note[0].upper()}{note[1:]}." for note in result.notes)
    return f"`{result.command}` · {machine}, commit {result.commit}, {result.date}. {notes}"
