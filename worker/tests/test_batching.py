"""The ways of batching as a table, and each switch of the scheduler by what it makes different; the tokens are always the same."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_device import expected_output, simulated

from pagoda_worker.config import Batching
from pagoda_worker.request import Request
from pagoda_worker.scheduling.batching import STATIC_PATIENCE_S, AdmissionPolicy, open_places, reserved_tokens
from pagoda_worker.scheduling.scheduler import Scheduler


@pytest.mark.parametrize(
    ("batching", "running", "left", "waiting", "waited_s", "places"),
    [
        pytest.param("continuous", 3, 0, 1, 0.0, 4, id="continuous: whoever waits, whatever runs"),
        pytest.param("static", 0, 0, 3, 1.0, 0, id="static: three of four wait for the fourth"),
        pytest.param("static", 0, 0, 9, 0.0, 4, id="static: a full batch starts, the rest is another one"),
        pytest.param("static", 0, 0, 3, STATIC_PATIENCE_S, 3, id="static: nobody waits for ever"),
        pytest.param("static", 1, 0, 9, 99.0, 0, id="static: one that still runs keeps everyone out"),
        pytest.param("static", 2, 2, 9, 0.0, 2, id="static: a batch may take two steps to form"),
        pytest.param("dynamic", 0, 0, 3, 0.01, 0, id="dynamic: within the window"),
        pytest.param("dynamic", 0, 0, 3, 0.02, 3, id="dynamic: after the window, whoever waits"),
        pytest.param("dynamic", 0, 0, 4, 0.0, 4, id="dynamic: a full batch waits for nothing"),
        pytest.param("dynamic", 1, 0, 4, 99.0, 0, id="dynamic: a batch runs to its end"),
        pytest.param("dynamic", 0, 1, 0, 0.0, 0, id="nobody waits: no batch starts"),
    ],
)
def test_who_may_join(batching: Batching, running: int, left: int, waiting: int, waited_s: float, places: int):
    policy = AdmissionPolicy(batching=batching, batch_window_s=0.02)
    assert open_places(policy, size=4, left=left, running=running, waiting=waiting, waited_s=waited_s) == places


def test_without_pages_a_sequence_reserves_all_it_could_ever_need():
    assert reserved_tokens(AdmissionPolicy(), length=10, max_model_len=64) == 10
    assert reserved_tokens(AdmissionPolicy(paged_kv=False), length=10, max_model_len=64) == 64


def ask(name: str, prompt: list[int], **fields: Any) -> Request:
    return Request(request_id=name, prompt_ids=prompt, ignore_eos=True, **fields)


def run(policy: AdmissionPolicy, outputs: list[int], **limits: Any) -> tuple[list[set[str]], Scheduler]:
    """Who took part in each step. Checks every answer and that nothing is held at the end."""
    scheduler, device = simulated(**{"max_running": 4, "max_batch_tokens": 40, "max_model_len": 32, "policy": policy, **limits})
    requests = [ask(f"{i}", [2 + i, 3, 4 + i, 5, 6], max_tokens=count) for i, count in enumerate(outputs)]
    for request in requests:
        scheduler.submit(request, now=0.0, seed=0)
    steps: list[set[str]] = []
    answers: dict[str, list[int]] = {}
    now = 0.0
    while scheduler.has_work:
        now += 1.0
        plan = scheduler.schedule(now)
        steps.append({sequence.request.request_id for sequence in plan.sampling()})
        for update in scheduler.settle(plan, device.run(plan), now):
            answers.setdefault(update.request_id, []).extend(update.token_ids)
        scheduler.check()
        assert len(steps) < 400, "no progress"
    assert answers == {request.request_id: expected_output(request, 0) for request in requests}
    return [step for step in steps if step], scheduler


OUTPUTS = [2, 6, 2, 2, 3, 2, 2, 2]


def test_a_static_batch_starts_together_and_the_next_one_when_its_longest_has_ended():
    steps, _ = run(AdmissionPolicy(batching="static"), OUTPUTS)
    assert steps[0] == {"0", "1", "2", "3"}
    assert steps[2:6] == [{"1"}] * 4, "places that became free stay empty"
    assert steps[6] == {"4", "5", "6", "7"}
    assert len(steps) == 6 + 3


def test_a_dynamic_batch_of_the_last_few_does_not_wait_for_more():
    steps, _ = run(AdmissionPolicy(batching="dynamic"), OUTPUTS[:6])
    assert steps[6] == {"4", "5"}


def test_continuous_batching_fills_a_place_in_the_step_after_it_became_free():
    steps, _ = run(AdmissionPolicy(), OUTPUTS)
    assert steps[2] == {"1", "4", "5", "6"}
    assert len(steps) < 9


def test_a_batch_whose_prompts_do_not_fit_one_step_still_forms_whole():
    steps, _ = run(AdmissionPolicy(batching="static"), OUTPUTS, max_batch_tokens=12)
    assert steps[0] == {"0", "1"}
    assert {name for step in steps[: steps.index({"1"})] for name in step} == {"0", "1", "2", "3"}


def test_without_pages_fewer_run_at_once_in_the_same_memory_and_none_is_preempted():
    """16 blocks of 4 tokens: two sequences of 32, or whatever four of five to eleven tokens take."""
    reserved, scheduler = run(AdmissionPolicy(paged_kv=False), OUTPUTS, blocks=16, prefix_caching=False)
    assert max(len(step) for step in reserved) == 2
    assert scheduler.totals.preemptions == 0
    paged, _ = run(AdmissionPolicy(), OUTPUTS, blocks=16, prefix_caching=False)
    assert max(len(step) for step in paged) == 4


def test_without_a_kv_cache_every_step_computes_every_sequence_from_its_first_token():
    scheduler, device = simulated(max_running=2, max_batch_tokens=40, prefix_caching=False, policy=AdmissionPolicy(kv_cache=False))
    scheduler.submit(ask("a", [2, 3, 4], max_tokens=3), now=0.0, seed=0)
    computed = []
    while scheduler.has_work:
        plan = scheduler.schedule(1.0)
        computed.append(plan.tokens)
        scheduler.settle(plan, device.run(plan), 1.0)
        assert scheduler.blocks.free_blocks == scheduler.blocks.count, "something was kept"
        device.slots.clear()
    assert computed == [3, 4, 5]


def test_without_a_kv_cache_siblings_go_their_own_ways_and_an_unfinished_prompt_is_never_begun():
    scheduler, device = simulated(max_running=4, max_batch_tokens=16, prefix_caching=False, policy=AdmissionPolicy(kv_cache=False))
    requests = [ask(name, [2, 3, 4, 5, 6], n=2, max_tokens=5) for name in ("a", "b")]
    for request in requests:
        scheduler.submit(request, now=0.0, seed=3)
    answers: dict[tuple[str, int], list[int]] = {}
    for _ in range(40):
        plan = scheduler.schedule(1.0)
        assert all(chunk.start == 0 and chunk.sequences for chunk in plan.chunks)
        for update in scheduler.settle(plan, device.run(plan), 1.0):
            answers.setdefault((update.request_id, update.sequence), []).extend(update.token_ids)
    assert answers == {(request.request_id, i): expected_output(request, 3 + i) for request in requests for i in (0, 1)}


def test_unchunked_a_prompt_waits_until_it_fits_whole_into_a_step():
    scheduler, device = simulated(max_batch_tokens=12, policy=AdmissionPolicy(chunked_prefill=False))
    for name, first in (("a", 2), ("b", 20)):
        scheduler.submit(ask(name, list(range(first, first + 8)), max_tokens=2), now=0.0, seed=0)
    first = scheduler.schedule(1.0)
    scheduler.settle(first, device.run(first), 1.0)
    second = scheduler.schedule(2.0)
    assert [(chunk.sequence.request.request_id, chunk.count) for chunk in first.chunks] == [("a", 8)]
    assert len(second.decodes) == 1
    assert [chunk.sequence.request.request_id for chunk in second.chunks] == ["b"]


def policies() -> st.SearchStrategy[AdmissionPolicy]:
    batched = st.builds(
        AdmissionPolicy,
        batching=st.sampled_from(["static", "dynamic", "continuous"]),
        batch_window_s=st.sampled_from([0.0, 2.0]),
        paged_kv=st.booleans(),
        chunked_prefill=st.booleans(),
    )
    return batched | st.builds(AdmissionPolicy, kv_cache=st.just(False), paged_kv=st.booleans())


@given(policies(), st.lists(st.integers(1, 20), min_size=1, max_size=9), st.integers(8, 32), st.integers(1, 4))
def test_whatever_is_switched_off_every_request_ends_with_its_tokens(policy: AdmissionPolicy, outputs: list[int], blocks: int, places: int):
    """8 blocks of 4 tokens are one context of full length: with pages, sequences are preempted there."""
    sharing = policy.paged_kv and policy.kv_cache and blocks % 2 == 0
    run(policy, outputs, blocks=blocks, max_running=places, prefix_caching=sharing)
