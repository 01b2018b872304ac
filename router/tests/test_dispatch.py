"""A generation's whole way through the router's inside, against a worker that says exactly what the test wants."""

import asyncio

import pytest
from fleet_rig import ends_of, generation, model_object, rig, tokens_of
from scripted_worker import ScriptedWorker

from pagoda_router.errors import (
    BadRequest,
    ColdStart,
    ContextTooLong,
    DeadlineExceeded,
    ModelNotFound,
    NoWorker,
    Overloaded,
    UpstreamFailed,
)
from pagoda_router.generation import Ended, ModelName, Sampling, Started, Tokens, Usage
from pagoda_router.wire import worker_pb2 as wire


@pytest.fixture
async def worker():
    async with ScriptedWorker() as started:
        yield started


async def test_a_generation_streams_its_events_in_order_and_settles(tmp_path, worker):
    async with rig(tmp_path, worker) as router:
        task = asyncio.create_task(router.collect())
        submit = await worker.next_submit()
        worker.tokens(submit.request_id, [5], started=True)
        worker.tokens(submit.request_id, [6, 7])
        worker.finish(submit.request_id, tokens=4)
        events = await task
        assert events == [Started(0, 2, 7), Tokens(0, [5], None), Tokens(0, [6, 7], None), Ended(0, "stop", Usage(3, 2, 4), 0)]
        assert router.outstanding_tokens == 0
        settled, refunded = (router.metric(f"{name}_kv_tokens_total", model="tiny") for name in ("settled", "refunded"))
        assert (settled, settled + refunded) == (16, submit.reserved_kv_tokens), "three and four tokens fill one block"


async def test_a_submit_carries_everything_that_was_asked(tmp_path, worker):
    async with rig(tmp_path, worker) as router:
        sampling = Sampling(temperature=0.5, top_p=0.9, top_k=7, min_p=0.25, seed=11, logit_bias={4: -1.5}, presence_penalty=0.5)
        wanted = generation(
            first_id=1,
            max_tokens=9, n=2, sampling=sampling, min_tokens=2, stop_token_ids=(8,), ignore_eos=True, top_logprobs=0, cache_salt=b"t",
            priority=-3, deadline_s=9.0, traceparent="00-a-b-01",
        )  # fmt: skip
        task = asyncio.create_task(router.collect(wanted))
        submit = await worker.next_submit()
        assert (list(submit.prompt_ids), submit.n, submit.max_tokens, submit.min_tokens) == ([1, 2, 3], 2, 9, 2)
        assert (list(submit.stop_token_ids), submit.ignore_eos, submit.priority, submit.cache_salt) == ([8], True, -3, b"t")
        assert submit.HasField("top_logprobs")
        assert submit.top_logprobs == 0
        assert 8e6 < submit.deadline_us <= 9e6
        assert (submit.sampling.top_k, submit.sampling.seed, submit.sampling.logit_bias[0].bias) == (7, 11, -1.5)
        assert submit.trace.traceparent == "00-a-b-01"
        assert submit.reserved_kv_tokens == 32, "two sequences, one block each for the prompt's rest and nine tokens"
        for sequence in (0, 1):
            worker.finish(submit.request_id, sequence=sequence)
        assert ends_of(await task) == {0: "stop", 1: "stop"}


async def test_the_rows_of_one_frame_leave_together(tmp_path, worker):
    async with rig(tmp_path, worker) as router:
        opened = router.dispatcher.generate(generation(n=2))
        task = asyncio.create_task(opened.__aenter__())
        submit = await worker.next_submit()
        worker.rows([(submit.request_id, 0, [5]), (submit.request_id, 1, [6, 7])])
        stream = await task
        assert await anext(aiter(stream)) == [Tokens(0, [5], None), Tokens(1, [6, 7], None)]


async def test_logprobs_reach_the_row_that_asked(tmp_path, worker):
    async with rig(tmp_path, worker) as router:
        task = asyncio.create_task(router.collect(generation(n=2, top_logprobs=2)))
        submit = await worker.next_submit()
        logprobs = [wire.RowLogprobs(row=1, sampled=[-0.5, -1.0], top_ids=[6, 9, 7, 9], top=[-0.5, -2.0, -1.0, -3.0], k=2)]
        worker.rows([(submit.request_id, 0, [5]), (submit.request_id, 1, [6, 7])], logprobs=logprobs)
        for sequence in (0, 1):
            worker.finish(submit.request_id, sequence=sequence)
        first, second = (event for event in await task if isinstance(event, Tokens))
        assert first.logprobs is None
        assert [(entry.sampled, entry.top) for entry in second.logprobs] == [
            (-0.5, ((6, -0.5), (9, -2.0))),
            (-1.0, ((7, -1.0), (9, -3.0))),
        ]


