"""The simulated worker: blocks are conserved, its steps take what the profile says, it plans as the engine does."""

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagoda_bench.sim.block_pool import BlockPool
from pagoda_bench.sim.demand import Conversation, Turn
from pagoda_bench.sim.engine_profile import H100_8B, EngineProfile, measured
from pagoda_bench.sim.prefill_share import share
from pagoda_bench.sim.requests import SimRequest
from pagoda_bench.sim.sequence import Sequence, WorkerLoad
from pagoda_bench.sim.worker import SimWorker
from pagoda_worker.scheduling.policy import share_prefill

SIZE = 16
SMALL = replace(H100_8B, kv_tokens=64 * SIZE, max_running=4, max_batch_tokens=64, long_prefill_tokens=32, block_size=SIZE)


class Heard:
    def __init__(self) -> None:
        self.first: dict[int, float] = {}
        self.ended: dict[int, float] = {}

    def begun(self, worker: SimWorker, sequence: Sequence, now_s: float) -> None:
        pass

    def first_token(self, worker: SimWorker, sequence: Sequence, now_s: float) -> None:
        assert sequence.request.number not in self.first
        self.first[sequence.request.number] = now_s
        sequence.request.first_s = now_s

    def over(self, worker: SimWorker, sequence: Sequence, now_s: float) -> None:
        assert sequence.request.number not in self.ended
        self.ended[sequence.request.number] = now_s

    def decoded(self, worker: SimWorker, sequences: int, steps: int, step_s: float) -> None:
        pass

    def cache_changed(self, worker: SimWorker, stored: list[bytes], evicted: list[bytes], now_s: float) -> None:
        pass


def asked(number: int, prompt_tokens: int, output_tokens: int, *, conversation: int | None = None) -> SimRequest:
    own = number if conversation is None else conversation
    return SimRequest(number, Conversation(own, 0.0, 0, 0, (Turn(prompt_tokens, output_tokens, 0.0),), SIZE, ()), 0, 0.0)


def run(worker: SimWorker, arrivals: list[tuple[float, SimRequest]]) -> None:
    """In the order of time, until nothing is left to do."""
    waiting = sorted(arrivals, key=lambda arrival: arrival[0])
    while waiting or worker.ends_s is not None:
        if waiting and (worker.ends_s is None or waiting[0][0] <= worker.ends_s):
            at_s, request = waiting.pop(0)
            worker.submit(request, at_s)
        elif worker.ends_s is not None:
            worker.steps_ended(worker.ends_s)


def test_a_request_alone_takes_its_prefill_and_a_step_for_each_later_token():
    heard, profile = Heard(), replace(SMALL, context_token_s=0.0)
    run(SimWorker(0, profile, heard), [(0.0, asked(1, 50, 10))])
    assert heard.first[1] == pytest.approx(profile.step_s(0, 50, 0))
    assert heard.ended[1] - heard.first[1] == pytest.approx(9 * profile.step_s(1, 0, 0))


def test_steps_taken_at_once_end_when_steps_one_by_one_would():
    """The second request comes in the middle of many steps: it waits for the one under way only."""
    heard, profile = Heard(), replace(SMALL, context_token_s=1e-7)
    run(SimWorker(0, profile, heard), [(0.0, asked(1, 16, 200)), (0.5, asked(2, 16, 2))])
    first_s, context, steps_s = heard.first[1], 16, []
    while first_s + sum(steps_s) < 0.5:
        steps_s.append(profile.step_s(1, 0, context))
        context += 1
    assert heard.first[2] == pytest.approx(first_s + sum(steps_s) + profile.step_s(1, 16, context))


def test_the_same_prompt_is_found_in_the_cache_the_second_time():
    worker, second = SimWorker(0, SMALL, Heard()), asked(2, 160, 2, conversation=1)
    run(worker, [(0.0, asked(1, 160, 2, conversation=1)), (10.0, second)])
    assert second.cached_tokens == 144  # its last token is always computed


@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 12),
    conversations=st.integers(1, 12),
)
@settings(max_examples=60, deadline=None)
def test_everyone_ends_and_every_block_comes_back(seed: int, count: int, conversations: int) -> None:
    """However little memory there is, with preemptions, siblings and evictions."""
    rng, heard = Random(seed), Heard()
    worker = SimWorker(0, SMALL, heard)
    arrivals = [
        (rng.uniform(0, 0.5), asked(number, rng.randint(1, 500), rng.randint(1, 300), conversation=rng.randrange(conversations)))
        for number in range(count)
    ]
    run(worker, arrivals)
    assert len(heard.ended) == count
    assert worker.pool.available == worker.pool.count
    assert worker.told == WorkerLoad(running=0, waiting=0, queued_prefill_tokens=0)


def test_without_blocks_the_latest_one_is_preempted_and_still_ends():
    heard = Heard()
    worker = SimWorker(0, SMALL, heard)
    run(worker, [(0.0, asked(number, 200, 200)) for number in range(4)])
    assert worker.preemptions > 0
    assert len(heard.ended) == 4


@given(st.lists(st.integers(1, 5000), max_size=8), st.integers(0, 9000))
def test_prompts_share_a_step_as_in_the_engine(remaining: list[int], budget: int) -> None:
    assert share(remaining, budget) == share_prefill([(0, tokens) for tokens in remaining], budget)


def test_the_contents_used_longest_ago_are_evicted_first():
    pool = BlockPool(4)
    for name in (b"a", b"b"):
        assert pool.take(2)
        chain = [name + b"0", name + b"1"]
        pool.share(chain)
        pool.release(chain, 0)
    assert pool.take(1)
    assert pool.evicted == [b"a1"]
    assert not pool.take(4)


@pytest.mark.parametrize("model", ["tiny", "0.45b"])
def test_profiles_of_our_engine_follow_from_the_result_files(model: str) -> None:
    profile: EngineProfile = measured(model)
    assert 0 < profile.row_s < profile.base_s
    assert profile.prompt_token_s > 0


def test_a_prompt_twice_as_long_takes_more_than_twice_the_time_where_pairs_cost():
    firsts_s = []
    for tokens in (400, 800):
        heard = Heard()
        run(SimWorker(0, replace(SMALL, base_s=0.0, prompt_pair_s=1e-7), heard), [(0.0, asked(1, tokens, 2))])
        firsts_s.append(heard.first[1])
    assert firsts_s == pytest.approx([tokens * SMALL.prompt_token_s + 1e-7 * tokens**2 / 2 for tokens in (400, 800)])
