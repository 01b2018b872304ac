"""Two models on one device by turns: the real engine, a real session for each, and what a process is told about them."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from front_support import SCRIPTED_COMMAND, TINY, Router
from grpc import aio
from scripted_engine import FACTS

from pagoda_worker.channel import Rejected
from pagoda_worker.config import EngineConfig
from pagoda_worker.errors import CannotSleep, ConfigError
from pagoda_worker.front.engine_link import ENGINE_COMMAND
from pagoda_worker.front.process import Front
from pagoda_worker.front.residents import Residents
from pagoda_worker.request import Request
from pagoda_worker.settings.worker import WorkerSettings, parse_shared_device
from pagoda_worker.wire import worker_pb2 as pb
from pagoda_worker.wire.worker_pb2_grpc import WorkerStub

SCRIPTED = EngineConfig(model_dir=TINY, device="cpu", load="lazy")
SMALL = EngineConfig(model_dir=TINY, device="cpu", dtype="fp32", max_running=2, max_model_len=256, threads=1, load="lazy")


class Turns:
    """Two fronts, a router for each, and one bound for both."""

    def __init__(self, names: str, residents: Residents) -> None:
        self.residents = residents
        self.names = names
        self.fronts: dict[str, Front] = {}
        self.routers: dict[str, Router] = {}

    async def ask(self, model: str, request_id: int, prompt: list[int], **fields: Any) -> None:
        await self.routers[model].submit(request_id, prompt, model=model, ignore_eos=True, **fields)

    def awake(self) -> list[str]:
        return [name for name in self.names if self.fronts[name].supervisor.sleep_level == 0]

    async def until_level(self, model: str, level: int) -> None:
        router = self.routers[model]
        await router.until(lambda: router.state.sleep_level == level)


@contextlib.asynccontextmanager
async def by_turns(names: str, room_for: float, command: Any = SCRIPTED_COMMAND, config: EngineConfig = SCRIPTED) -> AsyncIterator[Turns]:
    """`room_for`: models awake at once."""
    residents = Residents(1 << 60)
    turns = Turns(names, residents)
    async with contextlib.AsyncExitStack() as stack:
        tasks = []
        for name in names:
            settings = WorkerSettings(model_name=name, engine=config, grpc_port=0, http_port=0)
            front = turns.fronts[name] = Front(settings, engine_command=command, residents=residents)
            started = asyncio.Event()
            tasks.append(asyncio.create_task(front.run(started=started.set)))
            await started.wait()
            channel = await stack.enter_async_context(aio.insecure_channel(f"127.0.0.1:{front.grpc_port}"))
            router = turns.routers[name] = await Router(WorkerStub(channel)).connect()
            stack.push_async_callback(router.leave)
            await router.until(lambda router=router: router.state.ready)
        facts = turns.fronts[names[0]].switchboard.facts
        assert facts is not None
        residents._budget_bytes = int(facts.awake_bytes * room_for)
        loop = asyncio.create_task(residents.run())
        try:
            yield turns
        finally:
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)
            for front in turns.fronts.values():
                front.stop()
                front.stop()
            await asyncio.gather(*tasks)


async def test_two_real_models_answer_by_turns_on_a_device_with_room_for_one():
    async with by_turns("ab", 1.5, ENGINE_COMMAND, SMALL) as turns:
        assert turns.awake() == [], "nothing is loaded before somebody asks"
        for request_id, model in enumerate("abba"):
            await turns.ask(model, request_id, [7, 8, 9], max_tokens=6)
            finish = await turns.routers[model].finish(request_id)
            assert finish.reason == pb.FINISH_LENGTH
            assert turns.awake() == [model]
        a, b = (turns.routers[model].tokens for model in "ab")
        assert a[0, 0] == a[3, 0] == b[1, 0] == b[2, 0], "both are the same checkpoint, and a sleep changes nothing"


async def test_a_model_with_running_requests_is_waited_for_and_loses_none():
    async with by_turns("ab", 1.5) as turns:
        await turns.ask("a", 1, [7, 8, 9], max_tokens=120)
        await turns.routers["a"].until(lambda: turns.routers["a"].tokens)
        await turns.ask("b", 1, [7, 8, 9], max_tokens=2)
        assert (await turns.routers["b"].finish(1)).reason == pb.FINISH_LENGTH
        assert len(turns.routers["a"].tokens[1, 0]) == 120, "it ended before b began"
        assert turns.awake() == ["b"]


async def test_with_room_for_two_the_least_recently_used_of_three_sleeps():
    async with by_turns("abc", 2.5) as turns:
        for request_id, model in enumerate("abac"):
            await turns.ask(model, request_id, [7], max_tokens=2)
            await turns.routers[model].finish(request_id)
        assert turns.awake() == ["a", "c"]


async def test_a_request_that_is_cancelled_while_its_model_sleeps_is_answered_and_wakes_nobody():
    async with by_turns("ab", 1.5) as turns:
        await turns.ask("a", 1, [7], max_tokens=200)
        await turns.routers["a"].until(lambda: turns.routers["a"].tokens)
        await turns.ask("b", 1, [7], max_tokens=2, reserved_kv_tokens=16)
        await turns.routers["b"].cancel(1)
        assert "cancelled before its model woke" in (await turns.routers["b"].refusal(1)).message
        await turns.ask("b", 2, [7], max_tokens=2)
        await turns.routers["b"].leave()
        await turns.fronts["b"].switchboard.idle.wait()
        await turns.routers["a"].finish(1)
        assert turns.awake() == ["a"]


async def test_wake_waits_for_its_turn_and_makes_room():
    async with by_turns("ab", 1.5) as turns:
        for model in "ab":
            async with aio.insecure_channel(f"127.0.0.1:{turns.fronts[model].grpc_port}") as channel:
                assert (await WorkerStub(channel).Wake(pb.WakeRequest(model=model))).load_us > 0
            assert turns.awake() == [model]


async def test_a_model_that_cannot_wake_refuses_and_lets_the_others_go_on():
    broken = EngineConfig(model_dir=TINY, device="cpu", seed=16, load="lazy")
    async with by_turns("ab", 1.5, config=broken) as turns:
        for model in "ab":
            await turns.ask(model, 1, [7])
            refused = await turns.routers[model].refusal(1)
            assert refused.code == pb.Refused.NOT_READY
            assert "the scripted weights are gone" in refused.message


async def test_a_model_larger_than_all_the_room_ends_the_worker_with_a_sentence():
    async with by_turns("ab", 1.5) as turns:
        residents = turns.residents
        residents._budget_bytes = 1 << 20
        with pytest.raises(ConfigError, match=r"model a needs .* awake and PAGODA_AWAKE_BYTES is 1 MiB"):
            await residents.run()


class SlowToSleep:
    """An engine and its calls; asked to sleep it waits for the test."""

    def __init__(self, problem: str = "") -> None:
        self.sleep_level = 0
        self.facts = FACTS
        self.open_calls = 0
        self.submitted: list[str] = []
        self.asked, self.goes_on = asyncio.Event(), asyncio.Event()
        self._problem = problem

    def submit(self, request: Request) -> None:
        assert not self.sleep_level, "a sleeping engine would wake by itself, whatever the room"
        self.submitted.append(request.request_id)

    def cancel(self, request_id: str, sequence: int | None = None) -> None: ...

    def draft(self, request_id: str, sequence: int, position: int, token_ids: list[int]) -> None: ...

    async def wake(self) -> int:
        self.sleep_level = 0
        return 1

    async def sleep(self, level: int) -> int:
        self.asked.set()
        await self.goes_on.wait()
        if self._problem:
            raise CannotSleep(self._problem)
        self.sleep_level = level
        return 1

    def is_open(self, engine_id: str) -> bool:
        return True

    def engine_rejected(self, rejected: Rejected) -> None: ...


@pytest.mark.parametrize("problem", ["", "the host has no memory"])
async def test_what_comes_while_a_model_falls_asleep_waits_and_is_not_forgotten(problem: str):
    engine = SlowToSleep(problem)
    resident = Residents(1 << 30).join("a", engine)
    resident.attach(engine)
    falling = asyncio.create_task(resident.sleep(1))
    await engine.asked.wait()
    engine.open_calls = 1
    resident.submit(Request(request_id="late", prompt_ids=[7]))
    assert engine.submitted == []
    assert resident.view().waits_since_s is not None
    engine.goes_on.set()
    if problem:
        with pytest.raises(CannotSleep):
            await falling
    else:
        await falling
        assert engine.submitted == []
        await resident.take_room()
    assert engine.submitted == ["late"]
    assert resident.view().waits_since_s is None


# ---- as a process

MODEL = {"source": "builtin://tiny", "grpcPort": 0, "httpPort": 0}
ENV = {"PAGODA_DEVICE": "cpu", "PAGODA_AWAKE_BYTES": str(1 << 30)}


def models(*listed: dict[str, Any]) -> dict[str, str]:
    return {**ENV, "PAGODA_MODELS": json.dumps(listed)}


def test_each_model_has_settings_of_its_own_and_reads_its_weights_when_asked():
    shared = parse_shared_device(models({**MODEL, "name": "a", "grpcPort": 9100, "engine": {"maxRunning": 4}}, {**MODEL, "name": "b"}))
    assert shared is not None
    first, second = shared.models
    assert (first.model_name, first.grpc_port, first.engine.max_running, first.engine.load) == ("a", 9100, 4, "lazy")
    assert (second.model_name, second.engine.load, second.engine.device, shared.awake_bytes) == ("b", "lazy", "cpu", 1 << 30)
    assert parse_shared_device({}) is None


WRONG = [
    ({"PAGODA_MODELS": "["}, "PAGODA_MODELS is not JSON"),
    (models({**MODEL, "name": "a"}), "a JSON list of at least two objects"),
    (models({**MODEL, "name": "a"}, {**MODEL, "name": "a"}), "names a model twice"),
    (models({**MODEL, "name": "a"}, MODEL), r"PAGODA_MODELS\[1\].name is missing"),
    (models({**MODEL, "name": "a", "port": 1}, MODEL), r"PAGODA_MODELS\[0\].port is not a field; there are name, source"),
    (models({**MODEL, "name": "a", "engine": {"dtype": "int4"}}, MODEL), r"PAGODA_MODELS\[0\]: PAGODA_ENGINE.dtype is \"int4\""),
    ({**models({**MODEL, "name": "a"}, {**MODEL, "name": "b"}), "PAGODA_MODEL_NAME": "c"}, "PAGODA_MODEL_NAME is set beside PAGODA_MODELS"),
    ({"PAGODA_MODELS": models({**MODEL, "name": "a"}, {**MODEL, "name": "b"})["PAGODA_MODELS"]}, "PAGODA_AWAKE_BYTES is not set"),
]


@pytest.mark.parametrize(("env", "words"), WRONG, ids=[words for _, words in WRONG])
def test_a_wrong_list_is_one_line(env: dict[str, str], words: str):
    with pytest.raises(ConfigError, match=words):
        parse_shared_device(env)


def test_a_worker_of_two_models_starts_and_ends_as_one_process():
    env = {**os.environ, **models({**MODEL, "name": "a"}, {**MODEL, "name": "b"})}
    with subprocess.Popen([sys.executable, "-m", "pagoda_worker"], env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        heard = ""
        while not ("model a: gRPC on port" in heard and "model b: gRPC on port" in heard):
            line = process.stderr.readline()
            assert line, heard
            heard += line
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
