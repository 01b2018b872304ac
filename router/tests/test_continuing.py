"""What a client sees of a worker that is lost in the middle of an answer: nothing, as long as another one can go on."""

import asyncio
from typing import Any

import pytest
from fleet_rig import ends_of, generation, rig, tokens_of
from scripted_worker import ScriptedWorker

from pagoda_router.dispatch.continuing import rest_of
from pagoda_router.dispatch.second_tries import RetryShares
from pagoda_router.dispatch.stalls import StageTimeouts
from pagoda_router.errors import EnginesDied, FirstTokenTimeout, RetryBudgetSpent, UpstreamFailed
from pagoda_router.generation import Ended, Sampling
from pagoda_router.openai.errors import error_headers
from pagoda_router.wire import worker_pb2 as wire


@pytest.fixture
async def pair():
    async with ScriptedWorker(name="a") as a, ScriptedWorker(name="b") as b:
        yield a, b


async def first_asked(a, b):
    """The worker that got the request, the other one, and the submit."""
    tasks = {asyncio.create_task(each.next_submit()): (each, other) for each, other in ((a, b), (b, a))}
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    asked = done.pop()
    return *tasks[asked], asked.result()


async def test_a_stream_whose_worker_is_lost_goes_on_where_it_was(tmp_path, pair):
    async with rig(tmp_path, *pair) as router:
        wanted = generation(max_tokens=9, min_tokens=4, sampling=Sampling(seed=7, presence_penalty=0.5), top_logprobs=0)
        task = asyncio.create_task(router.collect(wanted))
        lost, other, submit = await first_asked(*pair)
        lost.tokens(submit.request_id, [5], started=True)
        lost.tokens(submit.request_id, [6, 7])
        lost.break_session()
        again = await other.next_submit()
        assert (list(again.prompt_ids), list(again.resume_ids)) == (list(wanted.prompt_ids), [5, 6, 7])
        assert (again.max_tokens, again.min_tokens, again.sampling.seed, again.HasField("top_logprobs")) == (9, 4, 7, True)
        other.tokens(again.request_id, [8], started=True)
        other.finish(again.request_id, tokens=5)
        events = await task
        assert tokens_of(events) == [5, 6, 7, 8]
        assert [event for event in events if isinstance(event, Ended)] == events[-1:]
        assert (events[-1].usage.prompt_tokens, events[-1].usage.cached_tokens, events[-1].usage.completion_tokens) == (3, 2, 5)
        assert router.metric("replays_total", model="tiny") == 1
        await router.until(lambda: router.outstanding_tokens == 0)


async def test_what_was_taken_on_the_way_is_resumed_too(tmp_path, pair):
    async with rig(tmp_path, *pair) as router:
        read, taken = list[Any](), list[int]()

        async def follow() -> None:
            async with router.dispatcher.generate(generation(max_tokens=9)) as stream:
                stream.tap(lambda tokens: not taken.extend(tokens.token_ids))
                async for events in stream:
                    read.extend(events)

        task = asyncio.create_task(follow())
        lost, other, submit = await first_asked(*pair)
        lost.tokens(submit.request_id, [5], started=True)
        lost.change_state(num_running=1)  # wakes `until`
        await router.until(lambda: bool(read))  # and waits for more
        lost.tokens(submit.request_id, [6])
        lost.change_state(num_running=2)
        await router.until(lambda: bool(taken))
        lost.break_session()
        again = await other.next_submit()
        assert list(again.resume_ids) == [5, 6]
        other.tokens(again.request_id, [8], started=True)
        other.finish(again.request_id, tokens=3)
        await task
        assert (taken, tokens_of(read)) == ([6], [5, 8])


async def test_each_open_sequence_goes_on_with_its_own_seed_and_ended_ones_do_not(tmp_path, pair):
    async with rig(tmp_path, *pair) as router:
        task = asyncio.create_task(router.collect(generation(max_tokens=9, n=3, sampling=Sampling(seed=7))))
        lost, other, submit = await first_asked(*pair)
        lost.rows([(submit.request_id, 0, [5]), (submit.request_id, 1, [6])])
        lost.finish(submit.request_id, sequence=1, tokens=2)
        lost.break_session()
        again = {submit.sampling.seed: submit for submit in [await other.next_submit(), await other.next_submit()]}
        assert {seed: (list(each.resume_ids), each.n) for seed, each in again.items()} == {7: ([5], 1), 9: ([], 1)}
        other.tokens(again[9].request_id, [8])
        other.tokens(again[7].request_id, [9])
        for seed in (7, 9):
            other.finish(again[seed].request_id, tokens=2)
        events = await task
        assert [tokens_of(events, sequence) for sequence in range(3)] == [[5, 9], [6], [8]]
        assert ends_of(events) == {0: "stop", 1: "stop", 2: "stop"}


