"""What guessing gained is measured, and a forecast that was wrong is believed less."""

import pytest

from pagoda_worker.speculation.payoff import Payoff


def measured(gain: float, *, forecast: float, steps: int = 40) -> Payoff:
    payoff = Payoff()
    for _ in range(steps):
        payoff.note(60, 60, 1e-3, forecast=None)
        payoff.note(60, 60 * gain, 1e-3, forecast=forecast)
    return payoff


def test_a_forecast_is_corrected_by_how_far_others_were_off():
    payoff = measured(0.85, forecast=1.2)
    assert payoff.measured(60)[0] == pytest.approx(0.85)
    assert 0.85 < payoff.corrected(60, 1.2) < 0.95
    assert payoff.corrected(60, 1.8) > 1.2, "guesses that got better show in the forecast"
    assert payoff.corrected(8, 1.2) == 1.2, "of few rows nothing is known"


def test_an_old_verdict_is_believed_less_and_less():
    payoff = measured(0.85, forecast=1.2)
    before = payoff.corrected(60, 1.2)
    for _ in range(16):
        payoff.doubt(60)
    assert before < payoff.corrected(60, 1.2) == pytest.approx(1.2, abs=0.02)


def test_one_step_that_something_held_up_tells_little():
    payoff = measured(1.3, forecast=1.3)
    payoff.note(60, 60, 1.0, forecast=1.3)
    assert payoff.measured(60)[0] > 1.15


def test_some_steps_without_guesses_come_first():
    payoff = Payoff()
    assert not payoff.knows(8)
    for _ in range(10):
        payoff.note(8, 8, 1e-3, forecast=None)
    assert payoff.knows(8)
    assert payoff.knows(6), "about as many"
    assert not payoff.knows(60)
