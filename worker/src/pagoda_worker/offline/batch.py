"""`python -m pagoda_worker.offline < job.json`: one batch without any server, timed. The benchmark runs it as a process next to its peers.

A job: {"model_dir", "prompts": [[ids]] or "random": {"count", "prompt_tokens", "vocab", "seed"?}, "max_tokens", "ignore_eos"?, "warmup"?
(prompts of their own), and any of _ENGINE_FIELDS}; or, instead of prompts and max_tokens, "requests": [{"prompt_ids", "max_tokens",
"at_s"?}] with lengths and arrivals of their own (`replay.py`). With "adapters": {name: PEFT folder}, "adapter_names" has one for each
prompt, "" for the base model. One JSON object goes to stdout. With `--lines`, stdin has a job a line until
it ends, each on an engine of its own, and each answer is a line. With "counts", a list, "random" is asked that often with so many prompts,
on one engine that was warmed by the first; the answer is {"load_s", "answers"}.
"""

import gc
import json
import random
import resource
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.errors import WorkerError
from pagoda_worker.offline.replay import Arrival, kv_ratios, replay
from pagoda_worker.request import EngineState, SequenceUpdate
from pagoda_worker.scheduling.residency import KvUse

_ENGINE_FIELDS = (
    *("device", "dtype", "attention", "threads", "max_batch_tokens", "max_model_len", "max_running", "block_size", "kv_cache_bytes"),
    *("compile", "batch_invariant", "prefix_caching", "chunked_prefill", "batching", "batch_window_s", "paged_kv", "kv_cache"),
    *("quantization", "kv_dtype", "swap_bytes", "host_tier_bytes", "long_prefill_tokens", "async_scheduling", "cuda_graphs"),
    *("speculative", "draft_tokens", "draft_dir"),
    *("tensor_parallel", "random_weights"),
)
_JOB_FIELDS = {
    "model_dir",
    "prompts",
    "random",
    "counts",
    "requests",
    "max_tokens",
    "ignore_eos",
    "warmup",
    "adapters",
    "adapter_names",
    *_ENGINE_FIELDS,
}


def main() -> int:
    try:
        jobs = map(json.loads, sys.stdin) if "--lines" in sys.argv[1:] else [json.load(sys.stdin)]
        for job in jobs:
            print(json.dumps(run_job(job)), flush=True)
    except (WorkerError, ValueError, KeyError, TypeError) as error:
        print(f"offline: {error!s}", file=sys.stderr)
        return 2
    return 0


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    if unknown := set(job) - _JOB_FIELDS:
        raise ValueError(f"unknown fields {sorted(unknown)}; a job has {sorted(_JOB_FIELDS)}")
    began = time.monotonic()
    config: dict[str, Any] = {name: Path(job[name]) if name == "draft_dir" else job[name] for name in _ENGINE_FIELDS if name in job}
    folders = {name: Path(folder) for name, folder in job.get("adapters", {}).items()}
    engine = Engine(EngineConfig(model_dir=Path(job["model_dir"]), adapters=folders, **config))
    load_s = time.monotonic() - began
    gc.collect()
    gc.freeze()  # as in a worker: what was loaded is not looked through while a job is timed
    try:
        with closing(engine):
            return {"load_s": load_s, **_run(engine, job)}
    finally:
        gc.unfreeze()


def _run(engine: Engine, job: dict[str, Any]) -> dict[str, Any]:
    if "counts" in job:
        first, *others = ({**job, "random": {**job["random"], "count": count}} for count in job["counts"])
        return {"answers": [_run_one(engine, first), *(_run_one(engine, {**each, "warmup": False}) for each in others)]}
    return _run_one(engine, job)


def _run_one(engine: Engine, job: dict[str, Any]) -> dict[str, Any]:
    if "requests" in job:
        arrivals = [Arrival(**request) for request in job["requests"]]
        if job.get("warmup"):
            engine.generate([[arrival.prompt_ids[-1]] * len(arrival.prompt_ids) for arrival in arrivals[:8]], max_tokens=4, ignore_eos=True)
        return replay(engine, arrivals)
    prompts = job["prompts"] if "prompts" in job else random_prompts(**job["random"])
    max_tokens, ignore_eos = int(job["max_tokens"]), bool(job.get("ignore_eos", False))
    if job.get("warmup"):
        shapes = [[prompt[-1]] * len(prompt) for prompt in prompts]
        engine.generate(shapes, max_tokens=min(max_tokens, 8), ignore_eos=True, adapters=job.get("adapter_names", ()))
    return timed(engine, prompts, max_tokens, ignore_eos, job.get("adapter_names", ()))


def timed(engine: Engine, prompts: list[list[int]], max_tokens: int, ignore_eos: bool, adapters: Sequence[str] = ()) -> dict[str, Any]:
    """Seconds, output tokens/s, times to the first token, KV cache in use (of its capacity, by steps), memory, greedy ids."""
    first: dict[str, float] = {}
    in_use: list[float] = []
    uses: list[tuple[KvUse, bool]] = []
    began = time.monotonic()

    def note(update: SequenceUpdate) -> None:
        if update.token_ids:
            first.setdefault(update.request_id, time.monotonic() - began)

    def weigh(state: EngineState) -> None:
        in_use.append(1 - state.kv_free_tokens / state.kv_capacity_tokens)
        uses.append((engine.scheduler.kv_use(), state.num_waiting > 0))

    completions = engine.generate(prompts, max_tokens=max_tokens, ignore_eos=ignore_eos, adapters=adapters, on_update=note, on_step=weigh)
    seconds = time.monotonic() - began
    tokens = sum(completion.finish.usage.completion_tokens for completion in completions)
    ttfts = sorted(first.values())
    state = engine.idle_state()
    return {
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_s": tokens / seconds,
        "ttft_p50_ms": 1000 * ttfts[len(ttfts) // 2] if ttfts else None,
        "ttft_max_ms": 1000 * ttfts[-1] if ttfts else None,
        "decode_step_ms": state.decode_step_ms,
        "prefill_tokens_per_s": state.prefill_tokens_per_s,
        "device": engine.facts.device,
        "steps": len(in_use),
        "kv_in_use_peak_ratio": max(in_use, default=0.0),
        "kv_in_use_mean_ratio": sum(in_use) / len(in_use) if in_use else 0.0,
        **kv_ratios(uses),
        "preemptions": state.preemptions_total,
        "swaps": state.swaps_total,
        "prefix_hit_tokens": state.prefix_hits_total,
        "host_prefix_hit_tokens": state.host_prefix_hits_total,
        "kv_capacity_tokens": engine.facts.kv_capacity_tokens,
        "kv_bytes_per_token": sum(cache.nbytes for cache in engine.runner.caches) / engine.facts.kv_capacity_tokens,
        "drafts": state.drafts_total,
        "draft_tokens": state.draft_tokens_total,
        "accepted_draft_tokens": list(state.accepted_draft_tokens),
        **memory(),
        "token_ids": [completion.token_ids for completion in completions],
    }


def memory() -> dict[str, int | None]:
    """Peaks of this process so far: of the device as torch allocated it (None without one), and of the host."""
    on_device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return {"device_peak_bytes": on_device, "host_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def random_prompts(count: int, prompt_tokens: int, vocab: int, seed: int = 0) -> list[list[int]]:
    generator = random.Random(seed)
    return [[generator.randrange(vocab) for _ in range(prompt_tokens)] for _ in range(count)]
