"""How many tokens are worth guessing, and that speculation that gains nothing costs nothing."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_device import next_token, simulated

from pagoda_worker.request import Request
from pagoda_worker.scheduling.plan import StepPlan
from pagoda_worker.scheduling.sampled import judge_drafts
from pagoda_worker.scheduling.sequence import Sequence
from pagoda_worker.scheduling.verification import Verification
from pagoda_worker.speculation.pace import Chance, Quote, StepTimes, drafts_worth, quote
from pagoda_worker.speculation.speculation import Speculation


def flat(size: float) -> float:
    return 1.0


def linear(size: float) -> float:
    return size


def test_where_a_larger_step_takes_no_longer_every_draft_is_worth_it():
    assert quote([0.5, 0.1], tokens=4, proposing=1.0, step_s=flat).rounds == 4


def test_where_time_grows_with_every_token_no_draft_is():
    assert quote([0.9, 0.9], tokens=4, proposing=1.0, step_s=linear) == Quote(0, 1.0)


def test_the_price_lies_between_likely_and_unlikely_drafts():
    offer = quote([0.95, 0.2], tokens=4, proposing=1.0, step_s=lambda size: 1 + size / 4)
    assert 0.2 < offer.price <= 0.95
    assert drafts_worth(0.95, offer) > 0 == drafts_worth(0.2, offer)


def test_a_draft_model_that_is_slow_guesses_few_tokens_or_none():
    fast, slow, too_slow = (quote([0.8], tokens=6, proposing=1.0, step_s=flat, round_s=each) for each in (0.01, 0.3, 0.9))
    assert fast.rounds == 6
    assert 0 < slow.rounds < fast.rounds
    assert too_slow.rounds == 0


def test_guessing_that_costs_more_than_it_gains_is_off():
    assert quote([0.3], tokens=4, proposing=0.1, step_s=flat, overhead_s=0.2).rounds == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0.01, 1), st.floats(0, 2))
def test_what_is_worth_its_price_is_never_more_than_the_rounds(chances: list[float], grows: float, round_s: float):
    offer = quote(chances, tokens=5, proposing=1.0, step_s=lambda size: 1 + grows * size, round_s=round_s)
    assert all(0 <= drafts_worth(chance, offer) <= offer.rounds <= 5 for chance in chances)
    assert offer.gain >= 1


def test_times_lie_on_lines_between_what_was_measured_and_never_fall():
    times = StepTimes()
    assert times.seconds(8) == 0.0
    times.note(8, 1.0)
    assert times.seconds(2) == times.seconds(100) == 1.0
    times.note(32, 4.0)
    times.note(16, 0.5)
    assert times.seconds(8) == times.seconds(16) == 0.75
    assert times.seconds(24) == pytest.approx((0.75 + 4) / 2)
    assert times.seconds(48) == pytest.approx(4 + 16 * (4 - 0.75) / (32 - 12))


def test_a_slow_step_of_a_size_that_came_once_says_little_of_larger_ones():
    times = StepTimes()
    times.note(48, 9.0)
    for _ in range(20):
        times.note(64, 5.0)
    assert times.seconds(64) < 5.3
    times.note(32, 90.0, sure=0.01)
    assert times.seconds(64) < 5.3


@given(st.lists(st.tuples(st.integers(1, 300), st.floats(1e-4, 1.0), st.floats(0.05, 1.0)), min_size=1, max_size=30))
def test_a_larger_step_never_takes_less(steps: list[tuple[int, float, float]]):
    times = StepTimes()
    for size, seconds, sure in steps:
        times.note(size, seconds, sure=sure)
    took = [times.seconds(size) for size in range(1, 400)]
    assert all(one <= other + 1e-12 for one, other in pairwise(took))
    assert took[0] >= min(seconds for _, seconds, _ in steps) - 1e-12


def test_one_step_that_something_held_up_moves_the_mean_little():
    times = StepTimes()
    times.note(8, 1.0)
    times.note(8, 1000.0)
    assert times.seconds(8) < 1.3


def test_a_chance_begins_with_the_usual_one_and_follows_what_it_sees():
    chance = Chance()
    assert chance.given(0.4) == pytest.approx(0.4)
    for _ in range(20):
        chance.note(4, 4)
    assert chance.given(0.4) > 0.85
    for _ in range(20):
        chance.note(4, 0)
    assert chance.given(0.4) < 0.4


class Guesser:
    """Right with a probability."""

    def __init__(self, chance: float) -> None:
        self.chance = chance
        self.asked = 0
        self.random = random.Random(1)

    def propose(self, sequence: Sequence, count: int) -> list[int]:
        self.asked += 1
        tokens = list(sequence.tokens)
        for _ in range(count):
            right = next_token(tokens, sequence.seed)
            tokens.append(right if self.random.random() < self.chance else (right + 1) % 50)
        return tokens[len(sequence.tokens) :]

    def planned(self, plan: StepPlan) -> None:
        pass

    def judged(self, verification: Verification, accepted: int) -> None:
        pass


class Serving:
    """Rows that go on for ever on a device whose steps take what `seconds` says of their tokens."""

    def __init__(self, rows: int, *, chance: float) -> None:
        self.scheduler, self.device = simulated(blocks=20_000, max_running=rows, max_batch_tokens=4 * rows + 64, max_model_len=100_000)
        self.guesser = Guesser(chance)
        self.speculation = Speculation(self.guesser, tokens=4, possible=lambda sequence, drafts: drafts, clock=lambda: 0.0)
        for i in range(rows):
            request = Request(request_id=f"{i}", prompt_ids=[2 + i % 40, 3], max_tokens=50_000, ignore_eos=True)
            self.scheduler.submit(request, now=0.0, seed=i)

    def run(self, steps: int, *, per_token_s: float) -> tuple[int, float]:
        """Tokens and seconds."""
        tokens, seconds = 0, 0.0
        for _ in range(steps):
            self.speculation.propose(self.scheduler.running)
            plan = self.scheduler.schedule(0.0)
            self.speculation.planned(plan)
            sampled = self.device_run(plan)
            self.speculation.learn(plan, judge_drafts(plan, sampled))
            tokens += sum(len(update.token_ids) for update in self.scheduler.settle(plan, sampled, 1.0))
            took = 1.0 + per_token_s * plan.tokens
            self.speculation.timed(plan, took, prompts_s=per_token_s * plan.prefill_tokens, token_s=per_token_s)
            seconds += took
        return tokens, seconds

    def device_run(self, plan: StepPlan):  # type: ignore[no-untyped-def]  # its own type
        self.device._read = lambda sequence, length: None  # type: ignore[method-assign]  # what is read is looked at elsewhere
        return self.device.run(plan)


def test_few_rows_with_good_guesses_gain_what_they_can():
    tokens, seconds = Serving(2, chance=0.95).run(300, per_token_s=0.01)
    assert tokens / seconds > 3.5 * 2 / 1.02


def test_a_large_batch_with_bad_guesses_loses_next_to_nothing():
    serving = Serving(24, chance=0.2)
    serving.run(100, per_token_s=0.5)  # finds out
    asked = serving.guesser.asked
    tokens, seconds = serving.run(600, per_token_s=0.5)
    assert tokens / seconds > 0.98 * 24 / 13
    assert serving.guesser.asked - asked < 100, "nobody is asked while it is off, but for a trial"


def test_speculation_comes_back_when_guesses_get_better():
    serving = Serving(8, chance=0.05)
    serving.run(200, per_token_s=0.2)
    serving.guesser.chance = 0.95
    serving.run(600, per_token_s=0.2)
    tokens, seconds = serving.run(200, per_token_s=0.2)
    assert tokens / seconds > 1.2 * 8 / 2.6


def test_rows_run_ahead_again_while_nothing_is_guessed():
    serving = Serving(16, chance=0.0)
    serving.run(60, per_token_s=0.5)
    waiting = [sum(sequence.waits_for_token for sequence in serving.scheduler.running)]
    for _ in range(40):
        serving.run(1, per_token_s=0.5)
        waiting.append(sum(sequence.waits_for_token for sequence in serving.scheduler.running))
    assert waiting.count(0) > 30
