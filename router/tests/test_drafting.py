"""Speculation across two workers, each scripted: who is told what, and that the answer never waits for a draft."""

import asyncio
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fleet_rig import Rig, generation, model_object, rig, tokens_of
from scripted_worker import ScriptedWorker

from pagoda_router.abilities import Switches
from pagoda_router.drafting.companion import MOST_AHEAD
from pagoda_router.generation import Sampling
from pagoda_router.wire import worker_pb2 as wire

MODELS = (model_object("tiny", draft_model="small"), model_object("small"))
PLAIN = (model_object("tiny"), model_object("small"))


class Fleet:
    """A verifying worker, two drafting ones, and the router between them."""

    def __init__(self, router: Rig, verifier: ScriptedWorker, drafters: list[ScriptedWorker]) -> None:
        self.router = router
        self.verifier = verifier
        self.drafters = drafters

    def ask(self, **fields: Any) -> "asyncio.Task[Any]":
        return asyncio.create_task(self.router.collect(generation(max_tokens=200, **fields)))

    async def asked_to_draft(self) -> tuple[ScriptedWorker, Any]:
        """The drafting worker that got the next branch, and the branch."""
        tasks = {asyncio.create_task(each.next_submit()): each for each in self.drafters}
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        (first,) = done
        return tasks[first], first.result()

    def know(self, models: tuple[Any, ...], *gone: ScriptedWorker) -> None:
        self.router.know(*[each for each in (self.verifier, *self.drafters) if each not in gone], models=models)

    async def told(self, metric: str, count: float, **labels: str) -> None:
        await self.router.until(lambda: self.router.metric(metric, model="tiny", **labels) == count)


@pytest.fixture
async def fleet(tmp_path):
    async with speculating(tmp_path) as made:
        yield made


@asynccontextmanager
async def speculating(tmp_path, *, features=(wire.FEATURE_VERIFY,), models=MODELS):
    async with (
        ScriptedWorker(name="v") as verifier,
        ScriptedWorker("small", name="d1", capacity_tokens=4096) as one,
        ScriptedWorker("small", name="d2", capacity_tokens=4096) as two,
        rig(tmp_path) as router,
    ):
        verifier.features = list(features)
        made = Fleet(router, verifier, [one, two])
        made.know(models)
        await router.until_routable()
        await router.until_routable(2, "small")
        yield made


async def test_a_request_runs_on_its_worker_and_is_written_ahead_on_another(fleet):
    task = fleet.ask(sampling=Sampling(temperature=0.7), stop_token_ids=(3,), min_tokens=4, top_logprobs=0)
    submit, (drafter, branch) = await fleet.verifier.next_submit(), await fleet.asked_to_draft()
    assert (submit.model, branch.model) == ("tiny", "small")
    assert list(branch.prompt_ids) == list(submit.prompt_ids)
    assert (branch.sampling, list(branch.stop_token_ids), branch.min_tokens) == (submit.sampling, [3], 4)
    assert submit.sampling.HasField("seed"), "two workers sample the same token only from the same noise"
    assert (branch.max_tokens, branch.HasField("top_logprobs")) == (MOST_AHEAD, False)
    drafter.tokens(branch.request_id, [5, 6, 7], started=True)
    draft = await fleet.verifier.next_draft()
    assert (draft.request_id, draft.position, list(draft.token_ids)) == (submit.request_id, 0, [5, 6, 7])
    fleet.verifier.tokens(submit.request_id, [5, 6], started=True)
    drafter.tokens(branch.request_id, [8])
    draft = await fleet.verifier.next_draft()
    assert (draft.position, list(draft.token_ids)) == (3, [8])
    fleet.verifier.finish(submit.request_id, tokens=3)
    assert tokens_of(await task) == [5, 6]
    assert (await drafter.next_cancel()).request_id == branch.request_id


