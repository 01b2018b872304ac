"""How steps with drafts are planned and settled, over a simulated device that notices every wrong, lost or shared block."""

import pytest
from simulated_device import SimulatedDevice, expected_output, guess, simulated

from pagoda_worker.request import FinishReason, Request
from pagoda_worker.scheduling.plan import StepPlan
from pagoda_worker.scheduling.sampled import judge_drafts
from pagoda_worker.scheduling.scheduler import Scheduler
from pagoda_worker.scheduling.sequence import Sequence


def submit(scheduler: Scheduler, request_id: str, length: int, **fields: object) -> Request:
    prompt_ids = [2 + (len(request_id) + 7 * i) % 48 for i in range(length)]
    request = Request(request_id=request_id, prompt_ids=prompt_ids, **{"max_tokens": 12, "ignore_eos": True, **fields})  # type: ignore[arg-type]
    scheduler.submit(request, now=0.0, seed=0)
    return request


def step(scheduler: Scheduler, device: SimulatedDevice, *lengths: tuple[int, int]) -> tuple[StepPlan, dict[str, list[int]]]:
    """`lengths`: right and wrong drafts of everyone, in order. Returns the plan and what was told."""
    left = list(lengths)
    if lengths:
        guess(scheduler, lambda: left.pop(0))
    plan = scheduler.schedule(0.0)
    sampled = device.run(plan)
    judge_drafts(plan, sampled)
    told = {update.request_id: update.token_ids for update in scheduler.settle(plan, sampled, 1.0)}
    scheduler.check()
    return plan, told


def one(scheduler: Scheduler) -> Sequence:
    (sequence,) = scheduler.running
    return sequence


@pytest.mark.parametrize(("right", "wrong"), [(0, 1), (0, 3), (2, 0), (2, 2), (4, 0)])
def test_a_step_tells_the_drafts_that_were_right_and_one_token_more(right: int, wrong: int):
    scheduler, device = simulated()
    request = submit(scheduler, "a", 5)
    step(scheduler, device)
    plan, told = step(scheduler, device, (right, wrong))
    assert plan.tokens == 1 + right + wrong
    assert told["a"] == expected_output(request, 0)[1 : 2 + right]
    sequence = one(scheduler)
    assert sequence.computed == len(sequence.tokens) - 1
    usage = sequence.usage()
    assert (usage.drafts, usage.draft_tokens, usage.accepted_draft_tokens) == (1, right + wrong, right)
    assert usage.accepted_by_place == (1,) * right + (0,) * wrong
    while scheduler.has_work:
        step(scheduler, device, (1, 1))
    assert scheduler.blocks.free_blocks == scheduler.blocks.count


def test_nothing_is_planned_on_top_of_drafts_that_are_being_verified():
    """Also when guessing is given up meanwhile, as it may be where steps are planned ahead."""
    scheduler, device = simulated()
    request = submit(scheduler, "a", 5)
    step(scheduler, device)
    guess(scheduler, lambda: (1, 2))
    plan, sequence = scheduler.schedule(0.0), one(scheduler)
    sequence.waits_for_token = False
    assert scheduler.schedule(0.0).empty
    sampled = device.run(plan)
    judge_drafts(plan, sampled)
    (update,) = scheduler.settle(plan, sampled, 1.0)
    assert update.token_ids == expected_output(request, 0)[1:3]
    while scheduler.has_work:
        step(scheduler, device)
    assert sequence.tokens[5:] == expected_output(request, 0)


def test_drafts_end_where_the_sequence_must():
    scheduler, device = simulated()
    request = submit(scheduler, "a", 5, max_tokens=4)
    step(scheduler, device)
    plan, told = step(scheduler, device, (9, 0))
    assert len(plan.verifications[0].drafts) == 2, "three tokens are left, and the last place samples one itself"
    assert told["a"] == expected_output(request, 0)[1:4]
    assert not scheduler.has_work


def test_a_stop_id_among_accepted_drafts_ends_the_output_there():
    scheduler, device = simulated()
    whole = expected_output(submit(scheduler, "a", 5, max_tokens=8), 0)
    scheduler.cancel("a")
    stopped = submit(scheduler, "b", 5, stop_token_ids=[whole[3]])
    assert stopped.prompt_ids == [2 + (1 + 7 * i) % 48 for i in range(5)], "the same prompt, so the same tokens"
    step(scheduler, device)
    guess(scheduler, lambda: (6, 0))
    plan = scheduler.schedule(0.0)
    sampled = device.run(plan)
    judge_drafts(plan, sampled)
    (update,) = scheduler.settle(plan, sampled, 1.0)
    assert update.finish is not None
    assert update.finish.reason is FinishReason.STOP
    assert update.token_ids == whole[1:3]
    assert update.finish.usage.completion_tokens == 4
    scheduler.check()


