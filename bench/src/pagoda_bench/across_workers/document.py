"""The table of docs/speculation.md about two workers, and the picture's curves, made from the result file alone. Pure."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pagoda_bench.errors import ResultFormatError
from pagoda_bench.hardware import Hardware
from pagoda_bench.marked import replaced
from pagoda_bench.results import Result

BEGIN = "<!-- speculation across workers: written by `make bench-speculation-router`, not by hand -->"
END = "<!-- speculation across workers: end -->"
CASE = re.compile(r"t=([0-9.]+) step=([0-9.]+)ms rtt=([0-9.]+)ms(?: c=([0-9]+))?")


@dataclass(frozen=True, slots=True)
class Point:
    temperature: float
    step_ms: float
    round_trip_ms: float
    streams: int
    gain: float
    low: float
    high: float
    plain_tokens_per_s: float
    drafted_tokens_per_s: float
    accepted_ratio: float
    from_drafts_ratio: float


def points_of(result: Result) -> list[Point]:
    """Raises ResultFormatError for a file of something else."""
    by_key = {row.key: row for row in result.rows}
    points = []
    for case in dict.fromkeys(row.case for row in result.rows):
        match = CASE.fullmatch(case)
        if match is None:
            raise ResultFormatError(f"{case!r} is no case of two workers")
        gain = by_key[case, "remote", "gain"]
        points.append(
            Point(
                float(match[1]),
                float(match[2]),
                float(match[3]),
                int(match[4] or 1),
                gain.value,
                gain.low or gain.value,
                gain.high or gain.value,
                by_key[case, "none", "output_tokens_per_s"].value,
                by_key[case, "remote", "output_tokens_per_s"].value,
                by_key[case, "remote", "accepted_ratio"].value,
                by_key[case, "remote", "from_drafts_ratio"].value,
            )
        )
    return points


def with_table(text: str, result: Result) -> str:
    """Raises ResultFormatError for a document without markers."""
    return replaced(text, BEGIN, END, "\n".join([*_lines(result), "", _where(result)]), "speculation.md")


def _lines(result: Result) -> Iterator[str]:
    columns = ("streams", "temperature", "a step", "round trip", "tokens/s without", "with drafts", "gain")
    yield f"| {' | '.join((*columns, 'of its tokens from drafts', 'drafts accepted'))} |"
    yield "|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    for point in points_of(result):
        gain = f"{point.gain:.2f} ({point.low:.2f} to {point.high:.2f})"
        where = f"{point.streams} | {point.temperature:g} | {point.step_ms:g} ms | {point.round_trip_ms:g} ms"
        speeds = f"{point.plain_tokens_per_s:.1f} | {point.drafted_tokens_per_s:.1f} | {gain}"
        yield f"| {where} | {speeds} | {point.from_drafts_ratio:.0%} | {point.accepted_ratio:.0%} |"


def _where(result: Result) -> str:
    machine = Hardware(**{**result.hardware, "commit": result.commit, "date": result.date}).line()
    notes = " ".join(f"{note[0].upper()}{note[1:]}." for note in result.notes)
    return f"`{result.command}` · {machine}, commit {result.commit}, {result.date}. {notes}"
