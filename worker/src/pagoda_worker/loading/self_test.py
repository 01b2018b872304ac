"""How fast is this engine here: one prompt chunk and a few decode steps, right after loading, for at most about a second.

Called by the engine with a scheduler of its own, which is thrown away afterwards: no block, row, count or prefix of it stays.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from pagoda_worker.request import Request
from pagoda_worker.scheduling.scheduler import Scheduler

BUDGET_S = 0.8
"""For everything; a step that has begun is finished, so a model whose single step takes longer is measured by one of each kind."""
WARM_TOKENS = 16
CHUNK_S = 0.3
"""The chunk is as long as the warm step lets expect to take this long."""
DECODE_STEPS = 8
BATCH = 8


@dataclass(frozen=True, slots=True)
class Measured:
    """0: not measured, for lack of room or time."""

    prefill_tokens_per_s: float = 0.0
    decode_tokens_per_s: float = 0.0
    """Of BATCH sequences together where they fit, else of one."""
    decode_step_ms: float = 0.0
    """Of one sequence alone."""
    chunk_tokens: int = 0
    """Of the prompt whose time is the prefill rate."""


def measure(
    scheduler: Scheduler,
    step: Callable[[], object],
    *,
    vocab_size: int,
    clock: Callable[[], float] = time.monotonic,
    budget_s: float = BUDGET_S,
) -> Measured:
    """`step` schedules, runs and settles once. Cancels what it left; one more step empties the scheduler."""
    trial = Trial(scheduler, step, vocab_size, clock)
    deadline = clock() + budget_s
    longest = min(scheduler.limits.max_model_len, scheduler.blocks.count * scheduler.blocks.block_size) - DECODE_STEPS - 2
    if longest < 1:
        return Measured()
    warm = min(WARM_TOKENS, longest)
    warm_s = trial.prefill("warm", warm)  # kernels load, caches fill: the first step is no measure of the next
    warm_s = min(warm_s, trial.prefill("warmer", warm)) if clock() < deadline else warm_s
    chunk = max(1, min(int(warm * CHUNK_S / warm_s), longest, scheduler.limits.max_batch_tokens))
    if chunk <= warm or clock() >= deadline:
        chunk, chunk_s = warm, warm_s
    else:
        chunk_s = trial.prefill("chunk", chunk)
    trial.begin("one", 1)
    alone_s = trial.decode(deadline)
    decode = 1 / alone_s if alone_s else 0.0
    if clock() < deadline and scheduler.limits.max_running >= BATCH and longest >= BATCH * (DECODE_STEPS + 2):
        for each in range(1, BATCH):
            trial.begin(f"row {each}", 1)
        together_s = trial.decode(deadline)
        decode = BATCH / together_s if together_s else decode
    trial.end()
    return Measured(chunk / chunk_s, decode, alone_s * 1e3, chunk)


class Trial:
    """Requests of our own on a scheduler that is thrown away afterwards."""

    def __init__(self, scheduler: Scheduler, step: Callable[[], object], vocab_size: int, clock: Callable[[], float]) -> None:
        self._scheduler = scheduler
        self._step = step
        self._vocab = vocab_size
        self._clock = clock
        self._open: list[str] = []

    def begin(self, name: str, tokens: int, *, steps: int = 4 * DECODE_STEPS) -> None:
        ids = [(7919 * (each + 1)) % self._vocab for each in range(tokens)]
        request = Request(request_id=name, prompt_ids=ids, max_tokens=steps, ignore_eos=True, use_prefix_cache=False)
        self._scheduler.submit(request, now=self._clock(), seed=0)
        self._open.append(name)

    def prefill(self, name: str, tokens: int) -> float:
        """Seconds of the steps that compute such a prompt."""
        self.begin(name, tokens, steps=1)
        began = self._clock()
        while self._scheduler.has_work:
            self._step()
        return max(self._clock() - began, 1e-6)

    def decode(self, deadline: float) -> float:
        """Seconds of one step of everything begun; the first step, which computes prompts, does not count."""
        self._step()
        began, steps = self._clock(), 0
        while steps < DECODE_STEPS and (steps == 0 or self._clock() < deadline):
            self._step()
            steps += 1
        return (self._clock() - began) / steps

    def end(self) -> None:
        for name in self._open:
            self._scheduler.cancel(name)
        while self._scheduler.has_work:
            self._step()
