"""Sleep and Wake from outside: over gRPC, through probes and metrics. Nobody's request ends for it, and the next one wakes the model."""

import asyncio
import os
import signal
from typing import Any

import grpc
import pytest
from front_support import MODEL, TINY, Bench, running_front
from grpc import aio

from pagoda_worker.config import EngineConfig
from pagoda_worker.front.engine_link import ENGINE_COMMAND
from pagoda_worker.wire import worker_pb2 as pb

REAL = EngineConfig(model_dir=TINY, device="cpu", dtype="fp32", max_running=8, max_batch_tokens=64, threads=1)


async def sleep(bench: Bench, level: int = 1, **fields: Any) -> int:
    fields.setdefault("model", MODEL)
    answer = await bench.stub.Sleep(pb.SleepRequest(level=level, **fields))
    return int(answer.freed_bytes)


async def wake(bench: Bench, **fields: Any) -> int:
    fields.setdefault("model", MODEL)
    return int((await bench.stub.Wake(pb.WakeRequest(**fields))).load_us)


async def states(bench: Bench) -> dict[str, float]:
    return {
        sample.labels["sleep_state"]: sample.value
        for family in await bench.scrape()
        for sample in family.samples
        if sample.name == "vllm:engine_sleep_state"
    }


async def test_a_sleeping_worker_says_so_everywhere_and_stays_ready():
    async with running_front() as bench:
        router = await bench.router()
        assert await sleep(bench, 2) == 2000
        await router.until(lambda: router.state.sleep_level == 2)
        assert router.state.ready
        health, ready = await bench.http.get("/health"), await bench.http.get("/ready")
        assert (health.status_code, health.json()) == (200, {"status": "sleeping"})
        assert (ready.status_code, ready.json()["ready"], ready.json()["sleepLevel"]) == (200, True, 2)
        assert await states(bench) == {"awake": 0, "weights_offloaded": 0, "discard_all": 1}
        assert (await bench.stub.Describe(pb.DescribeRequest())).models[0].model == MODEL
        assert await wake(bench) > 0
        await router.until(lambda: router.state.sleep_level == 0)
        assert (await bench.http.get("/health")).json() == {"status": "ok"}
        assert "sleepLevel" not in (await bench.http.get("/ready")).json()
        assert await states(bench) == {"awake": 1, "weights_offloaded": 0, "discard_all": 0}
        assert await wake(bench) == 0, "it was awake"


async def test_the_next_request_wakes_it_and_waits():
    async with running_front() as bench:
        router = await bench.router()
        await sleep(bench)
        for request_id in (1, 2):
            await router.submit(request_id, [10], max_tokens=3)
        for request_id in (1, 2):
            assert (await router.finish(request_id)).reason == pb.FINISH_LENGTH
            assert router.tokens[request_id, 0] == [11, 12, 13]
        assert router.state.sleep_level == 0


async def test_sleep_waits_for_what_runs_and_for_what_comes_meanwhile():
    async with running_front() as bench:
        router = await bench.router()
        await router.submit(1, [10], max_tokens=40)
        await router.until(lambda: router.tokens)
        asked = asyncio.create_task(sleep(bench))
        await router.submit(2, [20], max_tokens=60)
        assert await asked == 1000
        await router.finish(1)
        await router.finish(2)
        assert (len(router.tokens[1, 0]), len(router.tokens[2, 0])) == (40, 60), "nobody lost a token"
        await router.until(lambda: router.state.sleep_level == 1)


async def test_a_caller_who_does_not_wait_that_long_leaves_it_awake():
    async with running_front() as bench:
        router = await bench.router()
        await router.submit(1, [10], max_tokens=200)
        await router.until(lambda: router.tokens)
        with pytest.raises(aio.AioRpcError) as late:
            await bench.stub.Sleep(pb.SleepRequest(model=MODEL, level=1), timeout=0.05)
        assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        await router.cancel(1)
        await router.finish(1)
        await router.submit(2, [10], max_tokens=1)
        await router.finish(2)
        assert router.state.sleep_level == 0


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"token": "wrong"}, grpc.StatusCode.UNAUTHENTICATED, "session token is wrong"),
        ({"model": "other", "token": "secret"}, grpc.StatusCode.NOT_FOUND, "not 'other'"),
        ({"level": 3, "token": "secret"}, grpc.StatusCode.FAILED_PRECONDITION, "no sleep level 3"),
    ],
    ids=str,
)
async def test_a_wrong_call_is_answered_with_a_sentence(fields: dict[str, Any], code: grpc.StatusCode, words: str):
    async with running_front(session_token="secret") as bench:
        await bench.router(token="secret")
        with pytest.raises(aio.AioRpcError) as refused:
            await sleep(bench, **fields)
        assert refused.value.code() == code
        assert words in str(refused.value.details())
        if code is not grpc.StatusCode.FAILED_PRECONDITION:
            fields.pop("level", None)
            with pytest.raises(aio.AioRpcError) as refused:
                await wake(bench, **fields)
            assert refused.value.code() == code


