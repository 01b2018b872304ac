"""Held-out text as documents of token ids, with the places that are judged. Reads any text file, or JSONL; or makes the tiny model's own.

Knows no engine and no distribution. Called by run.py and by the gates.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from pagoda_bench.errors import SettingsError
from pagoda_bench.tiny import tokenizer as tiny
from pagoda_bench.tiny.corpus import TASKS, conversation, held_out_items

OWN_SEED = 7
"""Other held-out items than those whose answers are counted as exact matches (seed 0)."""
OWN_SOURCE = "conversations of held-out questions, as `pagoda_bench.tiny.corpus` makes them; judged are the answers"


@dataclass(frozen=True, slots=True)
class Document:
    ids: Sequence[int]
    judged: Sequence[bool]
    """Of each token, whether predicting it counts. The first one follows nothing and never counts."""


@dataclass(frozen=True, slots=True)
class Corpus:
    documents: Sequence[Document]
    source: str
    """In words, for the result file."""

    @property
    def ids(self) -> list[list[int]]:
        return [list(document.ids) for document in self.documents]

    def targets(self) -> npt.NDArray[np.int64]:
        """[places] what follows at each place of all documents."""
        return np.concatenate([np.asarray(document.ids[1:], np.int64) for document in self.documents])

    def judged(self) -> npt.NDArray[np.bool_]:
        """[places]."""
        return np.concatenate([np.asarray(document.judged[1:], bool) for document in self.documents])

    def owners(self) -> npt.NDArray[np.int64]:
        """[places] the number of the place's document."""
        return np.repeat(np.arange(len(self.documents)), [len(document.ids) - 1 for document in self.documents])


def read_corpus(path: Path, tokenizer: Tokenizer, *, tokens: int, window: int) -> Corpus:
    """At most `tokens` of it, in documents of at most `window`. Text is cut into windows that do not overlap. A line of JSONL is
    {"text": …}, or {"prompt": …, "completion": …} of which the completion is judged. Raises SettingsError."""
    try:
        content = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--corpus {path} cannot be read as text: {error}") from None
    if path.suffix in (".jsonl", ".ndjson"):
        whole = list(_lines(path, content, tokenizer))
    else:
        ids = tokenizer.encode(content).ids
        whole = [Document(ids, [True] * len(ids))]
    documents = _bounded(_windows(whole, window), tokens)
    if not any(any(document.judged[1:]) for document in documents):
        raise SettingsError(f"--corpus {path} has no token to predict: give it more text")
    return Corpus(documents, f"{path.name}, windows of at most {window} tokens")


def own_corpus(tokenizer: Tokenizer, *, tokens: int) -> Corpus:
    """What the tiny models are made for, on the held-out side of the split: conversations of one item of each task in turning order."""
    count = 1 + tokens // 250  # five turns are 300 tokens or so
    items = [held_out_items(task, count, OWN_SEED) for task in TASKS]
    rng = Random(OWN_SEED)
    documents = []
    for together in zip(*items, strict=True):
        ids = tokenizer.encode(tiny.render(conversation(rng.sample(together, len(together))))).ids
        documents.append(Document(ids, tiny.answer_mask(ids)))
    return Corpus(_bounded(documents, tokens), OWN_SOURCE)


def speaks_tiny(tokenizer: Tokenizer, own: Tokenizer) -> bool:
    """Whether this is the tiny models' vocabulary: only they know the tasks."""
    return bool(tokenizer.get_vocab() == own.get_vocab())


def _lines(path: Path, content: str, tokenizer: Tokenizer) -> Iterator[Document]:
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            match json.loads(line):
                case {"prompt": str(prompt), "completion": str(completion)}:
                    yield _continued(tokenizer, prompt, completion)
                case {"text": str(text)}:
                    ids = tokenizer.encode(text).ids
                    yield Document(ids, [True] * len(ids))
                case _:
                    raise ValueError('it must have "text", or "prompt" and "completion"')
        except ValueError as error:
            raise SettingsError(f"--corpus {path}, line {number}: {error}") from None


def _continued(tokenizer: Tokenizer, prompt: str, completion: str) -> Document:
    """Tokenized apart, as a server does that continues a prompt."""
    before, after = tokenizer.encode(prompt).ids, tokenizer.encode(completion, add_special_tokens=False).ids
    return Document([*before, *after], [False] * len(before) + [True] * len(after))


def _windows(documents: Iterable[Document], window: int) -> Iterator[Document]:
    for document in documents:
        for start in range(0, len(document.ids), window):
            yield Document(document.ids[start : start + window], document.judged[start : start + window])


def _bounded(documents: Iterable[Document], tokens: int) -> list[Document]:
    """As many whole documents as `tokens` allow, and one at least; none of a single token."""
    taken, used = list[Document](), 0
    for document in documents:
        if len(document.ids) < 2:
            continue
        if taken and used + len(document.ids) > tokens:
            break
        taken.append(document if used + len(document.ids) <= tokens else Document(document.ids[:tokens], document.judged[:tokens]))
        used += len(document.ids)
    return taken


def first_questions(path: Path, count: int) -> list[tuple[str, str]]:
    """(prompt, answer) of the first `count` lines {"prompt": …, "answer": …}. Raises SettingsError."""
    found = []
    try:
        lines = [line for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--questions {path} cannot be read as text: {error}") from None
    for number, line in enumerate(islice(lines, count), start=1):
        try:
            match json.loads(line):
                case {"prompt": str(prompt), "answer": str(answer)}:
                    found.append((prompt, answer))
                case _:
                    raise ValueError('it must have "prompt" and "answer"')
        except ValueError as error:
            raise SettingsError(f"--questions {path}, line {number}: {error}") from None
    return found