async def test_a_worker_whose_drain_ran_out_of_time_hands_its_streams_over(tmp_path, pair):
    async with rig(tmp_path, *pair) as router:
        task = asyncio.create_task(router.collect())
        lost, other, submit = await first_asked(*pair)
        lost.tokens(submit.request_id, [5])
        lost.finish(submit.request_id, wire.FINISH_SHUTDOWN, detail="drained")
        again = await other.next_submit()
        other.tokens(again.request_id, [6])
        other.finish(again.request_id)
        assert tokens_of(await task) == [5, 6]


async def test_a_stream_waits_for_its_only_worker_to_come_back(tmp_path):
    async with ScriptedWorker() as worker, rig(tmp_path, worker) as router:
        task = asyncio.create_task(router.collect())
        submit = await worker.next_submit()
        worker.tokens(submit.request_id, [5])
        worker.break_session()
        again = await worker.next_submit()
        worker.tokens(again.request_id, [6])
        worker.finish(again.request_id)
        assert tokens_of(await task) == [5, 6]


async def test_a_sequence_that_had_all_its_tokens_asks_nobody_for_more(tmp_path, pair):
    async with rig(tmp_path, *pair) as router:
        task = asyncio.create_task(router.collect(generation(max_tokens=2)))
        lost, other, submit = await first_asked(*pair)
        lost.tokens(submit.request_id, [5, 6])
        lost.break_session()
        events = await task
        assert tokens_of(events) == [5, 6]
        assert (ends_of(events), events[-1].usage.completion_tokens) == ({0: "length"}, 2)
        assert other.submits.empty()


async def test_a_stream_whose_engine_died_goes_on_elsewhere(tmp_path, pair):
    async with rig(tmp_path, *pair) as router:
        task = asyncio.create_task(router.collect())
        lost, other, submit = await first_asked(*pair)
        lost.tokens(submit.request_id, [5], started=True)
        lost.finish(submit.request_id, wire.FINISH_ENGINE_ERROR, detail="the engine died", engine_died=True)
        again = await other.next_submit()
        assert list(again.resume_ids) == [5]
        other.tokens(again.request_id, [6])
        other.finish(again.request_id)
        assert tokens_of(await task) == [5, 6]
        await router.until(lambda: router.outstanding_tokens == 0)


@pytest.mark.parametrize("begun", [True, False], ids=["after its first token", "before it"])
async def test_a_request_that_two_engines_had_when_they_died_is_ended(tmp_path, pair, begun):
    async with rig(tmp_path, *pair) as router:
        task = asyncio.create_task(router.collect())
        first, second, submit = await first_asked(*pair)
        for worker in (first, second):
            submit = submit if worker is first else await worker.next_submit()
            if begun:
                worker.tokens(submit.request_id, [5], started=True)
            worker.finish(submit.request_id, wire.FINISH_ENGINE_ERROR, detail="the engine died", engine_died=True)
        with pytest.raises(EnginesDied, match="2 engines of tiny died while they had this request"):
            await task
        assert (first.submits.empty(), second.submits.empty()) == (True, True)
        assert router.metric("suspected_requests_total", model="tiny") == 1
        assert (b"x-should-retry", b"false") in error_headers(EnginesDied("so"))


async def test_the_sequences_of_one_request_are_in_one_death_together(tmp_path, pair):
    async with rig(tmp_path, *pair) as router:
        task = asyncio.create_task(router.collect(generation(n=2)))
        lost, other, submit = await first_asked(*pair)
        lost.rows([(submit.request_id, 0, [5]), (submit.request_id, 1, [6])])
        for sequence in range(2):
            lost.finish(submit.request_id, wire.FINISH_ENGINE_ERROR, sequence=sequence, engine_died=True)
        for again in [await other.next_submit(), await other.next_submit()]:
            other.finish(again.request_id)
        assert ends_of(await task) == {0: "stop", 1: "stop"}


async def test_an_engine_that_died_and_a_worker_that_was_killed_are_not_two_engines(tmp_path):
    async with ScriptedWorker() as worker, rig(tmp_path, worker) as router:
        task = asyncio.create_task(router.collect())
        submit = await worker.next_submit()
        worker.tokens(submit.request_id, [5])
        worker.finish(submit.request_id, wire.FINISH_ENGINE_ERROR, engine_died=True)
        submit = await worker.next_submit()
        worker.break_session()
        submit = await worker.next_submit()
        worker.finish(submit.request_id)
        assert tokens_of(await task) == [5]


async def test_a_stream_that_loses_every_worker_it_gets_ends_with_the_error(tmp_path):
    async with ScriptedWorker() as worker, rig(tmp_path, worker) as router:
        task = asyncio.create_task(router.collect())
        for token in (5, 6, 7, 8):
            submit = await worker.next_submit()
            worker.tokens(submit.request_id, [token])
            worker.break_session()
        events = await task
        assert tokens_of(events) == [5, 6, 7, 8]
        assert ends_of(events) == {0: "engine_error"}


