"""Speculation beside what else an engine can be set to: the same tokens as without, whatever the weights and the cache are held in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_runs import run_all
from random_adapter import write_adapter
from random_checkpoint import small_engine
from scripted_proposer import speculate
from test_speculation import tokens_of

from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.request import Request, Sampling
from pagoda_worker.settings.sources import BUILTIN_DIR

PAIRS: dict[str, dict[str, Any]] = {
    "int8 weights": {"quantization": "int8"},
    "int4 weights": {"quantization": "int4"},
    "int8 cache": {"kv_dtype": "int8"},
    "fp8 cache": {"kv_dtype": "fp8"},
}


def asked(**more: Any) -> list[Request]:
    ways = [Sampling(), Sampling(temperature=0.8, seed=2), Sampling(repetition_penalty=1.2)]
    return [
        Request(request_id=f"{i}", prompt_ids=[5 + 3 * i, *range(40, 52)], max_tokens=24, ignore_eos=True, sampling=way, **more)
        for i, way in enumerate(ways)
    ]


@pytest.mark.parametrize("settings", PAIRS.values(), ids=PAIRS)
def test_quantized_weights_and_caches_keep_their_tokens(settings: dict[str, Any]):
    base: dict[str, Any] = {"model_dir": BUILTIN_DIR / "tiny", "device": "cpu", "max_running": 4, "max_model_len": 256}
    engine = Engine(EngineConfig(**base, **settings))
    alone = run_all(engine, *asked())
    speculation = speculate(engine, tokens_of(alone))
    engine.scheduler.residency.forget_prefixes()
    assert tokens_of(run_all(engine, *asked())) == tokens_of(alone)
    assert speculation.accepted_by_place[2] > 0
    draft = Engine(EngineConfig(**base, **settings, speculative="draft", draft_dir=BUILTIN_DIR / "tiny-draft"))
    assert tokens_of(run_all(draft, *asked())) == tokens_of(alone)
    assert draft.speculation is not None
    assert draft.speculation.draft_tokens > 0


def test_rows_of_adapters_and_of_the_base_model_are_verified_in_one_batch(checkpoint: Callable[..., Path], tmp_path: Path):
    engine = small_engine(checkpoint(), adapters={"a": write_adapter(tmp_path / "a", checkpoint(), seed=1)})
    requests = [
        *asked()[:2],
        *(Request(request_id=f"a{i}", prompt_ids=[5, 6, 7 + i], max_tokens=24, ignore_eos=True, adapter="a") for i in range(2)),
    ]
    alone = run_all(engine, *requests)
    speculation = speculate(engine, tokens_of(alone))
    assert tokens_of(run_all(engine, *requests)) == tokens_of(alone)
    assert speculation.accepted_by_place[2] > 0
