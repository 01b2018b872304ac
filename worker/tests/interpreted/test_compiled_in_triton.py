"""What a GPU captures with `compile: true`, run as it is: compiled steps over the graphs' static buffers, padded, on Triton's kernels."""

from pathlib import Path

import pytest
import torch
from compiled_model import settings_of

from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.execution.decode_graphs import DecodeGraphs
from pagoda_worker.models.compiled import cxx

PROMPTS = [[5, 6, 7], list(range(20)), [9]]


def tokens(engine: Engine) -> list[list[int]]:
    return [done.token_ids for done in engine.generate(PROMPTS, max_tokens=4, ignore_eos=True)]


@pytest.mark.skipif(cxx() is None, reason="this machine has no C++ compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, when its compiler is imported
def test_padded_compiled_steps_give_the_same_tokens_and_compile_nothing_more(tmp_path: Path):
    settings = settings_of(tmp_path / "model")
    expected = tokens(Engine(EngineConfig(attention="eager", **settings)))
    engine = Engine(EngineConfig(attention="triton", compile=True, **settings))
    with torch.compiler.set_stance("fail_on_recompile"):
        assert tokens(engine) == expected
        with torch.inference_mode():
            engine.runner.graphs = DecodeGraphs(engine.runner, [1, 4], lambda compute: compute)
        engine.scheduler.residency.forget_prefixes()
        assert tokens(engine) == expected
