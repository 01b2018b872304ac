"""The waiting room: whose turn it is, what may overtake, what is bounded, and that nobody is kept out or starved."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda_router.admission.drain import Ahead
from pagoda_router.admission.queue import AGED_SHARE, LOOK_AHEAD, WaitingRoom
from pagoda_router.admission.tenants import QUANTUM_TOKENS
from pagoda_router.admission.waiting import Waiting
from pagoda_router.generation import RequestClass

LATENCY, THROUGHPUT = RequestClass.LATENCY, RequestClass.THROUGHPUT


def room_of(*costs: int, priorities: tuple[int, ...] = (), **bounds) -> WaitingRoom[str]:
    room: WaitingRoom[str] = WaitingRoom(10_000, **bounds)
    for ticket, cost in enumerate(costs):
        room.push(Waiting(f"r{ticket}", cost, ticket, priority=priorities[ticket] if priorities else 0))
    return room


def start_with(room: WaitingRoom[str], free_tokens: int, now_s: float = 0.0) -> list[str]:
    """Which start, in turn, when the worker has this much room."""
    started: list[str] = []
    left = free_tokens

    def start(waiting: Waiting[str]) -> bool:
        nonlocal left
        if waiting.cost_tokens > left:
            return False
        left -= waiting.cost_tokens
        started.append(waiting.request)
        return True

    room.start_those_that_fit(start, now_s)
    return started


# ---------------------------------------------------------------- one line

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


def test_one_that_is_alone_pays_for_its_place_and_goes_only_if_it_fits():
    room = room_of(10)
    assert start_with(room, 5) == []
    assert len(room) == 1
    assert start_with(room, 10) == ["r0"]
    assert (len(room), room.tokens, room.group_sizes()) == (0, 0, {})
    assert room.served_tokens("", LATENCY) == 10


def test_the_earliest_deadline_of_a_tenant_goes_first_and_those_without_one_last():
    room: WaitingRoom[str] = WaitingRoom(1000)
    for ticket, (name, deadline_s) in enumerate({"none": float("inf"), "late": 9.0, "soon": 3.0}.items()):
        room.push(Waiting(name, 10, ticket, deadline_s=deadline_s))
    assert start_with(room, 30) == ["soon", "late", "none"]


def test_a_large_request_is_overtaken_once_by_its_own_size_and_then_never():
    room = room_of(100)
    overtaken = 0
    for ticket in range(1, 50):
        room.push(Waiting(f"r{ticket}", 10, ticket))
        overtaken += len(start_with(room, 50))
    assert overtaken == 10
    assert start_with(room, 100) == ["r0"]


def test_a_warm_request_that_does_not_fit_keeps_no_smaller_cold_one_out():
    room = room_of()
    room.push(Waiting("warm", 1000, 1, cached_tokens=900))
    room.push(Waiting("cold", 200, 2))
    assert start_with(room, 500) == ["cold"]


def test_a_scan_looks_only_so_far_ahead():
    room = room_of(*[100] * LOOK_AHEAD, 10)
    assert start_with(room, 50) == []


def test_the_prompts_of_one_request_share_a_ticket_and_each_leaves_by_itself():
    room: WaitingRoom[str] = WaitingRoom(100)
    prompts = [Waiting(f"p{n}", 10, 7) for n in range(3)]
    for waiting in prompts:
        room.push(waiting)
    assert room.remove(prompts[1])
    assert not room.remove(prompts[1])
    assert [waiting.request for waiting in room] == ["p0", "p2"]
    assert room.tokens == 20


# ---------------------------------------------------------------- classes


def test_latency_goes_before_throughput_whoever_came_first():
    room: WaitingRoom[str] = WaitingRoom(1000)
    room.push(Waiting("batch", 10, 1, request_class=THROUGHPUT))
    room.push(Waiting("chat", 10, 2))
    assert start_with(room, 10) == ["chat"]
    assert start_with(room, 10) == ["batch"]


def test_an_old_throughput_request_gets_its_share_of_what_starts_and_no_more():
    room: WaitingRoom[str] = WaitingRoom(10**6, promote_after_s=30.0)
    for ticket in range(40):
        room.push(Waiting(f"batch{ticket}", 10, ticket, request_class=THROUGHPUT, arrived_s=0.0))
    for ticket in range(40, 140):
        room.push(Waiting("chat", 10, ticket, arrived_s=29.0))
    assert set(start_with(room, 100, now_s=29.9)) == {"chat"}
    aged = start_with(room, 500, now_s=30.0)
    share = sum(name.startswith("batch") for name in aged) / len(aged)
    assert AGED_SHARE / 2 < share <= AGED_SHARE
    assert [name for name in aged if name != "chat"] == [f"batch{n}" for n in range(5)], "the oldest go"


@given(st.integers(1, 300), st.lists(st.integers(1, 300), min_size=1, max_size=20))
def test_no_throughput_request_starves_however_much_latency_work_comes(cost, chats):
    room: WaitingRoom[str] = WaitingRoom(10**9, promote_after_s=1.0)
    room.push(Waiting("batch", cost, 0, request_class=THROUGHPUT, arrived_s=0.0))
    served, ticket = 0, 0
    while served <= cost / AGED_SHARE + 300:
        while len(room) < 10:
            ticket += 1
            room.push(Waiting("chat", chats[ticket % len(chats)], ticket, arrived_s=2.0))
        before = room.tokens
        if "batch" in start_with(room, 300, now_s=2.0):
            return
        served += before - room.tokens
    raise AssertionError(f"{served} tokens went before a request of {cost}")


# ---------------------------------------------------------------- tenants


def test_whoever_was_served_least_goes_next():
    room: WaitingRoom[str] = WaitingRoom(10_000)
    for ticket in range(8):
        room.push(Waiting("flood", 10, ticket, tenant="flood"))
    for ticket in range(8, 10):
        room.push(Waiting("victim", 20, ticket, tenant="victim"))
    assert start_with(room, 60) == ["flood", "victim", "flood", "flood"] + ["flood"] * 1


def test_what_was_not_needed_is_given_back_to_the_tenant():
    room: WaitingRoom[str] = WaitingRoom(10_000)
    for ticket, tenant in enumerate("abab"):
        room.push(Waiting(tenant, 10, ticket, tenant=tenant, service_tokens={"a": 100, "b": 50}[tenant]))
    assert start_with(room, 20) == ["a", "b"]
    room.settle("a", LATENCY, 80)  # it answered in few words
    assert start_with(room, 20) == ["a", "b"]


def test_who_comes_back_has_saved_up_nothing():
    room: WaitingRoom[str] = WaitingRoom(10**6)
    ticket = 0
    for ticket in range(100):
        room.push(Waiting("busy", 10, ticket, tenant="busy"))
    start_with(room, 500)
    for later in range(20):
        room.push(Waiting("back", 10, ticket + 1 + later, tenant="back"))
    assert Counter(start_with(room, 200)) == {"busy": 10, "back": 10}


def test_within_a_quantum_the_tenant_with_a_warm_prefix_goes_first_and_then_the_other_catches_up():
    room: WaitingRoom[str] = WaitingRoom(10**6)
    for ticket in range(40):
        room.push(Waiting("cold", 1024, ticket, tenant="cold"))
        room.push(Waiting("warm", 1024, ticket, tenant="warm", cached_tokens=512))
    order = start_with(room, 16 * 1024)
    run = QUANTUM_TOKENS // 1024
    assert order[:run] == ["warm"] * run
    assert Counter(order) == {"warm": 8, "cold": 8}


@given(st.integers(0, 10**9), st.sampled_from([20, 900]), st.sampled_from([0, 500]))
def test_backlogged_tenants_are_served_alike(seed, dearest, most_cached):
    """VTC's bound, with a quantum and bounded overtaking on top: see tenants.py."""
    rng = Random(seed)
    requests = [(rng.choice("aaaabc"), rng.randint(1, dearest), rng.randint(0, most_cached)) for _ in range(120)]
    room: WaitingRoom[int] = WaitingRoom(10**9)
    backlog: Counter[str] = Counter()
    for ticket, (tenant, cost, cached) in enumerate(requests):
        room.push(Waiting(ticket, cost, ticket, tenant=tenant, cached_tokens=cached))
        backlog[tenant] += 1
    served: Counter[str] = Counter()
    while min(backlog.values()) > 0:
        left = rng.randint(0, 2 * dearest)

        def start(waiting: Waiting[int]) -> bool:
            nonlocal left
            if waiting.cost_tokens > left or not all(backlog[tenant] > 0 for tenant in backlog):
                return False
            left -= waiting.cost_tokens
            served[waiting.tenant] += waiting.cost_tokens
            backlog[waiting.tenant] -= 1
            return True

        before = room.tokens
        room.start_those_that_fit(start)
        lead = max(served[tenant] for tenant in backlog) - min(served[tenant] for tenant in backlog)
        assert lead <= (QUANTUM_TOKENS if most_cached else 0) + 3 * dearest
        assert before > room.tokens or left < dearest, "room for anything, and nothing went"


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([LATENCY, THROUGHPUT])), min_size=1, max_size=40), st.integers(0, 400))
def test_room_for_requests_of_one_size_is_always_used(requests, free):
    room: WaitingRoom[str] = WaitingRoom(10**6)
    for ticket, (tenant, request_class) in enumerate(requests):
        room.push(Waiting("r", 10, ticket, tenant=tenant, request_class=request_class))
    assert len(start_with(room, free)) == min(len(requests), free // 10)


# ---------------------------------------------------------------- bounds


def test_the_room_is_bounded_in_tokens_and_requests_but_one_may_always_wait():
    room: WaitingRoom[str] = WaitingRoom(100, max_requests=2)
    assert room.has_room(500)
    room.push(Waiting("large", 500, 1))
    assert not room.has_room(1)
    room.max_tokens = 1000
    assert room.has_room(1)
    room.push(Waiting("small", 1, 2))
    assert not room.has_room(1)


DISPLACED = [
    # newcomer's tenant and class, its cost → who leaves a room of 100 tokens that is full
    ("one who floods cannot go on", ("flood", LATENCY, 20), None),
    ("a newcomer takes the newest of the greediest", ("new", LATENCY, 20), ["f3"]),
    ("and as many as it needs", ("new", LATENCY, 30), ["f3", "f2"]),
    ("but not more than leaves the others as much as itself", ("new", LATENCY, 60), None),
    ("a batch does not displace a chat", ("new", THROUGHPUT, 20), None),
]


@pytest.mark.parametrize(("newcomer", "leave"), [row[1:] for row in DISPLACED], ids=[row[0] for row in DISPLACED])
def test_a_full_room(newcomer, leave):
    room: WaitingRoom[str] = WaitingRoom(100)
    for ticket in range(4):
        room.push(Waiting(f"f{ticket}", 20, ticket, tenant="flood"))
    room.push(Waiting("other", 20, 4, tenant="other"))
    tenant, request_class, cost = newcomer
    displaced = room.displaced_by(cost, tenant, request_class)
    assert (None if displaced is None else [waiting.request for waiting in displaced]) == leave


def test_a_chat_takes_the_place_of_a_batch_even_of_its_own_tenant():
    room: WaitingRoom[str] = WaitingRoom(100)
    room.push(Waiting("chat", 50, 1))
    for ticket in (2, 3):
        room.push(Waiting(f"batch{ticket}", 25, ticket, request_class=THROUGHPUT))
    displaced = room.displaced_by(10, "", LATENCY)
    assert displaced is not None
    assert [waiting.request for waiting in displaced] == ["batch3"]


ARRIVALS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([LATENCY, THROUGHPUT]), st.integers(1, 120)), max_size=60)


