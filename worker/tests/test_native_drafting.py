"""A small model's guesses by one native call: they are those of the model operation by operation, and those it is not sure of stay out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_runs import run_all
from random_checkpoint import small_engine
from test_speculation import ENGINES, tokens_of

from pagoda_worker.engine import Engine
from pagoda_worker.layers.native import NativeProduct
from pagoda_worker.layers.native_quantized import QuantizedNativeProduct
from pagoda_worker.native.library import load_library
from pagoda_worker.request import Request, Sampling
from pagoda_worker.scheduling.plan import StepPlan
from pagoda_worker.speculation.draft_model import DraftModelProposer
from pagoda_worker.speculation.speculation import Speculation

pytestmark = pytest.mark.skipif(load_library() is None, reason="no native kernels for this machine")

FORMS: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 32},
    "tied, one key head": {"head_dim": 32, "tie_word_embeddings": True, "num_key_value_heads": 1},
    "qwen2, with biases": {"model_type": "qwen2", "head_dim": 32},
    "qwen3, with normed heads": {"model_type": "qwen3", "head_dim": 32},
    "mistral, with a window": {"model_type": "mistral", "head_dim": 32, "sliding_window": 12},
    "gated bias": {"head_dim": 32, "mlp_bias": True},
    "vocabulary of no whole vectors": {"head_dim": 32, "vocab_size": 157},
}


class LeastChance(Speculation):
    least = 0.0

    def planned(self, plan: StepPlan) -> None:
        super().planned(plan)
        plan.guesswork.least_chance = self.least


def guessing_for_itself(folder: Path, **settings: Any) -> tuple[Engine, LeastChance]:
    """The large model is the small one too, to the bit, so a guess that is wrong tells of wrong numbers."""
    engine = small_engine(
        folder, **{"dtype": "bf16", "speculative": "draft", "draft_dir": folder, "draft_quantization": "none", **settings}
    )
    proposer = DraftModelProposer(block_size=settings.get("block_size", 16), budget=512, max_len=256)
    engine.speculation = LeastChance(proposer, tokens=4, possible=engine.constraints.longest_possible, adapting=False)
    return engine, engine.speculation


def asked(*lengths: int) -> list[Request]:
    """Greedy; some end at a token, some at their length."""
    return [
        Request(
            request_id=f"{i}",
            prompt_ids=[2 + (7 * i + 5 * j) % 150 for j in range(length)],
            max_tokens=24,
            ignore_eos=i % 2 == 0,
            stop_token_ids=[20 + i, 40 + i] if i % 3 == 0 else [],
        )
        for i, length in enumerate(lengths)
    ]


def native(engine: Engine) -> bool:
    return engine.runner.drafter is not None and engine.runner.drafter.is_native


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_what_the_model_guesses_for_itself_is_right(form: dict[str, Any], checkpoint: Callable[..., Path]):
    folder = checkpoint("native " + str(sorted(form)), **{"hidden_size": 128, **form})
    requests = asked(3, 20, 33, 7, 1, 18)
    alone = run_all(small_engine(folder, dtype="bf16"), *requests)
    engine, speculation = guessing_for_itself(folder)
    assert native(engine)
    assert tokens_of(run_all(engine, *requests)) == tokens_of(alone)
    assert sum(speculation.accepted_by_place) >= 0.97 * speculation.draft_tokens > 40


@pytest.mark.parametrize("settings", [ENGINES["ahead"], ENGINES["chunked"], ENGINES["without prefix cache"]], ids=str)
def test_it_reads_on_where_it_stopped(settings: dict[str, Any], checkpoint: Callable[..., Path]):
    folder = checkpoint("native", head_dim=32)
    requests = asked(3, 40, 33, 40)
    alone = run_all(small_engine(folder, dtype="bf16"), *requests)
    engine, speculation = guessing_for_itself(folder, **settings)
    assert tokens_of(run_all(engine, *requests)) == tokens_of(alone)
    assert sum(speculation.accepted_by_place) >= 0.97 * speculation.draft_tokens > 40


def test_guesses_that_are_not_likely_enough_are_not_verified(checkpoint: Callable[..., Path]):
    folder = checkpoint("native", head_dim=32)
    alone = run_all(small_engine(folder, dtype="bf16"), *asked(9, 9, 9))
    verified: list[int] = []
    for least in (0.0, 0.1, 1.1):
        engine, speculation = guessing_for_itself(folder)
        speculation.least = least
        assert tokens_of(run_all(engine, *asked(9, 9, 9))) == tokens_of(alone)
        verified.append(speculation.draft_tokens)
    assert verified[0] > verified[1] > verified[2] == 0


def test_rows_that_are_not_greedy_are_guessed_for_with_their_own_noise(checkpoint: Callable[..., Path]):
    folder = checkpoint("native", head_dim=32)
    requests = [*asked(9), Request(request_id="warm", prompt_ids=[5, 6], max_tokens=20, sampling=Sampling(temperature=1.0, seed=3))]
    alone = run_all(small_engine(folder, dtype="bf16"), *requests)
    engine, speculation = guessing_for_itself(folder)
    assert tokens_of(run_all(engine, *requests)) == tokens_of(alone)
    assert sum(speculation.accepted_by_place) >= 0.97 * speculation.draft_tokens > 10


def test_a_draft_model_is_rounded_where_that_is_faster_and_changes_no_token(checkpoint: Callable[..., Path]):
    folder = checkpoint("native", head_dim=32)
    requests = asked(3, 20, 33)
    alone = tokens_of(run_all(small_engine(folder, dtype="bf16"), *requests))
    forms: dict[str | None, type] = {}
    for asked_for in (None, "none", "int8"):
        engine, speculation = guessing_for_itself(folder, draft_quantization=asked_for)
        assert native(engine)
        assert tokens_of(run_all(engine, *requests)) == alone
        assert 0 < sum(speculation.accepted_by_place) <= speculation.draft_tokens
        model: Any = engine.runner.drafter._model
        forms[asked_for] = type(model.layers[0].qkv.product)
        faster = model.operators.prefers_int8
    assert forms["none"] is NativeProduct
    assert forms["int8"] is QuantizedNativeProduct
    assert forms[None] is forms["int8" if faster else "none"]


@pytest.mark.parametrize(
    ("form", "settings"),
    [({}, {"dtype": "fp32"}), ({}, {"attention": "sdpa"})],
    ids=["fp32", "sdpa"],
)
def test_other_forms_are_guessed_with_operation_by_operation(
    form: dict[str, Any], settings: dict[str, Any], checkpoint: Callable[..., Path]
):
    folder = checkpoint("native " + str(form), head_dim=32, **form)
    engine = small_engine(folder, **{"dtype": "bf16", **settings}, speculative="draft", draft_dir=folder)
    assert not native(engine)
    run_all(engine, *asked(5))
