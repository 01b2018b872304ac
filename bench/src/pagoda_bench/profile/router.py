"""Profiles the router's part of a request: the local stack, and beside its router a second one under the profiler, before the same worker.

The stack's own router tells what a request costs (CPU time of the process), the second one where that goes. Called by __main__.
"""

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psutil

from pagoda_bench.local_stack import free_port, local_stack
from pagoda_bench.processes import running
from pagoda_bench.profile.costs import Profiled, costs_of
from pagoda_bench.profile.stages import stage_seconds

ROUTER = "pagoda_router"
PATIENCE_S = 60.0
Work = Callable[[str], None]
"""Takes the URL of a router."""
_prompts = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Streamed completions; `alone` of them one after another, or `rounds` times as many as run at once where that is more."""

    alone: int
    rounds: int
    output_tokens: int
    repeats: int

    def requests(self, streams: int) -> int:
        return max(self.alone, self.rounds * streams)


def profile_router(name: str, source: str, *, streams: Sequence[int], load: Load) -> list[Profiled]:
    """One case for each number of concurrent streams. Every request has a prompt of its own of about 100 tokens."""
    model = f"profiled-{name.replace('.', '-')}"
    manifest = {
        "apiVersion": "pagoda.dev/v1alpha1",
        "kind": "InferenceModel",
        "metadata": {"name": model},
        "spec": {"model": {"source": source}, "engine": {"maxModelLen": 1024}, "scaling": {"min": 1, "max": 1}},
    }
    with TemporaryDirectory() as temporary:
        path = Path(temporary) / "model.yaml"
        path.write_text(json.dumps(manifest))
        with local_stack(path) as stack:
            (process,) = running(stack.home, ROUTER)
            first = FirstRouter(stack.url, process.pid)
            with second_router(process, Path(temporary)) as second:
                return [_case(f"router {name} c={width}", model, width, load, first, second) for width in streams]


def _case(case: str, model: str, streams: int, load: Load, first: "FirstRouter", second: "SecondRouter") -> Profiled:
    """Both routers in turn; the first turn of each warms up."""
    work = partial(run_load, model=model, streams=streams, load=load)
    requests = load.requests(streams)
    whole: list[float] = []
    stages: list[dict[str, float]] = []
    for counted in (False, *[True] * load.repeats):
        plain_s = first.cpu_s(work)
        profile = second.profile(work)
        if counted:
            whole.append(plain_s / requests)
            stages.append({stage: seconds / requests for stage, seconds in stage_seconds(profile, plain_s).items()})
    parts = {stage: [each.get(stage, 0.0) for each in stages] for stage in sorted({stage for each in stages for stage in each})}
    return Profiled(case, "request", whole, costs_of(parts))


@dataclass(frozen=True, slots=True)
class FirstRouter:
    """The stack's own."""

    url: str
    pid: int

    def cpu_s(self, work: Work) -> float:
        """CPU time of all its threads while `work` ran on it."""
        before_s = self._cpu_s()
        work(self.url)
        return self._cpu_s() - before_s

    def _cpu_s(self) -> float:
        """To the nanosecond; the usual counters tick every 10 ms."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


class SecondRouter:
    def __init__(self, process: subprocess.Popen[bytes], folder: Path, port: int) -> None:
        self._process = process
        self._folder = folder
        self.url = f"http://127.0.0.1:{port}"

    def profile(self, work: Work) -> dict[str, Any]:
        """What its Python functions did while `work` ran."""
        begun, written = self._folder / "begun", self._folder / "profile.json"
        self._process.send_signal(signal.SIGUSR1)
        self.wait(begun.exists)
        work(self.url)
        self._process.send_signal(signal.SIGUSR2)
        self.wait(written.exists)
        profile: dict[str, Any] = json.loads(written.read_text())
        begun.unlink()
        written.unlink()
        return profile

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the router under the profiler did not answer:\n{(self._folder / 'log').read_text()}")
            time.sleep(0.02)

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/ready").status_code == 200
        except httpx.TransportError:
            return False


@contextmanager
def second_router(first: psutil.Process, temporary: Path) -> Iterator[SecondRouter]:
    """With the first one's settings, on ports and with a name of its own."""
    folder = temporary / "router"
    folder.mkdir()
    port = free_port()
    env = first.environ() | {
        "PAGODA_HTTP_PORT": str(port),
        "PAGODA_INTERNAL_PORT": "0",
        "PAGODA_POD_NAME": "profiled-router",
        "PAGODA_LINGER_S": "0",
        "PAGODA_CACHE_DIR": str(folder / "cache"),
    }
    command = [sys.executable, "-m", "pagoda_bench.profile.under_profile", str(folder), ROUTER]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=os.sep) as process:
        router = SecondRouter(process, folder, port)
        try:
            router.wait(router.is_ready)
            yield router
        finally:
            process.terminate()


def run_load(url: str, *, model: str, streams: int, load: Load) -> None:
    """Raises RuntimeError when a request is not answered in full."""
    asyncio.run(_run_load(url, model, streams, load))


async def _run_load(url: str, model: str, streams: int, load: Load) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=streams)) as client:
        left = iter(range(load.requests(streams)))

        async def one_after_another() -> None:
            for _ in left:
                await _stream(client, model, load.output_tokens)

        await asyncio.gather(*(one_after_another() for _ in range(streams)))


async def _stream(client: httpx.AsyncClient, model: str, output_tokens: int) -> None:
    number = next(_prompts)
    body = {
        "model": model,
        "prompt": f"{number:06} " + "Sort these numbers: 31, 7, 88, 19. " * 3,
        "max_tokens": output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    produced = 0
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        if answer.status_code != 200:
            raise RuntimeError(f"{answer.status_code}: {(await answer.aread()).decode()}")
        async for line in answer.aiter_lines():
            if line.startswith("data: {") and (usage := json.loads(line[6:]).get("usage")):
                produced = usage["completion_tokens"]
    if produced != output_tokens:
        raise RuntimeError(f"asked for {output_tokens} tokens, got {produced}")
