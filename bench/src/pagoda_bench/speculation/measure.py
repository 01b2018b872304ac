"""Runs every case with every way to guess, in turning order round by round, and makes rows of the answers.

Called by `__main__`. low and high of a row are the extremes of the rounds; ratios are taken within a round: all have the same prompts.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pagoda_bench.errors import BenchError
from pagoda_bench.offline import OfflineWorker
from pagoda_bench.peers.rounds import turned
from pagoda_bench.results import Row
from pagoda_bench.speculation.work import COPY, DRAFT_TOKENS, MIX, SYSTEMS, Case, Pair, job, prompts_of

Say = Callable[[str], None]
Answers = Mapping[str, Sequence[Mapping[str, Any]]]
"""By system, then by round."""


class OtherTokens(BenchError):
    """Speculation changed an answer."""


def measure(
    asked: Sequence[Case],
    *,
    pair: Pair,
    tokenizer: Tokenizer,
    device: str,
    rounds: int,
    scratch: Path,
    say: Say,
) -> Iterator[Row]:
    """Raises OtherTokens, PeerUnavailable."""
    found: dict[Case, Answers] = {}
    with closing(OfflineWorker(log=scratch / "worker.log")) as worker:
        for case in asked:
            answers: dict[str, list[dict[str, Any]]] = {system: [] for system in SYSTEMS}
            for number in range(rounds + 1):  # the first one warms the machine up
                prompts = prompts_of(case, tokenizer, number=number)
                for system in turned(SYSTEMS, number):
                    what = job(case, system, prompts, pair, device=device)
                    answers[system].append(worker.answer(dict(what)))
                    say(f"{case.name:14} round {number}: {system:7} {answers[system][-1]['tokens_per_s']:9.1f} tok/s")
                check_same(case, {system: each[-1] for system, each in answers.items()}, device=device)
            found[case] = {system: each[1:] for system, each in answers.items()}
    yield from rows_of(found)


def check_same(case: Case, answers: Mapping[str, Mapping[str, Any]], *, device: str) -> None:
    """On a CPU with our own kernels to the last bit. A GPU adds up otherwise in steps of other sizes, so a tie may fall the other way."""
    for system, answer in answers.items():
        if device == "cpu" and answer["token_ids"] != answers["none"]["token_ids"]:
            raise OtherTokens(f"{case.name}: {system} gave other tokens than none")


def rows_of(found: Mapping[Case, Answers]) -> Iterator[Row]:
    gains = {case: {system: _gains(answers, system) for system in SYSTEMS[1:]} for case, answers in found.items()}
    alone = {case: each["draft"] for case, each in gains.items() if case.streams == 1 and case.task != MIX}
    best = max(alone, key=lambda case: statistics.median(alone[case]), default=None)
    for case, answers in found.items():
        for system in SYSTEMS:
            yield _row(case, system, "output_tokens_per_s", "tokens/s", [answer["tokens_per_s"] for answer in answers[system]])
            if system == "none":
                continue
            yield _row(case, system, "gain", "ratio", gains[case][system], least=_aim(case, system, best=case == best))
            yield _row(case, system, "tokens_per_step", "tokens", [answer["tokens"] / answer["steps"] for answer in answers[system]])
            drafts = sum(answer["drafts"] for answer in answers[system])
            for place in range(DRAFT_TOKENS if drafts else 0):
                accepted = sum(answer["accepted_draft_tokens"][place] for answer in answers[system])
                yield Row(case=case.name, system=system, metric=f"accepted_at_{place + 1}_ratio", value=accepted / drafts, unit="1")


def _gains(answers: Answers, system: str) -> list[float]:
    return [one["tokens_per_s"] / other["tokens_per_s"] for one, other in zip(answers[system], answers["none"], strict=True)]


def _aim(case: Case, system: str, *, best: bool) -> float | None:
    if case.task == MIX and case.streams == 64:
        return 0.97
    if system == "draft" and case.task == MIX and case.streams <= 8:
        return 1.3
    if system == "draft" and best:
        return 1.7
    return 1.5 if system == "ngram" and case.task == COPY else None


def _row(case: Case, system: str, metric: str, unit: str, values: Sequence[float], *, least: float | None = None) -> Row:
    middle = statistics.median(values)
    met = None if least is None else middle >= least
    aim = None if least is None else f">= {least:g}"
    return Row(case=case.name, system=system, metric=metric, value=middle, unit=unit, low=min(values), high=max(values), aim=aim, met=met)
