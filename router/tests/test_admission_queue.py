"""Admission at the dispatcher, against scripted workers: classes and tenants take turns, full rooms and impossible deadlines say so."""

import asyncio
from random import Random

import pytest
from fleet_rig import Rig, ends_of, generation, rig
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted_worker import ScriptedWorker

from pagoda_router.errors import DeadlineInfeasible, Overloaded, RouterError
from pagoda_router.generation import ModelName, RequestClass
from pagoda_router.wire import worker_pb2 as wire

LATENCY, THROUGHPUT = RequestClass.LATENCY, RequestClass.THROUGHPUT
TINY = ModelName("tiny")


async def send(router: Rig, name: str, **fields) -> asyncio.Task:
    """Of 64 tokens: one fills the worker."""
    task = asyncio.create_task(router.collect(generation(20, 40, request_id=name, **fields)), name=name)
    await asyncio.sleep(0)
    return task


async def order_of(worker: ScriptedWorker, tasks: list[asyncio.Task], *, tokens: int = 40) -> list[str]:
    """Serves them one by one, with so many tokens each."""
    order: list[str] = []
    for _ in tasks:
        submit = await worker.next_submit()
        worker.tokens(submit.request_id, [5] * tokens, started=True)
        worker.finish(submit.request_id, tokens=tokens)
        done, _ = await asyncio.wait([task for task in tasks if task.get_name() not in order], return_when="FIRST_COMPLETED")
        order += [task.get_name() for task in done]
    return order


async def test_latency_goes_before_throughput_and_tenants_take_turns(tmp_path):
    async with ScriptedWorker(capacity_tokens=64) as worker, rig(tmp_path, worker) as router:
        tasks = [await send(router, "running")]
        tasks.append(await send(router, "batch", request_class=THROUGHPUT))
        tasks += [await send(router, f"flood{n}", tenant="flood") for n in range(3)]
        tasks.append(await send(router, "victim", tenant="victim"))
        assert router.metric("queue_requests", model="tiny", **{"class": "latency"}) == 4
        assert router.metric("queue_requests", model="tiny", **{"class": "throughput"}) == 1
        assert await order_of(worker, tasks) == ["running", "flood0", "victim", "flood1", "flood2", "batch"]
        assert router.metric("queue_wait_seconds_count", model="tiny", **{"class": "throughput"}) == 1


@pytest.mark.parametrize(("tokens", "order"), [(40, ["a0", "b", "a1"]), (1, ["a0", "a1", "b"])], ids=["as predicted", "shorter"])
async def test_a_tenant_pays_for_what_it_used_and_not_for_what_was_predicted(tmp_path, tokens, order):
    async with ScriptedWorker(capacity_tokens=64) as worker, rig(tmp_path, worker) as router:
        tasks = [await send(router, name, tenant=name[0]) for name in ("a", "a0", "a1", "b")]
        assert await order_of(worker, tasks, tokens=tokens) == ["a", *order]


async def test_one_that_floods_gives_up_its_newest_place_to_another_tenant(tmp_path):
    async with ScriptedWorker(capacity_tokens=64) as worker, rig(tmp_path, worker, max_queue_tokens=192) as router:
        running = await send(router, "running", tenant="flood")
        flood = [await send(router, f"flood{n}", tenant="flood") for n in range(3)]
        with pytest.raises(Overloaded, match="192 tokens wait for tiny and this request adds 64; the limit is 192"):
            await router.collect(generation(20, 40, tenant="flood"))
        victim = await send(router, "victim", tenant="victim")
        with pytest.raises(Overloaded, match="gave its place to a sender with less in it") as displaced:
            await flood[2]
        assert 1 <= displaced.value.retry_after_s <= 60
        assert router.metric("rejected_total", model="tiny", reason="displaced") == 1
        assert router.dispatcher.queue(TINY) == (3, 192)
        for task in (running, *flood[:2], victim):
            task.cancel()


async def test_the_number_of_requests_that_wait_is_bounded_too(tmp_path):
    async with ScriptedWorker(capacity_tokens=64) as worker, rig(tmp_path, worker, max_requests=1) as router:
        tasks = [await send(router, name) for name in ("running", "waiting")]
        with pytest.raises(Overloaded, match="1 requests wait for tiny; the limit is 1"):
            await router.collect(generation(20, 40))
        for task in tasks:
            task.cancel()


async def test_a_deadline_that_cannot_be_kept_is_refused_at_once(tmp_path):
    now_s = [0.0]
    async with ScriptedWorker(capacity_tokens=64) as worker, rig(tmp_path, worker, clock=lambda: now_s[0]) as router:
        tasks = [await send(router, name) for name in ("first", "second")]
        worker.finish((await worker.next_submit()).request_id)  # 64 tokens in this second: the rate is 64 a second
        await tasks[0]
        tasks += [await send(router, f"later{n}") for n in range(4)]
        assert router.dispatcher.queue(TINY) == (4, 256)
        with pytest.raises(
            DeadlineInfeasible, match=r"256 tokens wait before this request, about 4\.0 s, and its deadline allows 3\.0"
        ) as late:
            await router.collect(generation(20, 40, deadline_s=3.0, priority=-1))
        assert late.value.retry_after_s == pytest.approx(1.0, rel=0.11)
        assert router.metric("rejected_total", model="tiny", reason="deadline_infeasible") == 1
        first_in_line = await send(router, "in time", deadline_s=3.0)  # its deadline goes before those that have none
        assert router.dispatcher.queue(TINY) == (5, 320)
        for task in (*tasks, first_in_line):
            task.cancel()


