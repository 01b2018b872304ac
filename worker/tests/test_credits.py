"""Credits over any number of routers: sums fit, nothing spent is taken back, everything returns to zero."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pagoda_worker.front.credits import CreditLedger, water_level


class Ledger(RuleBasedStateMachine):
    """Routers come, spend within what they were told, finish in any order, and leave; the engine dies and comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger: CreditLedger[int] = CreditLedger(1000)
        self.capacity = 1000
        self.told: dict[int, int] = {}
        self.spent: dict[int, int] = {}
        self.open: dict[int, list[int]] = {}
        self.next_session = 0

    def hear(self) -> None:
        for session, total in self.ledger.changes():
            self.told[session] = total

    @precondition(lambda self: len(self.open) < 5)
    @rule()
    def connect(self) -> None:
        self.ledger.open(self.next_session)
        self.open[self.next_session], self.spent[self.next_session] = [], 0
        self.next_session += 1
        self.hear()

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def disconnect(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(sorted(self.open)))
        self.ledger.close(session)
        del self.open[session], self.spent[session], self.told[session]
        self.hear()

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def spend(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(sorted(self.open)))
        available = self.told[session] - self.spent[session]
        tokens = data.draw(st.integers(0, max(0, available)))
        assert self.ledger.fits(session, tokens) or self.capacity == 0
        self.ledger.spend(session, tokens)
        self.spent[session] += tokens
        self.open[session].append(tokens)
        self.hear()

    @precondition(lambda self: any(self.open.values()))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(sorted(s for s, calls in self.open.items() if calls)))
        calls = self.open[session]
        tokens = calls.pop(data.draw(st.integers(0, len(calls) - 1)))
        self.ledger.give_back(session, tokens)
        self.hear()

    @precondition(lambda self: self.open)
    @rule(data=st.data(), tokens=st.integers(0, 5000))
    def refuse(self, data: st.DataObject, tokens: int) -> None:
        session = data.draw(st.sampled_from(sorted(self.open)))
        self.ledger.refund(session, tokens)
        self.spent[session] += tokens
        self.hear()

    @rule(capacity=st.sampled_from([0, 500, 1000, 1016]))
    def restart_the_engine(self, capacity: int) -> None:
        for session, calls in self.open.items():
            while calls:
                self.ledger.give_back(session, calls.pop())
        self.capacity = capacity
        self.ledger.set_capacity(capacity)
        self.hear()

    @invariant()
    def no_more_is_out_than_there_is(self) -> None:
        allowances = [self.told[session] - self.spent[session] + sum(calls) for session, calls in self.open.items()]
        assert sum(allowances) <= self.capacity

    @invariant()
    def a_grant_is_never_below_what_was_spent(self) -> None:
        assert all(self.told[session] >= self.spent[session] for session in self.open)

    @invariant()
    def idle_routers_share_everything_equally(self) -> None:
        if self.open and not any(map(sum, self.open.values())):
            share = self.capacity // len(self.open)
            assert {self.told[session] - self.spent[session] for session in self.open} == {share}

    def teardown(self) -> None:
        for session, calls in self.open.items():
            while calls:
                self.ledger.give_back(session, calls.pop())
        assert self.ledger.in_use_tokens == 0


TestCreditLedger = Ledger.TestCase


@given(st.lists(st.integers(0, 200), min_size=1, max_size=6), st.integers(0, 600))
def test_the_water_level_is_the_highest_that_fits(in_use: list[int], capacity: int):
    level = water_level(in_use, capacity)
    if sum(in_use) <= capacity:
        assert sum(max(use, level) for use in in_use) <= capacity
    if level or sum(in_use) <= capacity:
        assert sum(max(use, level + 1) for use in in_use) > capacity


def test_a_second_router_takes_unspent_credits_only():
    ledger: CreditLedger[str] = CreditLedger(100)
    ledger.open("first")
    ledger.spend("first", 80)
    ledger.open("second")
    assert (ledger.granted("first"), ledger.granted("second")) == (80, 20)
    ledger.give_back("first", 60)
    assert (ledger.granted("first"), ledger.granted("second")) == (60 + 50, 50)


def test_a_submit_sent_before_a_shrunken_grant_arrived_still_fits():
    ledger: CreditLedger[str] = CreditLedger(100)
    ledger.open("first")
    ledger.open("second")
    assert ledger.fits("first", 90)
    assert not ledger.fits("first", 101)


def test_who_is_granted_what_another_spends_meanwhile_does_not_fit():
    ledger: CreditLedger[str] = CreditLedger(100)
    ledger.open("first")
    ledger.open("second")
    ledger.spend("first", 95)  # sent before its grant shrank
    assert not ledger.fits("second", 10)
    assert dict(ledger.changes())["second"] == 5


def test_giving_back_more_than_was_spent_is_a_bug():
    ledger: CreditLedger[str] = CreditLedger(100)
    ledger.open("only")
    ledger.spend("only", 10)
    with pytest.raises(ValueError, match="11 credits and has 10"):
        ledger.give_back("only", 11)


def test_only_changed_totals_are_told():
    ledger: CreditLedger[str] = CreditLedger(100)
    ledger.open("only")
    assert ledger.changes() == [("only", 100)]
    ledger.spend("only", 10)
    assert ledger.changes() == []
    ledger.give_back("only", 10)
    assert ledger.changes() == [("only", 110)]


def test_what_running_requests_took_beyond_their_reservations_is_promised_to_nobody():
    ledger: CreditLedger[str] = CreditLedger(6400)
    ledger.open("only")
    ledger.changes()
    ledger.spend("only", 1000)
    ledger.set_free(5400)
    assert ledger.changes() == [], "as predicted"
    ledger.set_free(5350)
    assert ledger.changes() == [], "less than a step"
    ledger.set_free(4900)
    assert ledger.changes() == [("only", 5900)], "500 more than predicted"
    ledger.give_back("only", 1000)
    ledger.set_free(6400)
    assert ledger.changes() == [("only", 7400)]


@given(st.integers(64, 5000), st.lists(st.integers(0, 2000), min_size=1, max_size=5), st.integers(0, 6000))
def test_unspent_promises_are_never_more_than_what_is_free_by_more_than_a_step(capacity, spends, free):
    ledger: CreditLedger[int] = CreditLedger(capacity)
    for session, tokens in enumerate(spends):
        ledger.open(session)
        if ledger.in_use_tokens + tokens <= capacity:
            ledger.spend(session, tokens)
    ledger.set_free(min(free, capacity))
    unspent = sum(ledger.granted(session) for session in range(len(spends))) - ledger.in_use_tokens
    assert unspent <= max(0, min(free, capacity)) + capacity // 64 + 1
