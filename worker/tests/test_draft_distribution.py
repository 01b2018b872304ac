"""What is sampled with drafts has the distribution that the model gives it, whatever is guessed: chi-square over many seeds."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_runs import run_all
from logits_tap import Truth
from random_checkpoint import small_engine

from pagoda_worker.request import Request, Sampling
from pagoda_worker.scheduling.plan import StepPlan
from pagoda_worker.scheduling.sequence import Sequence
from pagoda_worker.scheduling.verification import Verification
from pagoda_worker.speculation.speculation import Speculation

PROMPT = [5, 9, 40, 7]
N = 128
REQUESTS = 16
PLACES = 3


class Always:
    """The same guess, whatever was sampled before it."""

    def __init__(self, drafts: list[int]) -> None:
        self.drafts = drafts

    def propose(self, sequence: Sequence, count: int) -> list[int]:
        told = len(sequence.tokens) - sequence.output_start
        return self.drafts[told - 1 :][:count]

    def planned(self, plan: StepPlan) -> None:
        pass

    def judged(self, verification: Verification, accepted: int) -> None:
        pass


def probabilities(truth: Truth, prefix: list[int], *, temperature: float, top_k: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    logits = truth.logits(prefix)[-1].double() / temperature
    kept = logits.topk(top_k).values[-1]
    return torch.softmax(logits.masked_fill(logits < kept, float("-inf")), -1).numpy()


def chi_square(counts: Counter[int], expected: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> tuple[float, int]:
    """The statistic and its degrees of freedom; tokens that are expected fewer than five times are one class."""
    total = sum(counts.values())
    often = [token for token in range(len(expected)) if expected[token] * total >= 5]
    rest = total * (1 - sum(expected[token] for token in often))
    statistic = sum((counts[token] - expected[token] * total) ** 2 / (expected[token] * total) for token in often)
    if rest > 5:
        statistic += (total - sum(counts[token] for token in often) - rest) ** 2 / rest
    return statistic, len(often) - (rest <= 5)


@pytest.mark.parametrize(("temperature", "top_k"), [(0.5, 160), (2.0, 12)])
def test_sampled_tokens_behind_right_and_wrong_drafts_are_distributed_as_the_model_says(
    temperature: float, top_k: int, checkpoint: Callable[..., Path]
):
    truth = Truth(checkpoint())
    first = int(probabilities(truth, PROMPT, temperature=temperature, top_k=top_k).argmax())
    likely = [int(probabilities(truth, [*PROMPT, first], temperature=temperature, top_k=top_k).argmax())]
    likely.append(int(probabilities(truth, [*PROMPT, first, *likely], temperature=temperature, top_k=top_k).argmax()))
    engine = small_engine(checkpoint(), max_running=256)
    engine.speculation = Speculation(Always(likely), tokens=2, possible=lambda sequence, drafts: drafts, adapting=False)
    sampling = [Sampling(temperature=temperature, top_k=top_k, seed=1000 * i) for i in range(REQUESTS)]
    requests = [
        Request(request_id=f"{i}", prompt_ids=PROMPT, n=N, max_tokens=PLACES, ignore_eos=True, sampling=each)
        for i, each in enumerate(sampling)
    ]
    outputs = [outcome.tokens for outcome in run_all(engine, *requests).values()]
    assert 0 < sum(engine.speculation.accepted_by_place) < engine.speculation.draft_tokens
    for place in range(PLACES):
        prefix = [first, *likely][:place]
        counts = Counter(output[place] for output in outputs if output[:place] == prefix)
        assert sum(counts.values()) > 50
        statistic, freedom = chi_square(counts, probabilities(truth, [*PROMPT, *prefix], temperature=temperature, top_k=top_k))
        assert freedom > 2
        assert statistic < freedom + 4 * np.sqrt(2 * freedom), f"place {place}: {statistic:.0f} at {freedom} degrees of freedom"
