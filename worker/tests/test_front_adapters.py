"""Adapters from outside: loaded, asked for, swapped and unloaded over gRPC, told to every router, there again after the engine died."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from front_support import MODEL, TINY, Bench, Router, running_front
from grpc import aio
from random_adapter import write_adapter

from pagoda_worker.config import EngineConfig
from pagoda_worker.front.engine_link import ENGINE_COMMAND
from pagoda_worker.scheduling.blocks import chain_hash, root_hash
from pagoda_worker.wire import worker_pb2 as pb

DIES = 902
REAL = EngineConfig(model_dir=TINY, device="cpu", dtype="fp32", max_running=8, max_batch_tokens=64, threads=1)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    """What the scripted engine takes for adapters, and one that it does not."""
    for name in ("one", "two", "bad"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}")
    return {name: f"file://{tmp_path / name}" for name in ("one", "two", "bad")}


async def load(bench: Bench, name: str, source: str, **fields: Any) -> pb.LoadAdapterResponse:
    fields.setdefault("model", MODEL)
    answer = await bench.stub.LoadAdapter(pb.LoadAdapterRequest(adapter=name, source=source, **fields))
    assert isinstance(answer, pb.LoadAdapterResponse)
    return answer


async def unload(bench: Bench, name: str) -> None:
    await bench.stub.UnloadAdapter(pb.UnloadAdapterRequest(model=MODEL, adapter=name))


def told(router: Router) -> dict[str, str]:
    """Name → version, as the router heard last."""
    states = [frame.adapters for frame in router.frames if frame.HasField("adapters")]
    return {each.name: each.version for each in (states[-1] if states else router.welcome.adapters).adapters}


async def test_a_loaded_adapter_is_told_to_every_router_and_answers(folders: dict[str, str]):
    async with running_front() as bench:
        first = await bench.router()
        answer = await load(bench, "sql", folders["one"])
        assert (answer.rank, answer.size_bytes, answer.version) == (8, 1000, "of-one")
        await first.until(lambda: told(first) == {"sql": "of-one"})
        later = await bench.router(router_id="r2")
        assert told(later) == {"sql": "of-one"}
        assert later.welcome.adapters.adapters[0].source == folders["one"]
        await first.submit(1, [5], adapter="sql")
        assert (await first.finish(1)).reason == pb.FINISH_LENGTH
        described = (await bench.stub.Describe(pb.DescribeRequest())).models
        assert [(each.model, each.adapter) for each in described] == [(MODEL, ""), (MODEL, "sql")]
        assert pb.FEATURE_ADAPTERS in described[0].features


async def test_a_swapped_one_has_its_new_version_and_an_unloaded_one_is_refused_by_name(folders: dict[str, str]):
    async with running_front() as bench:
        router = await bench.router()
        await load(bench, "sql", folders["one"])
        assert (await load(bench, "sql", folders["two"])).version == "of-two"
        await router.until(lambda: told(router) == {"sql": "of-two"})
        await unload(bench, "sql")
        await router.until(lambda: told(router) == {})
        await router.submit(1, [5], adapter="sql")
        refused = await router.refusal(1)
        assert (refused.code, refused.param) == (pb.Refused.MODEL_NOT_FOUND, "adapter")
        assert refused.message == "there is no adapter 'sql'; there is: none"


REFUSED = [
    ({"name": "bad", "source": "bad"}, grpc.StatusCode.INVALID_ARGUMENT, "is no adapter"),
    ({"name": "no/slash", "source": "one"}, grpc.StatusCode.INVALID_ARGUMENT, "an adapter's name is 'no/slash'"),
    ({"name": "far", "source": "hf://org/name"}, grpc.StatusCode.INVALID_ARGUMENT, "declare it in spec.adapters"),
    ({"name": "gone", "source": "file:///no/such"}, grpc.StatusCode.INVALID_ARGUMENT, "has no adapter_config.json"),
    ({"name": "other", "source": "one", "model": "else"}, grpc.StatusCode.NOT_FOUND, "this worker serves 'tiny', not 'else'"),
    ({"name": "token", "source": "one", "token": "wrong"}, grpc.StatusCode.UNAUTHENTICATED, "the session token is wrong"),
]


@pytest.mark.parametrize(("asked", "code", "sentence"), REFUSED, ids=lambda each: each["name"] if isinstance(each, dict) else "")
async def test_what_cannot_be_loaded_is_refused_with_a_sentence(
    folders: dict[str, str], asked: dict[str, str], code: grpc.StatusCode, sentence: str
):
    async with running_front() as bench:
        await bench.router()  # its session is open when the engine is
        with pytest.raises(aio.AioRpcError) as error:
            await load(bench, **{**asked, "source": folders.get(asked["source"], asked["source"])})
        assert error.value.code() is code
        assert sentence in (error.value.details() or "")


async def test_an_unknown_adapter_cannot_be_unloaded():
    async with running_front() as bench:
        await bench.router()  # its session is open when the engine is
        with pytest.raises(aio.AioRpcError) as error:
            await unload(bench, "sql")
        assert error.value.code() is grpc.StatusCode.NOT_FOUND


async def test_an_engine_that_is_started_again_has_the_adapters_that_were_loaded(folders: dict[str, str]):
    async with running_front() as bench:
        router = await bench.router()
        await load(bench, "sql", folders["one"])
        await router.submit(1, [DIES])
        await router.finish(1)
        await router.until(lambda: router.state.ready and told(router) == {"sql": "of-one"})
        await router.submit(2, [5], adapter="sql")
        assert (await router.finish(2)).reason == pb.FINISH_LENGTH


async def test_a_real_engine_answers_with_an_adapter_and_tells_its_prefixes_by_version(tmp_path: Path):
    adapter = write_adapter(tmp_path / "sql", TINY, rank=4, alpha=64.0)
    async with running_front(config=REAL, command=ENGINE_COMMAND) as bench:
        router = await bench.router(cache_events=True)
        prompt = list(range(20, 52))
        await router.submit(1, prompt, max_tokens=8, ignore_eos=True)
        answer, _ = await asyncio.gather(load(bench, "sql", f"file://{adapter}"), router.finish(1))
        await router.submit(2, prompt, max_tokens=8, ignore_eos=True, adapter="sql")
        assert (await router.finish(2)).usage.cached_tokens == 0
        assert router.tokens[1, 0] != router.tokens[2, 0]
        block = chain_hash(root_hash(b"", f"sql@{answer.version}"), prompt[:16])
        await router.until(lambda: block in router.cached)
        await router.until(lambda: any(each.resident for frame in router.frames for each in frame.adapters.adapters))