@given(ARRIVALS, st.integers(50, 300), st.integers(1, 12))
def test_whoever_comes_the_bounds_hold_and_nobody_loses_a_place_to_one_who_has_more(arrivals, most_tokens, most):
    room: WaitingRoom[int] = WaitingRoom(most_tokens, max_requests=most)
    for ticket, (tenant, request_class, cost) in enumerate(arrivals):
        displaced = room.displaced_by(cost, tenant, request_class)
        if displaced is None:
            assert len(room) > 0
            continue
        for waiting in displaced:
            assert room.remove(waiting)
        room.push(Waiting(ticket, cost, ticket, tenant=tenant, request_class=request_class))
        assert len(room) <= most
        assert room.tokens <= most_tokens or len(room) == 1
        tokens: Counter[str] = Counter()
        for waiting in room:
            if waiting.request_class is request_class:
                tokens[waiting.tenant] += waiting.cost_tokens
        for waiting in displaced:
            assert waiting.request_class >= request_class or request_class is LATENCY
            if waiting.request_class is request_class:
                assert waiting.tenant != tenant
                assert tokens[waiting.tenant] >= tokens[tenant]


AHEAD = [
    ("its own", "a", 10, None, 30 + 40),
    ("a newcomer waits for as much of each as it brings", "new", 10, None, 20),
    ("a large newcomer for all", "new", 500, None, 70),
    ("an early deadline passes its own", "a", 10, (0, 2.0, 9), 10 + 20),
]


