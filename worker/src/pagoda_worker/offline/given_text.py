"""What an engine holds possible at each place of a given text: the whole distribution, by the path that serves requests.

Owns what listens where logits pass by. Two paths, because formats may compute them differently: as a prompt, in chunks behind a cached
context, and decoded a token at a time, where a sampler that knows the text gives its next token. Called by scoring.py; knows no file.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pagoda_worker.engine import Engine
from pagoda_worker.execution.prompt_logprobs import PromptLogprobsCollector
from pagoda_worker.request import Request
from pagoda_worker.sampling.row_masks import BatchMasks
from pagoda_worker.sampling.row_tables import History, IntArray
from pagoda_worker.sampling.sampler import Logprobs, Sampler
from pagoda_worker.scheduling.plan import StepPlan
from pagoda_worker.scheduling.sequence import Sequence as RunningSequence

GivenPath = Literal["prefill", "decode"]
Documents = Sequence[Sequence[int]]
SLICE_VALUES = 1 << 23
"""Logits in float32 at once: 32 MB."""


class Places:
    """Where the log probabilities go: the places of all documents one after another. Place p of a document is what follows token p, so a
    document of n tokens has n - 1."""

    def __init__(self, documents: Documents, out: npt.NDArray[np.float32]) -> None:
        """out [places, V], filled here."""
        self.documents = documents
        self._starts = np.cumsum([0, *(len(document) - 1 for document in documents)])
        self._out = out
        self._is_known = np.zeros(len(out), bool)

    @property
    def all_known(self) -> bool:
        return bool(self._is_known.all())

    def put(self, document: int, place: int, logits: Tensor) -> None:
        """logits [n, V] of the places from `place` on; those past the document's last one are left out."""
        count = min(len(logits), len(self.documents[document]) - 1 - place)
        if count > 0:
            start = self._starts[document] + place
            self._out[start : start + count] = logits[:count].float().log_softmax(-1).cpu().numpy()
            self._is_known[start : start + count] = True


def count_places(documents: Documents) -> int:
    return sum(len(document) - 1 for document in documents)


def compute(engine: Engine, documents: Documents, path: GivenPath, out: npt.NDArray[np.float32]) -> None:
    """Fills out [count_places(documents), V] with natural logarithms. Documents have 2 tokens or more, and fewer than the engine's
    max_model_len. The engine must plan no step ahead."""
    places = Places(documents, out)
    listening = _as_prompts(engine, places) if path == "prefill" else _decoding(engine, places)
    with listening:
        for number, document in enumerate(documents):
            prompt, output = (document, 1) if path == "prefill" else (document[:1], len(document) - 1)
            engine.submit(
                Request(request_id=str(number), prompt_ids=list(prompt), max_tokens=output, ignore_eos=True, use_prefix_cache=False)
            )
        while engine.has_work:
            engine.step()
    assert places.all_known, "a step did not show what it computed"


class _PromptListener(PromptLogprobsCollector):
    """In place of the collector: it is shown the hidden states of every chunk."""

    def __init__(self, places: Places, *, vocab_size: int) -> None:
        super().__init__(vocab_size=vocab_size)
        self._places = places
        self._rows = max(1, SLICE_VALUES // vocab_size)

    def listens(self, plan: StepPlan) -> bool:
        return bool(plan.chunks)

    def collect(self, plan: StepPlan, hidden: Tensor, logits: Callable[[Tensor], Tensor]) -> None:
        at = plan.tokens - plan.prefill_tokens  # what decodes comes first
        for chunk in plan.chunks:
            for start in range(0, chunk.count, self._rows):
                rows = hidden[at + start : at + min(start + self._rows, chunk.count)]
                self._places.put(int(chunk.sequence.request_id), chunk.start + start, logits(rows))
            at += chunk.count

    def deliver(self, samplers: list[RunningSequence], sampled: object) -> None:
        """Nobody asked."""


class _KnowingSampler(Sampler):
    """The next token is the document's, whatever the logits say; they are kept."""

    def __init__(self, engine: Engine, places: Places) -> None:
        super().__init__(max_running=engine.runner.shape.max_running, vocab_size=engine.facts.vocab_size, device=engine.runner.device)
        self._engine = engine
        self._places = places

    def greedy_alone(self, rows: IntArray) -> bool:
        return False  # else a step that is one native call, or a graph, chooses by itself

    def sample(
        self, logits: Tensor, rows: IntArray, lengths: IntArray, history: History, masks: BatchMasks | None = None
    ) -> tuple[Tensor, Logprobs | None]:
        documents = {sequence.row: int(sequence.request_id) for sequence in self._engine.scheduler.running}
        following = []
        for i, (row, length) in enumerate(zip(rows.tolist(), lengths.tolist(), strict=True)):
            self._places.put(documents[row], length - 1, logits[i : i + 1])
            following.append(self._places.documents[documents[row]][length])
        return torch.tensor(following, device=logits.device), None


@contextmanager
def _as_prompts(engine: Engine, places: Places) -> Iterator[None]:
    kept = engine.runner.prompt_logprobs
    engine.runner.prompt_logprobs = _PromptListener(places, vocab_size=engine.facts.vocab_size)
    try:
        yield
    finally:
        engine.runner.prompt_logprobs = kept


@contextmanager
def _decoding(engine: Engine, places: Places) -> Iterator[None]:
    kept = engine.runner.sampler
    engine.runner.sampler = _KnowingSampler(engine, places)
    try:
        yield
    finally:
        engine.runner.sampler = kept
