"""Placement: which worker, for which reason, in predicted milliseconds."""

from collections import Counter
from dataclasses import fields
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda_router.admission.credits import Price
from pagoda_router.generation import WorkerId
from pagoda_router.placement.facts import queued_prefill_tokens
from pagoda_router.placement.policy import Placement, PlacementReason, PolicyName, Refusal, RequestFacts, WorkerView, place

COST = Price(prompt_tokens=100, output_tokens=50, kv_tokens=160, least_kv_tokens=112)


def view(name: str, **facts: object) -> WorkerView:
    usual = {
        "routable": True, "capacity_tokens": 1000, "available_tokens": 500, "reservable_tokens": 160, "max_running": 8,
        "prefill_tokens_per_s": 1000.0, "decode_step_ms": 10.0,
    }  # fmt: skip
    return WorkerView(worker=WorkerId(name), **{**usual, **facts})  # type: ignore[arg-type]


def test_a_copy_of_a_view_has_every_field() -> None:
    """The copy names them by hand, for speed: a field that it forgets would come back as its default."""
    unlike_default = WorkerView(worker=WorkerId("a"), routable=True)
    for number, field in enumerate(fields(WorkerView)):
        setattr(unlike_default, field.name, f"value {number}")
    assert unlike_default.copied() == unlike_default


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
    (
        "a busy one before one that has not said a word for a second",
        [view("stuck", running=1, silent_s=1.0), view("busy", running=8)],
        "busy",
    ),
    (
        "a little later where fewer decode, as their tokens wait for its prompt",
        [
            view("sooner", running=8, decode_step_ms_per_sequence=0.0),
            view("later", running=2, decode_step_ms_per_sequence=0.0, queued_prefill_tokens=40),
        ],
        "later",
    ),
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
    a, b = view("a", running=4), view("b", queued_prefill_tokens=400, cached_tokens=32)
    found = place(COST, [b, a], Random(0))
    scores = ((a, pytest.approx(110 + 16 * 15 + 0.1 * 4 * 100)), (b, pytest.approx(302 + 16 * 10 - 16)))
    assert found == Placement(
        WorkerId("a"), 160, pytest.approx(110.0), PlacementReason.LEAST_WAIT, WorkerId("b"), pytest.approx(302.0), 0,
        PolicyName.PREDICTED, scores, 2,
    )  # fmt: skip


def test_a_short_prompt_passes_half_of_what_waits_beyond_its_own_length():
    busy = [view("busy", queued_prefill_tokens=1100)]
    found = [place(Price(tokens, 50, 160, 112), busy, Random(0)) for tokens in (100, 1100, 2000)]
    assert [each.predicted_ms for each in found if isinstance(each, Placement)] == [100 + 500 + 100, 1100 + 1100, 1100 + 2000]


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
def test_only_a_worker_that_takes_requests_and_has_room_is_chosen_and_none_scores_lower(workers, seed):
    found = place(COST, workers, Random(seed))
    open_workers = [w for w in workers if w.routable and w.reservable_tokens is not None]
    assert isinstance(found, Placement) == bool(open_workers)
    if isinstance(found, Placement):
        assert found.worker in {w.worker for w in open_workers}
        assert [score for _, score in found.scores] == sorted(score for _, score in found.scores)
        assert found.scores[0][0].worker == found.worker


def queued(name: str, tokens: int, cached_tokens: int = 0, **facts: object) -> WorkerView:
    return view(name, queued_prefill_tokens=tokens, cached_tokens=cached_tokens, **facts)


LARGE = view("large", capacity_tokens=8000, available_tokens=7000, running=1, max_running=64)
SHARED = view("shared", available_tokens=250)
BY_POLICY = [
    ("a worker that had no turn", "round-robin", [view("a"), view("b", running=8), view("c")], "b"),
    ("the fewest sequences, however long", "least-loaded", [view("many", running=3), queued("huge", 9000, running=1)], "huge"),
    ("the larger device", "gpu-aware", [view("small"), LARGE], "large"),
    ("an idle device though others have most of it to share out", "gpu-aware", [SHARED, view("busy", used_tokens=400)], "shared"),
    ("a device without another router's requests", "gpu-aware", [view("own", reserved_tokens=300), view("others", used_tokens=800)], "own"),
    ("the cached prefix before the idle one", "prefix", [view("idle"), queued("cached", 60, 96, running=2)], "cached"),
    ("no cached prefix behind a long queue", "prefix", [view("idle"), queued("melting", 9000, 96)], "idle"),
    ("no cached prefix in a full batch", "prefix", [view("idle"), view("full", cached_tokens=96, running=8)], "idle"),
    ("the cached prefix while it costs little", "predicted", [view("idle"), queued("cached", 60, 96)], "cached"),
    ("another one when the cached one is busy", "predicted", [view("idle"), queued("cached", 900, 96)], "idle"),
    ("an idle worker of another lane", "length", [view("own", running=1), view("other")], "other"),
    ("the own lane among busy workers", "length", [view("own", running=5), view("other", running=4)], "own"),
    ("another lane when the own one is overrun", "length", [view("own", running=6), view("other", running=1)], "other"),
    ("the own zone among equals", "predicted", [view("far", is_elsewhere=True), view("near")], "near"),
    ("another zone when the own one is busy", "predicted", [view("far", is_elsewhere=True), view("near", running=1)], "far"),
]  # fmt: skip


