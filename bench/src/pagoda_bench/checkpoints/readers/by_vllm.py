"""A checkpoint as vLLM reads it. Distributions are its prompt logprobs over the whole vocabulary."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from vllm import LLM, SamplingParams, TokensPrompt

from pagoda_bench.checkpoints.readers.protocol import Ids, serve

MAX_MODEL_LEN = 1024
WHOLE_VOCABULARY = -1


class ByVllm:
    def __init__(self, folder: Path, threads: int) -> None:  # threads: by VLLM_CPU_OMP_THREADS_BIND
        self._llm = LLM(
            model=str(folder),
            dtype="bfloat16",
            max_model_len=MAX_MODEL_LEN,
            max_logprobs=WHOLE_VOCABULARY,
            enable_prefix_caching=False,
            enforce_eager=True,  # compiling takes a minute, and nothing here is timed
            disable_log_stats=True,
        )
        self.vocab_size: int = self._llm.model_config.get_vocab_size()

    def distributions(self, documents: Ids) -> Iterator[npt.NDArray[np.float32]]:
        asked = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=WHOLE_VOCABULARY, flat_logprobs=True, detokenize=False)
        for ids in documents:
            (output,) = self._llm.generate([TokensPrompt(prompt_token_ids=list(ids))], asked, use_tqdm=False)
            told = output.prompt_logprobs
            found = np.full((len(ids) - 1, self.vocab_size), -np.inf, np.float32)
            for place in range(1, len(ids)):  # nothing is told of the first token
                at = slice(told.start_indices[place], told.end_indices[place])
                found[place - 1, told.token_ids[at]] = told.logprobs[at]
            yield found

    def answers(self, prompts: Ids, max_tokens: int) -> list[list[int]]:
        greedy = SamplingParams(temperature=0, max_tokens=max_tokens, detokenize=False)
        outputs = self._llm.generate([TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts], greedy, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]


if __name__ == "__main__":
    serve(ByVllm)