async def test_a_correction_makes_the_drafting_worker_begin_again_behind_it(fleet):
    task = fleet.ask()
    submit, (drafter, branch) = await fleet.verifier.next_submit(), await fleet.asked_to_draft()
    drafter.tokens(branch.request_id, [5, 6, 7], started=True)
    await fleet.verifier.next_draft()
    fleet.verifier.tokens(submit.request_id, [5, 9], started=True)
    again, second = await fleet.asked_to_draft()
    assert again is drafter, "its prefix cache has the prompt"
    assert (await drafter.next_cancel()).request_id == branch.request_id
    assert (list(second.resume_ids), second.max_tokens) == ([5, 9], 2 + MOST_AHEAD)
    drafter.tokens(branch.request_id, [8])  # of the branch that is cancelled
    drafter.tokens(second.request_id, [10, 11], started=True)
    draft = await fleet.verifier.next_draft()
    assert (draft.position, list(draft.token_ids)) == (2, [10, 11])
    fleet.verifier.finish(submit.request_id, tokens=3)
    assert tokens_of(await task) == [5, 9]


async def test_a_branch_that_is_used_up_goes_on_when_half_of_it_came_true(fleet):
    task = fleet.ask()
    submit, (drafter, branch) = await fleet.verifier.next_submit(), await fleet.asked_to_draft()
    text = list(range(5, 5 + MOST_AHEAD))
    drafter.tokens(branch.request_id, text, started=True)
    drafter.finish(branch.request_id, wire.FINISH_LENGTH, tokens=MOST_AHEAD)
    await fleet.verifier.next_draft()
    fleet.verifier.tokens(submit.request_id, text[: MOST_AHEAD // 2 - 1], started=True)
    fleet.verifier.tokens(submit.request_id, text[MOST_AHEAD // 2 - 1 : MOST_AHEAD // 2 + 1])
    _, second = await fleet.asked_to_draft()
    assert (list(second.resume_ids), second.max_tokens) == (text, 2 * MOST_AHEAD)
    fleet.verifier.finish(submit.request_id, tokens=3)
    await task


async def test_the_end_is_drafted_too(fleet):
    task = fleet.ask()
    submit, (drafter, branch) = await fleet.verifier.next_submit(), await fleet.asked_to_draft()
    drafter.tokens(branch.request_id, [5], started=True)
    drafter.finish(branch.request_id, wire.FINISH_STOP, tokens=2)
    assert list((await fleet.verifier.next_draft()).token_ids) == [5]
    draft = await fleet.verifier.next_draft()
    assert (draft.position, list(draft.token_ids)) == (1, [0])
    fleet.verifier.tokens(submit.request_id, [5, 6], started=True)
    _, second = await fleet.asked_to_draft()
    assert list(second.resume_ids) == [5, 6], "the model went on where the drafting one would have ended"
    fleet.verifier.finish(submit.request_id, tokens=3)
    await task


async def test_a_drafting_worker_that_dies_is_replaced_once_and_then_done_without(fleet):
    task = fleet.ask()
    submit, (first, branch) = await fleet.verifier.next_submit(), await fleet.asked_to_draft()
    first.tokens(branch.request_id, [5], started=True)
    await fleet.verifier.next_draft()
    fleet.verifier.tokens(submit.request_id, [5], started=True)
    fleet.know(MODELS, first)
    first.break_session()
    second, again = await fleet.asked_to_draft()
    assert second is not first
    assert list(again.resume_ids) == [5]
    second.break_session()
    await fleet.told("drafting_stopped_total", 1, reason="drafter_lost")
    fleet.verifier.tokens(submit.request_id, [6, 7])
    fleet.verifier.finish(submit.request_id, tokens=4)
    assert tokens_of(await task) == [5, 6, 7], "the answer goes on as if nothing had happened"


async def test_a_verifying_worker_that_dies_is_replayed_with_a_companion_of_its_own(fleet):
    task = fleet.ask(sampling=Sampling(temperature=1.0))
    submit, (drafter, branch) = await fleet.verifier.next_submit(), await fleet.asked_to_draft()
    fleet.verifier.tokens(submit.request_id, [5, 6], started=True)
    fleet.verifier.break_session()
    assert (await drafter.next_cancel()).request_id == branch.request_id
    replayed = await fleet.verifier.next_submit()
    assert list(replayed.resume_ids) == [5, 6]
    _, second = await fleet.asked_to_draft()
    assert list(second.resume_ids) == [5, 6]
    fleet.verifier.tokens(replayed.request_id, [7], started=True)
    fleet.verifier.finish(replayed.request_id, tokens=4)
    assert tokens_of(await task) == [5, 6, 7]


async def test_taking_the_model_out_of_the_manifest_ends_drafting_at_once(fleet):
    task = fleet.ask()
    submit, (drafter, branch) = await fleet.verifier.next_submit(), await fleet.asked_to_draft()
    fleet.verifier.tokens(submit.request_id, [5], started=True)
    fleet.know(PLAIN)
    fleet.verifier.tokens(submit.request_id, [6])
    assert (await drafter.next_cancel()).request_id == branch.request_id
    await fleet.told("drafting_stopped_total", 1, reason="off")
    fleet.verifier.finish(submit.request_id, tokens=3)
    assert tokens_of(await task) == [5, 6]


async def test_guesses_that_do_not_hold_end_it_for_the_request(fleet):
    task = fleet.ask()
    submit, (drafter, branch) = await fleet.verifier.next_submit(), await fleet.asked_to_draft()
    rounds = 0
    while not fleet.router.metric("drafting_stopped_total", model="tiny", reason="acceptance"):
        drafter.tokens(branch.request_id, [9], started=True)
        await fleet.verifier.next_draft()
        fleet.verifier.tokens(submit.request_id, [5, 6])
        await drafter.next_cancel()
        rounds += 1
        if not fleet.router.metric("drafting_stopped_total", model="tiny", reason="acceptance"):
            drafter, branch = await fleet.asked_to_draft()
    assert 5 < rounds < 15
    fleet.verifier.finish(submit.request_id, tokens=3)
    assert tokens_of(await task) == [5, 6] * rounds
    assert fleet.router.metric("draft_tokens_total", model="tiny", kind="drafted") == rounds


UNDRAFTED = {
    "switched off by its header": {"switches": Switches(speculation=False)},
    "of several sequences": {"n": 2},
    "of an embedding": {"embedding": True},
}


@pytest.mark.parametrize("fields", UNDRAFTED.values(), ids=UNDRAFTED)
async def test_nobody_drafts_for_a_request(fleet, fields):
    task = fleet.ask(**fields)
    submit = await fleet.verifier.next_submit()
    fleet.verifier.tokens(submit.request_id, [5], started=True)
    for sequence in range(submit.n):
        fleet.verifier.finish(submit.request_id, sequence=sequence)
    await task
    assert all(each.submits.empty() for each in fleet.drafters)


async def test_workers_that_verify_nothing_and_models_without_drafts_are_left_alone(tmp_path):
    for features, models in (((), MODELS), ((wire.FEATURE_VERIFY,), PLAIN)):
        async with speculating(tmp_path, features=features, models=models) as made:
            task = made.ask()
            submit = await made.verifier.next_submit()
            made.verifier.finish(submit.request_id)
            await task
            assert all(each.submits.empty() for each in made.drafters)


async def test_without_a_drafting_worker_the_request_runs_as_ever(fleet):
    fleet.know(MODELS, *fleet.drafters)
    task = fleet.ask()
    submit = await fleet.verifier.next_submit()
    fleet.verifier.tokens(submit.request_id, [5], started=True)
    fleet.verifier.finish(submit.request_id, tokens=2)
    assert tokens_of(await task) == [5]
    assert fleet.router.metric("drafting_stopped_total", model="tiny", reason="no_drafter") == 1


async def test_drafts_are_nobodys_answers_for_accounts(fleet):
    task = fleet.ask()
    submit, (drafter, branch) = await fleet.verifier.next_submit(), await fleet.asked_to_draft()
    drafter.tokens(branch.request_id, [5], started=True)
    drafter.finish(branch.request_id, wire.FINISH_LENGTH, tokens=1)
    await fleet.verifier.next_draft()
    fleet.verifier.finish(submit.request_id)
    await task
    assert fleet.router.metric("settled_kv_tokens_total", model="small") == 0
    assert fleet.router.metric("actual_output_tokens_total", model="small") == 0
