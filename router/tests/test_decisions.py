"""Decisions: what was known, what came of it, and what another choice would have cost."""

from random import Random

import pytest

from pagoda_router.admission.credits import Price
from pagoda_router.generation import ModelName, WorkerId
from pagoda_router.placement.decisions import DecisionRing, decision_of, regret
from pagoda_router.placement.facts import RequestFacts, WorkerView
from pagoda_router.placement.policy import KEPT_SCORES, Placement, PolicyName, place
from pagoda_router.tracing.record import WorkerTimes

TINY = ModelName("tiny")
FACTS = RequestFacts(Price(prompt_tokens=100, output_tokens=1, kv_tokens=112, least_kv_tokens=112))


def view(name: str, **facts: object) -> WorkerView:
    usual = {
        "routable": True, "capacity_tokens": 1000, "available_tokens": 500, "reservable_tokens": 112, "max_running": 8,
        "prefill_tokens_per_s": 1000.0, "decode_step_ms": 10.0,
    }  # fmt: skip
    return WorkerView(worker=WorkerId(name), **{**usual, **facts})  # type: ignore[arg-type]


def times(ttft_ms: float, tokens: int = 1, tpot_ms: float = 0.0) -> WorkerTimes:
    told = WorkerTimes()
    told.received_us, told.first_token_us = 1000, 1000 + int(1000 * ttft_ms)
    told.last_token_us = told.first_token_us + int(1000 * tpot_ms * (tokens - 1))
    told.output_tokens = tokens
    return told


def decided(*workers: WorkerView, came: WorkerTimes, policy: PolicyName = PolicyName.PREDICTED, request_id: str = "r"):
    found = place(FACTS, workers, Random(0), policy=policy)
    assert isinstance(found, Placement)
    return decision_of(found, FACTS, request_id, TINY, 0.0, came)


def test_a_decision_sets_the_prediction_beside_what_came():
    made = decided(view("a"), view("b", running=4), came=times(120.0, tokens=11, tpot_ms=7.0))
    assert made.worker == "a"
    assert made.predictions()[0] == (pytest.approx(100.0), pytest.approx(10.0))
    assert made.actual() == (pytest.approx(120.0), pytest.approx(7.0))


def test_a_request_that_has_not_ended_has_no_outcome_and_no_regret():
    made = decided(view("a"), view("b"), came=WorkerTimes())
    assert made.actual() is None
    assert regret([made]).decisions == 0


def test_the_best_choice_is_not_regretted_and_a_bad_one_is_by_what_it_cost():
    good = decided(view("a"), view("b", queued_prefill_tokens=400), came=times(100.0))
    assert regret([good]) == (1, 0.0, 0.0, 0.0)
    turn = decided(view("a", queued_prefill_tokens=400), view("b", queued_prefill_tokens=401), came=times(600.0))
    assert regret([turn]).mean_ms == pytest.approx(600 + 10 - 350 - 10, abs=15)


def test_a_worker_that_is_always_slower_than_predicted_is_judged_by_that():
    """Its predictions were wrong by the same factor each time, so not taking it was right."""
    late = [decided(view("b"), view("a", queued_prefill_tokens=9000), came=times(1100.0)) for _ in range(3)]
    choice = decided(view("a", queued_prefill_tokens=50), view("b", queued_prefill_tokens=60), came=times(150.0))
    assert regret([choice]).mean_ms == 0
    other = decided(view("b"), view("a", queued_prefill_tokens=500), came=times(1100.0))
    assert regret([*late, other]).mean_ms > 100


def test_another_policy_is_replayed_over_the_same_candidates():
    made = [decided(view("few", running=1, queued_prefill_tokens=5000), view("many", running=4), came=times(110.0)) for _ in range(4)]
    assert regret(made).mean_ms == 0
    assert regret(made, PolicyName.LEAST_LOADED).mean_ms > 2000


def test_the_ring_keeps_the_latest_decisions_and_the_best_candidates():
    ring = DecisionRing(3)
    for number in range(5):
        ring.append(decided(*(view(f"w{at}") for at in range(40)), came=times(1.0), request_id=f"r{number}"))
    assert [made.request_id for made in ring.latest(10)] == ["r4", "r3", "r2"]
    assert [made.request_id for made in ring.latest(2, "tiny")] == ["r4", "r3"]
    assert ring.latest(10, "other") == []
    assert (len(ring.latest(1)[0].candidates), ring.latest(1)[0].candidate_count) == (KEPT_SCORES, 40)
