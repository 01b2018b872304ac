"""Two routers and one real worker process (tiny model, CPU): equal shares of its credits, equal answers, and a share that comes back."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

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


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@asynccontextmanager
async def real_worker(**more: str) -> AsyncIterator[Endpoint]:
    """`more`: settings beyond these."""
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
        yield Endpoint(name="tiny-default-0", model=TINY, variant="default", template="", host="127.0.0.1", port=port)
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
    async with real_worker() as endpoint, rig(tmp_path / "a", router_id="a") as a:
        know(a, endpoint)
        await until(a, lambda: a.fleet.can_answer(TINY))
        (view,) = (link.view() for link in a.fleet.links(TINY))
        whole = view.capacity_tokens
        await until(a, lambda: available(a) == whole)
        async with rig(tmp_path / "b", router_id="b") as b:
            know(b, endpoint)
            await until(b, lambda: b.fleet.can_answer(TINY) and available(b) > 0)
            await until(a, lambda: available(a) < whole)
            assert available(a) == available(b)
            assert whole - 32 <= available(a) + available(b) <= whole
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
