"""What a worker can do, learned: the slope of a decode step, prefill from requests where nobody tells it."""

from random import Random

import pytest

from pagoda_router.rates import StepLine, WorkerRates


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
    for sequences in (1, 8, 2, 16, 4):
        line.observe(sequences, 8 + 0.5 * sequences)
    assert line.at(4) == pytest.approx(10, rel=0.1)


def test_the_workers_own_prefill_rate_is_believed_and_requests_fill_in_where_it_tells_none():
    rates = WorkerRates()
    assert rates.prefill_tokens_per_s == 0
    rates.prefilled(2000, 1.0)
    rates.prefilled(4, 1.0)
    assert rates.prefill_tokens_per_s == 2000
    rates.told(1, 500.0, 10.0)
    assert rates.prefill_tokens_per_s == 500
