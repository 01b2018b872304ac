"""OpenVINO GenAI's continuous batching on CPU. The model is converted once, without quantization, and kept beside the environment."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import openvino
import openvino_genai

from pagoda_bench.peers.drivers.protocol import Answer, Generate, Settings, serve

CACHE_GIB = 1
BATCH_TOKENS = 1024
"""The same bound on one step's prefill as Pagoda's on a CPU."""
FEWEST_THREADS = 2
"""With one thread the pipeline ends with SIGFPE while it loads (openvino-genai 2026.4.1), pinned or not."""

CONVERT = """
import sys
from optimum.intel import OVModelForCausalLM
OVModelForCausalLM.from_pretrained(sys.argv[1], export=True, load_in_8bit=False, compile=False).save_pretrained(sys.argv[2])
"""


def load(settings: Settings) -> Generate:
    assert settings.work is not None
    scheduling = openvino_genai.SchedulerConfig()
    scheduling.cache_size = CACHE_GIB
    scheduling.max_num_batched_tokens = BATCH_TOKENS
    scheduling.enable_prefix_caching = False
    options = {"INFERENCE_NUM_THREADS": max(FEWEST_THREADS, settings.threads)}
    pipeline = openvino_genai.ContinuousBatchingPipeline(str(converted(settings.folder, settings.work)), scheduling, "CPU", options)
    numbers = iter(range(1 << 62))

    def generate(prompts: list[list[int]], output_tokens: int) -> Answer:
        config = openvino_genai.GenerationConfig(max_new_tokens=output_tokens, ignore_eos=True, do_sample=False)
        began = time.monotonic()
        handles = [pipeline.add_request(next(numbers), openvino.Tensor(np.array([prompt], dtype=np.int64)), config) for prompt in prompts]
        tokens: list[list[int]] = [[] for _ in prompts]
        first_s = [0.0] * len(prompts)
        while pipeline.has_non_finished_requests():
            pipeline.step()
            for i, handle in enumerate(handles):
                while handle.can_read():
                    tokens[i] += next(iter(handle.read().values())).generated_ids
                    first_s[i] = first_s[i] or time.monotonic() - began
        return Answer(time.monotonic() - began, tokens, first_s)

    return generate


def converted(folder: Path, work: Path) -> Path:
    """The model in OpenVINO's form. A conversion that was cut off leaves no folder of the final name.

    By a process of its own, so that torch and the plain weights are not beside what is timed.
    """
    done, half = work / "openvino", work / "openvino.half"
    if not done.exists():
        shutil.rmtree(half, ignore_errors=True)
        subprocess.run([sys.executable, "-c", CONVERT, str(folder), str(half)], check=True)
        half.rename(done)
    return done


if __name__ == "__main__":
    serve(load)
