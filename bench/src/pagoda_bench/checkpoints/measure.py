"""Every folder in our engine and in other projects' programs: what is lost to the plain model, and whether all of them say the same.

Called by the run. Knows neither result files nor documents.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from tokenizers import Tokenizer

from pagoda_bench.checkpoints.elsewhere import Elsewhere, NotRead, Program
from pagoda_bench.checkpoints.figures import OURS, agreement, answer_rows, drift_rows, loads_row, own_rows
from pagoda_bench.checkpoints.formats import Format, Made, make
from pagoda_bench.quality.corpus import Corpus, own_corpus
from pagoda_bench.quality.drift import Distributions, NotFinite, compare, summarize
from pagoda_bench.quality.engine import ScoringEngine
from pagoda_bench.quality.questions import QuestionSet, percent_right, tiny_questions
from pagoda_bench.quality.shipped import write_calibration
from pagoda_bench.results import Row
from pagoda_bench.tiny.tokenizer import END_ID

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Texts:
    """What our engine is judged by, and the part of it that is asked elsewhere too."""

    tokenizer: Tokenizer
    corpus: Corpus
    questions: Sequence[QuestionSet]
    documents_elsewhere: int
    """The first of the corpus."""
    prompts_elsewhere: int
    """The first of each kind of question."""

    @property
    def prompts(self) -> list[list[int]]:
        return [list(prompt) for each in self.questions for prompt in each.prompts[: self.prompts_elsewhere]]

    @property
    def max_tokens(self) -> int:
        return max(each.max_tokens for each in self.questions)

    @property
    def part(self) -> Corpus:
        return Corpus(self.corpus.documents[: self.documents_elsewhere], self.corpus.source)


def tiny_texts(tokenizer: Tokenizer, *, tokens: int, per_task: int, documents_elsewhere: int, prompts_elsewhere: int) -> Texts:
    corpus = own_corpus(tokenizer, tokens=tokens)
    return Texts(tokenizer, corpus, tiny_questions(tokenizer, per_task), documents_elsewhere, prompts_elsewhere)


@dataclass(frozen=True, slots=True)
class Ours:
    distributions: Distributions
    """[places of the corpus, vocabulary]."""
    answers: Sequence[Sequence[int]]
    """To the prompts that are asked elsewhere."""


class Comparison:
    def __init__(self, engine: ScoringEngine, programs: Sequence[Program], texts: Texts, *, threads: int, scratch: Path, say: Say) -> None:
        self._engine, self._programs, self._texts = engine, programs, texts
        self._threads, self._scratch, self._say = threads, scratch, say
        self._plain: Distributions | None = None
        self.tokens_elsewhere = 0
        """Of our answers with the plain model to what is asked elsewhere."""
        self.told: dict[str, list[str]] = {}
        """What a program said of folders: why it does not read them, or its kernel for them. Folders by program and message."""

    def rows(self, formats: Sequence[Format]) -> Iterator[Row]:
        """The first is the plain model. Raises NotQuantized, EngineRefused; what another program refuses is said, and a row."""
        calibration = self._scratch / "calibration.jsonl"
        write_calibration(calibration)
        for one in formats:
            made = make(one, self._scratch, calibration)
            ours, rows = self._in_our_engine(one, made)
            yield from rows
            for program in self._programs:
                yield from self._elsewhere(one, made, program, ours)

    def _in_our_engine(self, one: Format, made: Made) -> tuple[Ours, list[Row]]:
        texts, corpus = self._texts, self._texts.corpus
        self._engine.open(made.folder, {}, given_text=True)
        # In memory: the next folder's are written into the same file.
        found = np.array(self._engine.distributions(corpus.ids, "prefill", self._scratch / "ours.npy"))
        self._plain = found if self._plain is None else self._plain
        replies = [self._engine.answers(each.prompts, each.max_tokens)["token_ids"] for each in texts.questions]
        exact = fmean(percent_right(each, told, texts.tokenizer) for each, told in zip(texts.questions, replies, strict=True))
        places, judged, owners = compare(self._plain, found, corpus.targets()), corpus.judged(), corpus.owners()
        answers, everywhere = summarize(places.at(judged), owners[judged]), summarize(places, owners)
        self._say(f"{one.label}, {OURS}: {exact:.1f} % right, KL from {everywhere.kl_mean:.2g}")
        rows = own_rows(one.label, error_ratio=made.error_ratio, exact_percent=exact, judged=answers, everywhere=everywhere)
        asked_elsewhere = [reply for told in replies for reply in told[: texts.prompts_elsewhere]]
        self.tokens_elsewhere = self.tokens_elsewhere or sum(map(len, asked_elsewhere))
        return Ours(found, asked_elsewhere), list(rows)

    def _elsewhere(self, one: Format, made: Made, program: Program, ours: Ours) -> Iterator[Row]:
        loads, corpus = False, self._texts.part
        try:
            with Elsewhere(program, made.folder, threads=self._threads, log=self._scratch / f"{program.module}.log") as reader:
                loads = True
                if kernel := reader.kernel():
                    self._note(one, f"{program.name} takes {kernel}")
                told = [_without_end(ids) for ids in reader.answers(self._texts.prompts, self._texts.max_tokens)]
                agreed = agreement(ours.answers, told)
                yield from answer_rows(one.label, program.name, agreed)
                theirs = reader.distributions(corpus.ids, self._scratch / "theirs.npy")
            targets = corpus.targets()
            drift = summarize(compare(ours.distributions[: len(targets)], theirs, targets), corpus.owners())
            yield from drift_rows(one.label, program.name, drift)
            self._say(f"{one.label}, {program.name}: {agreed.same_tokens_ratio:.1%} of tokens, KL {drift.kl_mean:.2g}")
        except (NotRead, NotFinite) as error:
            self._note(one, f"{program.name} {'loads, but ' if loads else ''}{error}")
            self._say(f"{one.label}: {program.name} {error}")
        yield loads_row(one.label, program.name, loads=loads)

    def _note(self, one: Format, message: str) -> None:
        self.told.setdefault(message, []).append(one.label)


def _without_end(ids: Sequence[int]) -> Sequence[int]:
    """Our engine leaves it out."""
    return ids[:-1] if ids and ids[-1] == END_ID else ids
