"""The whole engine on Triton's kernels, in the interpreter: prompts and decode steps of one small model give the tokens of plain torch."""

from pathlib import Path

from pagoda_worker.config import Attention, EngineConfig
from pagoda_worker.decode_graphs import DecodeGraphs
from pagoda_worker.engine import Engine
from pagoda_worker.gpu_check.shapes import Shape, write_checkpoint

SMALL = Shape(
    name="small", hidden=64, layers=1, heads=2, kv_heads=1, head_dim=32, intermediate=64, vocab=100, positions=64, dtype="float32"
)


def test_the_engines_tokens_are_those_of_the_readable_attention(tmp_path: Path):
    write_checkpoint(tmp_path / "model", SMALL)

    def tokens(attention: Attention) -> list[list[int]]:
        engine = Engine(EngineConfig(model_dir=tmp_path / "model", device="cpu", attention=attention, max_running=4, max_batch_tokens=16))
        return [done.token_ids for done in engine.generate([[5, 6, 7], list(range(20))], max_tokens=4, ignore_eos=True)]

    assert tokens("triton") == tokens("eager")


def test_padded_decode_steps_over_static_buffers_give_the_same_tokens(tmp_path: Path):
    """What a GPU captures as graphs, run as it is."""
    write_checkpoint(tmp_path / "model", SMALL)
    engine = Engine(EngineConfig(model_dir=tmp_path / "model", device="cpu", attention="triton", max_running=4, max_batch_tokens=16))
    prompts = [[5, 6, 7], list(range(20)), [9]]
    expected = [done.token_ids for done in engine.generate(prompts, max_tokens=4, ignore_eos=True)]
    engine.runner.graphs = DecodeGraphs(engine.runner, [4], lambda compute: compute)
    engine.scheduler.residency.forget_prefixes()
    assert [done.token_ids for done in engine.generate(prompts, max_tokens=4, ignore_eos=True)] == expected