async def test_a_client_that_leaves_after_a_replay_cancels_on_the_worker_that_has_it_now(tmp_path, pair):
    async with rig(tmp_path, *pair) as router:
        opened = router.dispatcher.generate(generation())
        entering = asyncio.create_task(opened.__aenter__())
        lost, other, submit = await first_asked(*pair)
        lost.tokens(submit.request_id, [5])
        stream = aiter(await entering)
        assert tokens_of(await anext(stream)) == [5]
        lost.break_session()
        reading = asyncio.create_task(anext(stream))
        again = await other.next_submit()
        other.tokens(again.request_id, [6])
        assert tokens_of(await reading) == [6]
        await opened.__aexit__(None, None, None)
        assert (await other.next_cancel()).request_id == again.request_id


async def test_a_client_that_leaves_while_its_replay_waits_leaves_nothing_behind(tmp_path):
    async with ScriptedWorker() as worker, rig(tmp_path, worker) as router:
        opened = router.dispatcher.generate(generation())
        entering = asyncio.create_task(opened.__aenter__())
        submit = await worker.next_submit()
        worker.tokens(submit.request_id, [5])
        stream = aiter(await entering)
        await anext(stream)
        await worker.stop()
        reading = asyncio.create_task(anext(stream))
        await router.until(lambda: router.dispatcher.queue("tiny")[0] == 1)
        reading.cancel()
        await opened.__aexit__(None, None, None)
        assert router.dispatcher.queue("tiny") == (0, 0)


async def test_a_sequence_stopped_after_a_replay_is_cancelled_there_and_silent(tmp_path, pair):
    async with rig(tmp_path, *pair) as router:
        opened = router.dispatcher.generate(generation(n=2))
        entering = asyncio.create_task(opened.__aenter__())
        lost, other, submit = await first_asked(*pair)
        lost.rows([(submit.request_id, 0, [5]), (submit.request_id, 1, [6])])
        stream = await entering
        await anext(aiter(stream))
        lost.break_session()
        reading = asyncio.create_task(anext(aiter(stream)))
        again = {submit.resume_ids[0]: submit for submit in [await other.next_submit(), await other.next_submit()]}
        other.tokens(again[5].request_id, [7])
        assert tokens_of(await reading) == [7]
        stream.stop(0)
        assert (await other.next_cancel()).request_id == again[5].request_id
        other.tokens(again[5].request_id, [8])
        stream.stop(1)
        assert (await other.next_cancel()).request_id == again[6].request_id, "the next one: the first is not told twice"
        rest = [event for batch in [batch async for batch in stream] for event in batch]
        assert (tokens_of(rest), ends_of(rest)) == ([], {})
        await opened.__aexit__(None, None, None)


async def test_without_a_share_for_replays_the_loss_is_the_streams_end(tmp_path, pair):
    async with rig(tmp_path, *pair, retries=RetryShares(replays=0.0)) as router:
        task = asyncio.create_task(router.collect())
        lost, _, submit = await first_asked(*pair)
        lost.tokens(submit.request_id, [5])
        lost.break_session()
        with pytest.raises(RetryBudgetSpent, match="killed by the script"):
            await task
        assert router.metric("retry_budget_spent_total", model="tiny", budget="replays") == 1


async def test_without_a_share_for_retries_a_request_is_lost_with_its_worker(tmp_path, pair):
    async with rig(tmp_path, *pair, retries=RetryShares(retries=0.0)) as router:
        task = asyncio.create_task(router.collect())
        lost, _, _submit = await first_asked(*pair)
        lost.break_session()
        with pytest.raises(RetryBudgetSpent, match="retries of tiny"):
            await task


async def test_a_worker_without_a_next_token_is_left_for_another(tmp_path, pair):
    async with rig(tmp_path, *pair, timeouts=StageTimeouts(next_token_s=0.2)) as router:
        task = asyncio.create_task(router.collect())
        hangs, other, submit = await first_asked(*pair)
        hangs.tokens(submit.request_id, [5])
        again = await other.next_submit()
        assert (await hangs.next_cancel()).request_id == submit.request_id
        other.tokens(again.request_id, [6])
        other.finish(again.request_id)
        assert tokens_of(await task) == [5, 6]


async def test_a_worker_without_a_first_token_is_left_for_another_and_then_told(tmp_path, pair):
    async with rig(tmp_path, *pair, timeouts=StageTimeouts(first_token_s=0.2)) as router:
        task = asyncio.create_task(router.collect())
        await first_asked(*pair)
        await first_asked(*pair)
        with pytest.raises(FirstTokenTimeout, match=r"no first token within 0\.2 s"):
            await task


def test_the_rest_of_a_sequence_keeps_everything_but_what_was_said():
    wanted = generation(max_tokens=5, n=2, prompt_logprobs=1, sampling=Sampling(seed=3, top_k=4))
    rest = rest_of(wanted, 1, [7, 8])
    assert rest is not None
    assert (rest.n, rest.prompt_logprobs, rest.resume_ids, rest.sampling) == (1, None, (7, 8), Sampling(seed=4, top_k=4))
    assert (rest.prompt_ids, rest.max_tokens) == (wanted.prompt_ids, 5)
    assert rest_of(wanted, 0, [1, 2, 3, 4, 5]) is None


def test_an_error_of_a_timeout_is_an_upstream_failure_of_its_own_kind():
    assert issubclass(FirstTokenTimeout, UpstreamFailed)
