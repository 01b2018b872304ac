"""The whole worker with the real engine on the shipped tiny model: ids over gRPC equal ids in process; a cancel frees its blocks."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from front_support import TINY, Bench, running_front
from tokenizers import Tokenizer

from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.front.engine_link import ENGINE_COMMAND
from pagoda_worker.scheduling.blocks import chain_hash, root_hash
from pagoda_worker.wire import worker_pb2 as pb

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONFIG = EngineConfig(model_dir=TINY, device="cpu", dtype="fp32", max_running=8, max_batch_tokens=64, threads=1)
PROMPTS = [[5, 6, 7], [100 + each for each in range(90)], [9] * 40, [11, 12]]
STEPS_TO_FREE = 2
CALLS = 32


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench() -> AsyncIterator[Bench]:
    async with running_front(command=ENGINE_COMMAND, config=CONFIG) as running:
        await running.router(router_id="first")
        yield running


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    """Greedy, one prompt at a time, in this process."""
    engine = Engine(CONFIG)
    return [engine.generate([prompt], max_tokens=24, ignore_eos=True)[0].token_ids for prompt in PROMPTS]


async def test_routers_get_the_ids_that_the_engine_alone_computes(bench: Bench, expected: list[list[int]]):
    routers = [await bench.router(router_id=f"same-{each}") for each in range(2)]
    for router in routers:
        for request_id, prompt in enumerate(PROMPTS):
            await router.submit(request_id, prompt, max_tokens=24, ignore_eos=True)
    for router in routers:
        for request_id, prompt in enumerate(PROMPTS):
            finish = await router.finish(request_id)
            assert (finish.reason, finish.usage.prompt_tokens, finish.usage.completion_tokens) == (pb.FINISH_LENGTH, len(prompt), 24)
            assert router.tokens[request_id, 0] == expected[request_id]
        await router.leave()


async def test_a_router_hears_which_prefixes_the_engine_has_and_one_that_comes_later_too(bench: Bench):
    early = await bench.router(router_id="early", cache_events=True)
    prompt = [300 + each for each in range(50)]
    parent, hashes = root_hash(b"salt"), set()
    for start in range(0, 48, 16):
        parent = chain_hash(parent, prompt[start : start + 16])
        hashes.add(parent)
    await early.submit(1, prompt, max_tokens=2, cache_salt=b"salt", ignore_eos=True)
    await early.until(lambda: hashes <= early.cached)
    await early.finish(1)
    late = await bench.router(router_id="late", cache_events=True)
    await late.until(lambda: late.cached == early.cached)
    for router in (early, late):
        await router.leave()


async def test_outputs_beside_plain_tokens_come_in_the_frames_of_their_step(bench: Bench):
    router = await bench.router(router_id="outputs")
    capacity = router.granted
    await router.submit(1, PROMPTS[1], max_tokens=4, prompt_logprobs=2, ignore_eos=True)
    await router.submit(2, PROMPTS[2], max_tokens=0, embedding=True, reserved_kv_tokens=48)
    await router.submit(3, PROMPTS[0], max_tokens=30, structured=pb.StructuredOutput(choices=pb.Choices(choices=["red", "blue"])))
    await router.submit(4, PROMPTS[0], max_tokens=30, structured=pb.StructuredOutput(regex="[a"), reserved_kv_tokens=48)
    refused = await router.refusal(4)
    assert (refused.code, refused.param) == (pb.Refused.INVALID, "structured.regex")
    assert "unclosed character class" in refused.message
    assert (await router.finish(3)).reason == pb.FINISH_STOP
    assert Tokenizer.from_file(str(TINY / "tokenizer.json")).decode(router.tokens[3, 0]) in ("red", "blue")
    finish = await router.finish(2)
    assert (finish.reason, finish.usage.prompt_tokens, finish.usage.completion_tokens) == (pb.FINISH_STOP, 40, 0)
    await router.finish(1)
    (with_embedding,) = [frame for frame in router.frames if frame.embeddings]
    assert [each.request_id for each in with_embedding.finishes if each.request_id == 2] == [2]
    (embedding,) = with_embedding.embeddings
    assert (embedding.request_id, sum(value**2 for value in embedding.values)) == (2, pytest.approx(1.0, abs=1e-5))
    (with_logprobs,) = [frame for frame in router.frames if frame.prompt_logprobs]
    assert 1 in with_logprobs.request_ids, "beside the first token"
    (told,) = with_logprobs.prompt_logprobs
    assert (told.request_id, told.k, len(told.own), len(told.top_ids), len(told.top)) == (1, 2, 89, 178, 178)
    await router.until(lambda: router.granted == capacity + 96)


async def test_thirty_two_calls_at_once_share_steps_and_all_end(bench: Bench):
    router = await bench.router(router_id="many")
    capacity = router.granted
    for request_id in range(CALLS):
        await router.submit(request_id, [request_id + 2] * 20, max_tokens=16, ignore_eos=True, reserved_kv_tokens=48)
    for request_id in range(CALLS):
        assert (await router.finish(request_id)).reason == pb.FINISH_LENGTH
    assert router.granted == capacity + CALLS * 48
    assert len([frame for frame in router.frames if frame.request_ids]) < CALLS * 16 / 2
    assert {len(ids) for ids in router.tokens.values()} == {16}
    await router.leave()


async def test_a_repeated_prompt_is_found_in_the_cache(bench: Bench):
    router = await bench.router(router_id="repeat")
    for request_id in (1, 2):
        await router.submit(request_id, [7] * 65, max_tokens=2, ignore_eos=True)
        await router.finish(request_id)
    assert (router.finishes[2, 0].usage.cached_tokens, router.started[2].cached_tokens) == (64, 64)
    await router.leave()


async def test_a_cancelled_call_frees_its_blocks_within_two_steps(bench: Bench):
    router = await bench.router(router_id="cancels")
    await router.until(lambda: router.state.kv_free_tokens == router.state.kv_capacity_tokens)
    await router.submit(1, [3] * 100, max_tokens=1900, ignore_eos=True, n=2)
    await router.until(lambda: (1, 1) in router.tokens)
    await router.cancel(1)
    await router.finish(1, 0)
    await router.finish(1, 1)
    with_tokens = max(frame.step for frame in router.frames if frame.request_ids)
    freed = next(frame for frame in router.frames if frame.finishes)
    assert freed.step - with_tokens <= STEPS_TO_FREE
    assert freed.state.kv_free_tokens == freed.state.kv_capacity_tokens
    await router.leave()


async def test_a_router_that_vanishes_frees_its_blocks_while_others_go_on(bench: Bench):
    watcher, leaver = await bench.router(router_id="watcher"), await bench.router(router_id="leaver")
    await watcher.submit(1, [3] * 10, max_tokens=1900, ignore_eos=True)
    await leaver.submit(1, [4] * 300, max_tokens=1000, ignore_eos=True)
    await watcher.until(lambda: watcher.state.num_running == 2 and leaver.tokens)
    held = watcher.state.kv_capacity_tokens - watcher.state.kv_free_tokens
    leaver.vanish()
    await watcher.until(lambda: watcher.state.num_running == 1)
    assert watcher.state.kv_capacity_tokens - watcher.state.kv_free_tokens < held
    await watcher.cancel(1)
    await watcher.finish(1)
    assert watcher.state.kv_free_tokens == watcher.state.kv_capacity_tokens
    await watcher.leave()


async def test_too_long_a_prompt_is_refused_with_both_numbers(bench: Bench):
    router = await bench.router(router_id="long")
    await router.submit(1, [3] * 3000)
    refused = await router.refusal(1)
    assert refused.code == pb.Refused.CONTEXT_TOO_LONG
    assert "3000" in refused.message
    assert "2048" in refused.message
    await router.leave()


async def test_sampling_stop_ids_and_logprobs_cross_the_wire(bench: Bench):
    router = await bench.router(router_id="options")
    asked = pb.Sampling(temperature=1.0, top_p=1.0, seed=5)
    for request_id in (1, 2):
        await router.submit(request_id, [5, 6, 7], max_tokens=12, ignore_eos=True, sampling=asked, top_logprobs=3)
        await router.finish(request_id)
    assert router.tokens[1, 0] == router.tokens[2, 0], "one seed, one answer"
    row = next(frame.logprobs[0] for frame in router.frames if frame.logprobs)
    assert (row.k, len(row.top_ids), len(row.sampled)) == (3, 3, 1)
    assert row.top[0] >= row.top[1] >= row.top[2]
    stop = router.tokens[1, 0][4]
    await router.submit(3, [5, 6, 7], max_tokens=12, ignore_eos=True, sampling=asked, stop_token_ids=[stop])
    finish = await router.finish(3)
    assert (finish.reason, finish.stop_token_id) == (pb.FINISH_STOP, stop)
    assert router.tokens.get((3, 0), []) == router.tokens[1, 0][: router.tokens[1, 0].index(stop)]
    await router.leave()


async def test_killing_the_engine_ends_every_stream_and_the_next_call_succeeds(bench: Bench, expected: list[list[int]]):
    router = await bench.router(router_id="survivor")
    for request_id in range(8):
        await router.submit(request_id, [3] * 10, max_tokens=1900, ignore_eos=True)
    await router.until(lambda: len(router.tokens) == 8)
    pid = bench.front.supervisor.engine_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    for request_id in range(8):
        assert (await router.finish(request_id)).reason == pb.FINISH_ENGINE_ERROR
    await router.until(lambda: router.state.ready)
    await router.submit(100, PROMPTS[0], max_tokens=24, ignore_eos=True)
    await router.finish(100)
    assert router.tokens[100, 0] == expected[0]
    await asyncio.wait_for(bench.front.switchboard.idle.wait(), 5)
