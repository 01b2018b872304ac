"""Do waves pay? Saturated mixed lengths with waves off and on, by turns. Not a test: run by hand, and quoted with its output.

`python tests/wave_gain.py model`: a stepped model of two engines (below), the router's own waiting room and ledger, no network.
`python tests/wave_gain.py real`: two real worker processes with the built-in tiny model and this router's inside; a ratio within one run.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random

from fleet_rig import generation as generation_of
from fleet_rig import model_object, rig
from test_two_routers import TINY, real_worker, until

from pagoda_router.admission.credits import CreditLedger, price
from pagoda_router.admission.queue import WaitingRoom
from pagoda_router.admission.waiting import Waiting
from pagoda_router.discovery.snapshot import FleetSnapshot
from pagoda_router.generation import Sampling

BLOCK = 16
ENGINE = '{"maxModelLen": 512, "maxRunning": 8}'
"""Of each real worker: 4096 tokens of KV cache, so that the router is where requests wait."""


def mixed(rng: Random, most: int) -> tuple[int, int]:
    """Prompt and output tokens: a heavy tail, as chats and documents together have."""
    prompt = min(most // 2, max(8, int(rng.lognormvariate(4.5, 1.2))))
    return prompt, min(most // 2 - 1, max(4, int(rng.lognormvariate(4.0, 1.1))))


# ---------------------------------------------------------------- the model


@dataclass
class Running:
    prompt_left: int
    output_left: int
    context: int
    reserved: int


def step_ms(decodes: int, prompt_tokens: int, context: float) -> float:
    """A step costs launches and reading the weights once, each row, each prompt token, and reading the context of all rows. Of the order
    of an 8B model on an H100."""
    return 7 + 0.02 * decodes + 0.03 * prompt_tokens + 4e-5 * context


def modelled(seed: int, waves: bool, padded: float, *, workers: int = 2, capacity: int = 60_000, requests: int = 4000) -> float:
    """Output tokens a second of a queue that is never empty. `padded`: the part of attention that an engine computes as if every row were
    as long as the longest, which is what waves could save."""
    rng = Random(seed)
    room: WaitingRoom[tuple[int, int]] = WaitingRoom(10**9, waves=waves)
    lengths = [mixed(rng, 8192) for _ in range(requests)]
    ledgers = [CreditLedger(1, capacity) for _ in range(workers)]
    running: list[dict[int, Running]] = [{} for _ in range(workers)]
    clocks, made, sent, seq = [0.0] * workers, 0, 0, 0
    returned = [0] * workers
    for ledger in ledgers:
        ledger.grant(1, 0, capacity)

    def start(waiting: Waiting[tuple[int, int]]) -> bool:
        worker = max(range(workers), key=lambda each: ledgers[each].available_tokens)
        if waiting.cost_tokens > ledgers[worker].available_tokens or len(running[worker]) >= 256:
            return False
        prompt, output = waiting.request
        ledgers[worker].spend(waiting.ticket, waiting.cost_tokens)
        running[worker][waiting.ticket] = Running(prompt, output, 0, waiting.cost_tokens)
        return True

    while sent < requests or len(room):
        while sent < requests and len(room) < 256:
            prompt, output = lengths[sent]
            cost = price(generation_of(prompt, output), output, BLOCK)
            room.push(Waiting((prompt, output), cost.kv_tokens, sent))
            sent += 1
        if sent == requests and len(room) < 200:
            break  # the tail of a finite load says nothing about saturation
        room.start_those_that_fit(start)
        worker = min(range(workers), key=lambda each: clocks[each])
        batch, budget, prompt_tokens, decodes = running[worker], 8192, 0, 0
        for request in batch.values():
            if request.prompt_left:
                taken = min(request.prompt_left, budget)
                request.prompt_left -= taken
                request.context += taken
                budget -= taken
                prompt_tokens += taken
            else:
                request.output_left -= 1
                request.context += 1
                decodes += 1
                made += 1
        contexts = [request.context for request in batch.values()]
        whole = sum(contexts) + padded * (max(contexts, default=0) * len(contexts) - sum(contexts))
        clocks[worker] += step_ms(decodes, prompt_tokens, whole) / 1000
        for ticket in [ticket for ticket, request in batch.items() if request.output_left <= 0]:
            returned[worker] += batch.pop(ticket).reserved
            ledgers[worker].settle(ticket)
            seq += 1
            ledgers[worker].grant(1, seq, returned[worker] + capacity)
    return made / max(clocks)


def run_model() -> None:
    for padded in (0.0, 0.5, 1.0):
        ratios = [modelled(seed, True, padded) / modelled(seed, False, padded) for seed in range(5)]
        print(
            f"model, {padded:.0%} of attention padded to the longest row: tokens/s with waves / without = "
            f"{statistics.mean(ratios):.3f} (of 5 seeds: {min(ratios):.3f} to {max(ratios):.3f})"
        )


# ---------------------------------------------------------------- real workers


async def measured(endpoints, *, waves: bool, seed: int, requests: int) -> float:
    """Output tokens a second."""
    with tempfile.TemporaryDirectory() as folder:
        async with rig(Path(folder), waves=waves, max_queue_tokens=10**9, timeout_s=3600.0) as router:
            router.fleet.apply(FleetSnapshot(models=(model_object(),), endpoints=dict.fromkeys(endpoints, True), awaited=frozenset({TINY})))
            await until(router, lambda: sum(link.view().routable for link in router.fleet.links(TINY)) == len(endpoints))
            rng = Random(seed)
            lengths = [mixed(rng, 500) for _ in range(requests)]
            greedy = Sampling(temperature=0.0)
            began_s = time.perf_counter()
            await asyncio.gather(
                *(
                    router.collect(generation_of(prompt, output, request_id=str(n), ignore_eos=True, sampling=greedy))
                    for n, (prompt, output) in enumerate(lengths)
                )
            )
            return sum(output for _, output in lengths) / (time.perf_counter() - began_s)


async def run_real(requests: int = 150) -> None:
    async with AsyncExitStack() as stack:
        workers = [real_worker(PAGODA_ENGINE=ENGINE, OMP_NUM_THREADS="1") for _ in range(2)]
        endpoints = [await stack.enter_async_context(worker) for worker in workers]
        await measured(endpoints, waves=False, seed=0, requests=40)  # warm
        ratios = []
        for seed in range(1, 4):
            off, on = [], []
            for waves in (False, True, True, False):
                (on if waves else off).append(await measured(endpoints, waves=waves, seed=seed, requests=requests))
            ratios.append(statistics.mean(on) / statistics.mean(off))
            print(
                f"real, seed {seed}: off {off[0]:.0f} {off[1]:.0f}, on {on[0]:.0f} {on[1]:.0f} tokens/s; on / off = {ratios[-1]:.3f}",
                flush=True,
            )
        print(f"real: tokens/s with waves / without = {statistics.mean(ratios):.3f} (of 3 seeds: {min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["model"]:
            run_model()
        case ["real"]:
            asyncio.run(run_real())
        case _:
            sys.exit("say which: model or real")
