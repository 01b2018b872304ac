"""Filters and penalties against transformers' own, the random choice against the distribution it stands for."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

from pagoda_worker.request import Request, Sampling
from pagoda_worker.sampling.row_tables import History
from pagoda_worker.sampling.sampler import BROKEN, Sampler

CPU = torch.device("cpu")


class Rows:
    """A sampler with one row per request; row i holds request i's prompt and output."""

    def __init__(self, vocab: int, requests: list[Request], outputs: list[list[int]] | None = None, *, eos: tuple[int, ...] = ()) -> None:
        self.sampler = Sampler(max_running=len(requests), vocab_size=vocab, device=CPU)
        tokens = np.zeros((len(requests), 64), np.int32)
        self.lengths = np.zeros(len(requests), np.int64)
        starts = np.zeros(len(requests), np.int64)
        for row, request in enumerate(requests):
            line = [*request.prompt_ids, *(outputs[row] if outputs else [])]
            tokens[row, : len(line)] = line
            self.lengths[row], starts[row] = len(line), len(request.prompt_ids)
            self.sampler.open_row(row, request, request.sampling.seed or 0, eos)
        self.history = History(torch.from_numpy(tokens), starts)
        self.rows = np.arange(len(requests))

    def sample(self, logits: Tensor) -> list[int]:
        ids, self.logprobs = self.sampler.sample(logits, self.rows, self.lengths, self.history)
        return ids.tolist()


def request(**fields: Any) -> Request:
    sampling = {name: fields.pop(name) for name in list(fields) if hasattr(Sampling, name)}
    return Request(request_id="r", **{"prompt_ids": [0], **fields}, sampling=Sampling(**sampling))


def draws(logits: list[float], count: int = 4000, **sampling: Any) -> np.ndarray[Any, Any]:
    """Frequencies of the tokens over many seeds."""
    vocab = len(logits)
    rows = Rows(vocab, [request(seed=seed, **{"temperature": 1.0, **sampling}) for seed in range(count)])
    return np.bincount(rows.sample(torch.tensor(logits).repeat(count, 1)), minlength=vocab) / count


# ---------------------------------------------------------------- greedy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_temperature_zero_takes_the_most_likely_token(dtype: torch.dtype):
    logits = torch.randn(5, 30).to(dtype)
    assert Rows(30, [request() for _ in range(5)]).sample(logits) == logits.argmax(dim=-1).tolist()


def test_greedy_rows_stay_greedy_beside_random_ones():
    logits = torch.randn(4, 30)
    ids = Rows(30, [request(), request(temperature=5.0, seed=1), request(), request(temperature=5.0, seed=2)]).sample(logits)
    best = logits.argmax(dim=-1).tolist()
    assert (ids[0], ids[2]) == (best[0], best[2])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_says_so_and_its_neighbours_do_not_care(value: float, temperature: float):
    logits = torch.randn(3, 10)
    logits[1, 4] = value
    ids = Rows(10, [request(temperature=temperature, seed=i) for i in range(3)]).sample(logits)
    assert ids[1] == BROKEN
    assert BROKEN not in (ids[0], ids[2])


# ---------------------------------------------------------------- the distribution


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_the_softmax_says(temperature: float):
    """4000 draws: each frequency within four standard deviations."""
    logits = [1.0, 0.0, -1.0, 2.0, 0.5, -3.0]
    expected = torch.softmax(torch.tensor(logits) / temperature, dim=-1).numpy()
    error = np.abs(draws(logits, temperature=temperature) - expected)
    assert (error < 4 * np.sqrt(expected * (1 - expected) / 4000)).all()


