"""Runs every candidate through the engine: distributions against the first one's, exact matches, bytes, and speed in turning rounds.

Called by run.py. Knows neither result files nor gates.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from tokenizers import Tokenizer

from pagoda_bench.errors import SettingsError
from pagoda_bench.quality.candidates import Candidate
from pagoda_bench.quality.corpus import Corpus
from pagoda_bench.quality.drift import Distributions, Drift, NotFinite, compare, summarize
from pagoda_bench.quality.engine import EngineRefused, Facts, ScoringEngine
from pagoda_bench.quality.questions import QuestionSet, percent_right

MAX_BYTES = 1 << 30
"""Of one model's distributions; two lie on the disk at once."""
JUDGED, ALL = "judged", "all"
NOT_MEASURED = "is not measured"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Texts:
    tokenizer: Tokenizer
    corpus: Corpus
    questions: Sequence[QuestionSet]
    paths: Sequence[str]


@dataclass(slots=True)
class Measured:
    candidate: Candidate
    facts: Facts
    drifts: Mapping[tuple[str, str], Drift]
    """By path, and whether of judged or of all places; the latter only where some are not judged."""
    exact: Mapping[str, float]
    """Percent, by kind of question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedPlan:
    streams: Sequence[int] = (1, 8, 32)
    prompt_tokens: int = 128
    output_tokens: int = 64
    rounds: int = 3
    vocab: int = 200
    """Prompts draw ids below it; ordinary text in every vocabulary."""


def quality(
    engine: ScoringEngine, candidates: Sequence[Candidate], folders: Mapping[str, Path], texts: Texts, scratch: Path, say: Say
) -> list[Measured]:
    """In order; the first is the reference. folders: by source. Another one that the engine refuses, or whose numbers are none, is said and
    left out. Raises EngineRefused of the first, SettingsError."""
    measured: list[Measured] = []
    reference: dict[str, Distributions] = {}
    for candidate in candidates:
        say(f"{candidate.label}: {len(texts.corpus.targets()):,} places, {sum(len(each.prompts) for each in texts.questions)} questions")
        try:
            facts = engine.open(folders[candidate.source], candidate.engine, given_text=True)
            _check_alike(candidate, facts, measured)
            drifts: dict[tuple[str, str], Drift] = {}
            for path in texts.paths:
                file = scratch / f"{'other' if path in reference else 'reference'}-{path}.npy"
                found = engine.distributions(texts.corpus.ids, path, file)
                drifts |= _drifts(reference.setdefault(path, found), found, texts.corpus, path)
            exact = {each.name: _exact(engine, each, texts.tokenizer) for each in texts.questions}
        except (EngineRefused, NotFinite) as error:
            if not measured:
                raise
            say(f"{candidate.label} {NOT_MEASURED}: {error}")
        else:
            measured.append(Measured(candidate, facts, drifts, exact))
    return measured


def _check_alike(candidate: Candidate, facts: Facts, before: Sequence[Measured]) -> None:
    if before and facts.vocab_size != before[0].facts.vocab_size:
        first = before[0]
        raise SettingsError(
            f"{candidate.label} has a vocabulary of {facts.vocab_size}, {first.candidate.label} one of {first.facts.vocab_size}: "
            "only models of one vocabulary can be compared token by token"
        )


def _drifts(reference: Distributions, found: Distributions, corpus: Corpus, path: str) -> dict[tuple[str, str], Drift]:
    places, judged, owners = compare(reference, found, corpus.targets()), corpus.judged(), corpus.owners()
    drifts = {(path, JUDGED): summarize(places.at(judged), owners[judged])}
    if not judged.all():
        drifts[path, ALL] = summarize(places, owners)
    return drifts


def _exact(engine: ScoringEngine, questions: QuestionSet, tokenizer: Tokenizer) -> float:
    replies = engine.answers(questions.prompts, questions.max_tokens)["token_ids"]
    return percent_right(questions, replies, tokenizer)


def speed(
    engine: ScoringEngine, jobs: Mapping[str, tuple[Path, Mapping[str, object]]], plan: SpeedPlan, say: Say
) -> dict[str, dict[int, list[float]]]:
    """jobs: by label, folder and engine settings. In every round each has a turn, another one first each time, with the same prompts.
    One that cannot be opened is said and left out."""
    speeds: dict[str, dict[int, list[float]]] = {}
    labels = list(jobs)
    for number in range(plan.rounds):
        say(f"round {number + 1} of {plan.rounds}: tokens/s of {len(labels)} formats at {', '.join(map(str, plan.streams))} streams")
        turn = number % max(len(labels), 1)
        for label in [*labels[turn:], *labels[:turn]]:
            folder, settings = jobs[label]
            try:
                engine.open(folder, settings, given_text=False)
            except EngineRefused as error:
                say(f"{label}'s speed {NOT_MEASURED}: {error}")
                labels = [each for each in labels if each != label]
                continue
            for streams in plan.streams:
                speeds.setdefault(label, {}).setdefault(streams, []).append(_tokens_per_s(engine, plan, streams, number))
    return speeds


def _tokens_per_s(engine: ScoringEngine, plan: SpeedPlan, streams: int, number: int) -> float:
    rng = Random(f"{number} {streams}")
    shapes = [[rng.randrange(plan.vocab) for _ in range(plan.prompt_tokens)] for _ in range(2 * streams)]
    engine.answers(shapes[streams:], min(plan.output_tokens, 8), ignore_eos=True)
    return float(engine.answers(shapes[:streams], plan.output_tokens, ignore_eos=True)["tokens_per_s"])


def bounded_tokens(wanted: int, vocab_size: int) -> int:
    """Of the corpus, so that the distributions fit."""
    return max(2, min(wanted, MAX_BYTES // (np.dtype(np.float32).itemsize * vocab_size)))
