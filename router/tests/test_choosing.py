"""Placement over real sessions: what is sent counts at once, prefixes draw requests together, bad workers are left alone."""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from fleet_rig import Rig, generation, model_object, rig
from scripted_worker import ScriptedWorker

from pagoda_router.discovery.snapshot import parse_snapshot
from pagoda_router.dispatch.growing import GrowingChains
from pagoda_router.generation import Generation, ModelName
from pagoda_router.http.placement import PlacementAdmin
from pagoda_router.placement.chains import PrefixChains
from pagoda_router.placement.policy import PolicyName
from pagoda_router.placement.prefixes import chain_of
from pagoda_router.wire import worker_pb2 as wire

TINY = ModelName("tiny")


def conversation(prompt_tokens: int, max_tokens: int = 16, **fields: Any) -> Generation:
    """The same one, so far."""
    return generation(prompt_tokens, max_tokens, first_id=1, **fields)


@asynccontextmanager
async def fleet(tmp_path, count: int = 2, *, capacity_tokens: int = 1024, settings: Mapping[str, Any] | None = None, **model: Any):
    workers = [ScriptedWorker(name=f"w{at}", capacity_tokens=capacity_tokens) for at in range(count)]
    async with AsyncExitStack() as stack:
        for worker in workers:
            await stack.enter_async_context(worker)
        router = await stack.enter_async_context(rig(tmp_path, **(settings or {})))
        router.know(*workers, models=[model_object(**model)])
        await router.until_routable(count)
        yield workers, router


async def placed(router: Rig, workers: list[ScriptedWorker], wanted: Any) -> tuple[ScriptedWorker, int, "asyncio.Task[Any]"]:
    """Who got it, as which request; it runs on."""
    task = asyncio.create_task(router.collect(wanted))
    return *await submitted(workers), task


async def submitted(workers: list[ScriptedWorker]) -> tuple[ScriptedWorker, int]:
    """Who got the next one, as which request."""
    waits = [asyncio.create_task(worker.submits.get()) for worker in workers]
    (done,), others = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED, timeout=10)
    for other in others:
        other.cancel()
    return workers[waits.index(done)], done.result().request_id


async def run_through(router: Rig, workers: list[ScriptedWorker], wanted: Any) -> ScriptedWorker:
    worker, request_id, task = await placed(router, workers, wanted)
    worker.tokens(request_id, [5], started=True)
    worker.finish(request_id)
    await task
    return worker


def cached(router: Rig, name: str, prompt_tokens: int) -> int:
    (link,) = [link for link in router.fleet.links(TINY) if link.endpoint.name == name]
    return link.view(None, chain_of(conversation(prompt_tokens).prompt_ids, 16)).cached_tokens


async def test_a_burst_of_one_prompt_goes_together_before_anything_is_computed(tmp_path):
    """In one moment: a worker that says nothing for longer than a step is taken for a slow one, and this machine may be."""
    async with fleet(tmp_path, settings={"clock": lambda: 0.0}) as (workers, router):
        asked = [await placed(router, workers, conversation(200)) for _ in range(3)]
        assert len({worker.name for worker, _, _ in asked}) == 1
        for worker, request_id, task in asked:
            worker.finish(request_id)
            await task
        assert router.metric("placements_total", model="tiny", policy="predicted", reason="cached_prefix") == 2


@pytest.mark.parametrize("tokens", [12_000, 60_000])
async def test_a_long_prompt_that_comes_again_at_once_finds_all_of_the_first_whose_blocks_are_still_being_hashed(tmp_path, tokens):
    async with fleet(tmp_path, capacity_tokens=10**6) as (workers, router):
        wanted = [conversation(prompt_tokens) for prompt_tokens in (tokens, tokens, tokens + 1600)]
        tasks = [asyncio.create_task(router.collect(each)) for each in wanted]
        asked = [await submitted(workers) for _ in tasks]
        assert [each.trace.attempts[-1].predicted_cached_tokens for each in wanted] == [0, tokens - 1, tokens]
        for worker, request_id in asked:
            worker.tokens(request_id, [5], started=True)
            worker.finish(request_id)
        await asyncio.gather(*tasks)
        assert {worker for worker, _ in asked} == {asked[0][0]}
        assert cached(router, asked[0][0].name, tokens + 3200) == tokens + 1600


