"""What was read by whom, as rows of the result format. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from pagoda_bench.quality.drift import Drift
from pagoda_bench.results import Row

OURS = "pagoda"


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of greedy answers to the same prompts."""

    same_answers_ratio: float
    same_tokens_ratio: float
    """Tokens up to the first that differs, of all of ours: after it the two continue different texts."""


def agreement(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> Agreement:
    pairs = list(zip(ours, theirs, strict=True))
    before = sum(len(list(takewhile(lambda two: two[0] == two[1], zip(a, b, strict=False)))) for a, b in pairs)
    return Agreement(sum(list(a) == list(b) for a, b in pairs) / len(pairs), before / sum(map(len, ours)))


def own_rows(case: str, *, error_ratio: float | None, exact_percent: float, judged: Drift, everywhere: Drift) -> Iterator[Row]:
    """Of a folder in our engine, against the plain model in it. judged, everywhere: places of answers, and all."""
    if error_ratio is not None:
        yield Row(case=case, system=OURS, metric="output_error_ratio", value=error_ratio, unit="1")
    yield Row(case=case, system=OURS, metric="exact_match_percent", value=exact_percent, unit="percent")
    yield Row(case=case, system=OURS, metric="perplexity_ratio", value=judged.perplexity_ratio, unit="ratio")
    yield Row(case=case, system=OURS, metric="kl_mean_nats", value=everywhere.kl_mean, unit="nats")
    yield Row(case=case, system=OURS, metric="top1_agreement_ratio", value=everywhere.top1_agreement, unit="1")


def loads_row(case: str, system: str, *, loads: bool) -> Row:
    return Row(case=case, system=system, metric="loads", value=float(loads), unit="1")


def answer_rows(case: str, system: str, found: Agreement) -> Iterator[Row]:
    yield Row(case=case, system=system, metric="same_tokens_ratio", value=found.same_tokens_ratio, unit="1")
    yield Row(case=case, system=system, metric="same_answers_ratio", value=found.same_answers_ratio, unit="1")


def drift_rows(case: str, system: str, drift: Drift) -> Iterator[Row]:
    """Against our engine with the same folder."""
    yield Row(case=case, system=system, metric="kl_mean_nats", value=drift.kl_mean, unit="nats")
    yield Row(case=case, system=system, metric="top1_agreement_ratio", value=drift.top1_agreement, unit="1")
