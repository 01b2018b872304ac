"""How many sequences routers may have on one worker: its batch and what ends meanwhile, each router its part, nobody starved or idle."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fleet_rig import Rig, generation, rig
from hypothesis import given
from hypothesis import strategies as st
from scripted_worker import ScriptedWorker

from pagoda_router.admission.depth import BatchDepth
from pagoda_router.generation import ModelName, RequestClass

STEP_MS = 20.0
"""A turnaround is three of them then."""


def depth(max_running: int = 8, *, answers: int = 30) -> BatchDepth:
    found = BatchDepth(max_running)
    for _ in range(200):
        found.ended(answers)
    return found


def filled(found: BatchDepth, own: int = 0) -> int:
    while found.has_room(own, STEP_MS):
        own += 1
    return own


def test_a_router_alone_has_the_batch_and_what_ends_until_a_new_one_could_come() -> None:
    assert filled(depth(8, answers=30)) == 8 + 1
    assert filled(depth(256, answers=30)) == 256 + 26


def test_short_answers_and_quick_steps_need_more_in_reserve() -> None:
    assert depth(256, answers=8).spare(STEP_MS) > depth(256, answers=200).spare(STEP_MS) >= 1
    assert depth(256).spare(2.0) > depth(256).spare(STEP_MS)
    assert depth(256, answers=1).spare(STEP_MS) == 256


def test_before_anything_ended_answers_count_as_usual_ones() -> None:
    assert filled(BatchDepth(256)) == filled(depth(256, answers=256)) == 256 + 3


def test_a_worker_that_tells_no_batch_bounds_nothing() -> None:
    assert BatchDepth().has_room(10_000, STEP_MS)


def test_what_makes_way_on_the_worker_takes_no_place_from_others() -> None:
    found = depth(8)
    assert not found.has_room(9, STEP_MS)
    assert found.has_room(9, STEP_MS, yielding=1)


def test_others_sequences_take_places_but_never_a_routers_own_part() -> None:
    found = depth(8)
    found.told(sequences=9, own=0, routers=2)
    assert filled(found) == 4
    found.told(sequences=6, own=2, routers=2)
    assert filled(found, 2) == 5


def test_what_ended_since_the_last_state_makes_room_at_once() -> None:
    found = depth(8)
    found.told(sequences=9, own=6, routers=2)
    assert not found.has_room(6, STEP_MS)
    assert found.has_room(5, STEP_MS)


def test_a_worker_that_does_not_tell_its_routers_has_each_bound_its_own() -> None:
    found = depth(8)
    found.told(sequences=30, own=2, routers=0)
    assert filled(found, 2) == 9


@pytest.mark.parametrize("begin", [(17, 0), (0, 17), (9, 8)], ids=str)
@given(seed=st.integers(0, 2**32), stale=st.integers(1, 10))
def test_two_busy_routers_come_to_equal_parts_and_the_batch_stays_full(begin: tuple[int, int], seed: int, stale: int) -> None:
    """Whoever came first: the other one's sequences are put in at its part, and this one's places are given back as they end."""
    rng, own, routers = Random(seed), list(begin), (depth(16), depth(16))
    for turn in range(400):
        if turn % stale == 0:
            for number, each in enumerate(routers):
                each.told(sum(own), own[number], 2)
        on_batch = [number for number, count in enumerate(own) for _ in range(count)]
        own[rng.choice(on_batch)] -= 1
        for number in rng.sample((0, 1), 2):
            own[number] = filled(routers[number], own[number])
        assert sum(own) >= 16
    assert min(own) >= 8
    assert sum(own) <= 16 + 2 * (depth(16).spare(STEP_MS) + stale)


@given(st.integers(1, 512), st.integers(0, 600), st.integers(0, 600), st.integers(1, 9), st.floats(0, 1000))
def test_a_router_with_less_than_its_part_always_has_room(max_running: int, own: int, others: int, routers: int, step_ms: float) -> None:
    found = BatchDepth(max_running)
    found.told(own + others, own, routers)
    assert found.has_room(own, step_ms) or own >= max_running / routers


# ---------------------------------------------------------------- on a link


async def placed(router: Rig, worker: ScriptedWorker, count: int, **fields: Any) -> tuple[list["asyncio.Task[Any]"], list[Any]]:
    tasks = [asyncio.create_task(router.collect(generation(**fields))) for _ in range(count)]
    return tasks, [await worker.next_submit() for _ in range(count)]


async def ended(router: Rig, tasks: Sequence["asyncio.Task[Any]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_a_full_batch_would_only_queue_waits_in_the_router_and_goes_when_one_ends(tmp_path: Path) -> None:
    async with ScriptedWorker(capacity_tokens=100_000) as worker, rig(tmp_path, worker) as router:
        tasks, submits = await placed(router, worker, 9)  # a batch of 8 and one in reserve
        tasks.append(asyncio.create_task(router.collect()))
        await router_queues(router, 1)
        worker.finish(submits[0].request_id)
        await worker.next_submit()
        assert router.dispatcher.queue(ModelName("tiny")) == (0, 0)
        await ended(router, tasks)


async def test_a_latency_request_passes_a_batch_that_throughput_requests_fill(tmp_path: Path) -> None:
    async with ScriptedWorker(capacity_tokens=100_000) as worker, rig(tmp_path, worker) as router:
        tasks, _ = await placed(router, worker, 9, request_class=RequestClass.THROUGHPUT)
        tasks.append(asyncio.create_task(router.collect(generation(request_class=RequestClass.THROUGHPUT))))
        await router_queues(router, 1)
        more, _ = await placed(router, worker, 1)
        assert router.dispatcher.queue(ModelName("tiny"))[0] == 1
        await ended(router, [*tasks, *more])


async def test_another_routers_sequences_leave_a_router_its_part(tmp_path: Path) -> None:
    async with ScriptedWorker(capacity_tokens=100_000) as worker, rig(tmp_path, worker) as router:
        worker.change_state(num_running=8, num_waiting=1, routers=2)
        tasks, submits = await placed(router, worker, 4)
        tasks.append(asyncio.create_task(router.collect()))
        await router_queues(router, 1)
        worker.change_state(num_running=8, num_waiting=0, routers=2)  # of which four are this router's
        await worker.next_submit()
        await ended(router, tasks)
        assert len(submits) == 4


async def router_queues(router: Rig, count: int) -> None:
    async with asyncio.timeout(10):
        while router.dispatcher.queue(ModelName("tiny"))[0] != count:
            await asyncio.sleep(0)
