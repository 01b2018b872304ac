"""The link to one worker: its session's life, from Hello to the last reconnect."""

import asyncio
from collections import deque

import pytest
from fleet_rig import ends_of, generation, rig, tokens_of
from scripted_worker import ScriptedWorker

from pagoda_router.abilities import ALL_ON, Feature, Switches
from pagoda_router.backends.session import ACKNOWLEDGE_EVERY_FRAMES
from pagoda_router.backends.session_call import MAX_BATCH_BYTES, add_waiting
from pagoda_router.backends.session_life import LinkTiming, first_to_end
from pagoda_router.dispatch.second_tries import RetryShares
from pagoda_router.errors import RetryBudgetSpent, UpstreamFailed
from pagoda_router.generation import Embedded, ModelName, PromptLogprobs, Sampling, Structured, TokenLogprobs
from pagoda_router.wire import worker_pb2 as wire

TINY = ModelName("tiny")


async def test_hello_carries_protocol_identity_and_token(tmp_path):
    async with ScriptedWorker(token="sesame") as worker, rig(tmp_path, worker, token="sesame"):
        hello = await worker.hellos.get()
        assert (hello.protocol, hello.router_id, hello.token, hello.wants_cache_events) == (1, "test-router", "sesame", True)


async def test_a_wrong_token_is_the_reason_and_is_tried_again(tmp_path, caplog):
    async with ScriptedWorker(token="sesame") as worker, rig(tmp_path, token="guess") as router:
        router.know(worker)
        for _ in range(3):
            await worker.hellos.get()
        assert router.fleet.get("tiny").reason == "the worker is away: UNAUTHENTICATED: the session token is wrong"
        assert sum("session token is wrong" in message for message in caplog.messages) == 1, "one line, however often it is tried"
        worker.token = "guess"
        await router.until_routable()


async def test_a_worker_that_starts_after_the_router_is_found(tmp_path):
    late = ScriptedWorker()
    async with late:
        port = late.port
    late.port = port
    async with rig(tmp_path) as router:
        router.know(late)
        await router.until(lambda: router.fleet.get("tiny").reason == "the worker is starting")
        async with late:
            await router.until_routable()


async def test_a_restarted_worker_begins_a_new_epoch_with_all_its_credits(tmp_path):
    async with ScriptedWorker() as worker, rig(tmp_path, worker) as router:
        begun = asyncio.create_task(router.collect())
        worker.tokens((await worker.next_submit()).request_id, [5])
        await worker.stop()
        await worker.start()
        worker.finish((await worker.next_submit()).request_id)
        assert ends_of(await begun) == {0: "stop"}
        assert worker.epoch == 2
        await router.until(lambda: router.outstanding_tokens == 0)
        task = asyncio.create_task(router.collect())
        worker.finish((await worker.next_submit()).request_id)
        assert ends_of(await task) == {0: "stop"}


async def test_a_silent_worker_is_given_up(tmp_path):
    timing = LinkTiming(ping_every_s=0.05, silent_pings=2, first_backoff_s=0.02, last_backoff_s=0.05)
    async with ScriptedWorker() as worker, rig(tmp_path, worker, timing=timing, retries=RetryShares(replays=0)) as router:
        worker.answers_pings = False
        task = asyncio.create_task(router.collect())
        worker.tokens((await worker.next_submit()).request_id, [5])
        with pytest.raises(RetryBudgetSpent, match="it has been silent for"):
            await task


async def test_a_worker_that_answers_pings_is_kept(tmp_path):
    timing = LinkTiming(ping_every_s=0.02, silent_pings=2)
    async with ScriptedWorker() as worker, rig(tmp_path, worker, timing=timing) as router:
        for _ in range(6):
            assert (await worker.pings.get()).sent_mono_us > 0
        assert worker.epoch == 1
        assert router.fleet.get("tiny").ready


async def test_frames_are_acknowledged(tmp_path):
    async with ScriptedWorker() as worker, rig(tmp_path, worker):
        for _ in range(2 * ACKNOWLEDGE_EVERY_FRAMES):
            worker.change_state(num_running=1)
        assert (await worker.flows.get()).frames_read_total == ACKNOWLEDGE_EVERY_FRAMES
        assert (await worker.flows.get()).frames_read_total == 2 * ACKNOWLEDGE_EVERY_FRAMES


async def test_a_prompt_of_a_million_tokens_passes(tmp_path):
    async with ScriptedWorker(capacity_tokens=2**21) as worker, rig(tmp_path, worker, max_queue_tokens=2**21) as router:
        task = asyncio.create_task(router.collect(generation(1_000_000, 8)))
        submit = await worker.next_submit()
        assert len(submit.prompt_ids) == 1_000_000
        worker.finish(submit.request_id)
        await task


