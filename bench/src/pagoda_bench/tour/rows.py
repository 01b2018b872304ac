"""From the answers of a run to rows of a result, with the aims and whether they were met. Pure; called by the command."""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from pagoda_bench.peers.compare import spread
from pagoda_bench.results import Row
from pagoda_bench.tour.measure import PEER, Answers, Measured
from pagoda_bench.tour.stages import ARRIVAL_FIGURES, CONTINUOUS, DYNAMIC, FIGURES, FIRST, ONE_AT_A_TIME, PAGED, STATIC, Figure, Stage

OURS = "pagoda"
E2E = FIGURES["e2e_mean_s"]


def rows(measured: Measured) -> Iterator[Row]:
    """By stage. low and high are the extremes of the rounds; ratios are taken within each round."""
    answers = {one.stage.slug: one for one in measured.stages}
    tokens = answers[FIRST.slug].at_once[0]["tokens"]
    peer = [tokens / seconds for seconds in measured.peer_s]
    before: Answers | None = None
    for one in measured.stages:
        yield from _figures(one)
        if before is not None:
            yield _ratio(one.stage, "speedup_over_previous", _speeds(one), _speeds(before))
        if one.stage is STATIC:
            yield _row(STATIC, "output_tokens_per_s", peer, "tokens/s", system=PEER)
            yield _ratio(STATIC, "speedup_over_one_at_a_time", _speeds(one), _speeds(answers[ONE_AT_A_TIME.slug]), least=1.5)
            yield _ratio(STATIC, "speedup_over_transformers", _speeds(one), peer, least=0.9)
        if one.stage is DYNAMIC:
            before_s, now_s = _values(answers[STATIC.slug].arriving, E2E), _values(one.arriving, E2E)
            yield _ratio(DYNAMIC, "arrivals_e2e_gain_over_static", before_s, now_s, least=1.5)
        if one.stage is CONTINUOUS:
            yield _ratio(CONTINUOUS, "speedup_over_static", _speeds(one), _speeds(answers[STATIC.slug]), least=1.5)
        same = same_tokens(one, answers[FIRST.slug].at_once[0]["token_ids"])
        yield Row(case=one.stage.slug, system=OURS, metric="same_tokens_ratio", value=same, unit="1", aim="1", met=same == 1)
        before = one


def same_tokens(one: Answers, reference: Sequence[Sequence[int]]) -> float:
    """Share of requests, of all rounds, whose tokens are those of the first stage."""
    runs = [answer["token_ids"] for answer in (*one.at_once, *one.arriving)]
    return statistics.fmean(ids == reference[i] for run in runs for i, ids in enumerate(run))


def _figures(one: Answers) -> Iterator[Row]:
    for metric, figure in FIGURES.items():
        if values := _values(one.at_once, figure):
            yield _row(one.stage, metric, values, figure.unit, least=0.85 if (one.stage, metric) == (PAGED, "kv_filled_ratio") else None)
    for metric in ARRIVAL_FIGURES:
        if values := _values(one.arriving, FIGURES[metric]):
            yield _row(one.stage, f"arrivals_{metric}", values, FIGURES[metric].unit)


def _values(answers: Sequence[dict[str, Any]], figure: Figure) -> list[float]:
    return [answer[figure.key] * figure.factor for answer in answers if answer[figure.key] is not None]


def _speeds(one: Answers) -> list[float]:
    return [answer["tokens_per_s"] for answer in one.at_once]


def _row(stage: Stage, metric: str, values: Sequence[float], unit: str, *, system: str = OURS, least: float | None = None) -> Row:
    seen = spread(values)
    aim, met = (None, None) if least is None else (f"≥ {least}", seen.median >= least)
    return Row(case=stage.slug, system=system, metric=metric, value=seen.median, unit=unit, low=seen.low, high=seen.high, aim=aim, met=met)


def _ratio(stage: Stage, metric: str, more: Sequence[float], less: Sequence[float], *, least: float | None = None) -> Row:
    """`more` over `less`, round by round. A stage measured in fewer rounds than the other is compared in those, which are the first."""
    return _row(stage, metric, [a / b for a, b in zip(more, less, strict=False)], "ratio", least=least)
