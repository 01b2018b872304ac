"""A small model that guesses for a large one: what it has read of each row, and that it changes no token. Here it is the large one itself,
so that a guess which is wrong tells of keys and values that are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_runs import run_all
from random_checkpoint import small_engine
from test_speculation import ENGINES, corpus, tokens_of

from pagoda_worker.engine import Engine
from pagoda_worker.errors import ConfigError
from pagoda_worker.request import Request, Sampling
from pagoda_worker.scheduling.sequence import Sequence
from pagoda_worker.speculation.draft_model import DraftModelProposer
from pagoda_worker.speculation.speculation import Speculation


def guessing_for_itself(folder: Path, *, budget: int = 512, **settings: Any) -> tuple[Engine, Speculation]:
    """Always as many tokens as it may, whether that pays or not."""
    engine = small_engine(folder, speculative="draft", draft_dir=folder, **settings)
    proposer = DraftModelProposer(block_size=settings.get("block_size", 16), budget=budget, max_len=256)
    engine.speculation = Speculation(proposer, tokens=4, possible=engine.constraints.longest_possible, adapting=False)
    return engine, engine.speculation


def unmasked() -> list[Request]:
    """The model that guesses knows of no masks and no min_tokens, so it would be wrong there."""
    return [each for each in corpus() if not each.constrained and each.request_id.split("-")[0] != "9"]


@pytest.mark.parametrize("settings", ENGINES.values(), ids=ENGINES)
def test_what_the_model_guesses_for_itself_is_right_at_any_temperature(settings: dict[str, Any], checkpoint: Callable[..., Path]):
    alone = run_all(small_engine(checkpoint()), *unmasked())
    settings = {name: 2 * value if name == "kv_cache_bytes" else value for name, value in settings.items()}  # a draft page for each page
    engine, speculation = guessing_for_itself(checkpoint(), **settings)
    assert tokens_of(run_all(engine, *unmasked())) == tokens_of(alone)
    assert sum(speculation.accepted_by_place) >= 0.97 * speculation.draft_tokens > 100
    assert (engine.scheduler.totals.preemptions > 0) == ("kv_cache_bytes" in settings)


def test_a_long_prompt_is_read_over_several_steps_before_anything_is_guessed(checkpoint: Callable[..., Path]):
    engine, speculation = guessing_for_itself(checkpoint(), budget=20)
    engine.submit(Request(request_id="a", prompt_ids=[2 + i % 90 for i in range(50)], max_tokens=20, ignore_eos=True))
    guessed: list[bool] = []
    while engine.has_work:
        before = speculation.draft_tokens
        engine.step()
        guessed.append(speculation.draft_tokens > before)
    assert guessed[:4] == [False, False, False, True], "the prompt, two times 20 tokens beside decoding, the rest"
    assert sum(speculation.accepted_by_place) == speculation.draft_tokens


def test_a_prefix_that_another_request_left_is_not_read_again(checkpoint: Callable[..., Path]):
    engine, speculation = guessing_for_itself(checkpoint(), budget=20)
    prompt = [2 + i % 90 for i in range(50)]
    run_all(engine, Request(request_id="a", prompt_ids=prompt, max_tokens=20, ignore_eos=True))
    engine.submit(Request(request_id="b", prompt_ids=[*prompt, 5], max_tokens=20, ignore_eos=True))
    engine.step()
    before = speculation.draft_tokens
    engine.step()
    assert speculation.draft_tokens > before, "three blocks of 16 were there; three tokens to read fit into the budget"
    while engine.has_work:
        engine.step()
    assert sum(speculation.accepted_by_place) == speculation.draft_tokens


def test_another_model_of_the_same_vocabulary_guesses_without_changing_a_token(checkpoint: Callable[..., Path]):
    alone = run_all(small_engine(checkpoint()), *corpus())
    other = checkpoint("draft", seed=3, num_hidden_layers=1, num_key_value_heads=4)
    engine = small_engine(checkpoint(), speculative="draft", draft_dir=other)
    assert tokens_of(run_all(engine, *corpus())) == tokens_of(alone)
    assert engine.speculation is not None
    assert 0 < sum(engine.speculation.accepted_by_place) < engine.speculation.draft_tokens


class NowAndThen(DraftModelProposer):
    """Guesses for every third length of a sequence."""

    def propose(self, sequence: Sequence, count: int) -> list[int]:
        return super().propose(sequence, count) if len(sequence.tokens) % 3 == 0 else []


def test_a_guess_that_was_wrong_is_not_penalised_in_steps_without_guesses(checkpoint: Callable[..., Path]):
    """Counting goes on with the first of two guesses. When both are wrong, the row is as long as was counted, with another token."""
    penalised = [
        Request(
            request_id=str(seed),
            prompt_ids=[3, 8, 13, 18],
            max_tokens=40,
            ignore_eos=True,
            sampling=Sampling(temperature=0.9, presence_penalty=2.0, frequency_penalty=1.0, seed=seed),
        )
        for seed in range(8)
    ]
    alone = run_all(small_engine(checkpoint()), *penalised)
    other = checkpoint("draft", seed=3, num_hidden_layers=1, num_key_value_heads=4)
    engine = small_engine(checkpoint(), speculative="draft", draft_dir=other)
    proposer = NowAndThen(block_size=16, budget=512, max_len=256)
    engine.speculation = Speculation(proposer, tokens=2, possible=engine.constraints.longest_possible, adapting=False)
    for each in penalised:  # beside a row with guesses all are counted anew
        assert tokens_of(run_all(engine, each)).items() <= tokens_of(alone).items()
    assert 0 < sum(engine.speculation.accepted_by_place) < engine.speculation.draft_tokens


def test_an_engine_that_slept_guesses_again(checkpoint: Callable[..., Path]):
    engine, speculation = guessing_for_itself(checkpoint())
    request = Request(request_id="a", prompt_ids=[3, 4, 5], max_tokens=12, ignore_eos=True, sampling=Sampling(temperature=1.0, seed=1))
    first = run_all(engine, request)["a", 0].tokens
    engine.sleep(2)
    engine.wake()
    before = speculation.draft_tokens
    assert run_all(engine, request)["a", 0].tokens == first
    assert speculation.draft_tokens > before


def test_a_draft_model_of_another_vocabulary_is_refused(checkpoint: Callable[..., Path]):
    with pytest.raises(ConfigError, match="the draft model has 96 tokens and the model 160"):
        small_engine(checkpoint(), speculative="draft", draft_dir=checkpoint("other words", vocab_size=96))


@pytest.mark.parametrize(
    ("settings", "message"), [({"speculative": "draft"}, "give both or neither"), ({"draft_dir": Path("/x")}, "give both or")]
)
def test_a_draft_model_and_its_method_go_together(settings: dict[str, Any], message: str, checkpoint: Callable[..., Path]):
    with pytest.raises(ConfigError, match=message):
        small_engine(checkpoint(), **settings)