@pytest.mark.parametrize("takes_packed_ids", [True, False])
async def test_ids_go_packed_to_a_worker_that_reads_them_so(tmp_path, takes_packed_ids):
    async with ScriptedWorker() as worker, rig(tmp_path) as router:
        worker.takes_packed_ids = takes_packed_ids
        router.know(worker)
        await router.until_routable()
        task = asyncio.create_task(router.collect(asked := generation(300)))
        submit = await worker.next_submit()
        assert (list(submit.prompt_ids), worker.packed_prompts) == (asked.prompt_ids, int(takes_packed_ids))
        worker.finish(submit.request_id)
        await task


@pytest.mark.parametrize("takes_batches", [True, False])
async def test_what_is_submitted_in_one_moment_goes_as_one_message_to_a_worker_that_reads_batches(tmp_path, takes_batches):
    async with ScriptedWorker() as worker, rig(tmp_path) as router:
        worker.takes_batches = takes_batches
        router.know(worker)
        await router.until_routable()
        await worker.pings.get()
        before = worker.messages_read
        tasks = [asyncio.create_task(router.collect(generation(prompt_tokens=size))) for size in range(1, 9)]
        submits = [await worker.next_submit() for _ in tasks]
        assert [len(submit.prompt_ids) for submit in submits] == list(range(1, 9)), "in their order"
        assert worker.messages_read - before == (1 if takes_batches else 8)
        for submit in submits:
            worker.finish(submit.request_id)
        assert [ends_of(await task) for task in tasks] == [{0: "stop"}] * 8