def test_positions_of_one_seed_are_as_independent_as_seeds():
    count, logits = 4000, [0.0, 1.0, -1.0]
    requests = [request(seed=11, temperature=1.0, prompt_ids=[0]) for _ in range(count)]
    rows = Rows(3, requests)
    rows.lengths = np.arange(1, count + 1)
    ids, _ = rows.sampler.sample(torch.tensor(logits).repeat(count, 1), rows.rows, rows.lengths, rows.history)
    expected = torch.softmax(torch.tensor(logits), dim=-1).numpy()
    frequencies = np.bincount(ids.numpy(), minlength=3) / count
    assert (np.abs(frequencies - expected) < 4 * np.sqrt(expected * (1 - expected) / count)).all()
    pairs = np.bincount(ids.numpy()[:-1] * 3 + ids.numpy()[1:], minlength=9) / (count - 1)
    joint = np.outer(expected, expected).ravel()
    assert (np.abs(pairs - joint) < 4.5 * np.sqrt(joint / count)).all()


@given(st.integers(0, 2**64 - 1), st.integers(1, 6), st.integers(0, 5))
def test_a_seed_gives_the_same_token_whatever_else_is_in_the_batch(seed: int, width: int, place: int):
    place = min(place, width - 1)
    logits = torch.linspace(-1, 1, 40)
    alone = Rows(40, [request(seed=seed, temperature=3.0)]).sample(logits[None])
    others = [request(seed=i, temperature=float(i % 2), top_k=i) for i in range(width)]
    others[place] = request(seed=seed, temperature=3.0)
    batch = torch.randn(width, 40)
    batch[place] = logits
    assert Rows(40, others).sample(batch)[place] == alone[0]


def test_another_seed_and_another_position_choose_anew():
    logits = torch.zeros(40, 500)
    ids = Rows(500, [request(seed=i, temperature=1.0) for i in range(40)]).sample(logits)
    assert len(set(ids)) > 30
    outputs = [[0] * i for i in range(40)]
    ids = Rows(500, [request(seed=1, temperature=1.0) for _ in range(40)], outputs).sample(logits)
    assert len(set(ids)) > 30


# ---------------------------------------------------------------- filters


def kept(logits: Tensor, **sampling: Any) -> Tensor:
    rows = Rows(logits.shape[-1], [request(temperature=1.0, **sampling) for _ in logits])
    return rows.sampler._filter(logits, rows.rows) > float("-inf")


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 40),
    st.one_of(st.just(1.0), st.floats(0.01, 0.999)),
    st.one_of(st.just(0.0), st.floats(0.01, 1.0)),
    st.floats(0.05, 4.0),
)
def test_the_filters_keep_what_transformers_keeps(seed: int, top_k: int, top_p: float, min_p: float, spread: float):
    logits = torch.randn(3, 30, generator=torch.Generator().manual_seed(seed)) * spread
    expected = logits
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    if min_p > 0:
        expected = MinPLogitsWarper(min_p)(None, expected)
    masses = torch.softmax(TopKLogitsWarper(top_k)(None, logits) if top_k else logits, dim=-1).sort(dim=-1, descending=True).values
    assume(top_p == 1 or (masses.cumsum(dim=-1) - top_p).abs().min() > 1e-5)  # at the very edge, sums in another order decide
    assert torch.equal(kept(logits, top_k=top_k, top_p=top_p, min_p=min_p), expected > float("-inf"))


def test_a_flat_distribution_larger_than_the_candidates_is_cut_exactly():
    """top-p needs more tokens than it first looks at."""
    logits = torch.randn(2, 5000) * 0.01
    assert torch.equal(kept(logits, top_p=0.9), TopPLogitsWarper(0.9)(None, logits) > float("-inf"))


def test_top_k_beyond_the_vocabulary_is_no_filter():
    assert kept(torch.randn(1, 20), top_k=100).all()


def test_rows_with_different_filters_share_one_batch():
    logits = torch.randn(1, 30).repeat(3, 1)
    rows = Rows(30, [request(temperature=1.0, **filters) for filters in ({"top_k": 2}, {"top_p": 0.3}, {"min_p": 0.5})])
    together = rows.sampler._filter(logits, rows.rows) > float("-inf")
    apart = torch.cat([kept(logits[:1], top_k=2), kept(logits[:1], top_p=0.3), kept(logits[:1], min_p=0.5)])
    assert torch.equal(together, apart)


def test_what_is_filtered_out_is_never_drawn():
    frequencies = draws([2.0, 1.9, 1.8, 0.0, -1.0], count=1000, top_k=2)
    assert (frequencies[2:] == 0).all()
    assert (frequencies[:2] > 0.4).all()


