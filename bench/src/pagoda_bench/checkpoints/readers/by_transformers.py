"""A checkpoint as transformers reads it, its packed weights by compressed-tensors. Documents and prompts go one by one: no padding."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM

from pagoda_bench.checkpoints.readers.protocol import Ids, serve


class ByTransformers:
    def __init__(self, folder: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
        self.vocab_size: int = self._model.config.vocab_size

    @torch.inference_mode()
    def distributions(self, documents: Ids) -> Iterator[npt.NDArray[np.float32]]:
        for ids in documents:
            logits = self._model(torch.tensor([ids])).logits[0, :-1]
            yield torch.log_softmax(logits.float(), dim=-1).numpy()

    @torch.inference_mode()
    def answers(self, prompts: Ids, max_tokens: int) -> list[list[int]]:
        found = []
        for prompt in prompts:
            ids = torch.tensor([prompt])
            out = self._model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, max_new_tokens=max_tokens)
            found.append(out[0, len(prompt) :].tolist())
        return found


if __name__ == "__main__":
    serve(ByTransformers)
