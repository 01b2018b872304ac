"""Memory that a step frees is there for the next one: counted in page faults, not in time."""

import resource
from pathlib import Path

from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.offline.batch import random_prompts

BUILTIN = Path(__file__).parents[1] / "src" / "pagoda_worker" / "builtin" / "tiny"
PROMPT_TOKENS = 1000


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def test_a_long_prompt_takes_the_memory_that_the_one_before_it_freed():
    engine = Engine(EngineConfig(model_dir=BUILTIN, device="cpu", prefix_caching=False, max_running=2))
    prompts = random_prompts(3, PROMPT_TOKENS, engine.facts.vocab_size)
    engine.generate(prompts[:1], max_tokens=1)
    engine.generate(prompts[1:2], max_tokens=1)
    before = faults()
    engine.generate(prompts[2:], max_tokens=1)
    taken_bytes = (faults() - before) * resource.getpagesize()
    hidden_bytes = PROMPT_TOKENS * 256 * 2
    assert taken_bytes < 8 * hidden_bytes, "less than a layer's tensors, of five layers"
