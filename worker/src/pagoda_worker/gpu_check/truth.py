"""Is the engine right on this device? One small float32 Llama; whatever way its tokens are computed there, they must be the CPU's.

Each check is a function of a `Trial` that builds engines on the device and answers with a `Check`. Called by the check; needs no pytest.
"""

import importlib.util
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pagoda_worker.completions import Completion
from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.gpu_check.closeness import DRIFT_TOLERANCE, close_to, drift
from pagoda_worker.gpu_check.shapes import Shape, write_adapter, write_checkpoint
from pagoda_worker.gpu_check.speed import NotMeasured
from pagoda_worker.layers.selection import fp8_cache_refusal
from pagoda_worker.offline.batch import random_prompts
from pagoda_worker.request import Request, Sampling

SHAPE = Shape(
    name="truth", hidden=256, layers=4, heads=4, kv_heads=2, head_dim=64, intermediate=512, vocab=2000, positions=512, dtype="float32"
)
PROMPT_LENGTHS = (1, 2, 15, 16, 17, 31, 32, 33, 48, 64, 65, 100, 127, 128, 129, 168)
"""Around the edges of blocks of 16 and beyond."""
TOP = 5
LOGPROB_TOLERANCE = 1e-3
COSINE_TOLERANCE = 1e-5
"""In float32 without TF32."""
RANDOM = [Sampling(temperature=0.8 + 0.1 * i, top_p=0.95, top_k=50, presence_penalty=0.2, seed=100 + i) for i in range(4)]


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    met: bool
    detail: str


@dataclass(slots=True)
class Trial:
    """The model, the prompts and what the CPU makes of them."""

    folder: Path
    device: str
    output_tokens: int
    prompts: list[list[int]] = field(default_factory=list)
    expected: list[Completion] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.set_float32_matmul_precision("highest")  # TF32 would round to 10 bits
        write_checkpoint(self.folder, SHAPE)
        self.prompts = [random_prompts(1, length, SHAPE.vocab, seed=length)[0] for length in PROMPT_LENGTHS]
        reference = self.engine(device="cpu")
        self.expected = reference.generate(self.prompts, max_tokens=self.output_tokens, ignore_eos=True, top_logprobs=TOP)

    def engine(self, **settings: Any) -> Engine:
        defaults: dict[str, Any] = {"device": self.device, "dtype": "fp32", "max_running": 32, "max_batch_tokens": 2048}
        return Engine(EngineConfig(model_dir=self.folder, **{**defaults, **settings}))

    def generate(self, engine: Engine) -> list[list[int]]:
        done = engine.generate(self.prompts, max_tokens=self.output_tokens, ignore_eos=True)
        engine.check_integrity()
        return [completion.token_ids for completion in done]

    def compare(self, name: str, lines: Sequence[list[int]], *, also: bool = True, detail: str = "") -> Check:
        """Against the CPU's greedy tokens of the first so many prompts; `also` is what must hold besides."""
        equal = [ours == theirs.token_ids for ours, theirs in zip(lines, self.expected[: len(lines)], strict=True)]
        return Check(name, also and all(equal), f"{sum(equal)} of {len(equal)} sequences equal{detail}")


def greedy(trial: Trial) -> Check:
    return trial.compare("greedy tokens in one ragged batch", trial.generate(trial.engine()))


def chunked_prefill(trial: Trial) -> Check:
    return trial.compare("prompts in chunks beside decoding", trial.generate(trial.engine(max_batch_tokens=24)))


def arrivals(trial: Trial) -> Check:
    """One more request each step: prompts and decode rows of all lengths in one batch."""
    engine = trial.engine()
    lines: list[list[int]] = [[] for _ in trial.prompts]
    waiting = list(enumerate(trial.prompts))
    while waiting or engine.has_work:
        if waiting:
            at, prompt = waiting.pop(0)
            engine.submit(Request(request_id=str(at), prompt_ids=prompt, max_tokens=trial.output_tokens, ignore_eos=True))
        for update in engine.step().updates:
            lines[int(update.request_id)] += update.token_ids
    return trial.compare("requests that come while others run", lines)


def prefix_hit(trial: Trial) -> Check:
    engine = trial.engine()
    cold = trial.generate(engine)
    before = engine.idle_state().prefix_hits_total
    warm = trial.generate(engine)
    hits = engine.idle_state().prefix_hits_total - before
    return trial.compare(
        "the same prompts again from the prefix cache", warm, also=hits > 0 and cold == warm, detail=f", {hits} tokens hit"
    )


def preemption(trial: Trial) -> Check:
    """Blocks of 4 and room for two of the longest: whoever is admitted soon needs blocks that others hold."""
    room_tokens = 2 * (max(PROMPT_LENGTHS) + trial.output_tokens + 4)
    engine = trial.engine(kv_cache_bytes=room_tokens * 2 * SHAPE.kv_bytes_per_token, block_size=4, prefix_caching=False)
    lines = trial.generate(engine)
    preempted = engine.idle_state().preemptions_total
    return trial.compare("a cache too small for all", lines, also=preempted > 0, detail=f", {preempted} preemptions")


