"""Long prompts beside decodes, classes, swapping and the host tier, over the simulated device that notices every wrong block."""

from hypothesis import given
from hypothesis import strategies as st
from simulated_device import expected_output
from test_scheduler import COMPUTES, COPIES, Bench, prompt

from pagoda_worker.request import FinishReason
from pagoda_worker.scheduling.host_slots import HostTier, SwapSpace
from pagoda_worker.scheduling.residency import HostRoom

SWAP = HostRoom(swap_slots=16, block_bytes=1)
TIER = HostRoom(tier_slots=16, block_bytes=1)


# ---------------------------------------------------------------- long prompts


def test_while_something_decodes_a_long_prompt_gets_no_more_than_the_cap_and_alone_all():
    bench = Bench(max_batch_tokens=40, long_prefill_tokens=8)
    bench.submit("short", prompt(3), max_tokens=4)
    bench.step()
    bench.submit("long", prompt(80, 9))
    assert [sum(c.count for c in bench.step().chunks) for _ in range(4)] == [8, 8, 8, 40]
    bench.run()


def test_a_short_prompt_is_answered_beside_a_long_one_in_progress():
    bench = Bench(max_batch_tokens=10)
    bench.submit("long", prompt(100))
    bench.step()
    bench.submit("short", prompt(4, 9), max_tokens=1)
    plan = bench.step()
    assert [(c.sequence.request.request_id, c.count) for c in plan.chunks] == [("long", 6), ("short", 4)]
    assert bench.reason("short") is FinishReason.LENGTH


def test_a_stream_of_short_prompts_does_not_starve_a_long_one():
    bench = Bench(max_batch_tokens=10)
    bench.submit("long", prompt(40), max_tokens=1)
    for i in range(9):
        bench.step()
        bench.submit(f"short {i}", prompt(8, 10 + i), max_tokens=1)
    assert bench.reason("long") is FinishReason.LENGTH


# ---------------------------------------------------------------- classes


def test_a_higher_class_takes_the_row_of_a_lower_one_which_then_ends_as_if_alone():
    bench = Bench(max_running=1)
    low = bench.submit("low", prompt(8), max_tokens=12)
    bench.step()
    high = bench.submit("high", prompt(5, 9), max_tokens=4, priority=1)
    plan = bench.step()
    assert [c.sequence.request.request_id for c in plan.chunks] == ["high"]
    bench.run()
    assert list(bench.finished) == [("high", 0), ("low", 0)]
    assert bench.output["low", 0] == expected_output(low, 0)
    assert bench.output["high", 0] == expected_output(high, 0)
    assert bench.scheduler.totals.preemptions == 1


def test_only_as_many_make_way_as_must_the_last_in_order_first():
    bench = Bench(blocks=12, block_size=4, prefix_caching=False)
    for i in range(3):
        bench.submit(f"low {i}", prompt(10, 5 + i), max_tokens=3)
    bench.step()
    bench.submit("high", prompt(12, 20), max_tokens=1, priority=1)
    bench.step()
    assert [s.request.request_id for s in bench.scheduler.running] == ["low 0", "low 1"]
    assert bench.reason("high") is FinishReason.LENGTH
    bench.run()


def test_nobody_makes_way_for_an_equal():
    bench = Bench(max_running=1)
    bench.submit("first", prompt(8), priority=1)
    bench.step()
    bench.submit("second", prompt(8, 9), priority=1)
    bench.run()
    assert bench.scheduler.totals.preemptions == 0


# ---------------------------------------------------------------- swap


def preempted(bench: Bench) -> Bench:
    bench.submit("first", prompt(8), max_tokens=20)
    bench.submit("second", prompt(10, 9), max_tokens=20)  # not in step with the first: its last block is half full
    while not bench.scheduler.totals.preemptions:
        bench.step()
    return bench


