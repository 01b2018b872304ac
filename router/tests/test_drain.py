"""How fast a class drains, and the Retry-After that follows."""

from random import Random

import pytest

from pagoda_router.admission.drain import Ahead, ClassDrains, DrainRate, retry_after_s
from pagoda_router.generation import RequestClass

LATENCY, THROUGHPUT = RequestClass.LATENCY, RequestClass.THROUGHPUT


def test_the_drain_rate_is_what_was_settled_lately():
    rate = DrainRate()
    assert rate.tokens_per_s(0.0) == 0
    for second in range(20):
        rate.settle(float(second), 100)
    assert rate.tokens_per_s(19.0) == pytest.approx(110)
    assert rate.tokens_per_s(100.0) == pytest.approx(110), "an idle fleet is not a slow one"


def test_a_class_drains_at_its_own_rate_and_that_of_those_behind_it():
    drains = ClassDrains()
    assert drains.wait_s(LATENCY, Ahead(0, 100), 0.0) is None
    for second in range(10):
        drains.settle(LATENCY, float(second), 90)
        drains.settle(THROUGHPUT, float(second), 9)
    assert drains.wait_s(LATENCY, Ahead(0, 1100), 9.0) == pytest.approx(10)
    assert drains.wait_s(THROUGHPUT, Ahead(0, 100), 9.0) == pytest.approx(10)
    assert drains.wait_s(THROUGHPUT, Ahead(2200, 0), 9.0) == pytest.approx(20), "nothing of its own waits, but all of the class before it"


def test_a_class_of_which_nothing_was_ever_served_waits_for_all_before_it():
    drains = ClassDrains()
    drains.settle(LATENCY, 0.0, 100)
    assert drains.wait_s(THROUGHPUT, Ahead(300, 200), 0.0) == pytest.approx(5)


@pytest.mark.parametrize(("wait_s", "least", "most"), [(10.0, 9, 11), (0.0, 1, 1), (10**9, 60, 60), (None, 9, 11)], ids=str)
def test_retry_after_is_the_wait_within_a_tenth_and_bounds(wait_s, least, most):
    waits = [retry_after_s(wait_s, Random(seed)) for seed in range(50)]
    assert least <= min(waits) <= max(waits) <= most
    if least < most:
        assert len(set(waits)) > 10, "refused clients do not come back together"
