"""The waiting room: order, bounds, overtaking; and the drain rate behind Retry-After."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda_router.queue import LOOK_AHEAD, DrainRate, Waiting, WaitingRoom, retry_after_s


def room_of(*costs: int, priorities: tuple[int, ...] = ()) -> WaitingRoom[str]:
    room: WaitingRoom[str] = WaitingRoom(10_000)
    for ticket, cost in enumerate(costs):
        room.push(Waiting(f"r{ticket}", cost, ticket, priority=priorities[ticket] if priorities else 0))
    return room


def start_with(room: WaitingRoom[str], free_tokens: int) -> list[str]:
    """Which start when the worker has this much room."""
    started: list[str] = []
    left = free_tokens

    def start(waiting: Waiting[str]) -> bool:
        nonlocal left
        if waiting.cost_tokens > left:
            return False
        left -= waiting.cost_tokens
        started.append(waiting.request)
        return True

    room.start_those_that_fit(start)
    return started


SCANS = [
    ("first come, first served", (10, 10, 10), (), 20, ["r0", "r1"]),
    ("priority before arrival", (10, 10, 10), (0, 1, 2), 20, ["r2", "r1"]),
    ("equal priority in order of arrival", (10, 10, 10), (1, 2, 1), 30, ["r1", "r0", "r2"]),
    ("a small one may overtake", (100, 10), (), 50, ["r1"]),
    ("but not by more tokens than the overtaken costs", (100, 60, 30, 30, 10), (), 95, ["r1", "r2"]),
    ("nothing fits", (100, 100), (), 50, []),
]


@pytest.mark.parametrize(("costs", "priorities", "free", "started"), [row[1:] for row in SCANS], ids=[row[0] for row in SCANS])
def test_a_scan_starts(costs, priorities, free, started):
    assert start_with(room_of(*costs, priorities=priorities), free) == started


def test_a_large_request_is_overtaken_once_by_its_own_size_and_then_never():
    room = room_of(100)
    overtaken = 0
    for ticket in range(1, 50):
        room.push(Waiting(f"r{ticket}", 10, ticket))
        overtaken += len(start_with(room, 50))
    assert overtaken == 10
    assert start_with(room, 100) == ["r0"]


def test_a_scan_looks_only_so_far_ahead():
    room = room_of(*[100] * LOOK_AHEAD, 10)
    assert start_with(room, 50) == []


def test_the_room_is_bounded_in_tokens_but_one_request_may_always_wait():
    room: WaitingRoom[str] = WaitingRoom(100)
    assert room.has_room(500)
    room.push(Waiting("large", 500, 1))
    assert not room.has_room(1)


def test_expired_requests_leave():
    room: WaitingRoom[str] = WaitingRoom(100)
    for ticket, deadline in enumerate((5.0, 1.0, 9.0)):
        room.push(Waiting(f"r{ticket}", 10, ticket, deadline_s=deadline))
    assert [waiting.request for waiting in room.take_expired(5.0)] == ["r0", "r1"]
    assert [waiting.request for waiting in room] == ["r2"]
    assert room.tokens == 10


@given(st.lists(st.tuples(st.sampled_from(["push", "remove", "start"]), st.integers(1, 200), st.integers(-2, 2)), max_size=80))
def test_the_line_stays_in_order_and_its_tokens_add_up(trace):
    room: WaitingRoom[int] = WaitingRoom(1000)
    waiting: dict[int, Waiting[int]] = {}
    for ticket, (operation, number, priority) in enumerate(trace):
        if operation == "push":
            waiting[ticket] = Waiting(ticket, number, ticket, priority=priority)
            room.push(waiting[ticket])
        elif operation == "remove" and waiting:
            gone = waiting.pop(sorted(waiting)[number % len(waiting)])
            assert room.remove(gone)
            assert not room.remove(gone)
        elif operation == "start":
            room.start_those_that_fit(lambda w, limit=number: w.cost_tokens <= limit and waiting.pop(w.request, None) is not None)
        line = list(room)
        assert [w.order for w in line] == sorted(w.order for w in line)
        assert {w.request for w in line} == set(waiting)
        assert room.tokens == sum(w.cost_tokens for w in line)
        assert all(w.overtaken_tokens <= w.cost_tokens for w in line)


def test_the_drain_rate_is_what_was_settled_lately():
    rate = DrainRate()
    assert rate.tokens_per_s(0.0) == 0
    for second in range(20):
        rate.settle(float(second), 100)
    assert rate.tokens_per_s(19.0) == pytest.approx(110)
    assert rate.tokens_per_s(100.0) == pytest.approx(110), "an idle fleet is not a slow one"


@pytest.mark.parametrize(
    ("ahead", "rate", "least", "most"), [(1000, 100, 9, 11), (0, 100, 1, 1), (10**9, 1, 60, 60), (1000, 0, 9, 11)], ids=str
)
def test_retry_after_is_the_time_to_drain_what_is_ahead_within_a_tenth_and_bounds(ahead, rate, least, most):
    waits = [retry_after_s(ahead, rate, Random(seed)) for seed in range(50)]
    assert least <= min(waits) <= max(waits) <= most
    if least < most:
        assert len(set(waits)) > 10, "refused clients do not come back together"


@given(
    st.lists(st.tuples(st.integers(1, 50), st.sampled_from("ab")), max_size=90),
    st.sampled_from([0, 20, 100]),
    st.sampled_from([0, 20, 100]),
)
def test_a_group_is_served_as_if_it_were_alone(costs, free_a, free_b):
    def run(only: str | None) -> list[int]:
        room: WaitingRoom[int] = WaitingRoom(100_000)
        for ticket, (cost, group) in enumerate(costs):
            if only in (None, group):
                room.push(Waiting(ticket, cost, ticket, group=group))
        left = {"a": free_a, "b": free_b}
        started: list[int] = []

        def start(waiting: Waiting[int]) -> bool:
            if waiting.cost_tokens > left[waiting.group]:
                return False
            left[waiting.group] -= waiting.cost_tokens
            started.append(waiting.request)
            return True

        room.start_those_that_fit(start)
        assert room.tokens == sum(waiting.cost_tokens for waiting in room)
        assert sum(room.group_sizes().values()) == len(room)
        return started

    assert sorted(run(None)) == sorted(run("a") + run("b"))


def test_the_prompts_of_one_request_share_a_ticket_and_each_leaves_by_itself():
    room: WaitingRoom[str] = WaitingRoom(100)
    prompts = [Waiting(f"p{n}", 10, 7) for n in range(3)]
    for waiting in prompts:
        room.push(waiting)
    assert room.remove(prompts[1])
    assert not room.remove(prompts[1])
    assert [waiting.request for waiting in room] == ["p0", "p2"]
    assert room.tokens == 20


def test_a_long_line_of_one_group_does_not_hide_another():
    room: WaitingRoom[str] = WaitingRoom(10_000)
    for ticket in range(2 * LOOK_AHEAD):
        room.push(Waiting("full", 10, ticket, group="a"))
    room.push(Waiting("free", 10, 2 * LOOK_AHEAD, group="b"))
    asked: list[str] = []

    def start(waiting: Waiting[str]) -> bool:
        asked.append(waiting.request)
        return waiting.group == "b"

    room.start_those_that_fit(start)
    assert asked == ["full"] * LOOK_AHEAD + ["free"]
    assert room.group_sizes() == {"a": 2 * LOOK_AHEAD}
