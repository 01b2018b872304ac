"""What a GPU captures with `compile: true`, run as it is: compiled steps over the graphs' static buffers, padded, on Triton's kernels."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.execution.decode_graphs import DecodeGraphs
from pagoda_worker.gpu_check.shapes import Shape, write_checkpoint
from pagoda_worker.models.compiled import cxx

SMALL = Shape(
    name="small", hidden=64, layers=1, heads=2, kv_heads=1, head_dim=32, intermediate=64, vocab=100, positions=64, dtype="float32",
    qk_norm=True,
)  # fmt: skip
PROMPTS = [[5, 6, 7], list(range(20)), [9]]


def tokens(engine: Engine) -> list[list[int]]:
    return [done.token_ids for done in engine.generate(PROMPTS, max_tokens=4, ignore_eos=True)]


@pytest.mark.skipif(cxx() is None, reason="this machine has no C++ compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, when its compiler is imported
def test_padded_compiled_steps_give_the_same_tokens_and_compile_nothing_more(tmp_path: Path):
    write_checkpoint(tmp_path / "model", SMALL)
    settings: dict[str, Any] = {"model_dir": tmp_path / "model", "device": "cpu", "max_running": 4, "max_batch_tokens": 16}
    expected = tokens(Engine(EngineConfig(attention="eager", **settings)))
    engine = Engine(EngineConfig(attention="triton", compile=True, **settings))
    with torch.compiler.set_stance("fail_on_recompile"):
        assert tokens(engine) == expected
        with torch.inference_mode():
            engine.runner.graphs = DecodeGraphs(engine.runner, [1, 4], lambda compute: compute)
        engine.scheduler.residency.forget_prefixes()
        assert tokens(engine) == expected
