"""The engine's loop around the real engine: what a cancel and a failed step leave behind, looked at after each step."""

from typing import NoReturn

import pytest
from engine_turns import Turns
from front_support import TINY

from pagoda_worker.channel import Cancelled, Stepped
from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.execution.runner import Runner
from pagoda_worker.request import FinishReason


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(EngineConfig(model_dir=TINY, device="cpu", dtype="fp32", max_running=4, threads=1))


def test_a_cancel_has_freed_its_blocks_after_one_step(engine: Engine):
    turns = Turns(engine)
    turns.submit(*[5] * 200, request_id="stays")
    turns.submit(*[6] * 200, request_id="goes")
    before = turns.turn()
    assert isinstance(before, Stepped)
    turns.inbox.put(Cancelled("goes", None))
    after = turns.turn()
    assert isinstance(after, Stepped)
    assert after.output.state.kv_free_tokens - before.output.state.kv_free_tokens >= 200
    turns.inbox.put(Cancelled("stays", None))
    last = turns.turn()
    assert isinstance(last, Stepped)
    assert last.output.state.kv_free_tokens == last.output.state.kv_capacity_tokens


def test_after_a_failed_step_nothing_is_held_and_no_prefix_is_trusted(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    turns = Turns(engine)
    prompt = [7] * 100
    turns.submit(*prompt, request_id="reference", max_tokens=1)
    reference = turns.turn()
    assert isinstance(reference, Stepped)

    def fail(*_: object) -> NoReturn:
        raise RuntimeError("out of memory")

    engine.abandon("")  # an empty cache, so that the failing step is the one that registers the prefix
    with monkeypatch.context() as patch:
        patch.setattr(Runner, "launch", fail)
        turns.submit(*prompt, request_id="fails")
        turns.turn()
    ended = turns.turn()
    assert isinstance(ended, Stepped)
    (update,) = ended.output.updates
    assert update.finish is not None
    assert update.finish.reason is FinishReason.ENGINE_ERROR
    assert ended.output.state.kv_free_tokens == ended.output.state.kv_capacity_tokens
    turns.submit(*prompt, request_id="again", max_tokens=1)
    again = turns.turn()
    assert isinstance(again, Stepped)
    assert again.output.updates[0].cached_tokens == 0
    assert again.output.updates[0].token_ids == reference.output.updates[0].token_ids
