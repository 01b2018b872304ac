"""What a step with prompts costs, learned: the machine's own figures, whatever prompts came."""

from math import isfinite
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda_worker.scheduling.prefill_cost import PrefillCost, StepCost

SELF_TEST = StepCost(fixed_ms=7.0, token_ms=0.037)


def learned(true: StepCost, lengths: list[int], before: StepCost | None, steps: int = 300) -> StepCost:
    cost, rng = PrefillCost(before), Random(1)
    for _ in range(steps):
        tokens = rng.choice(lengths)
        cost.observe(tokens, (true.fixed_ms + true.token_ms * tokens) * rng.lognormvariate(0, 0.15))
    found = cost.learned
    assert found is not None
    return found


@pytest.mark.parametrize("lengths", [[16, 20, 30], [500, 2048], [10, 100, 1000, 8000]], ids=["short", "long", "all"])
def test_a_worker_that_saw_short_prompts_only_is_no_slow_one(lengths):
    found = learned(SELF_TEST, lengths, SELF_TEST)
    for tokens in (16, 500, 8000):
        true_ms = SELF_TEST.fixed_ms + SELF_TEST.token_ms * tokens
        assert found.fixed_ms + found.token_ms * tokens == pytest.approx(true_ms, rel=0.3)


def test_both_parts_are_learned_without_a_self_test_where_prompts_differ():
    found = learned(SELF_TEST, [10, 100, 1000, 8000], None)
    assert found == pytest.approx(SELF_TEST, rel=0.15)


def test_a_machine_that_became_slower_is_learned_anew():
    slower = StepCost(3 * SELF_TEST.fixed_ms, 3 * SELF_TEST.token_ms)
    assert learned(slower, [10, 100, 1000, 8000], SELF_TEST) == pytest.approx(slower, rel=0.2)


@pytest.mark.parametrize("before", [None, StepCost(fixed_ms=2.0, token_ms=0.05)], ids=["nothing known", "seven times as much known"])
def test_what_a_prompts_token_adds_shows_beside_any_number_of_rows_that_decode(before):
    cost, rng = PrefillCost(before), Random(1)
    for _ in range(200):
        rows, tokens = rng.choice([1, 8, 60]), rng.randrange(1, 300)
        cost.observe(tokens, 1 + rows * 0.05 + tokens * 0.007 + rng.random() * 0.2, decodes=rows)
    assert cost.learned is not None
    assert cost.learned.token_ms == pytest.approx(0.007, rel=0.15)


def test_rows_that_come_with_long_prompts_are_not_taken_for_them():
    cost, rng = PrefillCost(), Random(1)
    for _ in range(300):
        rows = rng.choice([1, 64])
        tokens = rng.randrange(100, 200) + 10 * rows
        cost.observe(tokens, (2 + rows * 0.2 + tokens * 0.01) * rng.lognormvariate(0, 0.02), decodes=rows)
    assert cost.learned is not None
    assert cost.learned.token_ms == pytest.approx(0.01, rel=0.25)


def test_before_any_step_the_self_test_is_all_that_is_known():
    assert PrefillCost().learned is None
    assert PrefillCost(SELF_TEST).learned == pytest.approx(SELF_TEST)


STEPS = st.tuples(st.integers(1, 100_000), st.floats(1e-3, 1e5), st.integers(0, 512))


@given(steps=st.lists(STEPS, min_size=1, max_size=60), is_tested=st.booleans())
def test_no_step_makes_prompts_free_or_their_cost_negative(steps, is_tested):
    cost = PrefillCost(SELF_TEST if is_tested else None)
    for tokens, took_ms, decodes in steps:
        cost.observe(tokens, took_ms, decodes=decodes)
        found = cost.learned
        assert found is not None
        assert found.fixed_ms >= 0
        assert found.token_ms > 0
        assert isfinite(found.fixed_ms + found.token_ms)