async def test_leaving_early_cancels_on_the_worker_and_settles_when_it_confirms(tmp_path, worker):
    async with rig(tmp_path, worker) as router:
        opened = router.dispatcher.generate(generation())
        task = asyncio.create_task(opened.__aenter__())
        submit = await worker.next_submit()
        worker.tokens(submit.request_id, [5])
        await task
        await opened.__aexit__(None, None, None)
        cancel = await worker.next_cancel()
        assert (cancel.request_id, cancel.HasField("sequence"), cancel.reason) == (submit.request_id, False, wire.CANCEL_CLIENT_GONE)
        assert router.outstanding_tokens == submit.reserved_kv_tokens, "the worker still holds the blocks"
        worker.finish(submit.request_id, wire.FINISH_CANCELLED)
        await router.until(lambda: router.outstanding_tokens == 0)


async def test_a_caller_cancelled_before_the_first_token_is_cancelled_on_the_worker(tmp_path, worker):
    async with rig(tmp_path, worker) as router:
        task = asyncio.create_task(router.collect())
        submit = await worker.next_submit()
        task.cancel()
        assert (await worker.next_cancel()).request_id == submit.request_id
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_stopped_sequence_is_silent_while_the_other_goes_on(tmp_path, worker):
    async with rig(tmp_path, worker) as router:
        opened = router.dispatcher.generate(generation(n=2))
        task = asyncio.create_task(opened.__aenter__())
        submit = await worker.next_submit()
        worker.rows([(submit.request_id, 0, [5]), (submit.request_id, 1, [6])])
        stream = await task
        assert len(await anext(aiter(stream))) == 2
        stream.stop(0)
        cancel = await worker.next_cancel()
        assert (cancel.sequence, cancel.reason) == (0, wire.CANCEL_STOP_STRING)
        worker.rows([(submit.request_id, 0, [7]), (submit.request_id, 1, [8])])
        worker.finish(submit.request_id, wire.FINISH_CANCELLED, sequence=0, tokens=2)
        worker.finish(submit.request_id, wire.FINISH_LENGTH, sequence=1, tokens=2)
        rest = [event for batch in [batch async for batch in stream] for event in batch]
        assert tokens_of(rest, 0) == []
        assert tokens_of(rest, 1) == [8]
        assert ends_of(rest) == {1: "length"}
        await opened.__aexit__(None, None, None)
        assert router.metric("actual_output_tokens_total", model="tiny") == 4, "a stop string's length is a real answer's"


# ---------------------------------------------------------------- failures


async def test_a_request_lost_before_its_first_token_runs_on_another_worker(tmp_path):
    async with ScriptedWorker(name="a") as a, ScriptedWorker(name="b") as b, rig(tmp_path, a, b) as router:
        task = asyncio.create_task(router.collect())
        done, _ = await asyncio.wait(
            [first := asyncio.create_task(a.next_submit()), second := asyncio.create_task(b.next_submit())], return_when="FIRST_COMPLETED"
        )
        lost, other, waiting = (a, b, second) if first in done else (b, a, first)
        lost.rows([], started=[done.pop().result().request_id])
        lost.break_session()
        submit = await waiting
        other.tokens(submit.request_id, [5])
        other.finish(submit.request_id)
        assert tokens_of(await task) == [5]
        assert router.metric("retries_total", model="tiny", reason="worker_lost") == 1


async def test_a_request_lost_before_its_first_token_waits_for_its_only_worker_to_come_back(tmp_path, worker):
    async with rig(tmp_path, worker) as router:
        task = asyncio.create_task(router.collect())
        await worker.next_submit()
        worker.break_session()
        submit = await worker.next_submit()
        worker.tokens(submit.request_id, [5])
        worker.finish(submit.request_id)
        assert tokens_of(await task) == [5]


async def test_a_request_is_lost_twice_at_most(tmp_path, worker):
    async with rig(tmp_path, worker) as router:
        task = asyncio.create_task(router.collect())
        for _ in range(2):
            await worker.next_submit()
            worker.break_session()
        with pytest.raises(UpstreamFailed, match="killed by the script"):
            await task


