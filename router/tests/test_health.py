"""Breakers and ejection: after failures in a row, against the own peers' median, within ten seconds, and never for half a fleet."""

import pytest

from pagoda_router.generation import WorkerId
from pagoda_router.placement.facts import WorkerView
from pagoda_router.placement.health import FIRST_OPEN_S, Cause, HealthBoard, slow_workers


def view(name: str, step_ms: float = 10.0, **facts: object) -> WorkerView:
    usual = {"routable": True, "running": 4, "max_running": 8, "decode_step_ms": step_ms, "prefill_tokens_per_s": 1000.0}
    return WorkerView(worker=WorkerId(name), **{**usual, **facts})  # type: ignore[arg-type]


A, B = WorkerId("a"), WorkerId("b")
FLEET = [view("a"), view("b"), view("c")]


def failed(board: HealthBoard, times: int, now_s: float) -> None:
    for _ in range(times):
        board.ended(A, now_s, is_failure=True, ran=True)


def test_failures_in_a_row_open_the_breaker_and_one_success_between_them_does_not():
    board = HealthBoard()
    failed(board, 2, 0.0)
    board.ended(A, 0.0, is_failure=False, ran=True)
    failed(board, 2, 0.0)
    assert board.shunned(FLEET, 0.0) == frozenset()
    failed(board, 1, 0.0)
    assert board.shunned(FLEET, 0.0) == {A}
    assert board.causes() == {A: Cause.FAILURES}


def test_a_half_open_breaker_lets_one_request_through_and_closes_when_it_ends_well():
    board = HealthBoard()
    failed(board, 3, 0.0)
    assert board.shunned(FLEET, FIRST_OPEN_S - 0.1) == {A}
    assert board.shunned(FLEET, FIRST_OPEN_S) == frozenset()
    board.placed(A, FIRST_OPEN_S)
    assert board.shunned(FLEET, FIRST_OPEN_S) == {A}
    board.ended(A, 6.0, is_failure=False, ran=True)
    assert board.shunned(FLEET, 6.0) == frozenset()
    assert board.causes() == {}


def test_a_probe_that_fails_opens_it_for_twice_as_long():
    board = HealthBoard()
    failed(board, 3, 0.0)
    board.placed(A, FIRST_OPEN_S)
    board.ended(A, 6.0, is_failure=True, ran=False)
    assert board.shunned(FLEET, 6.0 + 2 * FIRST_OPEN_S - 0.1) == {A}
    assert board.shunned(FLEET, 6.0 + 2 * FIRST_OPEN_S) == frozenset()


def test_a_probe_that_was_cancelled_proves_nothing_and_another_one_may_go():
    board = HealthBoard()
    failed(board, 3, 0.0)
    board.placed(A, FIRST_OPEN_S)
    board.ended(A, 6.0, is_failure=False, ran=False)
    assert board.shunned(FLEET, 6.0) == frozenset()
    assert board.causes() == {A: Cause.FAILURES}


SLOW = [
    ("ten times its peers", [view("a", 100.0), view("b"), view("c")], {"a"}),
    ("twice its peers", [view("a", 20.0), view("b"), view("c")], set()),
    ("a larger batch explains it", [view("a", 35.0, running=8), view("b", running=0), view("c", running=0)], set()),
    ("a learned slope explains it", [view("a", 100.0, running=40), *(view(x, 20.0, decode_step_ms_per_sequence=2.0) for x in "bc")], set()),
    ("one of two", [view("a", 100.0), view("b")], {"a"}),
    ("an idle one's last step is history", [view("a", 100.0, running=0), view("b"), view("c")], set()),
    ("half of them is two kinds of machine", [view("a", 100.0), view("b", 100.0), view("c"), view("d")], set()),
    ("nobody measured", [view("a", 0.0), view("b", 0.0)], set()),
]


@pytest.mark.parametrize(("views", "slow"), [row[1:] for row in SLOW], ids=[row[0] for row in SLOW])
def test_slow_is_who_needs_three_times_what_its_peers_would_for_the_same_batch(views, slow):
    assert slow_workers(views) == slow


def test_a_worker_that_stays_slow_is_ejected_within_ten_seconds_and_a_single_slow_step_is_not():
    board, slow = HealthBoard(), [view("a", 100.0), view("b"), view("c")]
    board.shunned(slow, 0.0)
    board.shunned(FLEET, 2.0)
    ejected_s = next(now_s for now_s in range(3, 60) if board.shunned(slow, float(now_s)))
    assert 3 < ejected_s - 3 <= 10
    assert board.causes() == {A: Cause.SLOW}


def test_a_worker_that_fell_silent_with_work_to_do_is_ejected_but_a_long_prefill_may_take_its_time():
    board = HealthBoard()
    assert board.shunned([view("a", silent_s=8.0, queued_prefill_tokens=2000), view("b"), view("c")], 0.0) == frozenset()
    assert board.shunned([view("a", silent_s=8.0), view("b"), view("c")], 1.0) == {A}
    assert board.causes() == {A: Cause.SILENT}


def test_no_more_than_half_of_a_fleet_is_ejected_for_being_slow():
    board = HealthBoard()
    assert board.shunned([view("a", silent_s=60.0), view("b", silent_s=60.0), view("c")], 0.0) == {A}
    assert board.shunned([view("a", silent_s=60.0)], 4.0) == {A}


def test_a_worker_that_has_gone_is_forgotten():
    board = HealthBoard()
    failed(board, 3, 0.0)
    board.forget_all_but([B])
    assert board.causes() == {}
