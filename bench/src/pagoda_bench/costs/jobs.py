"""What `pagoda bench costs` asks the engine for: workloads and settings as jobs of `python -m pagoda_worker.offline`. Pure.

Knows no process and no figure; called by `measure.py`.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pagoda_bench.tour.stages import CONTEXT
from pagoda_bench.tour.workload import VOCAB, job, requests

Job = dict[str, Any]

LOAD_REQUESTS = 512
"""All there at once: somebody waits for memory until the last of them have begun."""
LOAD_CONTEXTS = 32
"""Of full length, so many fit. With the tour's eight, what waits at the head of the line is a tenth of the cache."""
LOAD_ROWS = 256
"""The engine's default, and more than the cache has room for: memory is what bounds."""
CACHES: Mapping[str, Mapping[str, Any]] = {
    "contiguous": {"paged_kv": False, "prefix_caching": False},
    "paged": {"prefix_caching": False},
    "paged, prefixes shared": {},
}


def kv_use_jobs(kv_bytes_per_token: float) -> dict[str, Job]:
    """The tour's workload with nobody's lengths alike; all caches have the same memory.

    Prompts may fill a step: with the default cap beside decoding, that cap and not memory would bound how many run."""
    room = int(kv_bytes_per_token * LOAD_CONTEXTS * CONTEXT)
    shape = {"max_model_len": CONTEXT, "max_running": LOAD_ROWS, "kv_cache_bytes": room, "long_prefill_tokens": 0}
    return {name: {**shape, **cache, "requests": job(requests(LOAD_REQUESTS))} for name, cache in CACHES.items()}


PREFIXES = 8
PREFIX_TOKENS = 640
"""A system prompt with examples, or a conversation so far."""
ROOM_PREFIXES = 3
"""So many prefixes, and something to work with, fit into the device's cache: asked in turn, each is evicted before it comes again."""
TURNS = 6
OWN_TOKENS, ANSWER_TOKENS = 16, 16
TIER_CONTEXT = 768


def tier_requests(*, interval_s: float = 0.0, seed: int = 0) -> list[dict[str, object]]:
    """Every prefix in turn, `TURNS` times, each with an end of its own."""
    source = random.Random(seed)
    prefixes = [_ids(source, PREFIX_TOKENS) for _ in range(PREFIXES)]
    prompts = [prefix + _ids(source, OWN_TOKENS) for _ in range(TURNS) for prefix in prefixes]
    return [{"prompt_ids": prompt, "max_tokens": ANSWER_TOKENS, "at_s": i * interval_s} for i, prompt in enumerate(prompts)]


def tier_jobs(kv_bytes_per_token: float, *, interval_s: float) -> dict[str, Job]:
    """Without the tier and with one that holds all prefixes. Both warmed up, with the same arrivals."""
    room = int(kv_bytes_per_token * (ROOM_PREFIXES * PREFIX_TOKENS + TIER_CONTEXT))
    shape = {"max_model_len": TIER_CONTEXT, "max_running": 8, "kv_cache_bytes": room, "warmup": True}
    asked = tier_requests(interval_s=interval_s)
    tier = int(kv_bytes_per_token * 2 * PREFIXES * PREFIX_TOKENS)
    return {"without": {**shape, "requests": asked}, "with": {**shape, "host_tier_bytes": tier, "requests": asked}}


@dataclass(frozen=True, slots=True)
class InvariantCase:
    model: str
    dtype: str
    streams: int
    prompt_tokens: int
    output_tokens: int

    @property
    def name(self) -> str:
        return f"{self.model} {self.dtype} c={self.streams}"


INVARIANT_CASES = (
    InvariantCase("tiny", "bf16", 16, 256, 64),
    InvariantCase("tiny", "fp32", 16, 256, 64),
    InvariantCase("tiny", "bf16", 1, 256, 64),
    InvariantCase("0.45b", "bf16", 8, 128, 16),
)
INVARIANT = "batch invariant"
WAYS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "cpu": {"auto": {}, "sdpa": {"attention": "sdpa"}, INVARIANT: {"batch_invariant": True}},
    "cuda": {"triton": {"attention": "triton"}, "sdpa": {"attention": "sdpa"}, INVARIANT: {"batch_invariant": True}},
}
"""By device, what is compared: on a CPU `auto` is our own kernels, and `sdpa` torch's attention beside our products."""


