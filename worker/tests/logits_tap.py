"""Records what an engine computed: for every sampled position the whole prefix and its logits."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from pagoda_worker.engine import Engine
from pagoda_worker.sampling.row_masks import BatchMasks
from pagoda_worker.sampling.row_tables import History, IntArray
from pagoda_worker.sampling.sampler import Logprobs


@contextmanager
def logits_of(engine: Engine) -> Iterator[list[tuple[list[int], Tensor]]]:
    seen: list[tuple[list[int], Tensor]] = []
    sampler = engine.runner.sampler
    original, greedy_alone = sampler.sample, sampler.greedy_alone

    def sample(
        logits: Tensor, rows: IntArray, lengths: IntArray, history: History, masks: BatchMasks | None = None
    ) -> tuple[Tensor, Logprobs | None]:
        for row, length, line in zip(rows.tolist(), lengths.tolist(), logits.float(), strict=True):
            seen.append((history.tokens[row, :length].tolist(), line.clone()))
        return original(logits, rows, lengths, history, masks)

    sampler.sample = sample  # type: ignore[method-assign]
    sampler.greedy_alone = lambda rows: False  # type: ignore[method-assign]  # else a step that is one call, or a graph, chooses alone
    try:
        yield seen
    finally:
        sampler.sample, sampler.greedy_alone = original, greedy_alone  # type: ignore[method-assign]


class Truth:
    """transformers' own model from the same folder, in float32."""

    def __init__(self, folder: Path) -> None:
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def logits(self, tokens: list[int]) -> Tensor:
        """[len(tokens), V]."""
        logits: Tensor = self.model(torch.tensor([tokens])).logits[0]
        return logits

    def worst_difference(self, seen: list[tuple[list[int], Tensor]]) -> float:
        """Largest absolute difference over all recorded positions. Each transformers run serves every prefix of its tokens."""
        worst = 0.0
        remaining = sorted(seen, key=lambda item: -len(item[0]))
        while remaining:
            whole = remaining[0][0]
            reference = self.logits(whole)
            mine = [item for item in remaining if whole[: len(item[0])] == item[0]]
            remaining = [item for item in remaining if whole[: len(item[0])] != item[0]]
            for tokens, line in mine:
                worst = max(worst, (line - reference[len(tokens) - 1]).abs().max().item())
        return worst

    @torch.inference_mode()
    def greedy(self, prompt: list[int], count: int) -> list[int]:
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(self.logits(tokens)[-1].argmax()))
        return tokens[len(prompt) :]
