"""`python -m pagoda_worker.offline.profiling < job.json`: where the time of a decode step goes, by phase and operator. Needs torch alone.

A job: {"model_dir", "sequences", "prompt_tokens", "steps", "repeats", "device"?, "dtype"?, "kv_dtype"?, "quantization"?, "threads"?,
"random_weights"?, "trace"?}; trace is the chrome trace file to write. One JSON object goes to stdout. The process wraps the engine's own
functions for as long as it measures, so that serving carries no timers; the phases are the steps of `Engine.step` and `Runner.launch` in
their order. Where a step is one native call (models/native_llama.py), phases and operators are those of the same step operation by
operation: `step_s` is shorter than their sum.
"""

import contextlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.errors import WorkerError
from pagoda_worker.execution import runner
from pagoda_worker.execution.decode_graphs import DecodeGraphs
from pagoda_worker.execution.step_batches import StepBatches
from pagoda_worker.layers.linear import Linear
from pagoda_worker.offline.batch import random_prompts
from pagoda_worker.request import Request
from pagoda_worker.sampling.sampler import Sampler
from pagoda_worker.scheduling.scheduler import Scheduler

WARM_STEPS = 3
TRACED_STEPS = 4
PROMPT_TOKENS_OF_A_STEP = 256
"""At least, beside decoding: the smallest default of long_prefill_tokens."""
OPERATORS = 12
"""As many as are told, most expensive first."""
REST = "rest of the step"
OVERHEAD = (REST, "schedule", "rows and blocks", "inputs", "copy to host", "settle")
"""What the loop itself costs a step: everything but the model and the sampler. On a GPU the timer waits for the device at every phase, so
that none of it is waiting."""
_ENGINE_FIELDS = ("device", "dtype", "kv_dtype", "quantization", "threads", "random_weights")
_JOB_FIELDS = {"model_dir", "sequences", "prompt_tokens", "steps", "repeats", "trace", *_ENGINE_FIELDS}


@dataclass(frozen=True, slots=True)
class Point:
    """A callable to be timed: attribute `name` of `owner`, a class or an object."""

    owner: Any
    name: str
    phase: str
    whole: bool = True
    """Timed calls within it belong to it too."""