# ---------------------------------------------------------------- penalties, bias, masks


def adjusted(logits: Tensor, requests: list[Request], outputs: list[list[int]], eos: tuple[int, ...] = ()) -> Tensor:
    rows = Rows(logits.shape[-1], requests, outputs, eos=eos)
    return rows.sampler._adjust(logits, rows.rows, rows.lengths, rows.history)


def test_repetition_penalty_is_transformers_over_prompt_and_output():
    logits = torch.randn(1, 20)
    expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([[1, 2, 3, 3]]), logits)
    torch.testing.assert_close(adjusted(logits, [request(prompt_ids=[1, 2], repetition_penalty=1.3)], [[3, 3]]), expected)


def test_frequency_and_presence_count_the_output_only():
    logits = torch.zeros(1, 6)
    after = adjusted(logits, [request(prompt_ids=[1, 2], frequency_penalty=0.5, presence_penalty=0.25)], [[3, 3, 4]])
    assert after.tolist() == [[0.0, 0.0, 0.0, -1.25, -0.75, 0.0]]


def test_a_penalty_of_one_row_leaves_the_others_alone_whatever_their_length():
    logits = torch.randn(3, 20)
    requests = [request(prompt_ids=[1] * 9), request(prompt_ids=[2], presence_penalty=1.0), request(prompt_ids=[3] * 20)]
    after = adjusted(logits, requests, [[4], [5], [6]])
    assert torch.equal(after[0], logits[0])
    assert torch.equal(after[2], logits[2])
    assert (after[1] != logits[1]).nonzero().flatten().tolist() == [5]


def test_logit_bias_is_added():
    logits = torch.zeros(1, 5)
    assert adjusted(logits, [request(logit_bias={1: 2.5, 3: -100.0})], [[]]).tolist() == [[0.0, 2.5, 0.0, -100.0, 0.0]]
    assert Rows(5, [request(logit_bias={1: 2.5})]).sample(logits) == [1]


@pytest.mark.parametrize(("output", "masked"), [([], True), ([4], True), ([4, 4], False)])
def test_enders_are_masked_before_min_tokens(output: list[int], masked: bool):
    after = adjusted(torch.zeros(1, 6), [request(min_tokens=2, stop_token_ids=[2])], [output], eos=(1,))
    assert after.isneginf().nonzero().tolist() == ([[0, 1], [0, 2]] if masked else [])


def test_with_ignore_eos_only_stop_ids_are_masked():
    after = adjusted(torch.zeros(1, 6), [request(min_tokens=2, stop_token_ids=[2], ignore_eos=True)], [[]], eos=(1,))
    assert after.isneginf().nonzero().tolist() == [[0, 2]]


def test_a_row_forgets_its_last_owner():
    rows = Rows(6, [request(logit_bias={1: 9.0}, presence_penalty=2.0, min_tokens=3, stop_token_ids=[2], temperature=1.0, top_logprobs=2)])
    rows.sampler.open_row(0, request(), 0, ())
    logits = torch.randn(1, 6)
    assert rows.sample(logits) == logits.argmax(-1).tolist()
    assert rows.logprobs is None


# ---------------------------------------------------------------- logprobs


def test_logprobs_are_those_of_the_raw_distribution():
    logits = torch.randn(3, 12)
    requests = [request(), request(top_logprobs=2, temperature=0.1, top_k=1, logit_bias={3: 50.0}), request(top_logprobs=0)]
    rows = Rows(12, requests)
    ids = rows.sample(logits)
    assert rows.logprobs is not None
    raw = torch.log_softmax(logits, dim=-1)
    assert rows.logprobs.positions.tolist() == [1, 2]
    torch.testing.assert_close(rows.logprobs.sampled, raw[[1, 2], [ids[1], ids[2]]])
    assert ids[1] == 3
    expected = raw[1].topk(2)
    torch.testing.assert_close(rows.logprobs.top[0], expected.values)
    assert rows.logprobs.top_ids[0].tolist() == expected.indices.tolist()
