"""Sharing of prompt tokens, making way, copy or compute: tables and properties of the pure choices."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda_worker.scheduling.policy import Speeds, choose_restore, prefill_budget, share_prefill, victims_needed


@pytest.mark.parametrize(
    ("decodes", "cap", "budget"),
    [(0, None, 100), (0, 30, 100), (5, None, 95), (5, 30, 30), (80, 30, 20), (100, 30, 0), (5, 1000, 95)],
    ids=str,
)
def test_the_cap_holds_only_while_something_decodes(decodes: int, cap: int | None, budget: int):
    assert prefill_budget(100, decodes, cap) == budget


@pytest.mark.parametrize(
    ("prompts", "budget", "counts"),
    [
        ([], 10, []),
        ([(0, 100)], 10, [10]),
        ([(0, 100), (0, 3)], 10, [7, 3]),  # the short one is done at once
        ([(0, 100), (0, 60), (0, 50)], 10, [5, 0, 5]),
        ([(0, 50), (0, 50)], 10, [10, 0]),  # equal ones in order
        ([(0, 100), (0, 3)], 1, [1, 0]),  # the first in order always goes on
        ([(1, 100), (0, 3)], 10, [10, 0]),  # a class before the next
        ([(1, 4), (0, 30), (0, 2)], 10, [4, 4, 2]),
        ([(0, 2), (0, 3)], 10, [2, 3]),
    ],
    ids=str,
)
def test_prompts_share_a_step(prompts: list[tuple[int, int]], budget: int, counts: list[int]):
    assert share_prefill(prompts, budget) == counts


classes_and_lengths = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 50)), max_size=8)
prompts_in_order = classes_and_lengths.map(lambda prompts: sorted(prompts, key=lambda prompt: -prompt[0]))


@given(prompts_in_order, st.integers(0, 80))
def test_no_token_is_wasted_or_made_up(prompts: list[tuple[int, int]], budget: int):
    counts = share_prefill(prompts, budget)
    assert sum(counts) == min(budget, sum(tokens for _, tokens in prompts))
    assert all(0 <= count <= tokens for count, (_, tokens) in zip(counts, prompts, strict=True))


@given(st.integers(1, 200), st.integers(1, 20), st.data())
def test_a_long_prompt_is_done_in_bounded_steps_whatever_short_ones_come(length: int, budget: int, data: st.DataObject):
    left, steps = length, 0
    while left:
        shorter = data.draw(st.lists(st.integers(1, 5), max_size=4))
        left -= share_prefill([(0, left), *((0, tokens) for tokens in shorter)], budget)[0]
        steps += 1
    assert steps <= -(-2 * length // budget)


@pytest.mark.parametrize(
    ("need", "free", "free_rows", "running", "freed", "expected"),
    [
        (3, 10, 1, 2, [4, 4], 0),
        (3, 10, 0, 2, [4, 4], 1),  # no row: one goes, for its row alone
        (8, 2, 1, 3, [4, 4], 2),
        (8, 2, 1, 3, [1, 1], None),  # in vain, so nobody is disturbed
        (8, 6, 1, 1, [0], 1),  # nobody else is left: no spare block is owed
        (3, 0, 1, 1, [], None),
    ],
    ids=str,
)
def test_no_more_make_way_than_must_and_none_in_vain(
    need: int, free: int, free_rows: int, running: int, freed: list[int], expected: int | None
):
    assert victims_needed(need, free=free, free_rows=free_rows, running=running, freed=freed) == expected


@pytest.mark.parametrize(
    ("tokens", "copied_bytes", "speeds", "way"),
    [
        (1000, 1 << 20, Speeds(), "recompute"),
        (1000, 1 << 20, Speeds(prefill_tokens_per_s=1e4), "recompute"),
        (1000, 1 << 20, Speeds(copy_bytes_per_s=1e9), "recompute"),
        (1000, 100_000_000, Speeds(prefill_tokens_per_s=1e4, copy_bytes_per_s=1e10), "copy"),
        (1000, 100_000_000, Speeds(prefill_tokens_per_s=1e4, copy_bytes_per_s=1e9), "recompute"),  # a tie: nothing to gain
        (0, 1, Speeds(prefill_tokens_per_s=1e4, copy_bytes_per_s=1e9), "recompute"),
    ],
    ids=str,
)
def test_what_is_predicted_cheaper_is_done_and_the_unknown_is_computed(tokens: int, copied_bytes: int, speeds: Speeds, way: str):
    assert choose_restore(tokens=tokens, copied_bytes=copied_bytes, speeds=speeds).way == way


def test_a_choice_says_both_predictions():
    choice = choose_restore(tokens=1000, copied_bytes=10_000_000, speeds=Speeds(prefill_tokens_per_s=1e4, copy_bytes_per_s=1e9))
    assert (choice.copy_s, choice.recompute_s) == (0.01, 0.1)
    assert choice.reason == "10000000 bytes take 10.00 ms, 1000 tokens 100.00 ms"