def invariant_job(case: InvariantCase, way: Mapping[str, Any]) -> Job:
    prompts = {"count": case.streams, "prompt_tokens": case.prompt_tokens, "vocab": VOCAB[1]}
    asked = {"dtype": case.dtype, "random": prompts, "max_tokens": case.output_tokens, "ignore_eos": True, "warmup": True}
    return {**asked, "prefix_caching": False, **way}


@dataclass(frozen=True, slots=True)
class ContextCase:
    """Decode steps that read long contexts."""

    model: str
    streams: int
    prompt_tokens: int

    @property
    def name(self) -> str:
        return f"{self.model} c={self.streams}, context {self.prompt_tokens}"


CONTEXT_CASES = (ContextCase("tiny", 32, 1024), ContextCase("0.45b", 1, 3968), ContextCase("0.45b", 8, 2048), ContextCase("0.45b", 32, 512))
KV_DTYPES = ("auto", "int8", "fp8")
"""`auto` is the dtype of the engine, here bf16."""
CONTEXT_STEPS = 16


def context_job(case: ContextCase, kv_dtype: str) -> Job:
    """Of `python -m pagoda_worker.offline.profiling`: all sequences decode in every step that is timed."""
    sizes = {"sequences": case.streams, "prompt_tokens": case.prompt_tokens, "steps": CONTEXT_STEPS, "repeats": 1}
    return {**sizes, "kv_dtype": kv_dtype}


@dataclass(frozen=True, slots=True)
class AdapterCase:
    model: str
    rank: int
    targets: tuple[str, ...]
    quantization: str = ""
    """Of the base model's weights; empty: none."""
    streams: int = 32
    prompt_tokens: int = 128
    output_tokens: int = 64

    @property
    def name(self) -> str:
        model = f"{self.model} {self.quantization}".rstrip()
        return f"{model} c={self.streams} rank {self.rank}, {'q and v' if len(self.targets) == 2 else 'all projections'}"


ADAPTERS = 10
"""In one batch."""
ALL_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ADAPTER_CASES = (
    *(
        AdapterCase(model, rank, targets)
        for model in ("tiny", "0.45b")
        for rank, targets in ((8, ("q_proj", "v_proj")), (16, ALL_PROJECTIONS))
    ),
    *(AdapterCase("0.45b", 16, ALL_PROJECTIONS, quantization) for quantization in ("int8", "int4")),
    *(AdapterCase("0.45b", rank, ALL_PROJECTIONS, "int8", output_tokens=24) for rank in (32, 64)),
)
"""PEFT's defaults for a Llama, and what people take who want all they can have; that also beside a faster base model, where the largest
ranks follow with fewer tokens."""


def adapter_jobs(case: AdapterCase, folders: Mapping[str, str]) -> dict[str, Job]:
    """The same requests of the base model, of one adapter, and of ADAPTERS in turn; every engine has all adapters loaded."""
    names = list(folders)
    prompts = {"count": case.streams, "prompt_tokens": case.prompt_tokens, "vocab": VOCAB[1]}
    asked = {"random": prompts, "max_tokens": case.output_tokens, "ignore_eos": True, "warmup": True, "max_running": case.streams}
    if case.quantization:
        asked["quantization"] = case.quantization
    ways = {"base model": [""], "one adapter": names[:1], f"{len(names)} adapters": names}
    return {
        way: {
            **asked,
            "prefix_caching": False,
            "adapters": dict(folders),
            "adapter_names": [who[i % len(who)] for i in range(case.streams)],
        }
        for way, who in ways.items()
    }


def _ids(source: random.Random, count: int) -> list[int]:
    return [source.randrange(*VOCAB) for _ in range(count)]
