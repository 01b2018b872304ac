"""Prices, predictions and the credit ledger."""

import pytest
from fleet_rig import generation
from hypothesis import given
from hypothesis import strategies as st

from pagoda_router.admission.credits import (
    FEWEST_SAMPLES,
    PRIOR_OUTPUT_TOKENS,
    WINDOW,
    CreditLedger,
    OutputHistory,
    OutputLengths,
    Price,
    price,
    service_tokens,
    used_kv_tokens,
)
from pagoda_router.generation import RequestClass

PRICES = [
    # prompt, predicted, n, block → reserved, least
    (3, 8, 1, 16, 16, 16),
    (16, 8, 1, 16, 32, 32),  # the prompt fills its block, the first output token needs another
    (15, 1, 1, 16, 16, 16),
    (20, 40, 1, 16, 64, 32),
    (20, 40, 3, 16, 16 + 3 * 48, 32),  # one shared full block, three copies of the rest
    (32, 1, 4, 16, 32 + 4 * 16, 48),
    (1, 1, 1, 1, 2, 2),
]


@pytest.mark.parametrize(("prompt", "predicted", "n", "block", "reserved", "least"), PRICES)
def test_a_price_is_whole_blocks_of_every_sequence(prompt, predicted, n, block, reserved, least):
    cost = price(generation(prompt, predicted, n=n), predicted, block)
    assert (cost.kv_tokens, cost.least_kv_tokens) == (reserved, least)


def history_of(*outputs: int) -> OutputHistory:
    history = OutputHistory()
    for tokens in outputs:
        history.observe(tokens)
    return history


PREDICTIONS = [
    ("nothing known", history_of(), {"max_tokens": 2000, "explicit_max_tokens": False}, PRIOR_OUTPUT_TOKENS),
    ("nothing known, small limit", history_of(), {"max_tokens": 40, "explicit_max_tokens": False}, 40),
    ("upper quartile", history_of(*range(1, 101)), {"max_tokens": 2000, "explicit_max_tokens": False}, 75),
    ("capped by the limit", history_of(500, 500), {"max_tokens": 300}, 300),
    ("a small explicit limit is taken whole", history_of(5, 5), {"max_tokens": 100}, 100),
    ("a large explicit limit is not", history_of(5, 5), {"max_tokens": 1000}, 5),
    ("ignore_eos runs to the limit", history_of(5, 5), {"max_tokens": 1000, "ignore_eos": True}, 1000),
    ("min_tokens is a floor", history_of(5, 5), {"max_tokens": 1000, "min_tokens": 60}, 60),
    ("empty answers still cost a token", history_of(0, 0), {"max_tokens": 1000}, 1),
]


@pytest.mark.parametrize(("history", "asked", "expected"), [row[1:] for row in PREDICTIONS], ids=[row[0] for row in PREDICTIONS])
def test_the_output_is_predicted_from_what_the_model_did_and_what_was_asked(history, asked, expected):
    assert history.predict(generation(**asked)) == expected


@given(st.lists(st.integers(0, 4000), min_size=1, max_size=3 * WINDOW))
def test_the_prediction_is_the_upper_quartile_of_the_latest_outputs(outputs):
    latest = sorted(outputs[-WINDOW:])
    expected = max(1, latest[int(0.75 * (len(latest) - 1))])
    assert history_of(*outputs).predict(generation(max_tokens=10**6)) == expected


LATENCY, THROUGHPUT = RequestClass.LATENCY, RequestClass.THROUGHPUT
KNOWN = [
    # (tenant, class, output, how many) that were seen; who asks → what is predicted
    ([], ("a", LATENCY), PRIOR_OUTPUT_TOKENS),
    ([("b", THROUGHPUT, 900, 1)], ("a", LATENCY), 900),
    ([("b", LATENCY, 40, FEWEST_SAMPLES), ("b", THROUGHPUT, 900, 99)], ("a", LATENCY), 40),
    ([("a", LATENCY, 7, FEWEST_SAMPLES), ("b", LATENCY, 400, 99)], ("a", LATENCY), 7),
    ([("a", LATENCY, 7, FEWEST_SAMPLES - 1), ("b", LATENCY, 400, 99)], ("a", LATENCY), 400),
    ([("a", LATENCY, 7, 99), ("a", THROUGHPUT, 800, 20)], ("a", THROUGHPUT), 800),
]


@pytest.mark.parametrize(("seen", "asks", "expected"), KNOWN, ids=str)
def test_the_narrowest_history_that_knows_enough_predicts(seen, asks, expected):
    lengths = OutputLengths()
    for tenant, request_class, tokens, count in seen:
        for _ in range(count):
            lengths.observe(tenant, request_class, tokens)
    tenant, request_class = asks
    wanted = generation(max_tokens=2000, explicit_max_tokens=False, tenant=tenant, request_class=request_class)
    assert lengths.predict(wanted) == expected


def test_only_so_many_tenants_are_remembered_and_the_latest_are():
    lengths = OutputLengths(most_senders=3)
    for tenant in "abcad":
        for _ in range(FEWEST_SAMPLES):
            lengths.observe(tenant, LATENCY, ord(tenant))
    assert {tenant for tenant, _ in lengths._by_sender} == {"a", "c", "d"}


