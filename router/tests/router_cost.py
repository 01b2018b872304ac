"""What a request and a token cost a router in CPU time. Not a test: run by hand, and quoted with its output.

`python tests/router_cost.py NAME=SOURCE_FOLDER[,PAGODA_SETTING=VALUE]…`: each source folder (router/src of some commit) as a real process
against a scripted worker, side by side, CPU time read off /proc. On a shared machine its noise is about a tenth.
`python tests/router_cost.py` without arguments: what tracing alone adds, line by line of the hot path, timed in this process.
"""

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
import timeit
from pathlib import Path

import httpx
from scripted_worker import ScriptedWorker
from test_main import running, until_ready, word_tokenizer, write_fleet

from pagoda_router.generation import WorkerId
from pagoda_router.http.surface import RequestOutcome
from pagoda_router.placement.policy import POLICY, Placement, PlacementReason
from pagoda_router.tracing.clock import ClockReading
from pagoda_router.tracing.phases import last_attempt, overhead_us
from pagoda_router.tracing.record import Attempt, GenerationTrace, WorkerTimes
from pagoda_router.tracing.ring import TraceRing
from pagoda_router.tracing.tracer import Tracer
from pagoda_router.wire import worker_pb2 as wire

ROUNDS, REQUESTS = 3, 150
SHORT, LONG = 1, 101


async def ask(worker: ScriptedWorker, url: str, count: int, tokens: int) -> None:
    """One frame at a time: the next leaves when the client has read the last, so that each is one wake and one write of the router."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    body = json.dumps({"model": "tiny", "prompt": "a b c a b c", "max_tokens": tokens, "stream": True}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    for _ in range(count):
        writer.write(head + body)
        submit = await worker.submits.get()
        now_us = worker.now_us()
        for place in range(tokens):
            worker.tokens(submit.request_id, [1 + place % 2], started=place == 0)
            await reader.readuntil(b"}\n\n")
        timings = wire.Timings(
            received_mono_us=now_us, first_scheduled_mono_us=now_us, first_token_mono_us=now_us, last_token_mono_us=worker.now_us(),
            steps=tokens, batch_sizes=[1], batch_steps=[tokens],
        )  # fmt: skip
        worker.finish(submit.request_id, wire.FINISH_LENGTH, tokens=tokens, timings=timings)
        await reader.readuntil(b"[DONE]\n\n\r\n0\r\n\r\n")
    writer.close()


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/schedstat").read_text().split()
    return int(fields[0]) / 1e9


async def measure(source: str, **settings: str) -> tuple[float, float]:
    """CPU microseconds of the router's main thread: of a request with one token, and of each token more (one frame each)."""
    with tempfile.TemporaryDirectory() as folder:
        async with ScriptedWorker() as worker:
            worker.use_tokenizer(word_tokenizer())
            write_fleet(Path(folder), worker)
            async with running(Path(folder), PYTHONPATH=source, **settings) as router:
                async with httpx.AsyncClient() as client:
                    await until_ready(client, router)
                costs = []
                for tokens in (SHORT, LONG):
                    await ask(worker, router.url, 50, tokens)
                    before_s = cpu_s(router.process.pid)
                    await ask(worker, router.url, REQUESTS, tokens)
                    costs.append((cpu_s(router.process.pid) - before_s) / REQUESTS * 1e6)
    return costs[0], (costs[1] - costs[0]) / (LONG - SHORT)


def tracing_alone() -> tuple[float, float]:
    """Microseconds of a request, and of a token that comes in a frame of its own."""
    ring, outcome = TraceRing(1000), RequestOutcome(endpoint="chat", request_id="r", model="tiny", status=200)
    tracer = Tracer(ring, None, clock=time.monotonic, calendar=time.time)
    reading, silent = ClockReading(shared=True, offset_us=0, uncertainty_us=0), set[int]()
    timings = wire.Timings(
        received_mono_us=1,
        first_scheduled_mono_us=1,
        first_token_mono_us=1,
        last_token_mono_us=1,
        steps=100,
        batch_sizes=[1],
        batch_steps=[100],
    )
    placement = Placement(WorkerId("w"), 16, 1.0, PlacementReason.ONLY_WORKER, None, None)

    def request() -> None:
        trace = tracer.begin(outcome, None, None)
        trace.body_s = tracer.clock()
        generation = GenerationTrace(queued_s=tracer.clock(), predicted_output_tokens=1)
        trace.generations = [generation]
        times = WorkerTimes()
        generation.attempts.append(
            Attempt(
                placed_s=tracer.clock(), worker=placement.worker, policy=POLICY, reason=placement.reason,
                reserved_tokens=placement.reserved_tokens, predicted_ms=placement.predicted_ms,
                predicted_cached_tokens=placement.cached_tokens, runner_up=None, runner_up_ms=None, times=times,
            )
        )  # fmt: skip
        times.finished(timings, reading)
        trace.ended_s = tracer.clock()
        overhead_us(trace)
        last_attempt(trace)
        tracer.finish(trace)

    frame, times = wire.Frame(at_mono_us=5), WorkerTimes()

    def token() -> None:
        at_us, clock = frame.at_mono_us, reading
        if 0 not in silent:
            times.saw_tokens(at_us, clock)
        outcome.last_token_s = tracer.clock() - 1.0

    count = 20_000
    return min(timeit.repeat(request, number=count)) / count * 1e6, min(timeit.repeat(token, number=count)) / count * 1e6


async def main(trees: list[str]) -> None:
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(ROUNDS):
        for tree in trees:
            name, source, *settings = tree.split("=", 1)[0], *tree.split("=", 1)[1].split(",")
            given = dict(setting.split("=", 1) for setting in settings)
            found.setdefault(name, []).append(await measure(source, **given))
    for name, costs in found.items():
        request, token = ([cost[place] for cost in costs] for place in (0, 1))
        print(
            f"{name}: {statistics.median(request):.0f} µs a request (from {min(request):.0f} to {max(request):.0f}), "
            f"{statistics.median(token):.2f} µs a token (from {min(token):.2f} to {max(token):.2f}); "
            f"{ROUNDS} rounds of {REQUESTS} requests, cores: {os.cpu_count()}"
        )


if __name__ == "__main__":
    if sys.argv[1:]:
        asyncio.run(main(sys.argv[1:]))
    else:
        print("tracing alone: {:.1f} µs a request, {:.2f} µs a token".format(*tracing_alone()))