async def test_while_it_loads_there_is_nothing_to_put_to_sleep():
    async with running_front(config=EngineConfig(model_dir=TINY, device="cpu", seed=14)) as bench:
        with pytest.raises(aio.AioRpcError) as refused:
            await sleep(bench)
        assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert "there is no engine to ask" in str(refused.value.details())


async def test_weights_that_do_not_come_back_cost_the_request_not_the_worker():
    async with running_front(config=EngineConfig(model_dir=TINY, device="cpu", seed=16)) as bench:
        router = await bench.router()
        pid = bench.front.supervisor.engine_pid
        await sleep(bench)
        await router.submit(1, [10], reserved_kv_tokens=16)
        refused = await router.refusal(1)
        assert (refused.code, refused.message) == (
            pb.Refused.NOT_READY,
            "the model sleeps and cannot be woken: the scripted weights are gone",
        )
        with pytest.raises(aio.AioRpcError) as failed:
            await wake(bench)
        assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "the scripted weights are gone")
        assert bench.front.supervisor.engine_pid == pid
        assert router.state.sleep_level == 1
        await router.until(lambda: router.state.ready)
        told = [frame.state for frame in router.frames if frame.HasField("state")]
        assert any(not state.ready and "cannot be woken" in state.not_ready_reason for state in told)


async def test_an_engine_that_dies_meanwhile_answers_who_waited():
    async with running_front() as bench:
        router = await bench.router()
        link = bench.front.supervisor._link
        assert link is not None
        os.kill(link.pid, signal.SIGSTOP)
        waiting = asyncio.create_task(wake(bench))
        await router.submit(1, [10])
        while not bench.front.supervisor._woke._waiting:
            await asyncio.sleep(0)
        os.kill(link.pid, signal.SIGKILL)
        with pytest.raises(aio.AioRpcError) as failed:
            await waiting
        assert failed.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert (await router.finish(1)).reason == pb.FINISH_ENGINE_ERROR


async def test_a_lazy_worker_is_ready_at_once_and_loads_with_its_first_request():
    async with running_front(config=EngineConfig(model_dir=TINY, device="cpu", load="lazy")) as bench:
        router = await bench.router()
        assert router.state.sleep_level == 2
        assert (await bench.stub.Describe(pb.DescribeRequest())).models[0].vocab_size > 0
        await router.submit(1, [10], max_tokens=2)
        await router.finish(1)
        assert router.tokens[1, 0] == [11, 12]
        assert router.state.sleep_level == 0


# ---- the real engine behind it


async def test_a_real_worker_gives_the_same_ids_before_between_and_after_its_sleeps():
    async with running_front(command=ENGINE_COMMAND, config=REAL) as bench:
        router = await bench.router()
        for request_id, level in enumerate((1, 2, 1)):
            await router.submit(request_id, [7] * 65, max_tokens=16, ignore_eos=True)
            finish = await router.finish(request_id)
            assert finish.usage.cached_tokens == 0, "no prefix survives a sleep"
            assert router.tokens[request_id, 0] == router.tokens[0, 0]
            await sleep(bench, level)
            await router.until(lambda level=level: router.state.sleep_level == level)
            assert router.state.kv_free_tokens == router.state.kv_capacity_tokens


async def test_a_real_lazy_worker_tells_what_it_measured_once_it_has_loaded():
    config = EngineConfig(model_dir=TINY, device="cpu", dtype="fp32", max_running=8, threads=1, load="lazy", self_test=True)
    async with running_front(command=ENGINE_COMMAND, config=config) as bench:
        router = await bench.router()
        before = (await bench.http.get("/ready")).json()
        assert (before["sleepLevel"], before["capacity"]["loadS"]) == (2, 0)
        assert before["capacity"]["kvTokens"] == router.state.kv_capacity_tokens
        await router.submit(1, [7] * 10, max_tokens=3, ignore_eos=True)
        await router.finish(1)
        after = (await bench.http.get("/ready")).json()
        assert after["capacity"]["loadS"] > 0
        assert after["capacity"]["prefillTokensPerS"] > 0
        assert after["capacity"]["kvTokens"] == before["capacity"]["kvTokens"]