async def test_prompts_that_begin_alike_but_know_nothing_of_each_other_all_become_known():
    """Those of two models with one tokenizer have the same hashes."""
    growing = GrowingChains()
    ids = [range(1, count) for count in (20_000, 20_000, 30_000)]
    chains = [PrefixChains().begun(each, 16) for each in ids]
    for chain in chains:
        growing.add(chain)
    while len(growing):
        await asyncio.sleep(0)
    assert [chain.hashes for chain in chains] == [chain_of(each, 16).hashes for each in ids]


async def test_load_counts_from_the_moment_a_request_is_sent(tmp_path):
    """Prompts that share nothing, and workers that have said nothing yet."""
    async with fleet(tmp_path) as (workers, router):
        prompts = [generation(200, 16), generation(216, 16)]
        asked = [await placed(router, workers, each) for each in prompts]
        assert {worker.name for worker, _, _ in asked} == {"w0", "w1"}
        for _, _, task in asked:
            task.cancel()


async def test_a_prefix_that_another_request_holds_is_not_paid_for_twice(tmp_path):
    """Worth more than speed: else a worker runs two requests with one long prompt where it could run twenty."""
    async with fleet(tmp_path, 1) as ((worker,), router):
        _, first, one = await placed(router, [worker], conversation(600, 8))
        assert worker.reserved_tokens == 608
        _, second, other = await placed(router, [worker], conversation(600, 8))
        assert worker.reserved_tokens == 608 + 16
        for request_id, task in ((first, one), (second, other)):
            worker.finish(request_id)
            await task
        assert router.outstanding_tokens == 0


async def test_a_conversation_returns_to_the_worker_that_has_its_past(tmp_path):
    async with fleet(tmp_path) as (workers, router):
        first = await run_through(router, workers, conversation(160))
        assert cached(router, first.name, 300) == 160
        for longer in (200, 240, 300):
            assert await run_through(router, workers, conversation(longer)) is first


async def test_the_workers_cache_events_correct_what_was_expected(tmp_path):
    async with fleet(tmp_path, 1) as ((worker,), router):
        assert (await worker.hellos.get()).wants_cache_events
        await run_through(router, [worker], conversation(64))
        hashes = chain_of(conversation(96).prompt_ids, 16).hashes

        def tell(kind: Any, *told: bytes) -> None:
            event = wire.CacheEvent(kind=kind, model="tiny", block_size=16, hash_version=1, block_hashes=b"".join(told))
            worker.rows([], cache_events=[event])
            worker.change_state(num_waiting=worker.state.num_waiting + 1)

        tell(wire.CacheEvent.STORED, *hashes)
        await router.until(lambda: cached(router, "w0", 96) == 96)
        tell(wire.CacheEvent.REMOVED, *hashes[2:])
        await router.until(lambda: cached(router, "w0", 96) == 32)
        tell(wire.CacheEvent.CLEARED)
        await router.until(lambda: cached(router, "w0", 96) == 0)


async def test_a_lost_session_forgets_what_the_worker_had(tmp_path):
    async with fleet(tmp_path, 1) as ((worker,), router):
        await run_through(router, [worker], conversation(64))
        assert cached(router, "w0", 64) == 64
        worker.break_session()
        await router.until(lambda: not router.fleet.links(TINY)[0].view().routable)
        await router.until_routable(1)
        assert cached(router, "w0", 64) == 0


async def test_a_request_that_never_began_leaves_nothing_expected(tmp_path):
    async with fleet(tmp_path, 1) as ((worker,), router):
        _, request_id, task = await placed(router, [worker], conversation(64))
        assert cached(router, "w0", 64) == 64
        task.cancel()
        await worker.next_cancel()
        worker.finish(request_id, wire.FINISH_CANCELLED, tokens=0)
        await router.until(lambda: cached(router, "w0", 64) == 0)


