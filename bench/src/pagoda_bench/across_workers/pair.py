"""Two paced workers, the delayed ports before them and a real router: started for one pace, their delay set anew for each point.

Called by measure.py and by the test of this folder.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from pagoda_bench.across_workers.delay import DelayedPort
from pagoda_bench.errors import BenchError
from pagoda_bench.local_stack import free_port
from pagoda_bench.peers.process import PeerProcess

TARGET, DRAFT = "target", "draft"
START_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What a step takes, whatever is in it, as long as weights are what it reads most."""

    target_s: float
    draft_s: float

    @property
    def name(self) -> str:
        return f"step={1000 * self.target_s:g}ms"


@dataclass(frozen=True, slots=True)
class Pair:
    url: str
    ports: tuple[DelayedPort, DelayedPort]
    target: PeerProcess
    drafter: PeerProcess

    def set_round_trip(self, seconds: float) -> None:
        """Between the router and each of the two."""
        for port in self.ports:
            port.one_way_s = seconds / 2


@asynccontextmanager
async def running_pair(
    pace: Pace, *, target: Path, draft: Path, draft_tokens: int, scratch: Path, dtype: str = "bf16"
) -> AsyncIterator[Pair]:
    """Raises BenchError when it does not come up."""
    ports = {name: (free_port(), free_port()) for name in (TARGET, DRAFT)}
    engines: dict[str, dict[str, object]] = {
        TARGET: {"dtype": dtype, "speculative": {"method": "remote", "tokens": draft_tokens}},
        DRAFT: {"dtype": dtype},
    }
    processes: list[PeerProcess] = []
    delayed = [DelayedPort(ports[name][0]) for name in (TARGET, DRAFT)]
    try:
        for name, folder, step_s in ((TARGET, target, pace.target_s), (DRAFT, draft, pace.draft_s)):
            processes.append(_worker(name, folder, engines[name], ports[name], step_s, scratch))
        for port in delayed:
            await port.start()
        url, internal_url = f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"
        processes.append(_router(url, internal_url, dict(zip((TARGET, DRAFT), delayed, strict=True)), scratch))
        await _until_routable(internal_url, processes)
        yield Pair(url, (delayed[0], delayed[1]), processes[0], processes[1])
    finally:
        for process in reversed(processes):
            await asyncio.to_thread(process.stop)
        for port in delayed:
            await port.stop()


def _worker(name: str, folder: Path, engine: dict[str, object], ports: tuple[int, int], step_s: float, scratch: Path) -> PeerProcess:
    env = {
        "PAGODA_MODEL_NAME": name,
        "PAGODA_MODEL_SOURCE": f"file://{folder.resolve()}",
        "PAGODA_ENGINE": json.dumps(engine),
        "PAGODA_DEVICE": "cpu",
        "PAGODA_CPUS": "1",
        "PAGODA_MEMORY_BYTES": str(1 << 30),
        "PAGODA_GRPC_PORT": str(ports[0]),
        "PAGODA_HTTP_PORT": str(ports[1]),
        "BENCH_STEP_S": str(step_s),
    }
    return PeerProcess([sys.executable, "-m", "pagoda_bench.across_workers.paced_worker"], log=scratch / f"{name}.log", env=env)


def _router(url: str, internal_url: str, workers: dict[str, DelayedPort], scratch: Path) -> PeerProcess:
    specs = {TARGET: {"routing": {"draftModel": DRAFT}}, DRAFT: {}}
    models = [{"metadata": {"name": name}, "spec": {"model": {"source": f"file:///{name}"}, **spec}} for name, spec in specs.items()]
    slices = [
        {
            "metadata": {"name": name, "labels": {"pagoda.dev/model": name}},
            "ports": [{"name": "grpc", "port": delayed.port}],
            "endpoints": [{"addresses": ["127.0.0.1"], "targetRef": {"name": name}, "conditions": {"serving": True}}],
        }
        for name, delayed in workers.items()
    ]
    (scratch / "fleet.json").write_text(json.dumps({"version": 1, "models": models, "endpointSlices": slices}))
    env = {
        "PAGODA_HTTP_PORT": url.rpartition(":")[2],
        "PAGODA_INTERNAL_PORT": internal_url.rpartition(":")[2],
        "PAGODA_FLEET_FILE": str(scratch / "fleet.json"),
        "PAGODA_CACHE_DIR": str(scratch / "cache"),
    }
    return PeerProcess([sys.executable, "-m", "pagoda_router"], log=scratch / "router.log", env=env)


async def _until_routable(internal_url: str, processes: list[PeerProcess]) -> None:
    loop = asyncio.get_running_loop()
    until_s = loop.time() + START_TIMEOUT_S
    async with httpx.AsyncClient() as client:
        while loop.time() < until_s:
            for process in processes:
                if process.ended():
                    raise BenchError(f"a process of the pair has ended: {process.last_words()}")
            try:
                told = (await client.get(f"{internal_url}/internal/v1/fleet")).json()
                if all(sum(told["models"][name]["routable"].values()) == 1 for name in (TARGET, DRAFT)):
                    return
            except (httpx.TransportError, KeyError):
                pass
            await asyncio.sleep(0.1)
    raise BenchError(f"the router does not route to both workers: {processes[-1].last_words()}")
