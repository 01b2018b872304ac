"""The two tables of docs/checkpoints.md, made from the result file alone. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from pagoda_bench.checkpoints.figures import OURS
from pagoda_bench.checkpoints.formats import FORMATS
from pagoda_bench.hardware import Hardware
from pagoda_bench.marked import replaced
from pagoda_bench.results import FOLDER, Result, Row

DOCUMENT = FOLDER.parents[1] / "docs" / "checkpoints.md"
BY_COMMAND, THE_END = "written by `make bench-checkpoints`, not by hand", "end"
Values = Mapping[tuple[str, str, str], Row]


def with_tables(text: str, result: Result) -> str:
    """Raises ResultFormatError for a document without markers."""
    values = {row.key: row for row in result.rows}
    cases = list(dict.fromkeys(row.case for row in result.rows))
    text = _with_part(text, "cost", _cost(values, cases))
    return _with_part(text, "elsewhere", [*_elsewhere(values, cases, result), "", _where(result)])


def _with_part(text: str, part: str, lines: Iterable[str]) -> str:
    begin, end = (f"<!-- checkpoints, {part}: {what} -->" for what in (BY_COMMAND, THE_END))
    return replaced(text, begin, end, "\n".join(lines), DOCUMENT.name)


def _cost(values: Values, cases: Sequence[str]) -> Iterator[str]:
    options = {one.label: one.options for one in FORMATS}
    yield "| | `pagoda quantize` with | error of the linears' outputs | exact match | perplexity | KL from bf16, mean | same top token |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    for case in cases:
        error, ratio = values.get((case, OURS, "output_error_ratio")), values[case, OURS, "perplexity_ratio"].value - 1
        columns = [
            case,
            f"`{options[case]}`" if options.get(case) else "",
            "" if error is None else f"{100 * error.value:.2g} %",
            f"{values[case, OURS, 'exact_match_percent'].value:.0f} %",
            f"{100 * ratio:+.2g} %" if ratio else "",
            f"{values[case, OURS, 'kl_mean_nats'].value:.2g}",
            f"{values[case, OURS, 'top1_agreement_ratio'].value:.1%}",
        ]
        yield f"| {' | '.join(columns)} |"


def _elsewhere(values: Values, cases: Sequence[str], result: Result) -> Iterator[str]:
    programs = list(dict.fromkeys(row.system for row in result.rows if row.system != OURS))
    yield f"| | {' | '.join(programs)} |"
    yield f"|---|{'---|' * len(programs)}"
    for case in cases:
        yield f"| {case} | {' | '.join(_cell(values, case, program) for program in programs)} |"


def _cell(values: Values, case: str, program: str) -> str:
    if not values[case, program, "loads"].value:
        return "**does not load**"
    answers, tokens, kl = (values.get((case, program, metric)) for metric in ("same_answers_ratio", "same_tokens_ratio", "kl_mean_nats"))
    if answers is None or tokens is None or kl is None:
        return "loads, **does not answer**"
    return f"{answers.value:.0%} of answers, {tokens.value:.1%} of tokens, KL {kl.value:.1g}"


def _where(result: Result) -> str:
    machine = Hardware(**{**result.hardware, "commit": result.commit, "date": result.date}).line()
    return f"`{result.command}` · {machine}, commit {result.commit}, {result.date} · {' · '.join(result.notes)}"
