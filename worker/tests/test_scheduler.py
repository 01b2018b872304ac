"""What each step computes, over a simulated device that notices every wrong, lost or shared block."""

import itertools
import random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from simulated_device import VOCAB, expected_output, guess, next_token, simulated

from pagoda_worker.errors import ContextTooLong, RequestRefused
from pagoda_worker.request import FinishReason, Request, SequenceUpdate
from pagoda_worker.scheduling.adapters import Adapter
from pagoda_worker.scheduling.plan import StepPlan
from pagoda_worker.scheduling.policy import Speeds
from pagoda_worker.scheduling.residency import HostRoom
from pagoda_worker.scheduling.sampled import Sampled, judge_drafts

COPIES = Speeds(prefill_tokens_per_s=1.0, copy_bytes_per_s=1e9)
COMPUTES = Speeds(prefill_tokens_per_s=1e9, copy_bytes_per_s=1.0)


class Bench:
    """Scheduler and device with a clock in steps."""

    ahead = False
    """Plan each step before the one before it is settled."""
    drafting = False
    """Guess up to five tokens in every step, some of them right."""

    def __init__(self, speeds: Speeds = Speeds(), **limits: Any) -> None:  # noqa: B008  # frozen
        self.scheduler, self.device = simulated(**limits)
        self.scheduler.residency.speeds = speeds
        self.now = 0.0
        self.draw = random.Random(0)
        self._flight: tuple[StepPlan, Sampled] | None = None
        self.output: dict[tuple[str, int], list[int]] = {}
        self.finished: dict[tuple[str, int], SequenceUpdate] = {}
        self.started: list[tuple[str, int]] = []
        self.plans: list[StepPlan] = []

    def submit(self, request_id: str, prompt: list[int], seed: int = 0, **fields: Any) -> Request:
        request = Request(request_id=request_id, prompt_ids=prompt, **{"max_tokens": 8, "ignore_eos": True, **fields})
        self.scheduler.submit(request, now=self.now, seed=seed)
        return request

    def step(self) -> StepPlan:
        """The step that is settled; with `ahead`, the next one is planned and run before."""
        self.now += 1.0
        plan, sampled = self._flight or self._launch()
        following = self._launch() if self.ahead else None
        self._flight = following if following and not following[0].empty else None
        judge_drafts(plan, sampled)
        for update in self.scheduler.settle(plan, sampled, self.now):
            key = update.request_id, update.sequence
            assert key not in self.finished, "an update after the end"
            if update.started:
                assert key not in self.started, "started twice"
                self.started.append(key)
            self.output.setdefault(key, []).extend(update.token_ids)
            if update.finish:
                self.finished[key] = update
        self.scheduler.check()
        self.plans.append(plan)
        return plan

    def _launch(self) -> tuple[StepPlan, Sampled]:
        if self.drafting:
            guess(self.scheduler, lambda: (self.draw.choice((0, 1, 3)), self.draw.choice((0, 1, 2))))
        plan = self.scheduler.schedule(self.now)
        if any(sequence.request.runs_alone for sequence in [*plan.sampling(), *(chunk.sequence for chunk in plan.chunks)]):
            assert plan.sequences == 1, "what runs alone was computed with something else"
        return plan, self.device.run(plan)

    def catch_up(self) -> None:
        """Settles what was planned before the last arrival."""
        if self._flight:
            self.step()

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or self._flight is not None

    def run(self, most: int = 500) -> None:
        for _ in range(most):
            if not self.has_work:
                return
            self.step()
        raise AssertionError(f"not done after {most} steps")

    def reason(self, request_id: str, sequence: int = 0) -> FinishReason:
        finish = self.finished[request_id, sequence].finish
        assert finish is not None
        return finish.reason


