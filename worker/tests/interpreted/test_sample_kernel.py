"""The sort-free sampler in the interpreter: the token that sampler.py chooses, whatever the filters and whatever is equal there."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pagoda_worker.kernels import sample
from pagoda_worker.kernels.sample import BROKEN, choose, choose_reference, noise
from pagoda_worker.request import Request, Sampling
from pagoda_worker.sampling.row_tables import History
from pagoda_worker.sampling.sampler import Sampler, _mix, _row_keys, gumbel

SETTINGS = [
    Sampling(temperature=0.0),
    Sampling(temperature=1.0),
    Sampling(temperature=0.7, top_k=1),
    Sampling(temperature=1.3, top_k=5),
    Sampling(temperature=1.0, top_p=0.5),
    Sampling(temperature=1.5, top_p=0.95),
    Sampling(temperature=0.8, top_p=1e-6),
    Sampling(temperature=1.0, min_p=0.2),
    Sampling(temperature=2.0, top_k=50, top_p=0.9, min_p=0.05),
    Sampling(temperature=1.0, top_k=100_000, top_p=0.999),
]


def by_sampler(logits: Tensor, seed: int, position: int) -> Tensor:
    """The engine's own choice for row i under SETTINGS[i]."""
    rows, vocab = logits.shape
    sampler = Sampler(max_running=rows, vocab_size=vocab, device=torch.device("cpu"))
    for row in range(rows):
        request = Request(request_id=str(row), prompt_ids=[1], sampling=SETTINGS[row])
        sampler.open_row(row, request, seed + row, ())
    at = np.arange(rows)
    history = History(np.ones((rows, 64), np.int32), np.ones(rows, np.int64))
    ids, _ = sampler.sample(logits, at, np.full(rows, 1 + position), history)
    return ids


def by_kernel(logits: Tensor, seed: int, position: int) -> tuple[Tensor, Tensor]:
    rows = len(logits)
    keys = torch.from_numpy(_row_keys(np.arange(seed, seed + rows).astype(np.uint64), np.full(rows, position)))
    columns = [torch.tensor([getattr(s, name) for s in SETTINGS]) for name in ("temperature", "top_k", "top_p", "min_p")]
    inputs = (logits, *columns, keys)
    return choose(*inputs), choose_reference(*inputs)


@pytest.mark.parametrize(("vocab", "block", "steps"), [(7, sample.BLOCK, 0), (513, 256, 0), (300, sample.BLOCK, 8), (600, 256, 3)], ids=str)
def test_the_token_is_the_samplers(vocab: int, block: int, steps: int, monkeypatch: pytest.MonkeyPatch):
    """A row of one block and of several; `steps`: logits of so few values that every threshold falls among equals."""
    monkeypatch.setattr(sample, "BLOCK", block)
    seed = vocab
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(len(SETTINGS), vocab, generator=generator)
    if steps:
        logits = (logits * steps / 6).round() * 6 / steps
    expected = by_sampler(logits, seed, position=seed)
    ours, reference = by_kernel(logits, seed, position=seed)
    assert ours.tolist() == expected.tolist()
    assert reference.tolist() == expected.tolist()


def test_logits_of_16_bits_and_masked_ones():
    logits = (3 * torch.randn(len(SETTINGS), 300, generator=torch.Generator().manual_seed(9))).half()
    logits[:, 40:260] = float("-inf")
    ours, _ = by_kernel(logits, 4, 2)
    assert ours.tolist() == by_sampler(logits, 4, 2).tolist()
    assert not ((ours >= 40) & (ours < 260)).any()


def test_a_row_that_is_not_finite_is_broken_and_its_neighbours_are_not():
    logits = torch.randn(len(SETTINGS), 100, generator=torch.Generator().manual_seed(0))
    whole, _ = by_kernel(logits, 0, 0)
    logits[[0, 3, 5], 50] = float("nan")
    logits[[1, 4], 50] = float("inf")
    logits[8] = float("-inf")
    ours, reference = by_kernel(logits, 0, 0)
    broken = torch.tensor([i in (0, 1, 3, 4, 5, 8) for i in range(len(SETTINGS))])
    assert ours.tolist() == torch.where(broken, BROKEN, whole).tolist()
    assert reference.tolist() == ours.tolist()


def test_the_references_noise_is_the_samplers():
    keys = torch.tensor([0, 1, -1, 2**31 - 1, -(2**31)], dtype=torch.int32)
    assert torch.equal(noise(keys, 5000), gumbel(_mix(torch.arange(5000, dtype=torch.int32)), keys))
