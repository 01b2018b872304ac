"""Placement: which worker, for which reason, in predicted milliseconds."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda_router.admission import Price
from pagoda_router.generation import WorkerId
from pagoda_router.policy import Placement, PlacementReason, Refusal, WorkerView, place

COST = Price(prompt_tokens=100, output_tokens=50, kv_tokens=160, least_kv_tokens=112)


def view(name: str, **facts: object) -> WorkerView:
    usual = {
        "routable": True, "capacity_tokens": 1000, "available_tokens": 500, "reservable_tokens": 160, "max_running": 8,
        "prefill_tokens_per_s": 1000.0, "decode_step_ms": 10.0,
    }  # fmt: skip
    return WorkerView(worker=WorkerId(name), **{**usual, **facts})  # type: ignore[arg-type]


CHOICES = [
    ("the idle one", [view("busy", running=8), view("idle")], "idle"),
    ("the shorter prefill queue", [view("long", queued_prefill_tokens=5000), view("short", queued_prefill_tokens=100)], "short"),
    (
        "a huge prompt counts by its tokens, not as one request",
        [view("one huge", queued_prefill_tokens=9000), view("many", running=6)],
        "many",
    ),
    ("the faster machine", [view("slow", prefill_tokens_per_s=200.0), view("fast", prefill_tokens_per_s=5000.0)], "fast"),
    ("a fast one with some load before a slow idle one", [view("slow", prefill_tokens_per_s=100.0), view("fast", running=4)], "fast"),
    ("nobody waiting before somebody waiting", [view("waiting", running=8, waiting=9), view("full", running=8)], "full"),
    ("the one with room", [view("full", reservable_tokens=None), view("open", running=8)], "open"),
    ("one that takes requests", [view("draining", routable=False, reason="the worker is draining"), view("open", running=8)], "open"),
    ("one that is awake, though busy", [view("asleep", sleeps=True), view("awake", running=8, queued_prefill_tokens=5000)], "awake"),
    (
        "one that sleeps, before a queue longer than waking",
        [view("awake", queued_prefill_tokens=50_000), view("rested", sleeps=True)],
        "rested",
    ),
    ("one that is large enough", [view("small", capacity_tokens=96), view("large", running=8)], "large"),
]


@pytest.mark.parametrize(("workers", "chosen"), [row[1:] for row in CHOICES], ids=[row[0] for row in CHOICES])
def test_the_choice_is(workers, chosen):
    for order in (workers, workers[::-1]):
        found = place(COST, order, Random(0))
        assert isinstance(found, Placement)
        assert found.worker == chosen


def test_a_worker_that_lost_the_request_is_taken_only_when_there_is_no_other():
    workers = [view("a"), view("b", running=8)]
    assert place(COST, workers, Random(0), {WorkerId("a")}).worker == "b"
    assert place(COST, workers[:1], Random(0), {WorkerId("a")}).worker == "a"


def test_equal_workers_share_the_load_at_random():
    rng = Random(1)
    counts = Counter(place(COST, [view("a"), view("b"), view("c")], rng).worker for _ in range(600))
    assert min(counts.values()) > 150


def test_a_worker_without_measurements_is_taken_for_an_average_one():
    unmeasured = view("new", prefill_tokens_per_s=0.0, decode_step_ms=0.0)
    assert place(COST, [unmeasured, view("slow", queued_prefill_tokens=100)], Random(0)).worker == "new"
    assert place(COST, [view("new", prefill_tokens_per_s=0.0, queued_prefill_tokens=100), view("known")], Random(0)).worker == "known"


REASONS = [
    ([view("a", running=4), view("b")], set(), PlacementReason.LEAST_WAIT),
    ([view("a"), view("b")], set(), PlacementReason.DRAWN),
    ([view("a"), view("b", routable=False)], set(), PlacementReason.ONLY_WORKER),
    ([view("a"), view("b", reservable_tokens=None)], set(), PlacementReason.ONLY_WITH_ROOM),
    ([view("a"), view("b")], {"b"}, PlacementReason.ONLY_WITH_ROOM),
    ([view("a")], {"a"}, PlacementReason.LAST_RESORT),
]


@pytest.mark.parametrize(("workers", "avoid", "reason"), REASONS, ids=[row[2].value for row in REASONS])
def test_the_reason_is_one_of_a_closed_set(workers, avoid, reason):
    assert place(COST, workers, Random(0), avoid).reason is reason


def test_a_placement_explains_itself():
    found = place(COST, [view("a", running=4), view("b", queued_prefill_tokens=400)], Random(0))
    assert found == Placement(WorkerId("a"), 160, pytest.approx(115.0), PlacementReason.LEAST_WAIT, WorkerId("b"), pytest.approx(510.0))


REFUSALS = [
    ("nobody", [], "no_worker", "no worker is known"),
    ("not ready", [view("a", routable=False, reason="the model is loading")], "no_worker", "the model is loading"),
    ("no room", [view("a", reservable_tokens=None, available_tokens=32)], "no_room", "160 tokens do not fit now, 32 are free"),
    ("too large", [view("a", capacity_tokens=96)], "too_large", "needs 112 tokens of KV cache, the largest worker has 96"),
]


@pytest.mark.parametrize(("workers", "why", "message"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS])
def test_a_refusal_says_why(workers, why, message):
    found = place(COST, workers, Random(0))
    assert isinstance(found, Refusal)
    assert found.why == why
    assert message in found.message


@given(
    st.lists(
        st.builds(
            lambda index, routable, fits, queued, running: view(
                f"w{index}", routable=routable, reservable_tokens=160 if fits else None, queued_prefill_tokens=queued, running=running
            ),
            st.integers(0, 10**6), st.booleans(), st.booleans(), st.integers(0, 10**6), st.integers(0, 64),
        ),
        max_size=8,
    ),
    st.integers(0, 2**32),
)  # fmt: skip
def test_only_a_worker_that_takes_requests_and_has_room_is_chosen_and_no_other_is_predicted_faster(workers, seed):
    found = place(COST, workers, Random(seed))
    open_workers = [w for w in workers if w.routable and w.reservable_tokens is not None]
    assert isinstance(found, Placement) == bool(open_workers)
    if isinstance(found, Placement):
        assert found.worker in {w.worker for w in open_workers}
        assert found.runner_up_ms is None or found.predicted_ms <= found.runner_up_ms
