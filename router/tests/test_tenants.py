"""The tenants' counters: lifted on return, remembered within bounds."""

from hypothesis import given
from hypothesis import strategies as st

from pagoda_router.admission.queue import WaitingRoom
from pagoda_router.admission.tenants import MOST_IDLE_TENANTS, TenantCounters
from pagoda_router.admission.waiting import Waiting
from pagoda_router.generation import RequestClass


def test_a_newcomer_begins_at_the_least_of_those_that_wait():
    counters = TenantCounters()
    for tenant, tokens in (("a", 500), ("b", 300)):
        counters.charge(tenant, tokens)
    counters.activate("c", ["a", "b"])
    assert counters.served("c") == 300


def test_who_was_served_while_nobody_else_waited_does_not_pay_for_it_later():
    counters = TenantCounters()
    for _ in range(9):
        counters.charge("busy", 100, is_alone=True)
    counters.activate("new", [])
    assert counters.served("new") == 800
    assert counters.served("busy") == 900


def test_a_tenant_that_owes_keeps_its_debt():
    counters = TenantCounters()
    counters.charge("a", 500)
    counters.charge("b", 300)
    counters.activate("a", ["b"])
    assert counters.served("a") == 500


def test_a_refund_lowers_the_counter_and_idling_gains_nothing():
    counters = TenantCounters()
    counters.charge("a", 500)
    counters.charge("b", 300)
    counters.charge("a", -450)
    assert counters.served("a") == 50
    counters.activate("a", ["b"])
    assert counters.served("a") == 300


def test_idle_tenants_are_forgotten_beyond_a_bound_and_those_that_wait_are_not():
    counters = TenantCounters()
    counters.charge("waits", 7)
    for number in range(3 * MOST_IDLE_TENANTS):
        counters.charge(f"t{number}", 1)
        counters.forget_idle(["waits"])
    assert counters.served("waits") == 7
    assert len(counters._served) <= 2 * MOST_IDLE_TENANTS + 1


TURNS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9000), st.booleans(), st.booleans()), max_size=30)


@given(TURNS)
def test_who_finds_the_room_empty_is_charged_as_one_that_came_in_and_left_again(turns):
    ordinary, quick = WaitingRoom[str](100_000), WaitingRoom[str](100_000)
    for tenant, tokens, waits_before, is_refund in turns:
        for room in (ordinary, quick):
            if is_refund:
                room.settle(tenant, RequestClass.LATENCY, tokens // 2)
            if waits_before:  # somebody else waits meanwhile, so that both go the ordinary way
                room.push(Waiting("other", 1, 0, tenant="other"))
            if waits_before or room is ordinary:
                room.push(Waiting(tenant, tokens, 1, tenant=tenant))
                room.start_those_that_fit(lambda waiting: True)
            else:
                room.served_alone(tenant, RequestClass.LATENCY, tokens)
        for each in ("a", "b", "c", "other", "new"):
            assert quick.served_tokens(each, RequestClass.LATENCY) == ordinary.served_tokens(each, RequestClass.LATENCY)