async def test_a_deadline_before_the_quickest_first_token_is_refused_though_nothing_waits(tmp_path):
    now_s = [0.0]
    slow, slower = (ScriptedWorker(name=name) for name in ("slow", "slower"))
    slow.state.prefill_tokens_per_s, slower.state.prefill_tokens_per_s = 40, 10  # twenty tokens in half a second, or in two
    slower.described_prefill_tokens_per_s = 0
    async with slow, slower, rig(tmp_path, slow, slower, clock=lambda: now_s[0]) as router:
        with pytest.raises(DeadlineInfeasible, match=r"the quickest worker needs about 500 ms to its first token, .* allows 400 ms"):
            await router.collect(generation(20, 40, deadline_s=0.4))
        assert router.metric("rejected_total", model="tiny", reason="deadline_infeasible") == 1
        in_time = await send(router, "in time", deadline_s=0.6)
        assert (await slow.next_submit()).request_id
        in_time.cancel()
        slower.change_state(prefill_tokens_per_s=0)  # as if it had just come: it may be quicker than the other
        await router.until(lambda: any(not link.view().prefill_tokens_per_s for link in router.fleet.links(TINY)))
        unknown = await send(router, "unknown", deadline_s=0.4)
        assert not unknown.done()
        unknown.cancel()


async def test_a_batch_waits_longer_than_a_chat(tmp_path):
    now_s = [0.0]
    async with (
        ScriptedWorker(capacity_tokens=64) as worker,
        rig(tmp_path, worker, queue_timeout_s=10.0, throughput_timeout_s=100.0, clock=lambda: now_s[0]) as router,
    ):
        running, chat, batch = [
            await send(router, "running"),
            await send(router, "chat"),
            await send(router, "b", request_class=THROUGHPUT),
        ]
        await worker.next_submit()
        now_s[0] = 11.0
        with pytest.raises(Overloaded, match="had no room"):
            await chat
        assert router.dispatcher.queue(TINY)[0] == 1
        now_s[0] = 101.0
        with pytest.raises(Overloaded, match="had no room"):
            await batch
        running.cancel()


@pytest.mark.parametrize(
    ("fields", "waited_s", "priority"),
    [
        ({"priority": 5}, 0, 5),
        ({"priority": 5, "tenant": "a"}, 0, 0),  # one tenant's wish must not move another's request
        ({"priority": 2**31 - 1}, 0, 2**29),
        ({"request_class": THROUGHPUT}, 0, -(2**30)),
        ({"request_class": THROUGHPUT, "priority": 2**31 - 1}, 0, -(2**29)),
        ({"request_class": THROUGHPUT}, 30, 0),
    ],
    ids=str,
)
async def test_a_worker_is_told_the_class_and_a_wish_only_where_it_hurts_nobody(tmp_path, fields, waited_s, priority):
    now_s = [0.0]
    async with ScriptedWorker(capacity_tokens=64) as worker, rig(tmp_path, worker, clock=lambda: now_s[0]) as router:
        running = await send(router, "running")
        first = await worker.next_submit()
        task = await send(router, "asked", **fields)
        now_s[0] += waited_s
        worker.finish(first.request_id)
        assert (await worker.next_submit()).priority == priority
        for each in (running, task):
            each.cancel()


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["arrive", "arrive", "arrive", "cancel", "finish", "refuse", "break", "engine_error"]),
        st.integers(0, 10**6),
    ),
    max_size=40,
)


@given(EVENTS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_happens_everything_that_was_reserved_comes_back(tmp_path, events):
    asyncio.run(_live_through(tmp_path, events))


async def _live_through(tmp_path, events) -> None:
    async with ScriptedWorker(capacity_tokens=512) as worker, rig(tmp_path, worker, max_queue_tokens=600) as router:
        tasks: list[asyncio.Task] = []
        for kind, number in events:
            rng, running = Random(number), sorted(worker._reserved)
            if kind == "arrive":
                tenant, request_class = rng.choice("ab"), rng.choice([LATENCY, THROUGHPUT])
                wanted = generation(
                    rng.randint(1, 90), rng.randint(1, 120), n=rng.randint(1, 3), tenant=tenant, request_class=request_class
                )
                tasks.append(asyncio.create_task(router.collect(wanted)))
            elif kind == "cancel" and tasks:
                rng.choice(tasks).cancel()
            elif kind == "break":
                worker.break_session()
            elif running:
                request = rng.choice(running)
                if kind == "refuse" and not rng.randint(0, 2):
                    worker.refuse(request, wire.Refused.OVERLOADED, "no room to wait")
                else:
                    _end(worker, request, wire.FINISH_ENGINE_ERROR if kind == "engine_error" else wire.FINISH_STOP)
            for _ in range(rng.randint(0, 6)):
                await asyncio.sleep(0)
        serving = asyncio.create_task(_finish_all(worker))
        async with asyncio.timeout(20):
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            await router.until(lambda: router.dispatcher.queue(TINY) == (0, 0) and router.outstanding_tokens == 0)
        serving.cancel()
        for end in ends:
            assert isinstance(end, (RouterError, asyncio.CancelledError)) or set(ends_of(end).values()) <= {"stop", "engine_error"}
        reserved, settled, refunded = (
            router.metric(f"{kind}_kv_tokens_total", model="tiny") for kind in ("reserved", "settled", "refunded")
        )
        assert reserved == settled + refunded


def _end(worker: ScriptedWorker, request: int, reason: int) -> None:
    worker.tokens(request, [5], started=True)
    for sequence in range(worker._sequences[request]):
        worker.finish(request, reason, sequence=sequence, tokens=1 + sequence)


async def _finish_all(worker: ScriptedWorker) -> None:
    while True:
        for request in list(worker._reserved):
            _end(worker, request, wire.FINISH_STOP)
        await asyncio.sleep(0.005)
