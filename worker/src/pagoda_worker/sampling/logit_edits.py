"""Logit bias, and the ends that min_tokens holds back: fixed edits of a few logits of a few rows.

Owns them as flat index tensors on the device, made again only when other rows are sampled, in another order, or have another owner. Called
by the sampler.
"""

import numpy as np
import torch
from torch import Tensor

from pagoda_worker.request import Request
from pagoda_worker.sampling.row_tables import IntArray, to_device


class LogitEdits:
    def __init__(self, *, max_running: int, device: torch.device) -> None:
        self._device = device
        self._bias: dict[int, dict[int, float]] = {}
        self._enders: dict[int, list[int]] = {}
        self._biased = np.zeros(max_running, bool)
        self._min_length = np.zeros(max_running, np.int64)
        """Below this length a row must not end; 0: it may at any."""
        self._bias_made: tuple[bytes, Tensor, Tensor, Tensor] | None = None
        self._enders_made: tuple[bytes, Tensor, Tensor] | None = None

    def open(self, row: int, request: Request, eos_token_ids: tuple[int, ...]) -> bool:
        """The row has a new owner. Says whether there is anything to edit."""
        self._bias_made = self._enders_made = None
        self._bias[row] = request.sampling.logit_bias
        self._biased[row] = bool(request.sampling.logit_bias)
        self._enders[row] = [*request.stop_token_ids, *(() if request.ignore_eos else eos_token_ids)]
        holds = request.min_tokens > 0 and bool(self._enders[row]) and not request.constrained  # else its bitmask does that
        self._min_length[row] = len(request.prompt_ids) + request.min_tokens if holds else 0
        return bool(self._biased[row]) or holds

    def apply(self, logits: Tensor, rows: IntArray, lengths: IntArray) -> None:
        """logits [S, V] of `rows`, in place."""
        biased, early = np.flatnonzero(self._biased[rows]), np.flatnonzero(lengths < self._min_length[rows])
        if len(biased):
            at, ids, values = self._flat_bias(rows, biased)
            logits[at, ids] += values
        if len(early):
            at, ids = self._flat_enders(rows, early)
            logits[at, ids] = float("-inf")

    def _flat_bias(self, rows: IntArray, biased: IntArray) -> tuple[Tensor, Tensor, Tensor]:
        key = rows.tobytes()
        if self._bias_made is None or self._bias_made[0] != key:
            edits = [(at, each, value) for at in biased.tolist() for each, value in self._bias[int(rows[at])].items()]
            positions, ids, values = zip(*edits, strict=True)
            places = to_device(np.array([positions, ids], np.int64), self._device)
            self._bias_made = key, places[0], places[1], to_device(np.array(values, np.float32), self._device)
        return self._bias_made[1:]

    def _flat_enders(self, rows: IntArray, early: IntArray) -> tuple[Tensor, Tensor]:
        key = rows.tobytes() + early.tobytes()
        if self._enders_made is None or self._enders_made[0] != key:
            edits = [(at, each) for at in early.tolist() for each in self._enders[int(rows[at])]]
            places = to_device(np.array(edits, np.int64).T.copy(), self._device)
            self._enders_made = key, places[0], places[1]
        return self._enders_made[1:]
