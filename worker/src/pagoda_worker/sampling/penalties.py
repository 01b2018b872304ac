"""Repetition, frequency and presence penalty, from counts that lie on the device and move on with each token.

Owns the counts of the rows that ask for a penalty; the others cost nothing. Called by the sampler. A row is counted anew from the token
table when it gets an owner, and whenever it is not exactly one token further than the last time: so preemption, resume and a step that is
tried again need no care here, and a step costs one addition per row.
"""

import numpy as np
import torch
from torch import Tensor

from pagoda_worker.request import Sampling
from pagoda_worker.sampling.row_tables import History, IntArray, to_device

_UNKNOWN = -1
"""Tokens counted of a row: its counts mean nothing."""
_NO_SLOT = -1


class Penalties:
    def __init__(self, *, max_running: int, vocab_size: int, device: torch.device) -> None:
        self.asked = np.zeros(max_running, bool)
        """By row."""
        self._frequency, self._presence = np.zeros((2, max_running), np.float32)
        self._repetition = np.ones(max_running, np.float32)
        self._slots = np.full(max_running, _NO_SLOT, np.int64)
        self._counted = np.full(max_running, _UNKNOWN, np.int64)
        self._free: list[int] = []
        self._device = device
        self._counts = torch.zeros((0, vocab_size), dtype=torch.float32, device=device)
        """[slots, V]: how often the output has each token."""
        self._in_prompt = torch.zeros((0, vocab_size), dtype=torch.bool, device=device)
        """[slots, V]."""

    def open(self, row: int, sampling: Sampling) -> None:
        """The row has a new owner, or the same one again with other tokens."""
        self._frequency[row], self._presence[row] = sampling.frequency_penalty, sampling.presence_penalty
        self._repetition[row] = sampling.repetition_penalty
        self._counted[row] = _UNKNOWN
        self.asked[row] = asked = sampling.frequency_penalty != 0 or sampling.presence_penalty != 0 or sampling.repetition_penalty != 1
        if asked and self._slots[row] == _NO_SLOT:
            if not self._free:
                self._grow()
            self._slots[row] = self._free.pop()
        elif not asked and self._slots[row] != _NO_SLOT:
            self._free.append(int(self._slots[row]))
            self._slots[row] = _NO_SLOT

    def forget(self, rows: IntArray) -> None:
        """What was counted of them holds guesses, of which some may be wrong: a length alone does not tell."""
        self._counted[rows] = _UNKNOWN

    def _grow(self) -> None:
        """To twice as many: most engines never see a penalty, few see one in every row."""
        there = len(self._counts)
        more = min(max(there, 1), len(self._slots) - there)
        self._counts = torch.cat([self._counts, self._counts.new_zeros((more, self._counts.shape[1]))])
        self._in_prompt = torch.cat([self._in_prompt, self._in_prompt.new_zeros((more, self._in_prompt.shape[1]))])
        self._free += range(there, there + more)

    def apply(self, logits: Tensor, rows: IntArray, lengths: IntArray, history: History) -> Tensor:
        """logits [S, V] float32 of `rows`, each of which asked. One that appears more than once verifies drafts: its counts differ from
        place to place, and are made for the occasion."""
        if len(np.unique(rows)) < len(rows):
            counts, in_prompt = self._tally(rows, lengths, history)
        else:
            self._count(rows, lengths, history)
            slots = to_device(self._slots[rows], self._device)
            counts, in_prompt = self._counts.index_select(0, slots), self._in_prompt.index_select(0, slots)
        said = counts > 0
        seen = in_prompt | said
        repetition, frequency, presence = (
            to_device(setting[rows], self._device)[:, None] for setting in (self._repetition, self._frequency, self._presence)
        )
        logits = torch.where(seen, torch.where(logits > 0, logits / repetition, logits * repetition), logits)
        return logits - frequency * counts - presence * said

    def _count(self, rows: IntArray, lengths: IntArray, history: History) -> None:
        """Brings the counts to `lengths`. What is cut off on the way is counted anew the next time."""
        behind = lengths - self._counted[rows]
        grown, lost = behind == 1, (behind != 0) & (behind != 1)
        self._counted[rows] = _UNKNOWN
        if grown.any():
            self._add_newest(rows[grown], lengths[grown], history)
        if lost.any():
            self._recount(rows[lost], lengths[lost], history)
        self._counted[rows] = lengths

    def _add_newest(self, rows: IntArray, lengths: IntArray, history: History) -> None:
        """A row that was counted before has sampled since: its newest token is output."""
        there, at, slots = to_device(np.stack([rows, lengths - 1, self._slots[rows]]), self._device)
        self._counts[slots, history.tokens[there, at].long()] += 1

    def _recount(self, rows: IntArray, lengths: IntArray, history: History) -> None:
        slots = to_device(self._slots[rows], self._device)
        self._counts[slots], self._in_prompt[slots] = self._tally(rows, lengths, history)

    def _tally(self, rows: IntArray, lengths: IntArray, history: History) -> tuple[Tensor, Tensor]:
        """[S, V] each, from the tokens themselves: how often the output has each one, and whether the prompt has it."""
        columns = np.arange(int(lengths.max()))
        ids = history.tokens[:, : len(columns)].index_select(0, to_device(rows, self._device)).long()
        in_prompt = columns < history.output_start[rows][:, None]
        in_output = ~in_prompt & (columns < lengths[:, None])
        blank = self._counts.new_zeros((len(rows), self._counts.shape[1]))
        counts = blank.scatter_add(1, ids, to_device(in_output, self._device).float())
        return counts, blank.scatter_add(1, ids, to_device(in_prompt, self._device).float()) > 0