async def test_an_older_worker_without_cache_events_is_asked_again_without_them(tmp_path):
    worker = ScriptedWorker()
    worker.refuses_cache_events = True
    async with worker, rig(tmp_path, worker):
        assert [(await worker.hellos.get()).wants_cache_events for _ in range(2)] == [True, False]


async def test_a_worker_that_fails_request_after_request_gets_no_more_of_them(tmp_path):
    async with fleet(tmp_path, policy=PolicyName.PREFIX) as (workers, router):
        bad = await run_through(router, workers, conversation(160))
        (good,) = [worker for worker in workers if worker is not bad]
        for _ in range(3):
            worker, request_id, task = await placed(router, workers, conversation(160))
            assert worker is bad
            worker.tokens(request_id, [5], started=True)
            worker.finish(request_id, wire.FINISH_ENGINE_ERROR, detail="the engine died")
            await task
        assert await run_through(router, workers, conversation(160)) is good


async def test_turns_go_round_in_a_model_that_asks_for_round_robin(tmp_path):
    async with fleet(tmp_path, 3, policy=PolicyName.ROUND_ROBIN) as (workers, router):
        turns = [(await run_through(router, workers, conversation(64))).name for _ in range(6)]
        assert turns[:3] == turns[3:]
        assert len(set(turns)) == 3


async def test_every_decision_can_be_asked_for_with_what_came_of_it(tmp_path):
    async with fleet(tmp_path) as (workers, router):
        await run_through(router, workers, conversation(160, request_id="first"))
        worker, request_id, task = await placed(router, workers, conversation(200, request_id="second"))
        worker.tokens(request_id, [5], started=True)
        timings = wire.Timings(received_mono_us=1000, first_scheduled_mono_us=1500, first_token_mono_us=13_000, last_token_mono_us=43_000)
        worker.finish(request_id, tokens=4, timings=timings)
        await task
        ask = PlacementAdmin(router.fleet, router.dispatcher.chooser, router.dispatcher.decisions, router.dispatcher.now_s)
        status, answer = ask("/internal/v1/decisions", b"replay=round-robin")
        assert status == 200
        second, first = answer["decisions"]
        assert (first["requestId"], first["reason"], first["actual"]) == ("first", "drawn", None)
        assert (second["worker"], second["policy"], second["reason"]) == (
            f"{worker.name}@127.0.0.1:{worker.port}",
            "predicted",
            "cached_prefix",
        )
        assert second["candidates"][0]["cachedTokens"] == 160
        assert second["candidates"][0]["ttftMs"] == pytest.approx(4.0)
        assert second["actual"] == {"ttftMs": 12.0, "tpotMs": 10.0, "cachedTokens": 2}
        assert (answer["regret"]["decisions"], answer["replay"]["policy"]) == (1, "round-robin")
        assert ask("/internal/v1/decisions", b"limit=1&model=other")[1]["decisions"] == []
        assert [ask("/internal/v1/decisions", query)[0] for query in (b"replay=best", b"limit=x", b"user=me")] == [400, 400, 400]
        assert ask("/internal/v1/lanes", b"")[1]["models"]["tiny"]["default"] == {"cutsTokens": [], "lanes": [[]], "shunned": {}}
        assert ask("/internal/v1/nothing", b"") is None


def test_zone_and_policy_are_read_from_the_snapshot_and_an_unknown_policy_is_a_complaint():
    labels = {"pagoda.dev/model": "tiny"}
    slices = [{"metadata": {"labels": labels}, "ports": [{"name": "grpc", "port": 1}], "endpoints": [{"addresses": ["h"], "zone": "eu-1"}]}]
    specs = {"tiny": "prefix", "other": "clairvoyant"}
    models = [
        {"metadata": {"name": name}, "spec": {"model": {"source": "x"}, "routing": {"policy": policy}}} for name, policy in specs.items()
    ]
    snapshot = parse_snapshot({"version": 1, "models": models, "endpointSlices": slices})
    assert [endpoint.zone for endpoint in snapshot.endpoints] == ["eu-1"]
    assert [model.policy for model in snapshot.models] == [PolicyName.PREFIX, PolicyName.PREDICTED]
    assert snapshot.problems == ("models[1]: spec.routing.policy 'clairvoyant' is not known to this router: predicted is used",)