@pytest.mark.parametrize(("begun", "submits"), [(True, 1), (False, 2)], ids=["prefill began", "still waiting on the worker"])
async def test_an_engine_error_is_retried_only_if_the_request_cannot_have_caused_it(tmp_path, worker, begun, submits):
    async with rig(tmp_path, worker) as router:
        task = asyncio.create_task(router.collect())
        for _ in range(submits):
            submit = await worker.next_submit()
            if begun:
                worker.rows([], started=[submit.request_id])
            worker.finish(submit.request_id, wire.FINISH_ENGINE_ERROR, detail="the engine process died")
        with pytest.raises(UpstreamFailed, match="the engine process died"):
            await task
        assert worker.submits.empty()


async def test_an_engine_error_after_tokens_is_the_streams_end(tmp_path, worker):
    async with rig(tmp_path, worker) as router:
        task = asyncio.create_task(router.collect())
        submit = await worker.next_submit()
        worker.tokens(submit.request_id, [5])
        worker.finish(submit.request_id, wire.FINISH_ENGINE_ERROR, detail="the engine process died")
        events = await task
        assert tokens_of(events) == [5]
        assert ends_of(events) == {0: "engine_error"}
        assert events[-1].detail == "the engine process died"


@pytest.mark.parametrize(
    ("code", "error"),
    [(wire.Refused.INVALID, BadRequest), (wire.Refused.UNIMPLEMENTED, BadRequest), (wire.Refused.CONTEXT_TOO_LONG, ContextTooLong)],
)
async def test_a_refusal_for_the_clients_fault_names_the_field(tmp_path, worker, code, error):
    async with rig(tmp_path, worker) as router:
        task = asyncio.create_task(router.collect())
        worker.refuse((await worker.next_submit()).request_id, code, "no such thing", "sampling.top_p")
        with pytest.raises(error, match="no such thing") as raised:
            await task
        assert raised.value.param == "top_p"
        await router.until(lambda: router.outstanding_tokens == 0)


async def test_a_refusal_of_a_full_worker_asks_the_other_one(tmp_path):
    async with ScriptedWorker(name="a") as a, ScriptedWorker(name="b") as b, rig(tmp_path, a, b) as router:
        task = asyncio.create_task(router.collect())
        first, second = asyncio.create_task(a.next_submit()), asyncio.create_task(b.next_submit())
        done, _ = await asyncio.wait([first, second], return_when="FIRST_COMPLETED")
        full, other, waiting = (a, b, second) if first in done else (b, a, first)
        full.refuse(done.pop().result().request_id, wire.Refused.OVERLOADED, "no room to wait")
        submit = await waiting
        other.finish(submit.request_id)
        assert ends_of(await task) == {0: "stop"}


async def test_a_refusal_of_the_only_full_worker_is_an_overload(tmp_path, worker):
    async with rig(tmp_path, worker) as router:
        task = asyncio.create_task(router.collect())
        worker.refuse((await worker.next_submit()).request_id, wire.Refused.OVERLOADED, "no room to wait")
        with pytest.raises(Overloaded) as raised:
            await task
        assert 1 <= raised.value.retry_after_s <= 60


async def test_a_request_whose_credits_went_to_another_router_waits_for_new_ones(tmp_path, worker):
    async with rig(tmp_path, worker) as router:
        task = asyncio.create_task(router.collect())
        first = (await worker.next_submit()).request_id
        worker.refuse(first, wire.Refused.OVERLOADED, "they do not fit this session's credits", "reserved_kv_tokens")
        worker.finish((await worker.next_submit()).request_id)
        assert ends_of(await task) == {0: "stop"}


async def test_a_worker_that_is_not_ready_any_more_gets_the_request_back_when_it_is(tmp_path, worker):
    async with rig(tmp_path, worker) as router:
        task = asyncio.create_task(router.collect())
        worker.refuse((await worker.next_submit()).request_id, wire.Refused.NOT_READY, "the engine restarts")
        await router.until_routable(0)
        worker.change_state(ready=True)
        worker.finish((await worker.next_submit()).request_id)
        assert ends_of(await task) == {0: "stop"}


# ---------------------------------------------------------------- admission


