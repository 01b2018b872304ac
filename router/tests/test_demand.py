"""What a router tells the operator of a model's traffic."""

from hypothesis import given
from hypothesis import strategies as st

from pagoda_router.admission.demand import Demand, WakeTimes


def test_idle_counts_from_the_routers_start_and_from_the_last_request_that_left():
    demand = Demand(100.0)
    assert demand.idle_s(130.0) == 30.0
    demand.came()
    demand.came()
    assert demand.idle_s(140.0) == 0.0
    demand.left(150.0)
    assert demand.idle_s(160.0) == 0.0, "one is still there"
    demand.left(170.0)
    assert demand.idle_s(175.0) == 5.0


def test_a_request_that_was_held_and_then_runs_arrived_once():
    demand = Demand(0.0)
    demand.came()
    demand.left(1.0)
    demand.came(again=True)
    assert demand.arrivals == 1


def test_first_tokens_are_told_for_a_minute():
    demand = Demand(0.0)
    assert demand.ttft_s(0.0) is None
    for i in range(100):
        demand.answered(float(i), (i + 1) / 100)
    told = demand.ttft_s(99.0)
    assert (told["count"], told["p50"], told["p95"]) == (61, 0.7, 0.97)
    assert demand.ttft_s(200.0) is None


@given(st.lists(st.floats(0, 100), min_size=1))
def test_quantiles_are_samples_in_order(samples):
    demand = Demand(0.0)
    for sample in samples:
        demand.answered(0.0, sample)
    told = demand.ttft_s(1.0)
    rounded = [round(sample, 6) for sample in samples]
    assert told["p50"] in rounded
    assert told["p95"] in rounded
    assert min(rounded) <= told["p50"] <= told["p95"] <= max(rounded)


def test_a_wake_is_measured_from_the_first_that_waits_and_the_slowest_of_the_last_is_promised():
    wakes = WakeTimes()
    assert wakes.remaining_s(0.0, None) is None
    assert wakes.remaining_s(0.0, 40.0) == 40.0
    for began, ended in [(0.0, 90.0), (100.0, 130.0), (200.0, 220.0), (300.0, 310.0)]:
        wakes.waits(began)
        wakes.waits(began + 1)
        wakes.woke(ended)
    assert wakes.remaining_s(400.0, None) == 30.0, "the first of the four is forgotten"
    wakes.waits(400.0)
    assert wakes.remaining_s(410.0, 500.0) == 20.0
    assert wakes.remaining_s(500.0, None) == 0.0
    wakes.gave_up()
    wakes.woke(600.0)
    assert wakes.remaining_s(600.0, None) == 30.0, "nobody waited for that one"
