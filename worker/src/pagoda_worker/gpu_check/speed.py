"""How fast is the engine on this device? Decode at fixed batch sizes, a long prompt, nano-vllm's workload, each beside its roofline.

Owns one engine of one shape at a time. Every figure is of whole engine steps on the host's clock: a step ends with a copy back to the
host, so what the device still had to do is in it.
"""

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pagoda_worker.config import Device, EngineConfig, KvDType, Quantization
from pagoda_worker.engine import Engine
from pagoda_worker.gpu_check.roofline import DeviceSpeed, decode_step_s, prefill_s, workload_s
from pagoda_worker.gpu_check.shapes import Shape
from pagoda_worker.offline.batch import random_prompts
from pagoda_worker.request import FinishReason, Request, Sampling

FORMS: tuple[Quantization, ...] = ("int8", "int4", "fp8")
WARM_STEPS = 3
LEAST_STEPS = 3
"""Fewer before the deadline are no figure."""


class NotMeasured(Exception):
    """There was no room or no time for a figure; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is run on every shape."""

    batches: Sequence[int] = (1, 64, 256)
    context: int = 512
    """Tokens of each sequence in the middle of the timed decode steps."""
    decode_steps: int = 32
    prefill_tokens: int = 8192
    prefills: int = 5
    requests: int = 256
    """Of the nano-vllm workload, all at once."""
    lengths: tuple[int, int] = (100, 1024)
    """Of its prompts and outputs, drawn evenly."""

    @property
    def longest(self) -> int:
        return max(self.prefill_tokens + 1, 2 * self.lengths[1], 2 * self.context)

    def mixture(self) -> list[tuple[int, int]]:
        """(prompt tokens, output tokens), the same on every machine."""
        generator = random.Random(0)
        return [(generator.randint(*self.lengths), generator.randint(*self.lengths)) for _ in range(self.requests)]


FULL = Workload()
SMALL = Workload(batches=(1, 4), context=48, decode_steps=4, prefill_tokens=64, prefills=2, requests=6, lengths=(4, 16))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One speed and the same at the roofline."""

    case: str
    metric: str
    unit: str
    value: float
    low: float | None
    high: float | None
    roofline: float

    @property
    def share(self) -> float:
        return self.value / self.roofline


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """How decode steps are run."""

    label: str = ""
    """After the shape's name in a case."""
    compile: bool = False
    cuda_graphs: bool | None = None
    kv_dtype: KvDType = "auto"
    quantization: Quantization = "none"
    batches: Sequence[int] = ()
    """That are timed."""


USUAL = Mode()
MODES = (
    Mode(label=" without graphs", cuda_graphs=False, batches=(1, 64)),
    Mode(label=" compiled, without graphs", compile=True, cuda_graphs=False, batches=(1, 64)),
    Mode(label=" compiled", compile=True, batches=(1, 64)),
    Mode(label=" KV int8", kv_dtype="int8", batches=(64, 256)),
    Mode(label=" KV fp8", kv_dtype="fp8", batches=(64, 256)),
)
"""Beside the usual one, which has graphs, is not compiled and keeps keys and values in bf16."""
QUANTIZED = tuple(Mode(label=f" {form}", quantization=form, batches=(1, 64)) for form in FORMS)


