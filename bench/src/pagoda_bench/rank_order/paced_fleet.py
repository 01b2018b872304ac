"""A real router process over real gRPC sessions with paced workers, asked over HTTP in real time: all but the engines is the product.

Called by compare.py.
"""

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import httpx

from pagoda_bench.errors import BenchError
from pagoda_bench.local_stack import free_port
from pagoda_bench.peers.process import PeerProcess
from pagoda_bench.rank_order.asking import Answer, Ask, ask_all
from pagoda_bench.rank_order.paced_worker import PacedWorker
from pagoda_bench.rank_order.prompts import prompt_of
from pagoda_bench.router_load.systems import fleet
from pagoda_bench.sim.demand import Conversation
from pagoda_bench.sim.engine_profile import H100_8B, EngineProfile

MODEL = "paced"
WORKERS = 4
PACE = 2.0
"""Times that a step takes of an H100's: this machine's own CPU time counts half as much."""
PROFILE = replace(
    H100_8B,
    name="h100-8b, half as fast",
    base_s=H100_8B.base_s * PACE,
    row_s=H100_8B.row_s * PACE,
    prompt_token_s=H100_8B.prompt_token_s * PACE,
    context_token_s=H100_8B.context_token_s * PACE,
)
MAX_TOKENS = 4096
"""What clients allow their answers, as the simulator's do."""
START_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class PacedRun:
    answers: list[Answer]
    late_ms: float
    """Mean, by which steps ended later than planned."""


async def run(users: Sequence[Conversation], policy: str, folder: Path, profile: EngineProfile = PROFILE) -> PacedRun:
    """Users' first turns. Raises BenchError when the router does not come up."""
    workers = [PacedWorker(number, MODEL, profile, users) for number in range(WORKERS)]  # type: ignore[abstract]  # sleeps and the like are not asked
    asks = [Ask.completion(user.at_s, prompt_of(user), model=MODEL, max_tokens=MAX_TOKENS) for user in users]
    for worker in workers:
        await worker.start()
    try:
        router, url = await _router([worker.port for worker in workers], policy, folder)
        try:
            answers = await ask_all(url, asks, whole=False)
        finally:
            await asyncio.to_thread(router.stop)
    finally:
        for worker in workers:
            await worker.stop()
    late_s = [late_s for worker in workers for late_s in worker.late_s]
    return PacedRun(answers, 1000 * fmean(late_s) if late_s else 0.0)


async def _router(ports: Sequence[int], policy: str, folder: Path) -> tuple[PeerProcess, str]:
    document = fleet({MODEL: ports})
    document["models"] = [{"metadata": {"name": MODEL}, "spec": {"model": {"source": "mock://"}, "routing": {"policy": policy}}}]
    (folder / "fleet.json").write_text(json.dumps(document))
    port, internal_port = free_port(), free_port()
    env = {
        "PAGODA_HTTP_PORT": str(port),
        "PAGODA_INTERNAL_PORT": str(internal_port),
        "PAGODA_FLEET_FILE": str(folder / "fleet.json"),
        "PAGODA_CACHE_DIR": str(folder / "cache"),
        "PAGODA_LOG_LEVEL": "WARNING",
    }
    process = PeerProcess([sys.executable, "-m", "pagoda_router"], log=folder / "router.log", env=env)
    try:
        await _until_routable(f"http://127.0.0.1:{internal_port}/internal/v1/fleet", len(ports), process)
    except BaseException:
        process.stop()
        raise
    return process, f"http://127.0.0.1:{port}"


async def _until_routable(url: str, workers: int, process: PeerProcess) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    async with httpx.AsyncClient() as client:
        while time.monotonic() < deadline_s and not process.ended():
            try:
                told = (await client.get(url)).json()
                if sum(sum(model["routable"].values()) for model in told["models"].values()) == workers:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)
    raise BenchError(f"the router does not route to its workers: {process.last_words()}")