async def test_a_request_waits_until_there_is_room_and_first_come_is_first_served(tmp_path):
    async with ScriptedWorker(capacity_tokens=64) as worker, rig(tmp_path, worker) as router:
        tasks = [asyncio.create_task(router.collect(generation(20, 40, request_id=name))) for name in "abc"]
        first = await worker.next_submit()
        assert worker.reserved_tokens == 64
        assert router.dispatcher.queue(ModelName("tiny")) == (2, 128)
        worker.finish(first.request_id)
        await tasks[0]
        second = await worker.next_submit()
        assert worker.submits.empty()
        worker.finish(second.request_id)
        worker.finish((await worker.next_submit()).request_id)
        await asyncio.gather(*tasks)
        assert router.dispatcher.queue(ModelName("tiny")) == (0, 0)
        assert router.metric("queue_wait_seconds_count", **{"model": "tiny", "class": "latency"}) == 3


async def test_a_request_dearer_than_the_worker_runs_alone_on_all_of_it(tmp_path):
    async with ScriptedWorker(capacity_tokens=64) as worker, rig(tmp_path, worker) as router:
        task = asyncio.create_task(router.collect(generation(40, 100)))
        submit = await worker.next_submit()
        assert submit.reserved_kv_tokens == 64
        worker.finish(submit.request_id)
        await task


async def test_a_prompt_larger_than_every_worker_is_the_clients_fault(tmp_path):
    async with ScriptedWorker(capacity_tokens=64) as worker, rig(tmp_path, worker) as router:
        with pytest.raises(ContextTooLong, match="80 tokens of KV cache, the largest worker has 64"):
            await router.collect(generation(70, 8))


async def test_a_full_queue_refuses_with_an_honest_retry_after(tmp_path):
    async with ScriptedWorker(capacity_tokens=64) as worker, rig(tmp_path, worker, max_queue_tokens=100) as router:
        running, waiting = (asyncio.create_task(router.collect(generation(20, 40))) for _ in range(2))
        first = await worker.next_submit()
        assert router.dispatcher.queue(ModelName("tiny")) == (1, 64)
        with pytest.raises(Overloaded, match="64 tokens wait for tiny and this request adds 64; the limit is 100") as raised:
            await router.collect(generation(20, 40))
        assert 1 <= raised.value.retry_after_s <= 60
        assert router.metric("rejected_total", model="tiny", reason="queue_full") == 1
        worker.finish(first.request_id)
        worker.finish((await worker.next_submit()).request_id)
        await asyncio.gather(running, waiting)


async def test_waiting_ends_with_an_overload_after_the_queue_timeout(tmp_path):
    async with ScriptedWorker(capacity_tokens=64) as worker, rig(tmp_path, worker, queue_timeout_s=0.2) as router:
        running = asyncio.create_task(router.collect(generation(20, 40)))
        await worker.next_submit()
        with pytest.raises(Overloaded, match="had no room for 64 tokens"):
            await router.collect(generation(20, 40))
        running.cancel()


async def test_a_large_request_that_gives_up_lets_the_ones_behind_it_go(tmp_path):
    now_s = [0.0]
    async with ScriptedWorker(capacity_tokens=160) as worker, rig(tmp_path, worker, clock=lambda: now_s[0]) as router:
        tasks = [asyncio.create_task(router.collect(generation(60, 20)))]
        await worker.next_submit()
        large = asyncio.create_task(router.collect(generation(80, 16, deadline_s=5.0)))
        tasks += [asyncio.create_task(router.collect(generation(20, 8, request_id=f"small{n}"))) for n in range(4)]
        for _ in range(3):  # 96 tokens overtake the large one's 96, and then no more
            worker.finish((await worker.next_submit()).request_id)
        await asyncio.gather(*tasks[1:4])
        assert router.dispatcher.queue(ModelName("tiny")) == (2, 128), "the last small one fits, but the large one's patience is spent"
        now_s[0] = 6.0
        with pytest.raises(DeadlineExceeded):
            await large
        worker.finish((await worker.next_submit()).request_id)
        assert ends_of(await tasks[4]) == {0: "stop"}
        tasks[0].cancel()


async def test_a_deadline_that_passes_in_the_queue_says_so(tmp_path):
    async with ScriptedWorker(capacity_tokens=64) as worker, rig(tmp_path, worker) as router:
        running = asyncio.create_task(router.collect(generation(20, 40)))
        await worker.next_submit()
        with pytest.raises(DeadlineExceeded, match=r"deadline of 0\.1 s"):
            await router.collect(generation(20, 40, deadline_s=0.1))
        running.cancel()