@pytest.mark.parametrize(("policy", "workers", "chosen"), [row[1:] for row in BY_POLICY], ids=[f"{row[1]}: {row[0]}" for row in BY_POLICY])
def test_a_policy_prefers(policy, workers, chosen):
    facts = RequestFacts(COST, lane=0, lane_of={"own": 0, "other": 1}, turn_of={"a": 4, "c": 5})
    for order in (workers, workers[::-1]):
        assert place(facts, order, Random(0), policy=PolicyName(policy)).worker == chosen


@pytest.mark.parametrize("policy", PolicyName)
def test_cold_requests_to_idle_workers_are_spread_at_random_by_every_policy(policy):
    rng = Random(3)
    counts = Counter(place(COST, [view("a"), view("b"), view("c")], rng, policy=policy).worker for _ in range(300))
    assert min(counts.values()) > 60


def test_a_prompt_of_another_length_keeps_off_busy_workers_of_a_lane_but_takes_an_idle_one():
    long = Price(prompt_tokens=4000, output_tokens=50, kv_tokens=4064, least_kv_tokens=1)
    facts = RequestFacts(long, lane=1, lane_of={WorkerId("short"): 0, WorkerId("long"): 1})
    busy = [view("short", running=4, reservable_tokens=4064), view("long", running=5, reservable_tokens=4064)]
    assert place(facts, busy, Random(0)).worker == "long"
    assert place(RequestFacts(long), busy, Random(0)).worker == "short"
    assert place(facts, [view("short", reservable_tokens=4064), busy[1]], Random(0)).worker == "short"


def test_a_mostly_cached_huge_prompt_is_a_small_request():
    huge = Price(prompt_tokens=100_000, output_tokens=50, kv_tokens=100_064, least_kv_tokens=1)
    found = place(huge, [view("cold"), view("warm", cached_tokens=99_000, running=6, queued_prefill_tokens=3000)], Random(0))
    assert (found.worker, found.reason, found.cached_tokens) == ("warm", PlacementReason.CACHED_PREFIX, 99_000)


def test_a_shunned_worker_is_taken_only_when_no_other_could_ever_run_the_request():
    good, bad = view("good", running=8), view("bad")
    assert place(COST, [good, bad], Random(0), shunned={WorkerId("bad")}).worker == "good"
    assert place(COST, [bad], Random(0), shunned={WorkerId("bad")}).worker == "bad"
    assert place(COST, [view("small", capacity_tokens=96), bad], Random(0), shunned={WorkerId("bad")}).worker == "bad"
    full = place(COST, [view("good", reservable_tokens=None), bad], Random(0), shunned={WorkerId("bad")})
    assert isinstance(full, Refusal)
    assert full.why == "no_room"


def test_a_learned_slope_of_the_decode_step_says_what_one_more_sequence_costs():
    flat, steep = view("flat", running=6, decode_step_ms_per_sequence=0.1), view("steep", running=2, decode_step_ms_per_sequence=9.0)
    assert place(COST, [steep, flat], Random(0)).worker == "flat"


@pytest.mark.parametrize(
    ("told_tokens", "unbegun", "untold_sequences", "found"),
    [
        pytest.param(3000, [], 0, 3000, id="all is begun"),
        pytest.param(0, [(1, 500), (1, 200)], 2, 700, id="nothing was told yet"),
        pytest.param(3000, [(1, 500), (1, 200)], 2, 3700, id="both came in the middle of a step"),
        pytest.param(3200, [(1, 500), (1, 200)], 1, 3700, id="the earlier one waits there and was told"),
        pytest.param(3000, [(4, 500), (1, 200)], 3, 3500, id="sequences of one request share its prompt"),
        pytest.param(3000, [(1, 500)], -2, 3000, id="another router's hide it"),
        pytest.param(100, [(1, 500)], -2, 500, id="never less than this router sent"),
    ],
)
def test_a_prompt_that_came_in_the_middle_of_a_step_counts_beside_what_was_told(told_tokens, unbegun, untold_sequences, found) -> None:
    unbegun_tokens = sum(tokens for _, tokens in unbegun)
    assert queued_prefill_tokens(told_tokens, unbegun_tokens, unbegun, untold_sequences) == found
