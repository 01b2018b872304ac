"""How many second tries a router allows itself."""

from hypothesis import given
from hypothesis import strategies as st

from pagoda_router.dispatch.retry_budget import FLOOR, WINDOW_S, RetryBudget


def taken(budget, times, now_s, in_flight=0):
    return sum(budget.take(now_s, in_flight) for _ in range(times))


def test_a_quiet_router_has_the_floor():
    assert taken(RetryBudget(0.1), 100, 0.0) == FLOOR


def test_a_busy_router_may_try_a_share_of_its_requests_again():
    budget = RetryBudget(0.1)
    for _ in range(1000):
        budget.came(1.0)
    assert taken(budget, 1000, 2.0) == 100


def test_requests_in_flight_count_however_long_ago_they_came():
    assert taken(RetryBudget(1.0), 1000, 500.0, in_flight=200) == 200


def test_what_is_older_than_the_window_neither_allows_nor_forbids():
    budget = RetryBudget(0.1)
    for _ in range(1000):
        budget.came(0.0)
    assert taken(budget, 1000, 1.0) == 100
    assert taken(budget, 1000, 2 * WINDOW_S) == FLOOR


def test_a_share_of_nothing_allows_nothing():
    assert taken(RetryBudget(0.0), 5, 0.0, in_flight=100) == 0


@given(st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=400))
def test_within_one_window_tries_never_exceed_the_share_or_the_floor(steps):
    budget, now_s, requests, tries = RetryBudget(0.1), 0.0, 0, 0
    for pause_s, is_try in steps:
        now_s += pause_s / len(steps)
        if is_try:
            tries += budget.take(now_s)
        else:
            requests += 1
            budget.came(now_s)
        assert tries <= max(FLOOR, requests // 10)