class TimedModel:
    """One shape with random weights on one device."""

    def __init__(self, shape: Shape, workload: Workload, speed: DeviceSpeed, *, folder: Path, device: Device, mode: Mode = USUAL) -> None:
        """Raises OutOfMemory when the device is too small."""
        self._shape, self._workload, self._speed, self._quantization = shape, workload, speed, mode.quantization
        self._name = f"{shape.name}{mode.label}"
        shape.write_config(folder)
        config = EngineConfig(
            model_dir=folder,
            random_weights=True,
            device=device,
            dtype="bf16",
            max_model_len=workload.longest,
            max_batch_tokens=max(workload.prefill_tokens, 2 * max(workload.batches)),
            max_running=max(workload.requests, *workload.batches),
            long_prefill_tokens=0,  # whole prompts at once: who came first must still decode when the last one begins
            compile=mode.compile,
            cuda_graphs=mode.cuda_graphs,
            kv_dtype=mode.kv_dtype,
            quantization=mode.quantization,
        )
        self._engine = Engine(config)
        self.load_s = self._engine.facts.load_s
        self.kv_tokens = self._engine.facts.kv_capacity_tokens

    def decode(self, batch: int, deadline: float) -> Figure:
        """Output tokens per second of steps in which `batch` sequences decode and nothing else happens. Low and high: the slowest and the
        fastest tenth of the steps."""
        steps, engine = self._workload.decode_steps, self._engine
        prompt_tokens = max(1, self._workload.context - WARM_STEPS - steps // 2)
        # Who came first decodes while later prompts are computed, and must outlast the timed steps too.
        prompt_steps = -(-batch * prompt_tokens // (self._engine.facts.max_batch_tokens - batch))
        output_tokens = prompt_steps + WARM_STEPS + steps + 2
        if (needed := batch * (prompt_tokens + output_tokens)) > self.kv_tokens:
            raise NotMeasured(f"{batch} sequences need {needed} tokens of KV cache, the device has room for {self.kv_tokens}")
        for i, prompt in enumerate(random_prompts(batch, prompt_tokens, self._shape.vocab, seed=batch)):
            engine.submit(_request(f"decode-{i}", prompt, output_tokens))
        seconds: list[float] = []
        try:
            while (state := engine.step().state).num_waiting or state.queued_prefill_tokens:
                _is_over(deadline, measured=False)
            for step in range(WARM_STEPS + steps):
                began = time.perf_counter()
                state = engine.step().state
                if step >= WARM_STEPS:
                    seconds.append(time.perf_counter() - began)
                if _is_over(deadline, measured=len(seconds) >= LEAST_STEPS):
                    break
            assert state.num_running == batch, "a sequence ended or was preempted in the timed steps"
        finally:
            self._end()
        context, kv = batch * self._workload.context, sum(cache.nbytes for cache in engine.runner.caches) / self.kv_tokens
        roofline = decode_step_s(
            self._shape, self._speed, batch=batch, context_tokens=context, kv_bytes_per_token=kv, quantization=self._quantization
        )
        return _rate(f"{self._name} decode b={batch} ctx={self._workload.context}", "output_tokens_per_s", batch, seconds, roofline)

    def prefill(self, deadline: float) -> Figure:
        """Prompt tokens per second of one long prompt, computed in one step."""
        tokens, seconds = self._workload.prefill_tokens, []
        try:
            for i in range(1 + self._workload.prefills):  # the first one loads kernels
                (prompt,) = random_prompts(1, tokens, self._shape.vocab, seed=i)
                self._engine.submit(_request(f"prefill-{i}", prompt, 1))
                began = time.perf_counter()
                while self._engine.has_work:
                    self._engine.step()
                if i:
                    seconds.append(time.perf_counter() - began)
                if _is_over(deadline, measured=bool(seconds)):
                    break
        finally:
            self._end()
        roofline = prefill_s(self._shape, self._speed, tokens)
        return _rate(f"{self._name} prefill {tokens}", "prompt_tokens_per_s", tokens, seconds, roofline)

    def mixture(self, deadline: float) -> Figure:
        """Output tokens per second over the whole workload, from the first submission to the last token. Measured once."""
        mixture, engine = self._workload.mixture(), self._engine
        generator = random.Random(1)
        for i, (prompt_tokens, output_tokens) in enumerate(mixture):
            prompt = [generator.randrange(self._shape.vocab) for _ in range(prompt_tokens)]
            engine.submit(_request(f"mixture-{i}", prompt, output_tokens, Sampling(temperature=0.6, seed=i)))
        endings: list[FinishReason] = []
        began = time.perf_counter()
        try:
            while engine.has_work:
                endings += [update.finish.reason for update in engine.step().updates if update.finish]
                _is_over(deadline, measured=not engine.has_work)
        finally:
            self._end()
        seconds = time.perf_counter() - began
        if set(endings) != {FinishReason.LENGTH}:
            raise RuntimeError(f"a request of the workload ended with {sorted(set(endings))} instead of its full length")
        low, high = self._workload.lengths
        case = f"{self._name} {len(mixture)} requests {low}-{high} in and out"
        outputs = sum(output for _, output in mixture)
        return _rate(case, "output_tokens_per_s", outputs, [seconds], workload_s(self._shape, self._speed, mixture))

    def _end(self) -> None:
        """Cancels what a deadline left; the engine is empty for the next figure."""
        self._engine.abandon("the figure is complete")
        while self._engine.has_work:
            self._engine.step()


def _request(request_id: str, prompt: list[int], max_tokens: int, sampling: Sampling | None = None) -> Request:
    return Request(
        request_id=request_id,
        prompt_ids=prompt,
        sampling=sampling or Sampling(),
        max_tokens=max_tokens,
        ignore_eos=True,
        use_prefix_cache=False,
    )


def _is_over(deadline: float, *, measured: bool) -> bool:
    """Raises NotMeasured when the time is over before there is a figure."""
    if time.monotonic() <= deadline:
        return False
    if not measured:
        raise NotMeasured("it was not done when the time was over")
    return True


def _rate(case: str, metric: str, tokens: int, seconds: list[float], roofline_s: float) -> Figure:
    ordered = sorted(seconds)
    tenth = len(ordered) // 10
    return Figure(
        case=case,
        metric=metric,
        unit="tokens/s",
        value=tokens / statistics.median(ordered),
        low=tokens / ordered[-1 - tenth] if len(ordered) > 1 else None,
        high=tokens / ordered[tenth] if len(ordered) > 1 else None,
        roofline=tokens / roofline_s,
    )