class PhaseTimer:
    """Seconds of each phase without those of phases called within it."""

    def __init__(self, clock: Callable[[], float], synchronize: Callable[[], None] = lambda: None) -> None:
        """`synchronize` waits for the device, so that its work counts where it was launched and not where it is first waited for."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._clock = clock
        self._synchronize = synchronize
        self._open: list[Point] = []
        self._since = 0.0

    @contextlib.contextmanager
    def wrapped(self, points: list[Point]) -> Iterator[None]:
        """The originals are put back at the end."""
        originals = [vars(point.owner)[point.name] for point in points]
        try:
            for point, original in zip(points, originals, strict=True):
                setattr(point.owner, point.name, self._timed(original, point))
            yield
        finally:
            for point, original in zip(points, originals, strict=True):
                setattr(point.owner, point.name, original)

    def _timed(self, original: Callable[..., Any], point: Point) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._open and self._open[-1].whole:
                return original(*args, **kwargs)
            self._turn()
            self._open.append(point)
            try:
                return original(*args, **kwargs)
            finally:
                self._turn()
                self._open.pop()

        return timed

    def _turn(self) -> None:
        """What passed since the last turn belongs to the innermost phase."""
        self._synchronize()
        now = self._clock()
        if self._open:
            self.seconds[self._open[-1].phase] += now - self._since
        self._since = now


@contextlib.contextmanager
def one_by_one(engine: Engine) -> Iterator[None]:
    """Steps that would be one native call have operations that can be timed meanwhile."""
    kept, engine.runner.native = engine.runner.native, None
    try:
        yield
    finally:
        engine.runner.native = kept


def points_of(engine: Engine) -> list[Point]:
    model: Any = engine.runner.model
    return [
        Point(Engine, "step", REST, whole=False),
        Point(Scheduler, "schedule", "schedule"),
        Point(runner.Runner, "apply_changes", "rows and blocks"),
        Point(StepBatches, "lay_out", "inputs"),
        Point(DecodeGraphs, "run", "decode graph"),
        Point(type(model), "forward", "norms, rotary, gate, residual", whole=False),
        *(Point(Linear, name, "matrix products") for name in ("__call__", "add", "silu_mul")),
        Point(type(model.operators), "attend", "attention"),
        Point(type(model), "logits", "output head"),
        Point(Sampler, "sample", "sampling"),
        Point(runner.InFlight, "result", "copy to host"),
        Point(Scheduler, "settle", "settle"),
    ]


def output_tokens(sequences: int, prompt_tokens: int, steps: int) -> int:
    """Those that come first decode while later prompts are computed, a part of one or several short ones in a step."""
    return sequences * -(-prompt_tokens // PROMPT_TOKENS_OF_A_STEP) + WARM_STEPS + steps + 1


class Decoding:
    """Fills an engine with sequences that all decode, the same ones each time; their prompts come from the prefix cache after the first."""

    def __init__(self, engine: Engine, *, sequences: int, prompt_tokens: int, steps: int) -> None:
        self._engine = engine
        self._prompts = random_prompts(sequences, prompt_tokens, engine.facts.vocab_size)
        self._output_tokens = output_tokens(sequences, prompt_tokens, steps)

    @contextlib.contextmanager
    def begun(self) -> Iterator[None]:
        engine = self._engine
        for i, prompt in enumerate(self._prompts):
            engine.submit(Request(request_id=str(i), prompt_ids=prompt, max_tokens=self._output_tokens, ignore_eos=True))
        while (state := engine.step().state).num_waiting or state.queued_prefill_tokens:
            pass
        for _ in range(WARM_STEPS):
            engine.step()
        yield
        assert engine.idle_state().num_running == len(self._prompts), "a sequence ended while steps were measured"
        for i in range(len(self._prompts)):
            engine.cancel(str(i))
        while engine.has_work:
            engine.step()


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Raises ValueError for what a job lacks, WorkerError for a model that cannot be loaded."""
    if unknown := set(job) - _JOB_FIELDS:
        raise ValueError(f"unknown fields {sorted(unknown)}; a job has {sorted(_JOB_FIELDS)}")
    sequences, prompt_tokens, steps = (int(job[name]) for name in ("sequences", "prompt_tokens", "steps"))
    fields = {name: job[name] for name in _ENGINE_FIELDS if name in job}
    longest = prompt_tokens + output_tokens(sequences, prompt_tokens, steps)
    spare = 16  # a block: admission wants one for each that runs
    engine = Engine(EngineConfig(model_dir=Path(job["model_dir"]), max_running=sequences, max_model_len=longest + spare, **fields))
    decoding = Decoding(engine, sequences=sequences, prompt_tokens=prompt_tokens, steps=steps)
    plain, phases = [], []
    for _ in range(int(job["repeats"])):
        plain.append(_plain_step_s(engine, decoding, steps))
        phases.append(_phases_s(engine, decoding, steps))
    with decoding.begun():
        operators = _operators(engine, min(TRACED_STEPS, steps), job.get("trace"))
    return {
        "device": engine.facts.device,
        "dtype": engine.facts.dtype,
        "threads": torch.get_num_threads(),
        "kv_bytes_per_token": sum(cache.nbytes for cache in engine.runner.caches) / engine.facts.kv_capacity_tokens,
        "step_s": plain,
        "overhead_s": [sum(repeat.get(phase, 0.0) for phase in OVERHEAD) for repeat in phases],
        "phases_s": {phase: [repeat.get(phase, 0.0) for repeat in phases] for phase in phases[0]},
        "operators": operators,
    }


def _plain_step_s(engine: Engine, decoding: Decoding, steps: int) -> float:
    """Of a step without any timer in it."""
    with decoding.begun():
        began = time.perf_counter()
        for _ in range(steps):
            engine.step()
        return (time.perf_counter() - began) / steps


def _phases_s(engine: Engine, decoding: Decoding, steps: int) -> dict[str, float]:
    timer = PhaseTimer(time.perf_counter, torch.cuda.synchronize if engine.runner.device.type == "cuda" else lambda: None)
    with decoding.begun(), one_by_one(engine), timer.wrapped(points_of(engine)):
        for _ in range(steps):
            engine.step()
    return {phase: seconds / steps for phase, seconds in timer.seconds.items()}


def _operators(engine: Engine, steps: int, trace: str | None) -> list[dict[str, Any]]:
    """Own seconds of each operator per step: on the device where there is one, else on the CPU."""
    on_device = engine.runner.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_device else [])]
    with one_by_one(engine), profile(activities=activities) as profiled:
        for _ in range(steps):
            engine.step()
    if trace:
        profiled.export_chrome_trace(trace)
    own_us = [
        (event.self_device_time_total if on_device else event.self_cpu_time_total, event.key, event.count)
        for event in profiled.key_averages()
    ]
    all_us = sum(us for us, _, _ in own_us) or 1.0
    return [
        {"name": name, "s": us / 1e6 / steps, "share": us / all_us, "calls": count / steps}
        for us, name, count in sorted(own_us, reverse=True)[:OPERATORS]
    ]


def main() -> int:
    try:
        print(json.dumps(run_job(json.load(sys.stdin))))
    except (WorkerError, ValueError, KeyError) as error:
        print(f"profiling: {error!s}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