@pytest.mark.parametrize(("tenant", "cost", "order", "ahead"), [row[1:] for row in AHEAD], ids=[row[0] for row in AHEAD])
def test_what_goes_before_one_more_request(tenant, cost, order, ahead):
    room: WaitingRoom[str] = WaitingRoom(1000)
    for ticket, (sender, size, deadline_s) in enumerate([("a", 10, 1.0), ("a", 20, 5.0), ("b", 40, 1.0)]):
        room.push(Waiting(sender, size, ticket, tenant=sender, deadline_s=deadline_s))
    assert room.ahead_of(cost, tenant, LATENCY, order) == Ahead(0, ahead)
    assert room.ahead_of(cost, tenant, THROUGHPUT, order) == Ahead(70, 0), "all of a class before goes first"


@pytest.mark.parametrize("flood", [2, 20])
def test_a_tenant_beside_one_that_floods_keeps_its_share(flood):
    """Of 100 tokens a tick: the victim asks for 60, and gets its half; the flooder fills the queue, and gets the rest."""
    room: WaitingRoom[str] = WaitingRoom(500)
    served: Counter[str] = Counter()
    ticket = 0
    for _ in range(200):
        for tenant in ["flood"] * (flood * 6) + ["victim"] * 6:
            ticket += 1
            displaced = room.displaced_by(10, tenant, LATENCY)
            for waiting in displaced or ():
                room.remove(waiting)
            if displaced is not None:
                room.push(Waiting(tenant, 10, ticket, tenant=tenant))
        served.update(start_with(room, 100))
    assert served.total() == 200 * 10, "no room was left empty"
    assert served["victim"] >= 0.98 * served.total() / 2


