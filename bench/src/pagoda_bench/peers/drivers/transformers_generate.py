"""transformers' `generate`: every prompt of a round in one static batch, shorter ones padded on the left."""

import time

import torch
from transformers import AutoModelForCausalLM

from pagoda_bench.peers.drivers.protocol import Answer, Generate, Settings, serve


def load(settings: Settings) -> Generate:
    torch.set_num_threads(settings.threads)
    model = AutoModelForCausalLM.from_pretrained(settings.folder, dtype=settings.dtype).to(settings.device)

    @torch.inference_mode()
    def generate(prompts: list[list[int]], output_tokens: int) -> Answer:
        began = time.monotonic()
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=settings.device)
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=settings.device)
        lengths = {"max_new_tokens": output_tokens, "min_new_tokens": output_tokens}
        out = model.generate(ids, attention_mask=mask, do_sample=False, pad_token_id=0, **lengths)
        tokens: list[list[int]] = out[:, ids.shape[1] :].tolist()
        return Answer(time.monotonic() - began, tokens)

    return generate


if __name__ == "__main__":
    serve(load)