def test_a_swapped_sequence_computes_nothing_twice_and_has_the_same_tokens():
    bench = preempted(Bench(COPIES, blocks=9, block_size=4, prefix_caching=False, host=SWAP))
    (waiting,) = bench.scheduler.waiting
    assert len(waiting.swapped) == -(-waiting.swapped_tokens // 4)
    bench.run()
    assert bench.output == preempted_and_computed().output
    totals = bench.scheduler.totals
    assert totals.swaps == totals.preemptions
    assert totals.prompt_tokens == 18 + totals.swaps, "of what comes back, only the token not yet computed"
    assert bench.scheduler.residency.swap.take(16), "all slots are free again after a step"


def preempted_and_computed() -> Bench:
    bench = preempted(Bench(COMPUTES, blocks=9, block_size=4, prefix_caching=False, host=SWAP))
    bench.run()
    assert bench.scheduler.totals.swaps == 0
    return bench


def test_a_sequence_whose_newest_token_is_not_known_yet_is_swapped_with_what_the_step_in_flight_writes():
    bench = Bench(COPIES, blocks=9, block_size=4, prefix_caching=False, host=SWAP)
    bench.ahead = True
    preempted(bench)
    (waiting,) = bench.scheduler.waiting
    assert bench.scheduler.totals.swaps == 1
    assert waiting.swapped_tokens == len(waiting.tokens) - 1, "settled since; the newest token was never computed"
    bench.run()
    assert bench.output == preempted_and_computed().output
    assert bench.scheduler.totals.prompt_tokens == 18 + bench.scheduler.totals.swaps


def test_a_swap_that_an_empty_step_planned_is_done_by_the_next_one():
    bench = Bench(COPIES, blocks=9, block_size=4, prefix_caching=False, host=SWAP)
    bench.submit("a", prompt(8), max_tokens=20)
    bench.step()
    residency, (sequence,) = bench.scheduler.residency, bench.scheduler.running
    empty = residency.begin_step()
    residency.preempt(empty, sequence)
    planned = list(empty.swap_out)
    residency.end_step(empty)
    assert planned
    assert (empty.swap_out, residency.begin_step().swap_out) == ([], planned)


def test_without_slots_enough_it_is_computed_again():
    bench = preempted(Bench(COPIES, blocks=9, block_size=4, prefix_caching=False, host=HostRoom(swap_slots=2, block_bytes=1)))
    assert bench.scheduler.totals.swaps == 0
    bench.run()


def test_what_the_device_still_has_is_not_copied_back():
    bench = preempted(Bench(COPIES, blocks=9, block_size=4, host=SWAP))
    bench.scheduler.cancel("first")
    plan = bench.step()
    assert [s.request.request_id for s in plan.opened] == ["second"]
    assert len(plan.swap_in) == 1, "only the block that was not full"
    bench.run()
    assert bench.output["second", 0] == preempted_and_computed().output["second", 0]


def test_a_swapped_sequence_that_is_cancelled_frees_its_slots():
    bench = preempted(Bench(COPIES, blocks=9, block_size=4, host=SWAP))
    bench.scheduler.cancel("second")
    bench.scheduler.check()
    assert len(bench.scheduler.residency.swap.take(16)) == 16


def test_a_slot_that_is_being_read_is_not_given_out_in_the_same_step():
    swap = SwapSpace(2)
    swap.release(swap.take(2), read=True)
    assert swap.take(1) == []
    swap.begin_step()
    assert len(swap.take(2)) == 2


def test_a_tier_slot_that_is_being_read_is_not_overwritten_in_the_same_step():
    tier = HostTier(0, 1)
    tier.put(b"a")
    tier.read([b"a"])
    assert tier.put(b"b") is None
    tier.begin_step()
    assert tier.put(b"b") == 0
    assert tier.match([b"a"]) == 0


requests = st.tuples(st.integers(1, 18), st.integers(0, 1), st.integers(2, 14), st.integers(0, 2), st.integers(1, 2), st.integers(0, 3))


@given(st.lists(requests, min_size=2, max_size=9), st.booleans(), st.booleans(), st.integers(0, 20), st.integers(0, 12), st.integers(6, 12))
def test_whatever_is_swapped_and_whoever_makes_way_the_tokens_are_those_of_one_alone(
    asked: list[tuple[int, ...]], ahead: bool, prefix_caching: bool, swap_slots: int, tier_slots: int, blocks: int
):
    host = HostRoom(swap_slots=swap_slots, tier_slots=tier_slots, block_bytes=1)
    bench = Bench(COPIES, blocks=blocks, block_size=4, host=host, prefix_caching=prefix_caching, max_batch_tokens=20, long_prefill_tokens=9)
    bench.ahead = ahead
    sent = {}
    for number, (length, family, max_tokens, priority, n, pause) in enumerate(asked):
        if length + max_tokens <= 4 * blocks:
            sent[f"r{number}"] = bench.submit(f"r{number}", prompt(length, family), max_tokens=max_tokens, priority=priority, n=n)
        for _ in range(pause):
            bench.step()
    bench.run()
    for name, request in sent.items():
        for index in range(request.n):
            assert bench.output[name, index] == expected_output(request, index)
    bench.scheduler.residency.begin_step()
    assert len(bench.scheduler.residency.swap.take(swap_slots)) == swap_slots


# ---------------------------------------------------------------- host tier


def evicted(bench: Bench) -> Bench:
    """ "again" has the prompt of "first", whose blocks others pushed out of the device."""
    bench.submit("first", prompt(16), max_tokens=2)
    bench.run()
    for i in range(3):
        bench.submit(f"other {i}", prompt(24, 5 + i), max_tokens=2)
        bench.run()
    bench.submit("again", prompt(16), max_tokens=2)
    bench.run()
    assert bench.output["again", 0] == bench.output["first", 0]
    return bench


def cached(bench: Bench) -> int:
    finish = bench.finished["again", 0].finish
    assert finish is not None
    return finish.usage.cached_tokens


def test_an_evicted_prefix_is_found_on_the_host():
    bench = evicted(Bench(COPIES, blocks=8, block_size=4, host=TIER))
    assert cached(bench) == 12
    totals = bench.scheduler.totals
    assert (totals.prefix_hits, totals.host_hits) == (0, 12)
    assert totals.host_queries == totals.prefix_queries == 16 * 2 + 24 * 3


def test_without_the_tier_or_when_computing_is_cheaper_it_is_computed():
    assert cached(evicted(Bench(COPIES, blocks=8, block_size=4))) == 0
    assert cached(evicted(Bench(COMPUTES, blocks=8, block_size=4, host=TIER))) == 0


def test_the_tier_keeps_what_was_used_last():
    bench = Bench(COPIES, blocks=8, block_size=4, host=HostRoom(tier_slots=4, block_bytes=1))
    assert cached(evicted(bench)) == 0, "others filled its four slots since"


def test_another_salt_finds_nothing_on_the_host():
    bench = evicted(Bench(COPIES, blocks=8, block_size=4, host=TIER))
    bench.submit("salted", prompt(16), max_tokens=1, cache_salt=b"other")
    bench.run()
    finish = bench.finished["salted", 0].finish
    assert finish is not None
    assert finish.usage.cached_tokens == 0


def test_after_a_failed_step_the_tier_is_not_trusted_either():
    bench = evicted(Bench(COPIES, blocks=8, block_size=4, host=TIER))
    bench.scheduler.abandon("the device failed")
    bench.scheduler.check()
    before = bench.scheduler.totals.host_hits
    for i in range(3):
        bench.submit(f"new {i}", prompt(24, 5 + i), max_tokens=2)
    bench.run()
    assert bench.scheduler.totals.host_hits == before


# ---------------------------------------------------------------- use of the cache


def test_use_counts_a_shared_block_once_and_what_is_not_written_as_held():
    bench = Bench(block_size=4, blocks=20)
    bench.submit("a", prompt(10), n=2)
    bench.step()
    use = bench.scheduler.kv_use()
    assert (use.written, use.held, use.capacity) == (10, 12, 80)
    bench.step()
    use = bench.scheduler.kv_use()
    assert (use.written, use.held) == (8 + 3 + 3, 16)


def test_at_load_most_of_what_is_held_is_written_and_most_of_the_cache_is_held():
    bench = Bench(blocks=120, block_size=4, max_running=64, max_batch_tokens=200, prefix_caching=False)
    for i in range(60):
        bench.submit(f"r{i}", prompt(20 + i % 7, i), max_tokens=30)
    written, in_use = [], []
    while bench.scheduler.has_work:
        bench.step()
        use = bench.scheduler.kv_use()
        if bench.scheduler.waiting:
            written.append(use.written / use.held)
            in_use.append(use.held / use.capacity)
    assert sum(written) / len(written) >= 0.85
    assert sum(in_use) / len(in_use) >= 0.85
