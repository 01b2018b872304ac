"""Length lanes: cut by work from live traffic, bounded by KV caches, moved only when traffic really changed."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from pagoda_router.generation import WorkerId
from pagoda_router.placement.facts import WorkerView
from pagoda_router.placement.length_lanes import MAN_EVERY, LengthLanes, cuts_of


def workers(*capacities: int) -> list[WorkerView]:
    return [WorkerView(worker=WorkerId(f"w{at}"), routable=True, capacity_tokens=capacity) for at, capacity in enumerate(capacities)]


def mixed(rng: Random) -> tuple[int, int]:
    """A heavy tail: (uncached prompt, output)."""
    return int(min(30_000, 100 * rng.paretovariate(1.0))), int(min(2000, 30 * rng.paretovariate(1.2)))


def taught(lanes: LengthLanes, requests: int, draw, fleet, seed: int = 0) -> LengthLanes:
    rng = Random(seed)
    for _ in range(requests):
        lanes.observe(*draw(rng), fleet)
    return lanes


def test_lanes_have_equal_shares_of_the_work_not_of_the_requests():
    rng = Random(0)
    samples = [(length, length) for length in (sum(mixed(rng)) for _ in range(4000))]
    (cut,) = cuts_of(samples, 2)
    short = [length for length, _ in samples if length <= cut]
    assert 0.4 < sum(short) / sum(length for length, _ in samples) < 0.6
    assert len(short) > 0.8 * len(samples)


def test_each_lane_has_its_part_of_the_workers_and_the_smallest_caches_take_the_short_requests():
    lanes = taught(LengthLanes(), 400, mixed, workers(90_000, 20_000, 90_000, 20_000))
    assert len(lanes.cuts) == 3
    assert sorted(lanes.lane_of.values()) == [0, 1, 2, 3]
    assert {lanes.lane_of[WorkerId("w1")], lanes.lane_of[WorkerId("w3")]} == {0, 1}
    assert lanes.lane(10, 10) == 0
    assert lanes.lane(29_000, 2000) == 3


def test_a_lane_holds_nothing_that_its_smallest_worker_cannot():
    lanes = taught(LengthLanes(), 400, mixed, workers(500, 90_000))
    assert all(cut <= 500 for cut in lanes.cuts)
    assert lanes.lane(1000, 100) == 1


def test_even_traffic_and_a_single_worker_have_one_lane():
    def even(rng):
        return rng.randint(900, 1100), 100

    assert taught(LengthLanes(), 400, even, workers(9000, 9000)).cuts == ()
    assert taught(LengthLanes(), 400, mixed, workers(9000)).cuts == ()
    assert taught(LengthLanes(), 400, mixed, workers(9000)).lane_of == {}


def test_lanes_stay_where_they_are_while_traffic_only_flickers_and_move_when_it_changes():
    fleet = workers(90_000, 90_000)

    def bimodal(long):
        return lambda rng: (100, 20) if rng.random() < 0.9 else (long, 20)

    lanes = taught(LengthLanes(), 600, bimodal(5000), fleet)
    before = lanes.cuts
    taught(lanes, 600, bimodal(5000), fleet, seed=5)
    assert lanes.cuts == before
    taught(lanes, 1200, lambda rng: (400 * a, b) if (a := rng.randint(1, 40)) and (b := 20) else (0, 0), fleet)
    assert lanes.cuts != before


def test_a_worker_that_comes_or_goes_gets_or_leaves_a_lane_within_a_few_requests():
    lanes = taught(LengthLanes(), 400, mixed, workers(90_000, 90_000))
    taught(lanes, MAN_EVERY, mixed, workers(90_000, 90_000, 90_000), seed=1)
    assert set(lanes.lane_of) == {"w0", "w1", "w2"}
    taught(lanes, MAN_EVERY, mixed, workers(90_000, 90_000), seed=2)
    assert set(lanes.lane_of) == {"w0", "w1"}


@given(st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)), max_size=200), st.integers(1, 6))
def test_cuts_ascend_and_leave_something_for_every_lane(samples, lanes):
    cuts = cuts_of(samples, lanes)
    assert list(cuts) == sorted(set(cuts))
    assert len(cuts) < lanes or cuts == ()
    if cuts:
        assert cuts[-1] < max(length for length, _ in samples)
