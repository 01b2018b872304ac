"""transformers' continuous batching: one manager that stays, as a server would keep it, with paged KV of a fixed size."""

import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from pagoda_bench.peers.drivers.protocol import Answer, Generate, Settings, serve

PAGE_TOKENS = 256
PAGES = 64
"""64 requests of up to 256 tokens: twice the largest case."""
BATCH_TOKENS = 1024
"""The same bound on one step's prefill as Pagoda's on a CPU."""


def load(settings: Settings) -> Generate:
    torch.set_num_threads(settings.threads)
    model = AutoModelForCausalLM.from_pretrained(settings.folder, dtype="auto", attn_implementation="sdpa").to(settings.device)
    # -1 is no token: the end token is ignored.
    greedy = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
    sizes = ContinuousBatchingConfig(page_size=PAGE_TOKENS, num_blocks=PAGES, max_batch_tokens=BATCH_TOKENS)
    manager = model.init_continuous_batching(generation_config=greedy, continuous_batching_config=sizes)
    manager.start()

    def generate(prompts: list[list[int]], output_tokens: int) -> Answer:
        began = time.perf_counter()
        asked = manager.add_requests(inputs=prompts, max_new_tokens=output_tokens, record_timestamps=True)
        finished: dict[str, Any] = {}
        while len(finished) < len(asked):
            result = manager.get_result(timeout=60)
            if result is None and not manager.is_running():
                raise RuntimeError("the continuous batching thread ended")
            if result is not None and result.error is not None:
                raise RuntimeError(result.error)
            if result is not None and result.is_finished():
                finished[result.request_id] = result
        seconds = time.perf_counter() - began
        results = [finished[name] for name in asked]
        return Answer(seconds, [list(result.generated_tokens) for result in results], [result.timestamps[0] - began for result in results])

    return generate


if __name__ == "__main__":
    serve(load)
