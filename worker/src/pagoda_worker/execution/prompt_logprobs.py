"""Logprobs of a prompt's own tokens, chunk by chunk, from the hidden states that the forward pass has anyway.

Owns what was gathered of prompts in progress. Called by the runner after the forward pass. Logits are made a slice at a time: a prompt of
100 000 tokens over a vocabulary of 128 000 would need 51 GB of float32 in one piece.
"""

from collections.abc import Callable
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from pagoda_worker.request import PromptLogprobs
from pagoda_worker.scheduling.plan import Chunk, StepPlan
from pagoda_worker.scheduling.sampled import Sampled
from pagoda_worker.scheduling.sequence import Sequence

SLICE_VALUES = 1 << 23
"""Logits at once: 32 MB in float32, and as much again for the most likely ones."""


class _Draft:
    """Of one prompt: [n - 1] and [n - 1, k], place i being that of token i + 1."""

    __slots__ = ("k", "own", "top", "top_ids")

    def __init__(self, places: int, k: int) -> None:
        self.k = k
        self.own = np.zeros(places, np.float32)
        self.top_ids = np.zeros((places, k), np.int32)
        self.top = np.zeros((places, k), np.float32)

    def told(self) -> PromptLogprobs:
        return PromptLogprobs(self.k, self.own.tolist(), self.top_ids.ravel().tolist(), self.top.ravel().tolist())


class PromptLogprobsCollector:
    def __init__(self, *, vocab_size: int, slice_values: int = SLICE_VALUES) -> None:
        self._slice = max(1, slice_values // vocab_size)
        self._drafts: WeakKeyDictionary[Sequence, _Draft] = WeakKeyDictionary()

    def listens(self, plan: StepPlan) -> bool:
        """To this step: some of its prompts are to be told. Else it need not keep its hidden states."""
        return any(not chunk.sequence.prompt_told for chunk in plan.chunks)

    def collect(self, plan: StepPlan, hidden: Tensor, logits: Callable[[Tensor], Tensor]) -> None:
        """hidden [T, E] of the step: decode rows first, then the chunks. A chunk computed again after a preemption overwrites itself."""
        at = plan.decode_tokens
        for chunk in plan.chunks:
            if not chunk.sequence.prompt_told:
                self._collect_chunk(chunk, hidden[at : at + chunk.count], logits)
            at += chunk.count

    def _collect_chunk(self, chunk: Chunk, hidden: Tensor, logits: Callable[[Tensor], Tensor]) -> None:
        sequence = chunk.sequence
        k, places = sequence.request.prompt_logprobs or 0, sequence.output_start - 1
        draft = self._drafts.get(sequence)
        if draft is None:
            draft = self._drafts[sequence] = _Draft(places, k)
        end = min(chunk.start + chunk.count, places)
        for start in range(chunk.start, end, self._slice):
            stop = min(start + self._slice, end)
            raw = logits(hidden[start - chunk.start : stop - chunk.start]).float()
            own_ids = torch.tensor(sequence.tokens[start + 1 : stop + 1], device=raw.device)
            total = raw.logsumexp(dim=-1, keepdim=True)
            draft.own[start:stop] = (raw.gather(1, own_ids[:, None]) - total).squeeze(1).cpu().numpy()
            if k:
                best = raw.topk(k, dim=-1)
                draft.top_ids[start:stop] = best.indices.cpu().numpy()
                draft.top[start:stop] = (best.values - total).cpu().numpy()

    def deliver(self, samplers: list[Sequence], sampled: Sampled) -> None:
        """Adds what is whole to `sampled`: of sequences that sample behind their prompt. It is kept until that was settled: a step that
        fails after this is launched again, and has the last chunks only."""
        if not self._drafts:
            return
        for sequence in [each for each in self._drafts if each.prompt_told or each.ended]:
            del self._drafts[sequence]
        first = {sequence: position for position, sequence in reversed([*enumerate(samplers)])}
        for sequence, draft in self._drafts.items():
            if sequence in first and sequence.computed == len(sequence.tokens):  # planned ahead, it may sample once more before that
                sampled.prompt_logprobs[first[sequence]] = draft.told()
