"""Chooses the next token of each row from its logits.

Owns sampling settings of the running rows and the arithmetic of filters and random choice. Knows no scheduling; called by the
runner.

A batch of greedy rows costs one maximum. Otherwise, in this order and only for the rows that ask: logit bias, min_tokens mask,
repetition, frequency and presence penalty, temperature, top-k, top-p, min-p, Gumbel-max. The noise of a token is a hash of (seed, output
position, token id): no state, so the same seed gives the same tokens whatever else is in the batch, after a preemption and after a
resume.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pagoda_worker.layers.operators import Choose
from pagoda_worker.request import Request
from pagoda_worker.sampling.logit_edits import LogitEdits
from pagoda_worker.sampling.most_likely import most_likely
from pagoda_worker.sampling.penalties import Penalties
from pagoda_worker.sampling.row_masks import BatchMasks, allowed
from pagoda_worker.sampling.row_tables import History, IntArray, to_device

CANDIDATES = 1024
"""Most likely tokens looked at by top-p before it falls back to sorting the whole row."""
BROKEN = -1
"""Instead of a token id: the row's logits are not finite."""


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Of the rows at `positions` in the batch; `top_ids` and `top` hold the largest k asked by any, most likely first."""

    positions: IntArray
    sampled: Tensor
    top_ids: Tensor
    top: Tensor


class Sampler:
    def __init__(self, *, max_running: int, vocab_size: int, device: torch.device, choose: Choose | None = None) -> None:
        """choose: a kernel in place of scaling, filters and noise, which it must make alike."""
        self._kernel = choose
        self._vocab = vocab_size
        self._device = device
        self._temperature, self._min_p = np.zeros((2, max_running), np.float32)
        self._top_p = np.ones(max_running, np.float32)
        self._top_k = np.zeros(max_running, np.int64)
        self._seed = np.zeros(max_running, np.uint64)
        self._plain = np.ones(max_running, bool)
        """Nothing but greedy or temperature: no bias, mask, penalty."""
        self._filtered = np.zeros(max_running, bool)
        self.top_logprobs = np.full(max_running, -1, np.int64)
        self._edits = LogitEdits(max_running=max_running, device=device)
        self._penalties = Penalties(max_running=max_running, vocab_size=vocab_size, device=device)
        self._token_hashes = _mix(torch.arange(vocab_size, dtype=torch.int32, device=device))

    def open_row(self, row: int, request: Request, seed: int, eos_token_ids: tuple[int, ...]) -> None:
        s = request.sampling
        self._temperature[row], self._top_p[row], self._top_k[row], self._min_p[row] = s.temperature, s.top_p, s.top_k, s.min_p
        self._seed[row] = seed % 2**64
        self.top_logprobs[row] = -1 if request.top_logprobs is None else request.top_logprobs
        self._filtered[row] = s.temperature > 0 and (s.top_p < 1 or s.top_k > 0 or s.min_p > 0)
        edited = self._edits.open(row, request, eos_token_ids)
        self._penalties.open(row, s)
        self._plain[row] = not (edited or self._penalties.asked[row])

    def takes_likeliest(self, rows: IntArray) -> bool:
        """These rows' next ids are the most likely ones of the logits as they come."""
        return bool(self._plain[rows].all()) and not (self._temperature[rows] > 0).any()

    def greedy_alone(self, rows: IntArray) -> bool:
        """The most likely ids are all that these rows ask for."""
        return self.takes_likeliest(rows) and not (self.top_logprobs[rows] >= 0).any()

    def sample(
        self, logits: Tensor, rows: IntArray, lengths: IntArray, history: History, masks: BatchMasks | None = None
    ) -> tuple[Tensor, Logprobs | None]:
        """logits [S, V] of `rows`, whose sequences are `lengths` long. Returns ids [S] int64 (BROKEN where logits are not finite)."""
        ids = self.choose(logits, rows, lengths, history, masks)
        return ids, self._logprobs(logits, ids, rows)

    def choose(self, logits: Tensor, rows: IntArray, lengths: IntArray, history: History, masks: BatchMasks | None = None) -> Tensor:
        """The ids alone."""
        random = np.flatnonzero(self._temperature[rows] > 0)
        if not len(random) and masks is None and self._plain[rows].all():
            ids, finite = most_likely(logits)
        else:
            adjusted = self._adjust(logits, rows, lengths, history)
            if masks is not None:
                at = self._to_device(masks.positions)
                out = ~allowed(masks.bits.to(self._device), self._vocab)
                adjusted = adjusted.index_copy(0, at, adjusted[at].masked_fill(out, float("-inf")))
            ids, finite = most_likely(adjusted)
            if len(random):
                chosen = self._choose(adjusted[self._to_device(random)], rows[random], lengths[random] - history.output_start[rows[random]])
                ids = ids.index_copy(0, self._to_device(random), chosen)
        return torch.where(finite, ids, BROKEN)

    def guessed(self, rows: IntArray) -> None:
        """`choose` was asked for these rows beyond tokens that are theirs, by way of guesses in the history."""
        self._penalties.forget(rows)

    def _to_device(self, values: npt.NDArray[np.generic]) -> Tensor:
        return to_device(values, self._device)

    # ------------------------------------------------------------ deterministic part

    def _adjust(self, logits: Tensor, rows: IntArray, lengths: IntArray, history: History) -> Tensor:
        """float32; `logits` themselves where nothing is adjusted."""
        if self._plain[rows].all():
            return logits.float()
        logits = logits.to(torch.float32, copy=True)
        self._edits.apply(logits, rows, lengths)
        penalised = np.flatnonzero(self._penalties.asked[rows])
        if len(penalised) == len(rows):
            return self._penalties.apply(logits, rows, lengths, history)
        if len(penalised):
            at = self._to_device(penalised)
            logits[at] = self._penalties.apply(logits[at], rows[penalised], lengths[penalised], history)
        return logits

    # ------------------------------------------------------------ random part

    def _choose(self, logits: Tensor, rows: IntArray, output_positions: IntArray) -> Tensor:
        """Gumbel-max over what the filters leave."""
        if self._kernel is not None:
            per_row = (self._temperature[rows], self._top_k[rows], self._top_p[rows], self._min_p[rows])
            temperature, top_k, top_p, min_p = (self._to_device(each) for each in per_row)
            return self._kernel(logits, temperature, top_k, top_p, min_p, self._to_device(_row_keys(self._seed[rows], output_positions)))
        scaled = logits / self._to_device(self._temperature[rows])[:, None]
        filtered = np.flatnonzero(self._filtered[rows])
        if len(filtered):
            at = self._to_device(filtered)
            scaled[at] = self._filter(scaled[at], rows[filtered])
        keys = self._to_device(_row_keys(self._seed[rows], output_positions))
        return most_likely(scaled + gumbel(self._token_hashes, keys))[0]

    def _filter(self, scaled: Tensor, rows: IntArray) -> Tensor:
        """-inf for what top-k, then top-p (over what top-k left), then min-p exclude. Equal logits at a threshold all stay."""
        asked = self._top_k[rows]
        k = np.where(asked > 0, np.minimum(asked, self._vocab), self._vocab)
        top_p = self._to_device(self._top_p[rows])[:, None]
        limit = int(k[asked > 0].max(initial=0))
        width = min(self._vocab, max(limit, CANDIDATES if (self._top_p[rows] < 1).any() else 1))
        best = scaled.topk(width, dim=-1).values
        threshold = _kth(best, self._to_device(k), width)
        if (self._top_p[rows] < 1).any():
            kept = scaled.masked_fill(scaled < threshold, float("-inf"))
            total = kept.logsumexp(dim=-1, keepdim=True)
            before = _mass_before(best, threshold, total)
            # On CUDA the question would wait for the device, and the step after this one with it: there it always sorts.
            if width < self._vocab and (self._device.type == "cuda" or bool((before[:, -1:] < top_p).any())):
                best = scaled.sort(dim=-1, descending=True).values
                before = _mass_before(best, threshold, total)
            lowest = best.masked_fill(before >= top_p, float("inf")).amin(dim=-1, keepdim=True)
            threshold = torch.where(top_p < 1, torch.maximum(threshold, lowest), threshold)
        min_p = self._to_device(self._min_p[rows])[:, None]
        threshold = torch.maximum(threshold, best[:, :1] + min_p.log())
        return scaled.masked_fill(scaled < threshold, float("-inf"))

    # ------------------------------------------------------------ logprobs

    def _logprobs(self, logits: Tensor, ids: Tensor, rows: IntArray) -> Logprobs | None:
        """Of the raw distribution: before bias, penalties, temperature and filters."""
        asked = self.top_logprobs[rows]
        positions = np.flatnonzero(asked >= 0)
        if not len(positions):
            return None
        at = self._to_device(positions)
        raw = logits.index_select(0, at).float()
        total = raw.logsumexp(dim=-1, keepdim=True)
        sampled = raw.gather(1, ids.index_select(0, at).clamp(min=0)[:, None]) - total
        top, top_ids = raw.topk(min(int(asked.max()), self._vocab), dim=-1)
        return Logprobs(positions, sampled[:, 0], top_ids, top - total)