def test_a_batch_is_bounded():
    outbox: deque[wire.ToWorker] = deque()
    for _ in range(5):
        outbox.append(wire.ToWorker(submit=wire.Submit(prompt_ids=[70_000] * (MAX_BATCH_BYTES // 6))))
    first = wire.ToWorker(ping=wire.Ping(sent_mono_us=1))
    add_waiting(first, outbox)
    assert len(first.more) + len(outbox) == 5
    assert 1 <= len(first.more) < 5


async def test_frames_for_requests_that_are_gone_are_ignored(tmp_path):
    async with ScriptedWorker() as worker, rig(tmp_path, worker) as router:
        worker.tokens(999, [1, 2, 3], started=True)
        task = asyncio.create_task(router.collect())
        submit = await worker.next_submit()
        worker.rows([(999, 0, [1]), (submit.request_id, 0, [5]), (998, 3, [])])
        worker.finish(submit.request_id)
        assert tokens_of(await task) == [5]


async def test_the_view_counts_what_was_sent_before_the_worker_reports_it(tmp_path):
    async with ScriptedWorker() as worker, rig(tmp_path, worker) as router:
        link = router.fleet.links(TINY)[0]
        tasks = [asyncio.create_task(router.collect(generation(30, 8, n=2))) for _ in range(2)]
        first = await worker.next_submit()
        await worker.next_submit()
        assert (link.view().queued_prefill_tokens, link.view().waiting, link.in_flight) == (60, 4, 2)
        worker.rows([], started=[first.request_id])
        worker.change_state(num_running=2, queued_prefill_tokens=15)  # a step ended; the second request came too late for it
        await router.until(lambda: link.view().running == 2)
        assert (link.view().queued_prefill_tokens, link.view().waiting) == (45, 2)
        worker.change_state(num_running=2, num_waiting=2, queued_prefill_tokens=40)
        await router.until(lambda: link.view().queued_prefill_tokens == 40)
        assert link.view().waiting == 2
        for task in tasks:
            task.cancel()


async def test_a_worker_without_grants_gets_nothing_until_it_grants(tmp_path):
    worker = ScriptedWorker()
    worker.grants = False
    async with worker, rig(tmp_path, worker) as router:
        task = asyncio.create_task(router.collect())
        link = router.fleet.links(TINY)[0]
        worker.change_state(num_running=3)
        await router.until(lambda: link.view().running == 3)
        assert worker.submits.empty()
        worker.grants = True
        worker.rows([], grants=worker._grant())
        worker.finish((await worker.next_submit()).request_id)
        await task


async def test_a_worker_that_leaves_the_fleet_is_let_go_when_its_last_stream_ends(tmp_path):
    async with ScriptedWorker() as worker, rig(tmp_path, worker) as router:
        (task,) = router.fleet._tasks
        stream = asyncio.create_task(router.collect())
        submit = await worker.next_submit()
        router.know()
        worker.tokens(submit.request_id, [5])
        worker.finish(submit.request_id, wire.FINISH_LENGTH)
        assert ends_of(await stream) == {0: "length"}
        await asyncio.wait_for(task, 5)


async def test_whether_a_link_is_routable_is_what_its_view_says(tmp_path):
    async with ScriptedWorker() as worker, rig(tmp_path, worker) as router:
        link = router.fleet.links(TINY)[0]
        said: list[bool] = []
        for state in ({"ready": True}, {"ready": False}, {"ready": True}, {"draining": True}):
            worker.change_state(**state)
            await router.until(lambda: link.routable == (len(said) % 2 == 0))
            assert link.routable == link.view().routable == link.routable, "asked before, by and after a look"
            said.append(link.routable)
        assert said == [True, False, True, False]


async def test_closing_ends_every_stream(tmp_path):
    async with ScriptedWorker() as worker, rig(tmp_path, worker) as router:
        task = asyncio.create_task(router.collect())
        worker.tokens((await worker.next_submit()).request_id, [5])
        link = router.fleet.links(TINY)[0]
        await router.until(lambda: link.in_flight == 1)
        worker.change_state(num_running=1)
        await router.until(lambda: link.view().running == 1)
        await router.fleet.close()
        with pytest.raises(UpstreamFailed, match="the router closed the session"):
            await task


async def test_the_first_part_to_end_ends_the_others():
    ended: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("forever")

    async def failing() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await first_to_end(forever(), failing())
    assert ended == ["forever"]


FORMS = [
    (Structured(json_schema="{}"), wire.StructuredOutput(json_schema="{}")),
    (Structured(regex="a+"), wire.StructuredOutput(regex="a+")),
    (Structured(grammar="start: A"), wire.StructuredOutput(grammar="start: A")),
    (Structured(json_object=True), wire.StructuredOutput(json_object=True)),
    (Structured(choices=("a", "b")), wire.StructuredOutput(choices=wire.Choices(choices=["a", "b"]))),
]


@pytest.mark.parametrize(("form", "expected"), FORMS, ids=str)
async def test_the_form_of_an_answer_reaches_the_worker(tmp_path, form, expected):
    async with ScriptedWorker() as worker, rig(tmp_path, worker) as router:
        task = asyncio.create_task(router.collect(generation(structured=form)))
        submit = await worker.next_submit()
        worker.finish(submit.request_id)
        await task
        assert submit.structured == expected


@pytest.mark.parametrize("off", [(), ("prefix_cache",), ("batching", "speculation")], ids=str)
async def test_what_is_switched_off_reaches_the_worker_and_nothing_else(tmp_path, off):
    async with ScriptedWorker() as worker, rig(tmp_path, worker) as router:
        switches = Switches(**dict.fromkeys(off, False)) if off else ALL_ON
        task = asyncio.create_task(router.collect(generation(switches=switches)))
        submit = await worker.next_submit()
        worker.finish(submit.request_id)
        await task
        assert submit.HasField("toggles") is bool(off)
        assert {name for name in ("prefix_cache", "batching", "speculation") if getattr(submit.toggles, f"no_{name}")} == set(off)


async def test_what_sampling_must_and_must_not_say_reaches_the_worker(tmp_path):
    async with ScriptedWorker() as worker, rig(tmp_path, worker) as router:
        sampling = Sampling(allowed_token_ids=(3, 4), bad_words=((5, 6), (7,)))
        task = asyncio.create_task(router.collect(generation(sampling=sampling)))
        submit = await worker.next_submit()
        worker.finish(submit.request_id)
        await task
        assert list(submit.sampling.allowed_token_ids) == [3, 4]
        assert [list(word.ids) for word in submit.sampling.bad_words] == [[5, 6], [7]]
        assert not submit.HasField("structured")
        assert not submit.HasField("prompt_logprobs")


async def test_logprobs_of_the_prompt_come_before_the_first_token(tmp_path):
    async with ScriptedWorker() as worker, rig(tmp_path, worker) as router:
        task = asyncio.create_task(router.collect(generation(prompt_tokens=3, prompt_logprobs=1)))
        submit = await worker.next_submit()
        assert submit.prompt_logprobs == 1
        known = wire.PromptLogprobs(request_id=submit.request_id, k=1, own=[-1, -2], top_ids=[8, 9], top=[-0.5, -0.25])
        worker.rows([(submit.request_id, 0, [5])], prompt_logprobs=[known])
        worker.finish(submit.request_id)
        events = await task
        assert events[0] == PromptLogprobs([TokenLogprobs(-1, ((8, -0.5),)), TokenLogprobs(-2, ((9, -0.25),))])
        assert tokens_of(events) == [5]


async def test_an_embedding_comes_before_its_end_and_says_nothing_of_answers_lengths(tmp_path):
    async with ScriptedWorker() as worker, rig(tmp_path, worker) as router:
        task = asyncio.create_task(router.collect(generation(embedding=True, max_tokens=1)))
        submit = await worker.next_submit()
        assert submit.embedding
        worker.embed(submit.request_id, [0.5, -1])
        events = await task
        assert events[0] == Embedded([0.5, -1])
        assert ends_of(events) == {0: "stop"}
        await router.until(lambda: router.outstanding_tokens == 0)


async def test_what_workers_can_do_is_told_and_remembered(tmp_path):
    async with ScriptedWorker() as worker:
        worker.features = [wire.FEATURE_EMBEDDINGS, wire.FEATURE_SLEEP]
        async with rig(tmp_path, worker) as router:
            assert router.fleet.text(ModelName("tiny")).features == {Feature.EMBEDDINGS, "sleep"}
    async with rig(tmp_path) as router:
        router.know(worker)
        assert router.fleet.text(ModelName("tiny")).features == {Feature.EMBEDDINGS, "sleep"}