@pytest.fixture(autouse=True, params=[False, True], ids=["in step", "ahead"])
def ahead(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(Bench, "ahead", request.param)
    return bool(request.param)


def prompt(length: int, first: int = 2) -> list[int]:
    return [2 + (first + 7 * i) % (VOCAB - 2) for i in range(length)]


# ---------------------------------------------------------------- one budget


def test_prompts_and_decodes_share_one_step():
    bench = Bench(max_batch_tokens=20)
    bench.submit("a", prompt(5))
    bench.step()
    bench.submit("b", prompt(30, 9))
    bench.catch_up()
    plan = bench.step()
    assert [s.request.request_id for s in plan.decodes] == ["a"]
    assert [(c.sequence.request.request_id, c.start, c.count) for c in plan.chunks] == [("b", 0, 19)]
    assert bench.output["b", 0] == [], "no token before the prompt's end"


def test_a_long_prompt_is_computed_in_chunks_while_others_decode_in_every_step():
    bench = Bench(max_batch_tokens=10)
    bench.submit("short", prompt(3), max_tokens=20)
    bench.step()
    bench.submit("long", prompt(60, 9))
    bench.catch_up()
    counts = [sum(c.count for c in bench.step().chunks) for _ in range(7)]
    assert counts == [9, 9, 9, 9, 9, 9, 6]
    assert len(bench.output["short", 0]) == 8 + bench.ahead
    assert len(bench.output["long", 0]) == 1


def test_decoding_goes_before_an_earlier_prompt_still_in_progress():
    """Otherwise one long prompt, being first in order, would silence everyone until it is computed."""
    bench = Bench(max_batch_tokens=10)
    bench.submit("short", prompt(2, 9), max_tokens=20)
    bench.step()
    bench.submit("long", prompt(80), priority=5)
    bench.catch_up()
    for _ in range(3):
        plan = bench.step()
        assert [s.request.request_id for s in plan.decodes] == ["short"]
        assert [(c.sequence.request.request_id, c.count) for c in plan.chunks] == [("long", 9)]


# ---------------------------------------------------------------- requests that run alone


def members_of(plan: StepPlan) -> set[str]:
    return {sequence.request_id for sequence in [*plan.decodes, *(chunk.sequence for chunk in plan.chunks)]}


def test_what_runs_alone_has_every_second_step_and_the_others_have_the_rest():
    bench = Bench()
    for name in ("a", "b"):
        bench.submit(name, prompt(5), max_tokens=9)
    bench.submit("x", prompt(5, 9), max_tokens=9, runs_alone=True)
    bench.run()
    steps = [members_of(plan) for plan in bench.plans if not plan.empty]
    assert all(step in ({"a", "b"}, {"x"}) for step in steps)
    assert all(one != other for one, other in itertools.pairwise(steps[:16]))
    assert len(bench.output["x", 0]) == len(bench.output["a", 0]) == 9


def test_several_that_run_alone_take_turns_and_leave_every_second_step():
    bench = Bench()
    bench.submit("a", prompt(5), max_tokens=30)
    for name in ("x", "y", "z"):
        bench.submit(name, prompt(5, 9), max_tokens=4, runs_alone=True)
    bench.run()
    steps = ["".join(sorted(members_of(plan))) for plan in bench.plans if not plan.empty]
    assert all("a" in pair for pair in itertools.pairwise(steps))
    assert [step for step in steps[: 2 * 9] if step != "a"] == ["x", "y", "z"] * 3


def test_what_runs_alone_with_nobody_else_here_loses_no_step():
    bench = Bench()
    bench.submit("x", prompt(5), max_tokens=6, runs_alone=True)
    bench.run()
    assert len([plan for plan in bench.plans if not plan.empty]) == 6


def test_a_long_prompt_that_runs_alone_delays_the_others_no_more_than_another():
    bench = Bench(long_prefill_tokens=8)
    bench.submit("a", prompt(5), max_tokens=30)
    bench.step()
    bench.submit("x", prompt(40, 9), runs_alone=True)
    bench.run()
    assert max(chunk.count for plan in bench.plans for chunk in plan.chunks if chunk.sequence.request_id == "x") == 8


def test_the_answer_ends_at_max_tokens_without_an_extra_step():
    bench = Bench()
    bench.submit("a", prompt(5), max_tokens=3)
    for _ in range(3):
        bench.step()
    assert bench.reason("a") is FinishReason.LENGTH
    assert not bench.scheduler.has_work


def test_the_answer_ends_where_the_context_does():
    bench = Bench(max_model_len=20)
    bench.submit("a", prompt(15), max_tokens=100)
    bench.run()
    assert len(bench.output["a", 0]) == 5
    assert bench.reason("a") is FinishReason.LENGTH


@pytest.mark.parametrize("ender", ["eos", "stop id"])
def test_an_ending_id_is_counted_but_not_reported(ender: str):
    tokens = prompt(6)
    second = next_token([*tokens, next_token(tokens)])
    bench = Bench(eos_token_ids=(second,) if ender == "eos" else ())
    bench.submit("a", tokens, ignore_eos=False, stop_token_ids=[second] if ender == "stop id" else [])
    bench.run()
    finish = bench.finished["a", 0].finish
    assert finish is not None
    assert (finish.reason, finish.stop_token_id, finish.usage.completion_tokens) == (FinishReason.STOP, second, 2)
    assert bench.output["a", 0] == [next_token(tokens)]


def test_ignore_eos_reports_eos_like_any_token_but_stop_ids_still_stop():
    tokens = prompt(6)
    first, second = next_token(tokens), next_token([*tokens, next_token(tokens)])
    bench = Bench(eos_token_ids=(first,))
    bench.submit("a", tokens, stop_token_ids=[second])
    bench.run()
    assert bench.output["a", 0] == [first]
    assert bench.reason("a") is FinishReason.STOP


# ---------------------------------------------------------------- order


def test_larger_priority_goes_first_and_equal_ones_keep_their_order():
    bench = Bench(max_running=1)
    for name, priority in (("a", 0), ("b", 0), ("urgent", 1)):
        bench.submit(name, prompt(3), max_tokens=1, priority=priority)
    bench.run()
    assert [key[0] for key in bench.started] == ["urgent", "a", "b"]


def test_nobody_overtakes_a_request_that_waits_for_room():
    bench = Bench(blocks=10)
    bench.submit("holder", prompt(16), max_tokens=4)
    bench.step()
    bench.submit("large", prompt(28, 9), max_tokens=2)
    bench.submit("small", prompt(2, 20), max_tokens=2)
    bench.step()
    assert [key[0] for key in bench.started] == ["holder"]
    bench.run()
    assert [key[0] for key in bench.started] == ["holder", "large", "small"]


# ---------------------------------------------------------------- refusals


def test_a_prompt_as_long_as_the_context_is_refused_with_both_numbers():
    bench = Bench(max_model_len=20)
    with pytest.raises(ContextTooLong, match=r"20 tokens.*20 in all"):
        bench.submit("a", prompt(20))
    bench.submit("b", prompt(19))


def test_what_can_never_fit_the_cache_is_refused_with_both_numbers():
    bench = Bench(blocks=4, block_size=4)
    with pytest.raises(ContextTooLong, match=r"need 20 tokens.*holds 16"):
        bench.submit("a", prompt(10), max_tokens=8)
    bench.submit("b", prompt(10), max_tokens=7)
    bench.run()
    assert len(bench.output["b", 0]) == 7


def test_an_id_in_use_is_refused_and_free_again_after_the_end():
    bench = Bench()
    bench.submit("a", prompt(3), max_tokens=1)
    with pytest.raises(RequestRefused, match="already in use"):
        bench.submit("a", prompt(3))
    bench.run()
    bench.finished.clear()
    bench.started.clear()
    bench.submit("a", prompt(3), max_tokens=1)
    bench.run()


# ---------------------------------------------------------------- prefix cache


def test_a_full_hit_still_computes_the_last_token():
    """A query of no tokens has nothing to sample from: the L-1 rule."""
    bench = Bench(block_size=4)
    bench.submit("first", prompt(16), max_tokens=2)
    bench.run()
    bench.submit("again", prompt(16), max_tokens=2)
    plan = bench.step()
    assert [(c.start, c.count) for c in plan.chunks] == [(12, 4)]
    bench.run()
    assert bench.output["again", 0] == bench.output["first", 0]


@pytest.mark.parametrize("length", range(1, 14))
def test_a_prompt_of_any_length_around_block_edges_hits_what_it_can(length: int):
    bench = Bench(block_size=4)
    bench.submit("first", prompt(length))
    bench.run()
    bench.submit("again", prompt(length))
    bench.run()
    finish = bench.finished["again", 0].finish
    assert finish is not None
    assert finish.usage.cached_tokens == (length - 1) // 4 * 4
    assert bench.output["again", 0] == bench.output["first", 0]


def test_a_burst_with_one_prefix_computes_it_once_in_the_same_step():
    bench = Bench(block_size=4, max_batch_tokens=200)
    for i in range(4):
        bench.submit(f"r{i}", [*prompt(20), 2 + i])
    plan = bench.step()
    assert [(c.start, c.count) for c in plan.chunks] == [(0, 21), (20, 1), (20, 1), (20, 1)]


@pytest.mark.parametrize("fields", [{"cache_salt": b"other"}, {"use_prefix_cache": False}], ids=str)
def test_another_salt_or_a_request_without_the_cache_finds_nothing(fields: dict[str, Any]):
    bench = Bench(block_size=4)
    bench.submit("first", prompt(16))
    bench.run()
    bench.submit("again", prompt(16), **fields)
    bench.run()
    finish = bench.finished["again", 0].finish
    assert finish is not None
    assert finish.usage.cached_tokens == 0


def test_sequences_of_two_adapters_never_share_a_block_and_those_of_one_do():
    bench = Bench(block_size=4, blocks=64)
    for turn in ("first", "again"):
        for adapter in ("", "sql", "chat"):
            bench.submit(f"{turn} {adapter}", prompt(16), adapter=adapter, max_tokens=4)
    bench.catch_up()
    bench.step()
    blocks: dict[str, set[int]] = {}
    for sequence in bench.scheduler.running:
        blocks.setdefault(sequence.request.adapter, set()).update(sequence.blocks)
    assert len(bench.scheduler.running) == 6
    assert sum(map(len, blocks.values())) == len(set.union(*blocks.values())), "a block belongs to two adapters"
    assert bench.scheduler.totals.prefix_hits == 3 * 12, "three blocks of each first one, none of another's"


def test_a_request_without_the_cache_leaves_nothing_behind_either():
    bench = Bench(block_size=4)
    bench.submit("first", prompt(16), use_prefix_cache=False)
    bench.run()
    bench.submit("again", prompt(16))
    bench.run()
    assert bench.scheduler.totals.prefix_hits == 0


def test_output_of_an_earlier_turn_is_part_of_the_cached_prefix():
    bench = Bench(block_size=4)
    bench.submit("turn one", prompt(8), max_tokens=9)
    bench.run()
    bench.submit("turn two", [*prompt(8), *bench.output["turn one", 0], 3, 4])
    bench.run()
    finish = bench.finished["turn two", 0].finish
    assert finish is not None
    assert finish.usage.cached_tokens == 16


# ---------------------------------------------------------------- n sequences


def test_n_sequences_compute_their_prompt_once_and_part_by_copy_on_write():
    bench = Bench(block_size=4)
    bench.submit("a", prompt(10), n=3, seed=5)
    plan = bench.step()
    assert sum(c.count for c in plan.chunks) == 10
    assert len(plan.sampling()) == 3
    plan = bench.step()
    assert len(plan.copies) == 2, "the last to write owns the block by then"
    bench.run()
    for i in range(3):
        assert bench.output["a", i] == expected_output(Request(request_id="", prompt_ids=prompt(10), max_tokens=8, ignore_eos=True), 5 + i)


def test_a_prompt_that_fills_its_last_block_needs_no_copy():
    bench = Bench(block_size=4)
    bench.submit("a", prompt(8), n=3)
    bench.step()
    assert bench.step().copies == []


def test_more_sequences_than_rows_all_get_their_turn():
    bench = Bench(max_running=2)
    bench.submit("a", prompt(10), n=5, seed=1)
    bench.run()
    outputs = [bench.output["a", i] for i in range(5)]
    assert all(len(output) == 8 for output in outputs)
    assert len({tuple(output) for output in outputs}) > 1


@pytest.mark.parametrize("when", ["waiting", "in the middle of the prompt", "after parting"])
@pytest.mark.parametrize("which", [0, 1])
def test_one_of_n_can_be_cancelled_while_the_others_go_on(when: str, which: int):
    bench = Bench(max_batch_tokens=6)
    bench.submit("a", prompt(10), n=2, seed=3)
    for _ in range(("waiting", "in the middle of the prompt", "after parting").index(when)):
        bench.step()
    bench.scheduler.cancel("a", which)
    bench.scheduler.check()
    bench.run()
    assert bench.reason("a", which) is FinishReason.CANCELLED
    other = 1 - which
    assert bench.output["a", other] == expected_output(
        Request(request_id="", prompt_ids=prompt(10), max_tokens=8, ignore_eos=True), 3 + other
    )


# ---------------------------------------------------------------- preemption


def test_the_last_in_order_gives_its_blocks_to_the_first_and_both_finish_as_if_alone():
    bench = Bench(blocks=9, block_size=4, prefix_caching=False)
    first = bench.submit("first", prompt(8), max_tokens=20)
    second = bench.submit("second", prompt(8, 9), max_tokens=20)
    bench.run()
    assert bench.scheduler.totals.preemptions >= 1
    finish = bench.finished["second", 0].finish
    assert finish is not None
    assert finish.timings.preemptions == bench.scheduler.totals.preemptions, "the first is never preempted"
    assert bench.output["first", 0] == expected_output(first, 0)
    assert bench.output["second", 0] == expected_output(second, 0)


def test_a_preempted_request_waits_at_the_front():
    bench = Bench(blocks=9, block_size=4)
    bench.submit("first", prompt(8), max_tokens=20)
    bench.submit("second", prompt(8, 9), max_tokens=20)
    bench.submit("third", prompt(20, 20), max_tokens=4)
    while not bench.scheduler.totals.preemptions:
        bench.step()
    assert next(s.request.request_id for s in bench.scheduler.waiting) == "second"


def test_low_priority_yields_to_high_even_when_it_came_first():
    bench = Bench(blocks=9, block_size=4)
    bench.submit("low", prompt(8), max_tokens=20)
    bench.submit("high", prompt(8, 9), max_tokens=20, priority=1)
    bench.run()
    low, high = (bench.finished[name, 0].finish for name in ("low", "high"))
    assert low is not None
    assert high is not None
    assert (low.timings.preemptions > 0, high.timings.preemptions) == (True, 0)


@pytest.mark.parametrize("high", [{"adapter": "b"}, {"adapter": "b", "n": 2}, {"adapter": "a", "runs_alone": True}], ids=str)
def test_a_prompt_in_chunks_goes_on_while_a_higher_class_cannot_join(high: dict[str, Any]):
    bench = Bench(adapter_slots=1, max_batch_tokens=4)
    adapters = {name: Adapter(name, "1") for name in "ab"}
    for name, fields in (("low", {"adapter": "a"}), ("high", {"priority": 1, **high})):
        request = Request(request_id=name, prompt_ids=prompt(20), **{"max_tokens": 3, "ignore_eos": True, **fields})
        bench.scheduler.submit(request, now=bench.now, seed=0, adapter=adapters[request.adapter])
        bench.step()
    bench.run(60)
    assert bench.reason("low") is bench.reason("high") is FinishReason.LENGTH


# ---------------------------------------------------------------- endings


def test_a_cancel_frees_at_once_and_is_reported_by_the_next_step():
    bench = Bench()
    bench.submit("a", prompt(30))
    bench.step()
    bench.scheduler.cancel("a")
    assert bench.scheduler.blocks.free_blocks == bench.scheduler.blocks.count
    assert bench.scheduler.has_work, "the ending is still to be reported"
    assert bench.step().empty or bench.ahead
    assert bench.reason("a") is FinishReason.CANCELLED
    assert not bench.scheduler.has_work


def test_cancelling_what_is_unknown_or_over_is_no_error():
    bench = Bench()
    bench.scheduler.cancel("never")
    bench.submit("a", prompt(3), max_tokens=1)
    bench.run()
    bench.scheduler.cancel("a", 0)
    assert not bench.scheduler.has_work


@pytest.mark.parametrize("running", [True, False])
def test_a_deadline_ends_a_request_that_runs_or_waits(running: bool):
    bench = Bench(max_running=1)
    if not running:
        bench.submit("holder", prompt(3), max_tokens=20)
    bench.submit("a", prompt(3, 9), max_tokens=50, deadline_s=3.5)
    for _ in range(4):
        bench.step()
    assert bench.reason("a") is FinishReason.DEADLINE
    assert len(bench.output["a", 0]) == (3 if running else 0)


def test_resumed_output_is_context_counts_as_output_and_is_not_sent_again():
    whole = Bench()
    whole.submit("a", prompt(9), seed=4, max_tokens=8)
    whole.run()
    output = whole.output["a", 0]
    resumed = Bench()
    resumed.submit("a", prompt(9), seed=4, max_tokens=8, resume_ids=output[:3])
    resumed.run()
    assert resumed.output["a", 0] == output[3:]
    finish = resumed.finished["a", 0].finish
    assert finish is not None
    assert (finish.usage.prompt_tokens, finish.usage.completion_tokens) == (9, 8)


def test_abandoning_ends_everything_and_trusts_no_prefix():
    bench = Bench(max_batch_tokens=10)
    bench.submit("a", prompt(30), n=2)
    bench.submit("b", prompt(5, 9))
    bench.scheduler.schedule(1.0)  # planned, registered, then the step failed
    bench.scheduler.abandon("the device failed")
    bench.step()
    assert {key: u.finish.reason for key, u in bench.finished.items() if u.finish} == dict.fromkeys(
        [("a", 0), ("a", 1), ("b", 0)], FinishReason.ENGINE_ERROR
    )
    bench.submit("c", prompt(30))
    bench.run()
    assert bench.scheduler.totals.prefix_hits == 0


def test_a_broken_sequence_ends_alone_and_its_blocks_are_zeroed_before_reuse():
    bench = Bench(block_size=4)
    bench.submit("good", prompt(8))
    bench.submit("bad", prompt(8, 9))
    plan = bench.scheduler.schedule(1.0)
    sampled = bench.device.run(plan)
    sampled.broken.add(1)
    bad = plan.sampling()[1]
    blocks = list(bad.blocks)
    updates = bench.scheduler.settle(plan, sampled, 1.0)
    assert [u.finish.reason for u in updates if u.finish] == [FinishReason.ENGINE_ERROR]
    assert sorted(bench.scheduler.schedule(2.0).scrubs) == sorted(blocks)
    assert bench.scheduler.blocks.match(bad.hashes[1:]) == []


# ---------------------------------------------------------------- any order of events


class AnyOrder(RuleBasedStateMachine):
    """Arrivals, cancels, deadlines and steps in any order, in a cache too small for all: whoever ends by itself has exactly the tokens it
    would have had alone, and nothing is held at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: dict[str, tuple[Request, int]] = {}

    @initialize(
        blocks=st.integers(6, 14),
        max_batch_tokens=st.integers(1, 24),
        max_running=st.integers(1, 5),
        prefix_caching=st.booleans(),
        long_prefill_tokens=st.one_of(st.none(), st.integers(1, 8)),
        swap_slots=st.integers(0, 9),
        tier_slots=st.integers(0, 9),
        copying_pays=st.booleans(),
    )
    def start(self, swap_slots: int, tier_slots: int, copying_pays: bool, **limits: Any) -> None:
        host = HostRoom(swap_slots=swap_slots, tier_slots=tier_slots, block_bytes=1)
        self.bench = Bench(COPIES if copying_pays else COMPUTES, block_size=4, host=host, **limits)

    @rule(
        length=st.integers(1, 18),
        family=st.integers(0, 1),
        n=st.integers(1, 3),
        max_tokens=st.integers(1, 10),
        priority=st.integers(0, 1),
        deadline_s=st.one_of(st.none(), st.integers(1, 12)),
        ignore_eos=st.booleans(),
        resume=st.integers(0, 3),
        cached=st.booleans(),
        alone=st.booleans(),
    )
    def submit(self, length: int, family: int, n: int, max_tokens: int, resume: int, cached: bool, alone: bool, **fields: Any) -> None:
        name = f"r{len(self.requests)}"
        seed = len(self.requests) % 3
        tokens = prompt(length, family)
        fields |= {"n": n, "max_tokens": max_tokens, "use_prefix_cache": cached, "runs_alone": alone and n == 1}
        if n == 1 and 0 < resume < max_tokens:
            fields["resume_ids"] = prompt(resume, 5)
        try:
            self.requests[name] = self.bench.submit(name, tokens, seed, **fields), seed
        except ContextTooLong:
            self.requests.pop(name, None)
            assert length + max_tokens - 1 > 4 * self.bench.scheduler.blocks.count - 4

    @precondition(lambda self: self.requests)
    @rule(which=st.integers(0, 99), sequence=st.one_of(st.none(), st.integers(0, 2)))
    def cancel(self, which: int, sequence: int | None) -> None:
        names = list(self.requests)
        self.bench.scheduler.cancel(names[which % len(names)], sequence)

    @rule(count=st.integers(1, 4))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.bench.step()

    @invariant()
    def accounts_agree(self) -> None:
        self.bench.scheduler.check()

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        self.bench.run(2000)
        assert self.bench.scheduler.blocks.free_blocks == self.bench.scheduler.blocks.count
        self.bench.scheduler.check()
        for name, (request, seed) in self.requests.items():
            for i in range(request.n):
                expected = expected_output(request, seed + i)
                got = self.bench.output.get((name, i), [])
                if self.bench.reason(name, i) in (FinishReason.STOP, FinishReason.LENGTH):
                    assert got == expected
                else:
                    assert got == expected[: len(got)]


@pytest.mark.parametrize("drafting", [False, True], ids=["", "drafting"])
def test_any_order_of_events_is_survived(drafting: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Bench, "drafting", drafting)
    run_state_machine_as_test(AnyOrder, settings=settings(max_examples=100, stateful_step_count=30, deadline=None))


def test_an_eos_found_late_costs_one_token_that_nobody_hears_of(ahead: bool):
    tokens = prompt(6)
    first = next_token(tokens)
    bench = Bench(eos_token_ids=(next_token([*tokens, first]),))
    bench.submit("a", tokens, ignore_eos=False)
    bench.submit("b", prompt(6, 9), max_tokens=20)
    bench.step()
    plans = [bench.step() for _ in range(3)]
    assert ["a" in [s.request.request_id for s in plan.decodes] for plan in plans] == [True, ahead, False]
    assert bench.output["a", 0] == [first]
    assert bench.reason("a") is FinishReason.STOP


def test_a_block_is_shared_only_when_its_tokens_are_known(ahead: bool):
    """Its hash follows from them."""
    bench = Bench(block_size=4)
    bench.submit("a", prompt(7), max_tokens=6)
    bench.step()  # the eighth token, which fills the second block, is sampled by now
    (sequence,) = bench.scheduler.running
    assert sequence.computed == 7 + ahead
    assert sequence.registered == (2 if ahead else 1)
    bench.step()
    assert sequence.registered == 2
    assert bench.scheduler.blocks.match(sequence.hashes[1:]) == sequence.blocks[:2]


def test_what_a_cancelled_sequence_still_writes_is_zeroed_before_the_next_owner_reads_it():
    bench = Bench(block_size=4)
    bench.submit("a", prompt(6), max_tokens=6)
    plan = bench.scheduler.schedule(1.0)
    sampled = bench.device.run(plan)
    (sequence,) = plan.sampling()
    written = list(sequence.blocks)
    bench.scheduler.cancel("a")
    bench.submit("b", prompt(6, 9))
    following = bench.scheduler.schedule(2.0)
    assert following.scrubs == written[1:], "the first block is in the prefix cache, where it is judged by the step's answer"
    answer = bench.device.run(following)
    sampled.broken.add(0)
    bench.scheduler.settle(plan, sampled, 2.0)
    assert bench.scheduler.blocks.match(sequence.hashes[1:]) == []
    bench.scheduler.settle(following, answer, 3.0)
    assert bench.scheduler.schedule(4.0).scrubs == written[:1]
    bench.scheduler.check()


def test_a_cached_block_that_is_evicted_before_its_step_was_judged_is_zeroed_for_its_next_owner():
    bench = Bench(block_size=4, blocks=3)
    bench.submit("a", prompt(6), max_tokens=4)
    bench.scheduler.schedule(1.0)
    (sequence,) = bench.scheduler.running
    written = list(sequence.blocks)
    bench.scheduler.cancel("a")
    bench.submit("b", prompt(9, 9), max_tokens=2)
    assert sorted(bench.scheduler.schedule(2.0).scrubs) == sorted(written)


def test_part_of_a_prompt_that_was_cancelled_is_zeroed_before_reuse_and_what_a_token_vouched_for_is_not():
    bench = Bench(block_size=4, max_batch_tokens=6, prefix_caching=False)
    bench.submit("half", prompt(10))
    plan = bench.scheduler.schedule(1.0)
    blocks = bench.scheduler.running[0].blocks[:2]
    bench.scheduler.settle(plan, bench.device.run(plan), 1.0)
    bench.scheduler.cancel("half")
    bench.submit("whole", prompt(5), max_tokens=2)
    plan = bench.scheduler.schedule(2.0)
    assert sorted(plan.scrubs) == sorted(blocks)
    bench.scheduler.settle(plan, bench.device.run(plan), 2.0)
    bench.run()
    bench.submit("next", prompt(5), max_tokens=1)
    assert bench.scheduler.schedule(9.0).scrubs == []


# ---------------------------------------------------------------- a step that fails


def test_a_sequence_that_cannot_be_computed_ends_alone_and_takes_what_others_would_have_shared():
    bench = Bench(block_size=4, max_batch_tokens=200)
    bench.submit("first", [*prompt(8), 2])
    bench.submit("shares", [*prompt(8), 3])
    bench.submit("other", prompt(9, 20), n=2)
    plan = bench.scheduler.schedule(1.0)
    first, later = plan.halves()
    culprit, rest = first.halves()
    assert [c.start for c in plan.chunks] == [0, 8, 0]
    bench.scheduler.withdraw(culprit, [later, rest], "it does not fit")
    bench.scheduler.check()
    assert rest.empty, "it would have read what was never written"
    later.opened = plan.opened
    bench.scheduler.settle(later, bench.device.run(later), 1.0)
    assert first.chunks[0].sequence.ended
    bench.run()
    assert {key[0]: bench.reason(key[0]) for key in bench.finished} == {"other": FinishReason.LENGTH, "shares": FinishReason.LENGTH}
    assert bench.output["shares", 0] == expected_output(
        Request(request_id="", prompt_ids=[*prompt(8), 3], max_tokens=8, ignore_eos=True), 0
    )