# ---------------------------------------------------------------- groups


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
    assert asked == ["full", "free"], "what did not fit is not tried again in requests as dear"
    assert room.group_sizes() == {"a": 2 * LOOK_AHEAD}


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["push", "push", "remove", "start", "regroup"]),
        st.integers(1, 200),
        st.integers(-2, 2),
        st.sampled_from("ab"),
        st.sampled_from([LATENCY, THROUGHPUT]),
    ),
    max_size=80,
)


@given(OPERATIONS, st.booleans())
def test_whatever_happens_the_room_adds_up(trace, waves):
    room: WaitingRoom[int] = WaitingRoom(1000, promote_after_s=5.0, waves=waves)
    waiting: dict[int, Waiting[int]] = {}
    for ticket, (operation, number, priority, tenant, request_class) in enumerate(trace):
        if operation == "push":
            waiting[ticket] = Waiting(
                ticket, number, ticket, priority=priority, tenant=tenant, request_class=request_class, arrived_s=float(ticket)
            )
            room.push(waiting[ticket])
        elif operation == "remove" and waiting:
            gone = waiting.pop(sorted(waiting)[number % len(waiting)])
            assert room.remove(gone)
            assert not room.remove(gone)
        elif operation == "regroup" and waiting:
            room.regroup(waiting[sorted(waiting)[number % len(waiting)]], tenant)
        elif operation == "start":
            room.start_those_that_fit(
                lambda w, limit=number: w.cost_tokens <= limit and waiting.pop(w.request, None) is not None, float(ticket)
            )
        assert {w.request for w in room} == set(waiting)
        assert room.tokens == sum(w.cost_tokens for w in room) == sum(room.size_of(each)[1] for each in RequestClass)
        assert len(room) == sum(room.size_of(each)[0] for each in RequestClass)
        assert room.group_sizes() == Counter(w.group for w in room)
        assert all(w.overtaken_tokens <= w.cost_tokens for w in room)


# ---------------------------------------------------------------- waves


def test_in_a_wave_requests_of_one_shape_go_together_and_the_others_are_overtaken_by_no_more_than_they_cost():
    costs = (20, 500, 21, 500, 22, 23, 500)
    assert start_with(room_of(*costs), 1086 - 500) == ["r0", "r1", "r2", "r4", "r5"]
    together = start_with(room_of(*costs, waves=True), 1086 - 500)
    assert together == ["r0", "r2", "r4", "r5", "r1"]
    patient = room_of(20, 40, *[20] * 5, waves=True)
    assert start_with(patient, 100) == ["r0", "r2", "r3", "r1"], "40 is overtaken by 40 and no more"
