"""The decode step through torch.compile on a CPU: the tokens of the step that is not, and refusals. On GPUs: gpu_check."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compiled_model import settings_of
from random_checkpoint import small_engine

from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.errors import ConfigError
from pagoda_worker.models import compiled
from pagoda_worker.models.compiled import CompiledModel, cxx
from pagoda_worker.request import Request

Checkpoint = Callable[..., Path]
PROMPTS = [[5, 6, 7], list(range(20, 45)), [9] * 17]
needs_compiler = pytest.mark.skipif(cxx() is None, reason="this machine has no C++ compiler")


def tokens(engine: Engine) -> list[list[int]]:
    """One more request each second step: batches of one, two and three rows, and prompts beside decoding."""
    lines: list[list[int]] = [[] for _ in PROMPTS]
    for i, prompt in enumerate(PROMPTS):
        engine.submit(Request(request_id=str(i), prompt_ids=prompt, max_tokens=8, ignore_eos=True))
        for _ in range(2):
            take(engine, lines)
    while engine.has_work:
        take(engine, lines)
    engine.check_integrity()
    return lines


def take(engine: Engine, lines: list[list[int]]) -> None:
    for update in engine.step().updates:
        lines[int(update.request_id)] += update.token_ids


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(rows of each compiled attention, address of the cache that it wrote)."""
    calls: list[tuple[int, int]] = []
    real = compiled._STEP.get

    class Watched:
        def get(self) -> Any:
            operators, batch = real()
            return Recording(operators), batch

        set, reset = staticmethod(compiled._STEP.set), staticmethod(compiled._STEP.reset)

    class Recording:
        def __init__(self, operators: Any) -> None:
            self._operators = operators

        def store(self, key_value: torch.Tensor, cache: torch.Tensor, batch: Any) -> None:
            calls.append((len(key_value), cache.data_ptr()))
            self._operators.store(key_value, cache, batch)

        def attend(self, *inputs: Any) -> torch.Tensor:
            attended: torch.Tensor = self._operators.attend(*inputs)
            return attended

    monkeypatch.setattr(compiled, "_STEP", Watched())
    return calls


@needs_compiler
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, when its compiler is imported
def test_compiled_steps_choose_the_same_tokens_and_write_the_cache_itself(tmp_path: Path, called: list[tuple[int, int]]):
    settings = settings_of(tmp_path / "model")
    expected = tokens(Engine(EngineConfig(**settings)))
    engine = Engine(EngineConfig(compile=True, **settings))
    assert isinstance(engine.runner.model, CompiledModel)
    caches = {cache.data_ptr() for cache in engine.runner.caches}
    assert {rows for rows, _ in called} == {1, 2}, "compiled before the first request"
    with torch.compiler.set_stance("fail_on_recompile"):
        assert tokens(engine) == expected
    assert {rows for rows, _ in called} == {1, 2, 3}, "three rows took the program of two"
    assert {address for _, address in called} == caches, "no copy of a cache"


def test_without_a_cpp_compiler_it_is_refused(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiled, "cxx", lambda: None)
    with pytest.raises(ConfigError, match=r"compile needs a C\+\+ compiler.*leave compile out"):
        small_engine(checkpoint(), compile=True)


def test_beside_batch_invariance_it_is_refused(checkpoint: Checkpoint):
    with pytest.raises(ConfigError, match="compile and batchInvariant exclude each other"):
        small_engine(checkpoint(), compile=True, batch_invariant=True)


def test_what_the_compiler_says_is_one_line(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch):
    def fails(*inputs: Any) -> torch.Tensor:
        raise RuntimeError("Python.h: no such file\nand much more")

    monkeypatch.setattr(CompiledModel, "forward", fails)
    with pytest.raises(ConfigError, match=r"torch cannot compile this model here: Python\.h: no such file; leave compile out$"):
        small_engine(checkpoint(), compile=True)
