"""What a worker can do, learned: the slope of a decode step, prefill from requests where nobody tells it."""

from random import Random
from types import SimpleNamespace

import pytest

from pagoda_router.backends.answer_rates import FEWEST_ANSWERS, FRESH_S, LEAST_TOKEN_MS, Rates
from pagoda_router.generation import Usage
from pagoda_router.placement.rates import StepLine, WorkerRates


def test_the_line_of_decode_steps_is_learned_from_noisy_samples():
    line, rng = StepLine(), Random(1)
    for _ in range(100):
        sequences = rng.randint(1, 32)
        line.observe(sequences, (8 + 0.5 * sequences) * rng.uniform(0.95, 1.05))
    assert line.per_sequence_ms == pytest.approx(0.5, rel=0.2)
    assert line.at(16) == pytest.approx(16, rel=0.05)


def test_a_machine_that_slows_down_is_learned_anew():
    line, rng = StepLine(), Random(1)
    for factor in (1, 3):
        for _ in range(150):
            sequences = rng.randint(1, 32)
            line.observe(sequences, factor * (8 + 0.5 * sequences))
    assert line.at(10) == pytest.approx(39, rel=0.05)


def test_batches_of_one_size_teach_no_slope():
    line = StepLine()
    for _ in range(500):
        line.observe(4, 10.0)
    assert line.per_sequence_ms is None
    for sequences in (1, 8, 2, 16, 4) * 3:
        line.observe(sequences, 8 + 0.5 * sequences)
    assert line.at(4) == pytest.approx(10, rel=0.1)


def test_the_workers_own_prefill_rate_is_believed_and_requests_fill_in_where_it_tells_none():
    rates = WorkerRates()
    assert rates.prefill_tokens_per_s == 0
    rates.prefilled(2000, 1.0)
    rates.prefilled(4, 1.0)
    assert rates.prefill_tokens_per_s == 2000
    rates.told(500.0, 10.0)
    assert rates.prefill_tokens_per_s == 500


def test_an_idle_workers_step_is_that_of_one_sequence_not_of_the_batch_it_had():
    rates = WorkerRates()
    rates.told(500.0, 40.0)
    assert rates.step_ms(0) == 40
    for sequences in list(range(1, 33)) * 3:
        rates.decoded(sequences, 8 + sequences)
    assert rates.step_ms(0) == pytest.approx(9, rel=0.05)
    assert rates.step_ms(32) == pytest.approx(40, rel=0.05)


def test_a_step_in_which_something_else_happened_teaches_nothing():
    rates = WorkerRates()
    rates.told(500.0, 10.0)
    for sequences in list(range(1, 9)) * 10:
        rates.decoded(sequences, 8 + sequences)
        rates.decoded(sequences, 4000.0)
    assert rates.step_ms(4) == pytest.approx(12, rel=0.05)


def test_one_more_sequence_never_costs_more_than_its_share_of_the_largest_batch():
    """A few noisy samples of two sizes can say anything."""
    line = StepLine()
    for _ in range(40):
        line.observe(1, 1.0)
        line.observe(2, 100.0)
    assert line.per_sequence_ms == pytest.approx(50, rel=0.05)
    assert line.at(2) == pytest.approx(100, rel=0.05)


def test_what_a_step_and_a_token_cost_apart_goes_before_the_rate_of_both_together():
    rates = WorkerRates()
    rates.told(2000.0, 10.0, prefill_step_ms=7.0, prefill_token_ms=0.05)
    assert (rates.prefill_tokens_per_s, rates.prefill_step_ms) == (20_000, 7.0)
    rates.told(2000.0, 10.0)
    assert (rates.prefill_tokens_per_s, rates.prefill_step_ms) == (2000, 0.0)


def answered(prompt_tokens: int, waited_ms: float, step_ms: float = 4.0, output_tokens: int = 11) -> SimpleNamespace:
    first_s = waited_ms / 1000
    usage = Usage(prompt_tokens, 0, output_tokens)
    return SimpleNamespace(usage=usage, began_s=0.0, first_output_s=first_s, last_output_s=first_s + step_ms * (output_tokens - 1) / 1000)


def test_a_foreign_servers_slow_first_answer_does_not_make_it_look_slow():
    rates = Rates()
    rates.learn(answered(12, waited_ms=1000, step_ms=40))
    assert rates.prefill_tokens_per_s == rates.decode_step_ms == 0, "not measured: it counts as the others"
    for _ in range(30):
        rates.learn(answered(12, waited_ms=20))
    assert rates.decode_step_ms == pytest.approx(4, rel=0.1)


def test_what_every_prompt_waits_for_is_not_taken_for_the_time_of_its_tokens():
    short_only, mixed = Rates(), Rates()
    for at in range(40):
        short_only.learn(answered(4, waited_ms=20.4))
        tokens = 4 if at % 2 else 1000
        mixed.learn(answered(tokens, waited_ms=20 + tokens / 10))
    assert mixed.prefill_tokens_per_s == pytest.approx(10_000, rel=0.05)
    assert short_only.prefill_tokens_per_s == 0


def test_prompts_that_wait_alike_whatever_their_length_give_a_rate_and_not_an_infinite_one():
    rates = Rates()
    for at in range(40):
        rates.learn(answered(4 if at % 2 else 1000, waited_ms=20))
    assert rates.prefill_tokens_per_s == 1000 / LEAST_TOKEN_MS


def test_a_foreign_server_that_once_looked_slow_and_got_nothing_since_is_as_good_as_the_others_again():
    now_s = 0.0
    rates = Rates(lambda: now_s)
    for at in range(40):
        rates.learn(answered(4 if at % 2 else 1000, waited_ms=500 if at % 2 else 1500, step_ms=100))
    assert rates.decode_step_ms == pytest.approx(100)
    assert rates.prefill_tokens_per_s > 0
    now_s = FRESH_S
    assert rates.prefill_tokens_per_s == rates.decode_step_ms == 0
    for _ in range(FEWEST_ANSWERS):
        assert rates.decode_step_ms == 0
        rates.learn(answered(4, waited_ms=20, step_ms=4))
    assert rates.decode_step_ms == pytest.approx(4), "and nothing of the old figure is left in the new one"
