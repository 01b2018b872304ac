"""Requests with lengths and arrival times of their own, run to their end on one engine and timed token by token. Called by batch.py.

Owns the clock of the arrivals; knows nothing of how the engine is set.
"""

import itertools
import statistics
import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

from pagoda_worker.engine import Engine
from pagoda_worker.request import Request
from pagoda_worker.scheduling.residency import KvUse

IDLE_S = 0.0005
"""Between two looks at a batch that still waits for company."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    prompt_ids: list[int]
    max_tokens: int
    """Exactly so many: the end token is ignored."""
    at_s: float = 0.0
    """After the start."""


@dataclass(slots=True)
class _Watched:
    """What is noted at each step and token; times in seconds since the start."""

    tokens: list[list[int]]
    stamps: list[list[float]]
    batch_sizes: list[int] = field(default_factory=list)
    held: list[float] = field(default_factory=list)
    """KV blocks held, of all, in steps at whose end someone waited."""
    filled: list[float] = field(default_factory=list)
    """KV cache really written, of that held by the same sequences."""
    uses: list[tuple[KvUse, bool]] = field(default_factory=list)
    """After each step, and whether someone waited."""
    computed: int = 0


def replay(engine: Engine, arrivals: Seq[Arrival]) -> dict[str, Any]:
    """`arrivals` in order of time. Times in milliseconds from when each was due, percentiles over requests (of `itl`: over all gaps)."""
    seen = _Watched([[] for _ in arrivals], [[] for _ in arrivals])
    totals = engine.scheduler.totals
    before = (totals.prefix_hits, totals.host_hits, totals.preemptions)
    began, submitted = time.monotonic(), 0
    while submitted < len(arrivals) or engine.has_work:
        now = time.monotonic() - began
        while submitted < len(arrivals) and arrivals[submitted].at_s <= now:
            engine.submit(_request(submitted, arrivals[submitted]))
            submitted += 1
        if not engine.has_work:
            time.sleep(max(arrivals[submitted].at_s - now, 0))
        elif not _step(engine, seen, began):
            time.sleep(IDLE_S)
    return {
        **_figures(arrivals, seen),
        **kv_ratios(seen.uses),
        "prefix_hit_tokens": totals.prefix_hits - before[0],
        "host_prefix_hit_tokens": totals.host_hits - before[1],
        "preemptions": totals.preemptions - before[2],
        "kv_capacity_tokens": engine.facts.kv_capacity_tokens,
        "kv_bytes_per_token": sum(cache.nbytes for cache in engine.runner.caches) / engine.facts.kv_capacity_tokens,
        "device": engine.facts.device,
        "token_ids": seen.tokens,
    }


def _request(number: int, arrival: Arrival) -> Request:
    return Request(request_id=f"{number}", prompt_ids=arrival.prompt_ids, max_tokens=arrival.max_tokens, ignore_eos=True)


def _step(engine: Engine, seen: _Watched, began: float) -> bool:
    """Says whether anything was computed or came out."""
    output = engine.step()
    now = time.monotonic() - began
    for update in output.updates:
        number = int(update.request_id)
        seen.tokens[number] += update.token_ids
        seen.stamps[number] += [now] * len(update.token_ids)
    if not output.tokens:
        return bool(output.updates)
    seen.computed += output.tokens
    seen.batch_sizes.append(output.sequences)
    scheduler = engine.scheduler
    held = sum(len(sequence.blocks) for sequence in scheduler.running) * scheduler.blocks.block_size
    seen.uses.append((scheduler.kv_use(), scheduler.num_waiting > 0))
    if held:
        seen.filled.append(sum(sequence.computed for sequence in scheduler.running) / held)
        if scheduler.waiting:
            seen.held.append(1 - scheduler.blocks.free_blocks / scheduler.blocks.count)
    return True


def _figures(arrivals: Seq[Arrival], seen: _Watched) -> dict[str, Any]:
    seconds = max(stamps[-1] for stamps in seen.stamps)
    tokens = sum(map(len, seen.tokens))
    ttft = [1000 * (stamps[0] - arrival.at_s) for stamps, arrival in zip(seen.stamps, arrivals, strict=True)]
    e2e = [1000 * (stamps[-1] - arrival.at_s) for stamps, arrival in zip(seen.stamps, arrivals, strict=True)]
    gaps = [1000 * (b - a) for stamps in seen.stamps for a, b in itertools.pairwise(stamps)] or [0.0]
    return {
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_s": tokens / seconds,
        "ttft_p50_ms": statistics.median(ttft),
        "ttft_p95_ms": _percentile(ttft, 0.95),
        "e2e_mean_ms": statistics.fmean(e2e),
        "itl_p50_ms": statistics.median(gaps),
        "itl_p99_ms": _percentile(gaps, 0.99),
        "steps": len(seen.batch_sizes),
        "sequences_per_step": statistics.fmean(seen.batch_sizes),
        "computed_tokens": seen.computed,
        "kv_held_ratio": statistics.fmean(seen.held) if seen.held else None,
        "kv_filled_ratio": statistics.fmean(seen.filled) if seen.filled else None,
    }


def _percentile(values: Seq[float], share: float) -> float:
    """Nearest rank."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def kv_ratios(uses: list[tuple[KvUse, bool]]) -> dict[str, float | None]:
    """Of (use after a step, something waits). Written over held, in the steps that held at least 80 % of the most that one held: what
    allocation wastes shows there. Held over capacity, in the steps after which something waited: None when nothing ever did."""
    most = max((use.held for use, _ in uses), default=0)
    loaded = [use for use, _ in uses if use.held and use.held >= 0.8 * most]
    saturated = [use for use, waits in uses if waits]
    return {
        "kv_written_of_held_at_load_ratio": sum(use.written for use in loaded) / sum(use.held for use in loaded) if loaded else None,
        "kv_held_of_capacity_saturated_ratio": sum(use.held / use.capacity for use in saturated) / len(saturated) if saturated else None,
    }
