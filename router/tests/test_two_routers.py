"""Two routers and one real worker process (tiny model, CPU): equal shares of its credits, equal answers, and a share that comes back."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
from fleet_rig import Rig, ends_of, generation, model_object, rig, tokens_of
from scripted import Caller, chat

from pagoda_router.discovery.snapshot import Endpoint, FleetSnapshot
from pagoda_router.generation import ModelName, Sampling
from pagoda_router.http.app import create_app
from pagoda_router.http.surface import SurfaceSettings

pytestmark = pytest.mark.skipif(
    find_spec("pagoda_worker") is None or find_spec("torch") is None, reason="the worker and torch are not installed beside the router"
)
TINY = ModelName("tiny")


class Worker(NamedTuple):
    endpoint: Endpoint
    pid: int

    @contextmanager
    def halted_engine(self) -> Iterator[None]:
        """Its front, the process itself, goes on."""
        (engine,) = map(int, Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split())
        os.kill(engine, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(engine, signal.SIGCONT)


class Wire:
    """A way to a worker on which what a router sends can be held back."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._connections: set[asyncio.Task[None]] = set()
        self.is_open = asyncio.Event()
        self.is_open.set()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(asyncio.create_task(self._carry(reader, writer)))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_worker, to_worker = await asyncio.open_connection(self._endpoint.host, self._endpoint.port)
        except OSError:  # it does not listen yet
            writer.close()
            return
        back = asyncio.create_task(self._pass(from_worker, writer))
        await self._pass(reader, to_worker, self.is_open)
        await back

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event | None = None) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if gate is not None:
                    await gate.wait()
                writer.write(data)
        writer.close()

    @asynccontextmanager
    async def endpoint(self) -> AsyncIterator[Endpoint]:
        async with await asyncio.start_server(self._connected, "127.0.0.1", 0) as server:
            yield replace(self._endpoint, port=server.sockets[0].getsockname()[1])
        await asyncio.gather(*self._connections)


@asynccontextmanager
async def real_worker(**more: str) -> AsyncIterator[Worker]:
    """`more`: settings beyond these."""
    from pagoda_bench.local_stack import free_port

    port = free_port()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PAGODA_")}
    settings = {
        "PAGODA_MODEL_NAME": "tiny", "PAGODA_MODEL_SOURCE": "builtin://tiny", "PAGODA_DEVICE": "cpu", "PAGODA_LOG_LEVEL": "error",
        "PAGODA_GRPC_PORT": str(port), "PAGODA_HTTP_PORT": "0", "OMP_NUM_THREADS": "2", **more,
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pagoda_worker", env={**clean, **settings}, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield Worker(Endpoint(name="tiny-default-0", model=TINY, variant="default", template="", host="127.0.0.1", port=port), process.pid)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def know(router: Rig, endpoint: Endpoint) -> None:
    router.fleet.apply(FleetSnapshot(models=(model_object(),), endpoints={endpoint: True}, awaited=frozenset({TINY})))


def available(router: Rig) -> int:
    (view,) = (link.view() for link in router.fleet.links(TINY))
    return view.available_tokens


async def until(router: Rig, condition) -> None:
    async with asyncio.timeout(90):
        while not condition():
            router._changed.clear()
            await router._changed.wait()


async def test_two_routers_share_a_worker_and_the_one_that_stays_gets_the_others_share(tmp_path: Path) -> None:
    async with real_worker() as worker, rig(tmp_path / "a", router_id="a") as a:
        know(a, worker.endpoint)
        await until(a, lambda: a.fleet.can_answer(TINY))
        (view,) = (link.view() for link in a.fleet.links(TINY))
        whole = view.capacity_tokens
        await until(a, lambda: available(a) == whole)
        async with rig(tmp_path / "b", router_id="b") as b:
            know(b, worker.endpoint)
            await until(b, lambda: b.fleet.can_answer(TINY) and available(b) > 0)
            await until(a, lambda: available(a) < whole)
            assert available(a) == available(b)
            assert whole - 32 <= available(a) + available(b) <= whole
            for router in (a, b):
                (view,) = (link.view() for link in router.fleet.links(TINY))
                assert (view.used_tokens, view.reserved_tokens) == (0, 0), "the other router's share is no use of the cache"
            greedy = generation(8, 20, sampling=Sampling(temperature=0.0), ignore_eos=True)
            answers = await asyncio.gather(*(router.collect(greedy) for router in (a, b, a, b, a, b)))
            assert all(ends_of(events) == {0: "length"} for events in answers)
            assert len({tuple(tokens_of(events)) for events in answers}) == 1
            await until(a, lambda: available(a) == available(b))
            await _refuse_alike(a, b)
        await until(a, lambda: available(a) == whole)


async def _refuse_alike(a: Rig, b: Rig) -> None:
    for wrong in ({"model": "nobody"}, {"max_tokens": 10**6}, {"temperature": 9}):
        told = []
        for router in (a, b):
            app = create_app(dispatcher=router.dispatcher, catalog=router.fleet, settings=SurfaceSettings())
            call = await Caller(app)("POST", "/v1/chat/completions", chat(**wrong))
            told.append((call.status, call.error, call.headers.get("retry-after")))
        assert told[0] == told[1]


async def test_who_comes_second_for_the_last_room_waits_for_it_and_is_answered(tmp_path: Path) -> None:
    """Router a reserves all there is, and before its request arrives b comes and is given half: the worker refuses a's, which waits."""
    small = json.dumps({"maxModelLen": 512, "maxRunning": 1})
    async with real_worker(PAGODA_ENGINE=small) as worker, rig(tmp_path / "b", router_id="b") as b:
        wire = Wire(worker.endpoint)
        async with wire.endpoint() as through, rig(tmp_path / "a", router_id="a") as a:
            know(a, through)
            await until(a, lambda: a.fleet.can_answer(TINY) and available(a) > 0)
            whole = available(a)
            wire.is_open.clear()
            of_a = asyncio.create_task(a.collect(generation(8, whole - 16, ignore_eos=True)))
            await passing(lambda: available(a) < whole)
            know(b, worker.endpoint)
            await until(b, lambda: b.fleet.can_answer(TINY) and available(b) > 0)
            async with b.dispatcher.generate(generation(8, available(b) - 16, ignore_eos=True)) as stream:
                await anext(aiter(stream))
                with worker.halted_engine():  # so that b's request is still there when a's comes
                    wire.is_open.set()
                    await passing(lambda: refusals(a) == 1)
                assert not of_a.done()
            assert ends_of(await of_a) == {0: "length"}
            assert refusals(a) == 1


async def passing(condition: Callable[[], bool]) -> None:
    """Of what no listener is told of."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


def refusals(router: Rig) -> float:
    return router.metric("retries_total", model="tiny", reason="refused")