def _kth(best: Tensor, k: Tensor, width: int) -> Tensor:
    """The k-th largest logit of each row; -inf for rows that ask for more than `width` (no limit)."""
    value = best.gather(1, (k.clamp(max=width) - 1)[:, None])
    return torch.where(k[:, None] > width, float("-inf"), value)


def _mass_before(best: Tensor, threshold: Tensor, total: Tensor) -> Tensor:
    """Probability of everything more likely than each candidate, among what top-k left."""
    probabilities = (best.masked_fill(best < threshold, float("-inf")) - total).exp()
    return probabilities.cumsum(dim=-1) - probabilities


def gumbel(token_hashes: Tensor, keys: Tensor) -> Tensor:
    """token_hashes [V] int32, keys [S] int32 → Gumbel noise [S, V] float32. 31 random bits, finest where the noise is large."""
    bits = _mix(token_hashes ^ keys[:, None])
    uniform = bits.bitwise_and_(0x7FFFFFFF).float().add_(0.5).mul_(2.0**-31)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _mix(x: Tensor) -> Tensor:
    """The finalizer of MurmurHash3 (32 bits), elementwise on int32."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x *= -2048144789
    x ^= (x >> 13) & 0x7FFFF
    x *= -1028477387
    return x.bitwise_xor_((x >> 16) & 0xFFFF)


def _row_keys(seeds: npt.NDArray[np.uint64], positions: IntArray) -> npt.NDArray[np.int32]:
    """splitmix64 of seed and output position, folded to 32 bits."""
    with np.errstate(over="ignore"):
        x = seeds * np.uint64(0x9E3779B97F4A7C15) + positions.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    folded: npt.NDArray[np.int32] = (x ^ (x >> np.uint64(32))).astype(np.uint32).view(np.int32)
    return folded