def reference_attention(trial: Trial) -> Check:
    engine = trial.engine(attention="eager")
    done = engine.generate(trial.prompts[:6], max_tokens=trial.output_tokens, ignore_eos=True)
    return trial.compare("the reference attention", [completion.token_ids for completion in done])


def sampling(trial: Trial) -> Check:
    """Seeded: the same again, the same in other company, the same as on the CPU."""

    def lines(engine: Engine, *, company: bool) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in RANDOM]
        for i, settings in enumerate(RANDOM):
            common = {"prompt_ids": trial.prompts[-1 - i], "max_tokens": trial.output_tokens, "ignore_eos": True}
            engine.submit(Request(request_id=str(i), sampling=settings, **common))  # type: ignore[arg-type]
            if company:
                engine.submit(Request(request_id=f"other {i}", sampling=Sampling(temperature=1.5), **common))  # type: ignore[arg-type]
        while engine.has_work:
            for update in engine.step().updates:
                if not update.request_id.startswith("other"):
                    found[int(update.request_id)] += update.token_ids
        return found

    engine = trial.engine()
    first = lines(engine, company=False)
    verdicts = {
        "again": first == lines(engine, company=False),
        "in company": first == lines(engine, company=True),
        "as the CPU": first == lines(trial.engine(device="cpu"), company=False),
    }
    return Check(
        "seeded sampling", all(verdicts.values()), ", ".join(f"{name}: {'equal' if ok else 'not'}" for name, ok in verdicts.items())
    )


def outputs(trial: Trial) -> Check:
    """Bitmasks, prompt logprobs and embeddings beside each other."""

    def told(engine: Engine) -> tuple[list[list[int]], list[list[float]], list[list[float]]]:
        lines: list[list[int]] = [[] for _ in trial.prompts]
        own: list[list[float]] = [[] for _ in trial.prompts]
        embeddings: list[list[float]] = [[] for _ in trial.prompts]
        for i, prompt in enumerate(trial.prompts):
            settings = Sampling(allowed_token_ids=list(range(i, SHAPE.vocab, 3)), bad_words=[[i + 3], [i + 6, i + 9]])
            common: dict[str, Any] = {"prompt_ids": prompt, "ignore_eos": True}
            engine.submit(Request(request_id=f"{i} l", max_tokens=trial.output_tokens, sampling=settings, prompt_logprobs=TOP, **common))
            engine.submit(Request(request_id=f"{i} e", max_tokens=1, embedding=True, **common))
        while engine.has_work:
            for update in engine.step().updates:
                i = int(update.request_id.split()[0])
                lines[i] += update.token_ids
                own[i] += update.prompt_logprobs.own if update.prompt_logprobs else []
                embeddings[i] += update.embedding or []
        return lines, own, embeddings

    (lines, own, embeddings), (cpu_lines, cpu_own, cpu_embeddings) = told(trial.engine()), told(trial.engine(device="cpu"))
    worst = max(abs(a - b) for ours, theirs in zip(own, cpu_own, strict=True) for a, b in zip(ours, theirs, strict=True))
    pairs = zip(embeddings, cpu_embeddings, strict=True)
    cosine = min(sum(a * b for a, b in zip(ours, theirs, strict=True)) for ours, theirs in pairs)
    equal = sum(ours == theirs for ours, theirs in zip(lines, cpu_lines, strict=True))
    return Check(
        "masks, prompt logprobs and embeddings as on the CPU",
        equal == len(lines) and worst < LOGPROB_TOLERANCE and cosine > 1 - COSINE_TOLERANCE,
        f"{equal} of {len(lines)} sequences equal, logprobs within {worst:.1g}, cosine at least {cosine:.7f}",
    )


def bf16(trial: Trial) -> Check:
    """Rounding may choose another token; then each side's choice must be among the other's most likely, and the rest is not compared."""
    return _close("bf16 close to float32", trial, dtype="bf16")


def flash(trial: Trial) -> Check:
    """It has no float32."""
    return _close("bf16 with attention flash close to float32", trial, dtype="bf16", attention="flash")


def quantized_cache(trial: Trial) -> Check:
    """Beside the CPU's readable attention over a cache of the same form: a number on the edge may be rounded to the other side there."""
    refused = fp8_cache_refusal(torch.cuda.get_device_capability()) if trial.device == "cuda" else None
    told, met = [f"fp8: {refused}"] if refused else [], True
    for kv_dtype in ("int8",) if refused else ("int8", "fp8"):
        asked: dict[str, Any] = {"max_tokens": trial.output_tokens, "ignore_eos": True, "top_logprobs": TOP}
        expected = trial.engine(device="cpu", attention="eager", kv_dtype=kv_dtype).generate(trial.prompts, **asked)
        done = trial.engine(kv_dtype=kv_dtype).generate(trial.prompts, **asked)
        close = [close_to(ours, theirs) for ours, theirs in zip(done, expected, strict=True)]
        met &= all(close)
        told.append(f"{kv_dtype}: {sum(close)} of {len(close)} sequences close")
    return Check("a quantized KV cache as on the CPU", met, ", ".join(told))


