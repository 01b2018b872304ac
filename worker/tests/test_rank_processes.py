"""A worker whose engine has two ranks, each a process: what becomes of streams and processes when one of them dies or hangs."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
import pytest_asyncio
from front_support import PATIENCE_S, TINY, Bench, running_front

from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.front.engine_link import ENGINE_COMMAND
from pagoda_worker.wire import worker_pb2 as pb

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONFIG = EngineConfig(model_dir=TINY, device="cpu", dtype="fp32", max_running=8, max_batch_tokens=64, threads=2, tensor_parallel=2)
ONE = EngineConfig(model_dir=TINY, device="cpu", dtype="fp32", max_running=8, max_batch_tokens=64, threads=1)
PROMPT = [100 + each for each in range(90)]
STALL_S = 1.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench() -> AsyncIterator[Bench]:
    async with running_front(command=ENGINE_COMMAND, config=CONFIG, stall_s=STALL_S) as running:
        await running.router(router_id="first")
        yield running


def rank_of(bench: Bench) -> int:
    """Process id of rank 1."""
    engine = bench.front.supervisor.engine_pid
    (rank,) = Path(f"/proc/{engine}/task/{engine}/children").read_text().split()
    return int(rank)


async def gone(pid: int) -> None:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_reader(process, ended.set)
    try:
        await asyncio.wait_for(ended.wait(), PATIENCE_S)
    finally:
        loop.remove_reader(process)
        os.close(process)


async def test_a_killed_rank_ends_every_stream_and_the_worker_says_why_until_it_serves_again(bench: Bench):
    with closing(Engine(ONE)) as alone:
        expected = alone.generate([PROMPT], max_tokens=24, ignore_eos=True)[0].token_ids
    router = await bench.router(router_id="killed")
    await router.submit(99, PROMPT, max_tokens=24, ignore_eos=True)
    await router.finish(99)
    assert router.tokens[99, 0] == expected
    for request_id in range(4):
        await router.submit(request_id, [3] * 10, max_tokens=1900, ignore_eos=True)
    await router.until(lambda: len(router.tokens) == 5)
    engine, rank = bench.front.supervisor.engine_pid, rank_of(bench)
    os.kill(rank, signal.SIGKILL)
    for request_id in range(4):
        finish = await router.finish(request_id)
        assert finish.reason == pb.FINISH_ENGINE_ERROR
        assert finish.detail == "a rank of the engine was ended by SIGKILL; ask again"
    answer = (await bench.http.get("/ready")).json()
    assert (answer["ready"], answer["reason"]) == (False, "EngineCrash")
    assert "its last line: rank 1 of 2 was ended by SIGKILL; the engine ends with it" in answer["message"]
    assert engine is not None
    await gone(engine)
    await router.until(lambda: router.state.ready)
    await router.submit(100, PROMPT, max_tokens=24, ignore_eos=True)
    await router.finish(100)
    assert router.tokens[100, 0] == expected


async def test_a_rank_that_hangs_is_noticed_and_ended_with_its_engine(bench: Bench):
    router = await bench.router(router_id="hung")
    await router.submit(1, PROMPT, max_tokens=8, ignore_eos=True)  # its speed is known now
    await router.finish(1)
    engine, rank = bench.front.supervisor.engine_pid, rank_of(bench)
    assert engine is not None
    os.kill(rank, signal.SIGSTOP)
    await router.submit(2, [3] * 10, max_tokens=100, ignore_eos=True)
    finish = await router.finish(2)
    assert finish.reason == pb.FINISH_ENGINE_ERROR
    assert "no token moved" in finish.detail
    for pid in (engine, rank):
        await gone(pid)
