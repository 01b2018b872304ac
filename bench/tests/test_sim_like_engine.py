"""The simulated worker beside the engine's own scheduler: the same arrivals give the same steps, token by token."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from test_sim_worker import Heard, asked

from pagoda_bench.sim.engine_profile import H100_8B
from pagoda_bench.sim.requests import SimRequest
from pagoda_bench.sim.worker import SimWorker
from pagoda_worker.request import Request
from pagoda_worker.scheduling.blocks import BlockPool
from pagoda_worker.scheduling.plan import StepPlan
from pagoda_worker.scheduling.sampled import Sampled
from pagoda_worker.scheduling.scheduler import Scheduler
from pagoda_worker.scheduling.scheduler_limits import SchedulerLimits

SIZE = 16
PROFILE = replace(H100_8B, kv_tokens=400 * SIZE, max_running=6, max_batch_tokens=128, long_prefill_tokens=64, block_size=SIZE)
Step = tuple[dict[int, int], int]
"""Prompt tokens by request, and how many sequences have one token: those that decode, and last tokens of prompts."""


class Engine:
    """The scheduler, with a device that samples zeros."""

    def __init__(self) -> None:
        limits = SchedulerLimits(
            max_running=PROFILE.max_running,
            max_batch_tokens=PROFILE.max_batch_tokens,
            max_model_len=PROFILE.kv_tokens,
            long_prefill_tokens=PROFILE.long_prefill_tokens,
        )
        self._scheduler = Scheduler(BlockPool(PROFILE.kv_tokens // SIZE, SIZE), limits)
        self._flight: StepPlan | None = None

    def submit(self, request: SimRequest) -> None:
        """Ids of its own, so that nothing is shared."""
        ids = [1 + request.number] * request.prompt_tokens
        wish = Request(request_id=str(request.number), prompt_ids=ids, max_tokens=request.output_tokens, ignore_eos=True)
        self._scheduler.submit(wish, now=0.0, seed=0)
        if self._flight is None:
            self._plan()

    @property
    def step(self) -> Step | None:
        """Under way."""
        if (plan := self._flight) is None:
            return None
        return step_of({int(each.sequence.request.request_id): each.count for each in plan.chunks}, len(plan.decodes))

    def step_ended(self) -> None:
        assert self._flight is not None
        self._scheduler.settle(self._flight, Sampled([0] * len(self._flight.sampling())), 0.0)
        self._plan()

    def _plan(self) -> None:
        plan = self._scheduler.schedule(0.0)
        self._flight = None if plan.empty else plan


def step_of(chunks: dict[int, int], decodes: int) -> Step:
    longer = {number: tokens for number, tokens in chunks.items() if tokens > 1}
    return longer, decodes + len(chunks) - len(longer)


def same_steps(arrivals: Sequence[tuple[int, SimRequest]]) -> None:
    """`arrivals`: number of the step during which each comes."""
    engine, worker = Engine(), SimWorker(0, PROFILE, Heard(), one_by_one=True)
    left, number = sorted(arrivals, key=lambda arrival: arrival[0]), 0
    while left or worker.ends_s is not None:
        while left and (left[0][0] <= number or worker.ends_s is None):
            _, request = left.pop(0)
            engine.submit(request)
            worker.submit(request, float(number))
        assert worker.ends_s is not None
        chunks = {request.number: tokens for request, tokens in worker.prefilling}
        assert step_of(chunks, len(worker.decoding)) == engine.step
        worker.steps_ended(worker.ends_s)
        engine.step_ended()
        number += 1
    assert engine.step is None


@given(seed=st.integers(0, 2**32), count=st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_the_same_arrivals_give_the_same_steps(seed: int, count: int) -> None:
    rng = Random(seed)
    lengths = [(round(rng.lognormvariate(4.5, 1.3)) % 1200 + 1, rng.randint(1, 40)) for _ in range(count)]
    same_steps([(rng.randrange(30), asked(number, *each)) for number, each in enumerate(lengths)])


def test_a_short_prompt_does_not_sit_out_a_long_one():
    heard = Heard()
    worker = SimWorker(0, PROFILE, heard)
    worker.submit(asked(0, 1200, 2), 0.0)
    worker.submit(asked(1, 16, 2), 0.0)
    while worker.ends_s is not None:
        worker.steps_ended(worker.ends_s)
    assert heard.first[1] < heard.first[0] / 3
