"""Which worker runs a request: a pure function of the request's facts and what is known of each worker, in predicted milliseconds.

predicted = prompt tokens waiting there / its prefill rate          whoever is prefilled before us
          + own prompt tokens / its prefill rate                    us
          + decode step × (1 + running / max_running)               the step under way, and how full its batches are
          + decode step × waiting × output tokens / max_running     sequences that must end before the waiting ones start

Rates are the worker's own, learned ones; a worker that has not measured yet gets the mean of those that have. No I/O; called by the
dispatcher.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Literal

from pagoda_router.admission import Price
from pagoda_router.generation import WorkerId

UNMEASURED_PREFILL_TOKENS_PER_S = 2000.0
UNMEASURED_DECODE_STEP_MS = 30.0
WAKE_MS = 10_000.0
"""Assumed of a worker that sleeps: one that is awake is taken until its queue is that long, so that nobody is woken for nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """One worker as the router sees it now: its last state, corrected by what this router sent since."""

    worker: WorkerId
    routable: bool
    """Session up, ready, not draining, described, and discovery wants new requests there."""
    reason: str = ""
    """One sentence when not routable."""
    variant: str = "default"
    template: str = ""
    capacity_tokens: int = 0
    available_tokens: int = 0
    reservable_tokens: int | None = None
    """What a request of this price would reserve now; None: no room yet. Set by the caller for the request at hand."""
    queued_prefill_tokens: int = 0
    running: int = 0
    """Sequences."""
    waiting: int = 0
    max_running: int = 1
    prefill_tokens_per_s: float = 0.0
    """0: not measured yet."""
    decode_step_ms: float = 0.0
    sleeps: bool = False
    """A request wakes it, and waits."""
    decode_tokens_per_s: float = 0.0
    """Of its self-test after loading; 0: it made none."""


POLICY = "predicted_wait"
"""Named in metrics and traces beside the reason."""


class PlacementReason(StrEnum):
    LEAST_WAIT = "least_wait"
    DRAWN = "drawn"
    """Among equals."""
    ONLY_WORKER = "only_worker"
    ONLY_WITH_ROOM = "only_with_room"
    """Others had no room for it now."""
    LAST_RESORT = "last_resort"
    """One that refused or lost this very request before: there is no other."""


@dataclass(frozen=True, slots=True)
class Placement:
    worker: WorkerId
    reserved_tokens: int
    predicted_ms: float
    """Until the first token."""
    reason: PlacementReason
    runner_up: WorkerId | None
    runner_up_ms: float | None
    cached_tokens: int = 0
    """Prompt tokens expected in the worker's prefix cache. This policy does not look at prefixes: it expects none."""


@dataclass(frozen=True, slots=True)
class Refusal:
    why: Literal["no_worker", "no_room", "too_large"]
    message: str


def place(cost: Price, workers: Sequence[WorkerView], rng: Random, avoid: Collection[WorkerId] = frozenset()) -> Placement | Refusal:
    """`avoid`: workers that refused or lost this very request; taken again only when there is no other."""
    routable = [view for view in workers if view.routable]
    if not routable:
        reasons = sorted({view.reason for view in workers if view.reason})
        return Refusal("no_worker", "; ".join(reasons) or "no worker is known")
    large_enough = [view for view in routable if view.capacity_tokens >= cost.least_kv_tokens]
    if not large_enough:
        most = max(view.capacity_tokens for view in routable)
        return Refusal("too_large", f"the prompt needs {cost.least_kv_tokens} tokens of KV cache, the largest worker has {most}")
    open_now = [view for view in large_enough if view.reservable_tokens is not None]
    candidates = [view for view in open_now if view.worker not in avoid] or open_now
    if not candidates:
        return Refusal("no_room", f"{cost.kv_tokens} tokens do not fit now, {max(v.available_tokens for v in large_enough)} are free")
    prefill_default, decode_default = _usual_rates(routable)
    scored = sorted(
        (predicted_ms(cost, view, prefill_default, decode_default), rng.random(), index) for index, view in enumerate(candidates)
    )
    best_ms, _, best = scored[0]
    chosen = candidates[best]
    assert chosen.reservable_tokens is not None
    runner_up_ms, runner_up = (scored[1][0], candidates[scored[1][2]].worker) if len(scored) > 1 else (None, None)
    if chosen.worker in avoid:
        reason = PlacementReason.LAST_RESORT
    elif runner_up is None:
        reason = PlacementReason.ONLY_WORKER if len(routable) == 1 else PlacementReason.ONLY_WITH_ROOM
    else:
        reason = PlacementReason.DRAWN if runner_up_ms == best_ms else PlacementReason.LEAST_WAIT
    return Placement(chosen.worker, chosen.reservable_tokens, best_ms, reason, runner_up, runner_up_ms)


def variants_in_turn(weights: Iterable[tuple[str, int]], routable: Collection[str]) -> list[tuple[str, int]]:
    """Name and weight of those that have a worker; the share of one without goes to the others.

    Weight 0 takes nothing. Variants that the spec names no more serve while none of the named ones can: a renamed one leaves no gap.
    """
    named = list(weights)
    found = [(name, weight) for name, weight in named if weight > 0 and name in routable]
    if found:
        return found
    known = {name for name, _ in named}
    return [(name, 1) for name in sorted(routable) if name not in known]


def choose_variant(weights: Iterable[tuple[str, int]], routable: Collection[str], rng: Random) -> str | None:
    """Whose turn it is, by weight; None when no variant can take a request that asks for none."""
    candidates = variants_in_turn(weights, routable)
    if len(candidates) < 2:
        return candidates[0][0] if candidates else None
    at = rng.uniform(0, sum(weight for _, weight in candidates))
    for name, weight in candidates:
        at -= weight
        if at < 0:
            return name
    return candidates[-1][0]


def predicted_ms(cost: Price, view: WorkerView, prefill_default: float, decode_default: float) -> float:
    prefill_per_ms = (view.prefill_tokens_per_s or prefill_default) / 1000
    decode_ms = view.decode_step_ms or decode_default
    prefill_ms = (view.queued_prefill_tokens + cost.prompt_tokens) / prefill_per_ms
    fullness = view.running / max(1, view.max_running)
    behind_waiting_ms = decode_ms * view.waiting * cost.output_tokens / max(1, view.max_running)
    return prefill_ms + decode_ms * (1 + fullness) + behind_waiting_ms + WAKE_MS * view.sleeps


def _usual_rates(views: Sequence[WorkerView]) -> tuple[float, float]:
    prefill = [view.prefill_tokens_per_s for view in views if view.prefill_tokens_per_s > 0]
    decode = [view.decode_step_ms for view in views if view.decode_step_ms > 0]
    return (
        sum(prefill) / len(prefill) if prefill else UNMEASURED_PREFILL_TOKENS_PER_S,
        sum(decode) / len(decode) if decode else UNMEASURED_DECODE_STEP_MS,
    )