def test_no_step_has_more_tokens_than_its_budget_and_everyone_decodes_before_anyone_drafts():
    scheduler, device = simulated(max_batch_tokens=8)
    for name in ("a", "bb", "ccc"):
        submit(scheduler, name, 4)
        step(scheduler, device)
    step(scheduler, device)
    plan, told = step(scheduler, device, (4, 0), (4, 0), (4, 0))
    assert plan.tokens == 8
    assert {name: len(ids) for name, ids in told.items()} == {"a": 5, "bb": 2, "ccc": 1}


def test_a_guess_takes_no_block_that_a_neighbours_next_token_may_need():
    scheduler, device = simulated(blocks=6, block_size=4)
    submit(scheduler, "a", 7, max_tokens=9)
    submit(scheduler, "bb", 7, max_tokens=9)
    step(scheduler, device)  # both hold two blocks; two are free
    plan, _ = step(scheduler, device, (4, 0), (4, 0))
    assert [(v.sequence.request_id, len(v.drafts)) for v in plan.verifications] == []
    assert not scheduler.totals.preemptions


def test_blocks_of_rejected_drafts_are_not_known_to_the_prefix_cache():
    scheduler, device = simulated(block_size=4)
    submit(scheduler, "a", 6, max_tokens=30)
    step(scheduler, device)
    step(scheduler, device, (0, 5))
    sequence = one(scheduler)
    assert sequence.registered == 1
    step(scheduler, device, (3, 0))
    step(scheduler, device, (0, 0))
    assert sequence.registered == len(sequence.tokens[:-1]) // 4
    assert scheduler.blocks.match(sequence.hashes[1:]) == sequence.blocks[: sequence.registered]


def test_one_that_leaves_while_its_drafts_are_computed_has_their_blocks_zeroed():
    scheduler, device = simulated(block_size=4)
    submit(scheduler, "a", 4, max_tokens=30)
    step(scheduler, device)
    guess(scheduler, lambda: (0, 5))
    plan = scheduler.schedule(0.0)
    written = list(one(scheduler).blocks)
    sampled = device.run(plan)
    scheduler.cancel("a")
    submit(scheduler, "b", 4)
    following = scheduler.schedule(1.0)
    assert set(written[1:]) <= set(following.scrubs)
    sampled.broken.add(1)
    judge_drafts(plan, sampled)
    scheduler.settle(plan, sampled, 1.0)
    scheduler.check()


def test_a_place_that_is_not_finite_ends_the_sequence_only_when_it_is_reached():
    for right, ends in ((0, False), (3, True)):
        scheduler, device = simulated()
        submit(scheduler, "a", 5)
        step(scheduler, device)
        guess(scheduler, lambda right=right: (right, 3 - right))  # type: ignore[misc]
        plan = scheduler.schedule(0.0)
        sampled = device.run(plan)
        sampled.token_ids[2], sampled.broken = -1, {2}
        judge_drafts(plan, sampled)
        (update,) = scheduler.settle(plan, sampled, 1.0)
        assert (update.finish is not None) == ends
        assert len(update.token_ids) == (2 if ends else 1)
        scheduler.check()
        scheduler.cancel("a")
        submit(scheduler, "c", 5)
        assert scheduler.schedule(2.0).scrubs, "the draft's place held numbers that are not finite"


def test_a_step_that_cannot_be_computed_takes_its_drafts_with_it():
    scheduler, device = simulated()
    submit(scheduler, "a", 5)
    submit(scheduler, "bb", 5)
    step(scheduler, device)
    guess(scheduler, lambda: (2, 1))
    first, second = scheduler.schedule(0.0).halves()
    scheduler.withdraw(first, [second], "too large")
    sampled = device.run(second.with_changes_of(first))
    judge_drafts(second, sampled)
    told = {update.request_id: update for update in scheduler.settle(second, sampled, 1.0)}
    assert told["a"].finish is not None
    assert len(told["bb"].token_ids) == 3
    while scheduler.has_work:
        step(scheduler, device)