def _close(name: str, trial: Trial, **settings: Any) -> Check:
    done = trial.engine(**settings).generate(trial.prompts, max_tokens=trial.output_tokens, ignore_eos=True, top_logprobs=TOP)
    close = [close_to(ours, theirs) for ours, theirs in zip(done, trial.expected, strict=True)]
    return Check(name, all(close), f"{sum(close)} of {len(close)} sequences close")


def quantized(trial: Trial) -> Check:
    """Every form beside the CPU's product with what the weights mean. int8 rounds activations, and so does the head of every form."""
    told, met, prompts = [], True, trial.prompts[::2]
    for form in DRIFT_TOLERANCE:
        settings: dict[str, Any] = {"quantization": form}
        ours, theirs = (
            engine.generate(prompts, max_tokens=trial.output_tokens, ignore_eos=True, top_logprobs=TOP)
            for engine in (trial.engine(**settings), trial.engine(device="cpu", attention="eager", **settings))
        )
        close = sum(close_to(our, their) for our, their in zip(ours, theirs, strict=True))
        worst = max(drift(our, their) for our, their in zip(ours, theirs, strict=True))
        met = met and close == len(ours) and worst <= DRIFT_TOLERANCE[form]
        told.append(f"{form}: {close} of {len(ours)} close, logprobs within {worst:.2g} of {DRIFT_TOLERANCE[form]:g}")
    return Check("quantized weights close to what they mean", met, "; ".join(told))


def speculated(trial: Trial) -> Check:
    """By the model itself as its own draft, whose guesses are right, and by one of half its layers, whose guesses are wrong."""
    half = trial.folder / "half"
    write_checkpoint(half, replace(SHAPE, layers=SHAPE.layers // 2))
    told, met, taken = [], True, []
    for name, folder in (("itself", trial.folder), ("half", half)):
        engine = trial.engine(speculative="draft", draft_dir=folder)
        check = trial.compare(name, trial.generate(engine))
        state = engine.idle_state()
        taken.append(sum(state.accepted_draft_tokens) / max(state.draft_tokens_total, 1))
        met = met and check.met and state.draft_tokens_total > 0
        told.append(f"{name}: {check.detail}, {100 * taken[-1]:.0f} % of {state.draft_tokens_total} guesses taken")
    return Check("the same tokens with speculation", met and taken[0] > taken[1], "; ".join(told))


def adapted(trial: Trial) -> Check:
    """Two adapters and the base model in one batch, beside the CPU's."""
    folders = {name: trial.folder / name for name in ("one", "two")}
    for i, folder in enumerate(folders.values()):
        write_adapter(folder, SHAPE, rank=8 * (i + 1), seed=i)
    names = [("", "one", "two")[i % 3] for i in range(len(trial.prompts))]
    ours, theirs = (
        trial.engine(adapters=folders, **where).generate(trial.prompts, max_tokens=trial.output_tokens, ignore_eos=True, adapters=names)
        for where in ({}, {"device": "cpu"})
    )
    equal = sum(a.token_ids == b.token_ids for a, b in zip(ours, theirs, strict=True))
    moved = sum(a.token_ids != b.token_ids for a, b, name in zip(ours, trial.expected, names, strict=True) if name)
    return Check("adapters in one batch", equal == len(ours) and moved > 0, f"{equal} of {len(ours)} sequences equal, {moved} moved")


def two_ranks(trial: Trial) -> Check:
    """Raises NotMeasured on a machine with one GPU."""
    if (there := torch.cuda.device_count()) < 2:
        raise NotMeasured(f"two ranks have a GPU each, and there is {there}")
    if importlib.util.find_spec("msgspec") is None:
        raise NotMeasured("ranks speak msgpack, and the package msgspec is not installed")
    with closing(trial.engine(tensor_parallel=2)) as engine:
        return trial.compare("two ranks on two GPUs, over NCCL", trial.generate(engine))


CHECKS: tuple[Callable[[Trial], Check], ...] = (
    greedy,
    chunked_prefill,
    arrivals,
    prefix_hit,
    preemption,
    sampling,
    reference_attention,
    outputs,
    quantized_cache,
    bf16,
    quantized,
    speculated,
    adapted,
)
CUDA_CHECKS: tuple[Callable[[Trial], Check], ...] = (flash, two_ranks)
"""What a CPU refuses."""