CACHED = [
    # prompt, predicted, n, cached → blocks of 16 that count as cached, reserved, service
    (64, 16, 1, 0, 0, 80, 64 + 32),
    (64, 16, 1, 40, 32, 48, 32 + 32),
    (64, 16, 1, 64, 48, 32, 16 + 32),  # the last token is always computed
    (70, 16, 1, 64, 64, 32, 6 + 32),
    (70, 16, 3, 64, 64, 3 * 32, 6 + 96),
]


@pytest.mark.parametrize(("prompt", "predicted", "n", "cached", "whole", "reserved", "service"), CACHED)
def test_a_cached_prefix_costs_nothing_in_whole_blocks(prompt, predicted, n, cached, whole, reserved, service):
    cost = price(generation(prompt, predicted, n=n), predicted, 16, cached)
    assert (cost.cached_tokens, cost.kv_tokens, cost.service_tokens) == (whole, reserved, service)
    assert cost.with_cached(0, 16) == price(generation(prompt, predicted, n=n), predicted, 16)
    assert cost.with_cached(cached, 16) == cost


@given(st.integers(1, 300), st.integers(1, 100), st.integers(1, 4), st.integers(0, 400), st.sampled_from([1, 16]))
def test_who_uses_exactly_what_was_predicted_is_charged_exactly_that(prompt, output, n, cached, block):
    cost = price(generation(prompt, output, n=n), output, block, cached)
    assert used_kv_tokens(prompt, [output] * n, block, cost.cached_tokens) == cost.kv_tokens
    assert service_tokens(prompt, cost.cached_tokens, n * output) == cost.service_tokens


def dear(kv_tokens: int) -> Price:
    return Price(1, 1, kv_tokens, 16)


def test_a_stale_or_foreign_grant_is_ignored():
    ledger = CreditLedger(epoch=2, capacity_tokens=100)
    assert ledger.grant(2, 5, 100)
    assert not ledger.grant(2, 4, 10)
    assert not ledger.grant(1, 9, 10)
    assert ledger.available_tokens == 100


def test_nothing_is_reserved_before_the_first_grant():
    assert CreditLedger(1, 1000).reservation_for(dear(16)) is None


def test_a_shrunk_share_lets_nothing_in_until_enough_came_back():
    ledger = CreditLedger(1, 128)
    ledger.grant(1, 1, 128)
    ledger.spend("a", 96)
    ledger.grant(1, 2, 96)  # another router arrived and took what was not spent
    assert ledger.available_tokens == 0
    assert ledger.reservation_for(dear(16)) is None
    ledger.settle("a")
    ledger.grant(1, 3, 96 + 64)  # 96 returned, the share is half
    assert ledger.reservation_for(dear(96)) == 64


def test_overspending_is_a_bug_that_shows():
    ledger = CreditLedger(1, 64)
    ledger.grant(1, 1, 64)
    with pytest.raises(AssertionError, match="80 KV tokens reserved with 64 available"):
        ledger.spend("a", 80)


class Worker:
    """The other side of the credits, as the proto tells it: one router's share of the capacity."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.share = capacity, capacity
        self.returned, self.seq = 0, 0
        self.running: dict[int, int] = {}

    def granted(self) -> int:
        spent = self.returned + sum(self.running.values())
        return max(self.returned + self.share, spent)


OPERATIONS = st.lists(st.tuples(st.sampled_from(["arrive", "end", "refuse", "die", "share", "grant"]), st.integers(1, 600)), max_size=120)


@given(OPERATIONS, st.integers(1, 40))
def test_the_ledger_returns_to_zero_and_never_promises_more_than_the_capacity(trace, blocks):
    capacity = blocks * 16
    worker, ledger, epoch, next_id = Worker(capacity), CreditLedger(1, capacity), 1, 0

    def tell() -> None:
        worker.seq += 1
        ledger.grant(epoch, worker.seq, worker.granted())

    tell()
    for operation, number in trace:
        if operation == "arrive":
            reserved = ledger.reservation_for(dear(number))
            if reserved is not None:
                next_id += 1
                ledger.spend(next_id, reserved)
                worker.running[next_id] = reserved
        elif operation in ("end", "refuse") and worker.running:
            request = sorted(worker.running)[number % len(worker.running)]
            worker.returned += worker.running.pop(request)
            ledger.settle(request)
            assert ledger.settle(request) == 0, "settling twice changes nothing"
            if operation == "end":
                tell()
        elif operation == "share":
            worker.share = capacity // (1 + number % 4)
            tell()
        elif operation == "die":
            epoch += 1
            worker, ledger = Worker(capacity), CreditLedger(epoch, capacity)
            tell()
        elif operation == "grant":
            tell()
        assert ledger.outstanding_tokens == sum(worker.running.values()) <= capacity
        assert ledger.available_tokens <= capacity - ledger.outstanding_tokens
    for request in list(worker.running):
        worker.returned += worker.running.pop(request)
        ledger.settle(request)
    worker.share = capacity
    tell()
    assert ledger.outstanding_tokens == 0
    assert ledger.available_tokens == capacity
