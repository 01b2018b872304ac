"""Does a real router rank policies as the simulator does? Not a test: run by hand, `python tests/rank_order.py [SECONDS]`.

Real here: sessions over gRPC, fleet, dispatcher, queue, credits, chooser, and time. The workers are paced: the simulator's worker model
plays its steps in real time behind each session. The simulator then gets the same users, workers and seed. Needs pagoda-bench.
"""

import asyncio
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from fleet_rig import generation, model_object, rig
from scripted_worker import ScriptedWorker

from pagoda_bench.sim.demand import Conversation, conversations
from pagoda_bench.sim.engine_profile import H100_8B, conversations_per_s
from pagoda_bench.sim.figures import percentile
from pagoda_bench.sim.fleet import Simulation
from pagoda_bench.sim.parameters import read_parameters
from pagoda_bench.sim.requests import SimRequest
from pagoda_bench.sim.sequence import Sequence
from pagoda_bench.sim.worker import SimWorker
from pagoda_router.placement.scores import PolicyName
from pagoda_router.wire import worker_pb2 as wire

WORKERS, SEED, PACE = 4, 1, 2.0
"""Steps take PACE times as long as on an H100: the test's own CPU time counts half as much."""
PROFILE = replace(
    H100_8B,
    base_s=H100_8B.base_s * PACE,
    row_s=H100_8B.row_s * PACE,
    prompt_token_s=H100_8B.prompt_token_s * PACE,
    context_token_s=H100_8B.context_token_s * PACE,
)
POLICIES = (PolicyName.PREDICTED, PolicyName.LEAST_LOADED, PolicyName.ROUND_ROBIN)


class PacedWorker(ScriptedWorker):
    """What it computes is the simulator's; what it says goes over its session, first tokens and ends only."""

    def __init__(self, number: int, users: list[Conversation]) -> None:
        super().__init__(capacity_tokens=PROFILE.kv_tokens, name=f"tiny-default-{number}")
        self.paced = SimWorker(number, PROFILE, self)
        self._users = users
        self._timer: asyncio.TimerHandle | None = None

    async def Describe(self, request: Any, context: Any) -> Any:
        response = await super().Describe(request, context)
        response.models[0].max_running = PROFILE.max_running
        response.models[0].prefill_tokens_per_s = 1 / PROFILE.prompt_token_s
        return response

    async def serve(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tell_states())
            tasks.create_task(self._take())

    async def _take(self) -> None:
        while True:
            submit = await self.submits.get()
            self.paced.submit(SimRequest(submit.request_id, self._users[submit.prompt_ids[-1]], 0, 0.0), time.monotonic())
            self._plan()

    async def _tell_states(self) -> None:
        while True:
            await asyncio.sleep(0.1)
            paced = self.paced
            self.change_state(
                num_running=paced.running,
                num_waiting=paced.waiting,
                queued_prefill_tokens=paced.queued_prefill_tokens,
                prefill_tokens_per_s=paced.prefill_tokens_per_s,
                decode_step_ms=paced.decode_step_ms,
            )

    def _plan(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.paced.ends_s is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, self.paced.ends_s - time.monotonic()), self._ended)

    def _ended(self) -> None:
        assert self.paced.ends_s is not None
        self.paced.steps_ended(max(self.paced.ends_s, time.monotonic()))
        self._plan()

    # ---- WorkerListener of the simulator

    def begun(self, worker: SimWorker, sequence: Sequence, now_s: float) -> None:
        number = sequence.request.number
        self._frame(started=[wire.Started(request_id=number, cached_tokens=sequence.request.cached_tokens, queue_us=0)])

    def first_token(self, worker: SimWorker, sequence: Sequence, now_s: float) -> None:
        sequence.request.first_s = now_s
        self.rows([(sequence.request.number, 0, [1])])

    def over(self, worker: SimWorker, sequence: Sequence, now_s: float) -> None:
        self.finish(sequence.request.number, tokens=sequence.request.output_tokens)

    def decoded(self, worker: SimWorker, sequences: int, steps: int, step_s: float) -> None:
        pass

    def cache_changed(self, worker: SimWorker, stored: list[bytes], evicted: list[bytes], now_s: float) -> None:
        pass


def prompt_of(user: Conversation) -> list[int]:
    """Its tenant's prefix, then ids of its own; the last one is its number."""
    own = user.turns[0].prompt_tokens - user.prefix_tokens
    return [user.tenant + 1] * user.prefix_tokens + [user.id] * own


async def ttfts_of_real(users: list[Conversation], policy: PolicyName) -> list[float]:
    found: list[float] = []

    async def ask(router: Any, user: Conversation, began_s: float) -> None:
        prompt = prompt_of(user)
        await asyncio.sleep(began_s + user.at_s - time.monotonic())
        wanted = replace(generation(request_id=str(user.id)), prompt_ids=prompt, max_tokens=4096, explicit_max_tokens=False)
        due_s = began_s + user.at_s
        async with router.dispatcher.generate(wanted) as stream:
            found.append(time.monotonic() - due_s)  # entered at the first token
            async for _ in stream:
                pass

    with tempfile.TemporaryDirectory() as folder:
        async with AsyncExitStack() as stack:
            workers = [await stack.enter_async_context(PacedWorker(number, users)) for number in range(WORKERS)]
            serving = [asyncio.create_task(worker.serve()) for worker in workers]
            router = await stack.enter_async_context(rig(Path(folder), max_queue_tokens=10**9, timeout_s=600.0))
            router.know(*workers, models=(model_object(policy=policy),))
            await router.until_routable(WORKERS)
            began_s = time.monotonic() + 0.5
            asking = asyncio.gather(*(ask(router, user, began_s) for user in users))
            await asyncio.wait([asking, *serving], return_when=asyncio.FIRST_COMPLETED)
            for task in serving:
                if not task.cancel():
                    task.result()  # it failed: say why
            await asking
    return sorted(found)


def main() -> None:
    duration_s = float(sys.argv[1]) if len(sys.argv) > 1 else 40.0
    for name in ("mixed", "shared-prefix"):
        workload = read_parameters().workloads[name]
        sample = [[(t.prompt_tokens, t.output_tokens) for t in user.turns] for user in conversations(workload, 100, 20, 0, 16)]
        rate_per_s = conversations_per_s(workload, PROFILE, WORKERS, sample)
        for policy in POLICIES:
            users = conversations(workload, rate_per_s, duration_s, SEED, PROFILE.block_size)
            requests = Simulation(users, PROFILE, WORKERS, policy, seed=SEED).run()
            modelled = sorted(request.ttft_s for request in requests if request.ttft_s is not None)
            real = asyncio.run(ttfts_of_real(users, policy))
            print(
                f"{name} {policy.value}: {len(users)} requests; TTFT p50 and p95, s: simulated {percentile(modelled, 50):.3f} "
                f"{percentile(modelled, 95):.3f}, real router and paced workers {percentile(real, 50):.3f} {percentile(real, 95):.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