async def test_a_client_that_leaves_the_queue_gives_up_its_place_at_once(tmp_path):
    async with ScriptedWorker(capacity_tokens=128) as worker, rig(tmp_path, worker) as router:
        running = asyncio.create_task(router.collect(generation(60, 20)))
        await worker.next_submit()
        large = asyncio.create_task(router.collect(generation(60, 60)))
        await asyncio.sleep(0)
        small = asyncio.create_task(router.collect(generation(2, 2, priority=-1)))
        assert (await worker.next_submit()).max_tokens == 2, "the small one may overtake"
        late = asyncio.create_task(router.collect(generation(60, 60)))
        await asyncio.sleep(0)
        large.cancel()
        with pytest.raises(asyncio.CancelledError):
            await large
        assert router.dispatcher.queue(ModelName("tiny"))[0] == 1
        for task in (running, small, late):
            task.cancel()


async def test_a_higher_class_goes_first(tmp_path):
    async with ScriptedWorker(capacity_tokens=64) as worker, rig(tmp_path, worker) as router:
        tasks = [asyncio.create_task(router.collect(generation(20, 40)))]
        first = await worker.next_submit()
        for priority in (0, 5):
            tasks.append(asyncio.create_task(router.collect(generation(20, 40, priority=priority))))
            await asyncio.sleep(0)
        worker.finish(first.request_id)
        second = await worker.next_submit()
        assert second.priority == 5
        worker.finish(second.request_id)
        worker.finish((await worker.next_submit()).request_id)
        await asyncio.gather(*tasks)


# ---------------------------------------------------------------- no worker


async def test_an_unknown_model_names_what_there_is(tmp_path, worker):
    async with rig(tmp_path, worker) as router:
        with pytest.raises(ModelNotFound, match=r"'gone'.*tiny"):
            await router.collect(generation(model=ModelName("gone")))


async def test_a_model_without_any_worker_is_refused_after_the_time_that_a_wake_may_take(tmp_path):
    async with rig(tmp_path) as router:
        router.know(models=[model_object(wake_timeout_s=0.1)])
        with pytest.raises(ColdStart, match=r"no worker of tiny came within \d+ s: it has no worker") as raised:
            await router.collect()
        assert raised.value.retry_after_s > 1


async def test_a_request_waits_for_a_worker_that_is_loading(tmp_path):
    async with ScriptedWorker(ready=False) as worker, rig(tmp_path, queue_timeout_s=0.0) as router:
        router.know(worker)
        task = asyncio.create_task(router.collect())
        await worker.hellos.get()
        await router.until(lambda: router.fleet.get("tiny").reason == "the model is loading")
        worker.change_state(ready=True)
        worker.finish((await worker.next_submit()).request_id)
        assert ends_of(await task) == {0: "stop"}


async def test_a_draining_worker_gets_nothing_new_and_keeps_what_runs(tmp_path):
    async with ScriptedWorker(name="a") as a, ScriptedWorker(name="b") as b, rig(tmp_path, a) as router:
        running = asyncio.create_task(router.collect())
        submit = await a.next_submit()
        router.know(a, b, terminating=[a])
        await router.until_routable(1)
        other = asyncio.create_task(router.collect())
        b.finish((await b.next_submit()).request_id)
        await other
        a.tokens(submit.request_id, [5])
        router.know(b)
        a.finish(submit.request_id)
        assert tokens_of(await running) == [5], "a worker that discovery forgot still finishes its streams"
        assert a.submits.empty()


async def test_goodbye_stops_new_requests(tmp_path, worker):
    async with rig(tmp_path, worker) as router:
        worker.goodbye()
        worker.change_state(num_running=0)
        await router.until_routable(0)
        assert router.fleet.get("tiny").reason == "the worker is draining"


async def test_shutting_down_ends_what_runs_and_what_waits(tmp_path):
    async with ScriptedWorker(capacity_tokens=64) as worker, rig(tmp_path, worker) as router:
        running, waiting = (asyncio.create_task(router.collect(generation(20, 40))) for _ in range(2))
        submit = await worker.next_submit()
        worker.tokens(submit.request_id, [5])
        opened = router.fleet.links(ModelName("tiny"))[0]
        worker.change_state(num_running=1)
        await router.until(lambda: opened.view().running == 1)
        router.dispatcher.shut_down("the router is shutting down")
        assert ends_of(await running) == {0: "shutdown"}
        with pytest.raises(NoWorker, match="shutting down"):
            await waiting
        with pytest.raises(NoWorker, match="shutting down"):
            await router.collect()
