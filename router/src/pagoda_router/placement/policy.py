"""Which worker runs a request: a pure function of the request's facts, what is known of each worker, and chance.

    routable → large enough → not shunned → open now → not avoided → score → lowest, at random among equals → Placement, with its reason

The scores are a policy's (policies/scores.py), chosen by spec.routing.policy; the frame around them is the same for all. No I/O; called by
choosing.py for every request, and by the simulator.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from heapq import nsmallest
from random import Random
from typing import Literal

from pagoda_router.admission.credits import Price
from pagoda_router.generation import WorkerId
from pagoda_router.placement.facts import RequestFacts, WorkerView
from pagoda_router.placement.prediction import predict, usual_rates
from pagoda_router.placement.scores import POLICIES, POLICY, PolicyName

__all__ = [
    "POLICY",
    "Placement",
    "PlacementReason",
    "PolicyName",
    "Refusal",
    "RequestFacts",
    "WorkerView",
    "choose_variant",
    "place",
    "variants_in_turn",
]

NOBODY: frozenset[WorkerId] = frozenset()
KEPT_SCORES = 8
"""What a thousand decisions remember stays below 5 MB whatever the fleet's size."""


class PlacementReason(StrEnum):
    LEAST_WAIT = "least_wait"
    """By predicted milliseconds."""
    LOWEST_SCORE = "lowest_score"
    """By what another policy counts."""
    CACHED_PREFIX = "cached_prefix"
    """The lowest score, and more of the prompt is cached there than at the runner-up."""
    DRAWN = "drawn"
    """Among equals."""
    ONLY_WORKER = "only_worker"
    ONLY_WITH_ROOM = "only_with_room"
    """Others had no room for it now, or are shunned."""
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
    """Until the first token there."""
    cached_tokens: int = 0
    """Prompt tokens expected in the worker's prefix cache."""
    predicted_tpot_ms: float = 0.0
    policy: PolicyName = POLICY
    scores: tuple[tuple[WorkerView, float], ...] = ()
    """Of the best candidates, best first; the unit is the policy's own."""
    candidates: int = 1
    """How many there were."""


@dataclass(frozen=True, slots=True)
class Refusal:
    why: Literal["no_worker", "no_room", "batches_full", "too_large"]
    message: str


def place(
    request: Price | RequestFacts,
    workers: Sequence[WorkerView],
    rng: Random,
    avoid: Collection[WorkerId] = NOBODY,
    *,
    policy: PolicyName = POLICY,
    shunned: Collection[WorkerId] = NOBODY,
) -> Placement | Refusal:
    """`avoid`: workers that refused or lost this very request. `shunned`: those that failed or fell behind their peers lately. Both are
    taken only when there is no other: an avoided one when no other has room now, a shunned one when no other could ever run the request."""
    facts = request if isinstance(request, RequestFacts) else RequestFacts(request)
    cost = facts.cost
    routable = [view for view in workers if view.routable]
    if not routable:
        reasons = sorted({view.reason for view in workers if view.reason})
        return Refusal("no_worker", "; ".join(reasons) or "no worker is known")
    large_enough = [view for view in routable if view.capacity_tokens >= cost.least_kv_tokens]
    if not large_enough:
        most = max(view.capacity_tokens for view in routable)
        return Refusal("too_large", f"the prompt needs {cost.least_kv_tokens} tokens of KV cache, the largest worker has {most}")
    sound = ([view for view in large_enough if view.worker not in shunned] or large_enough) if shunned else large_enough
    open_now = [view for view in sound if view.reservable_tokens is not None]
    candidates = ([view for view in open_now if view.worker not in avoid] or open_now) if avoid else open_now
    if not candidates:
        if all(view.batch_full for view in routable):
            return Refusal("batches_full", "no worker takes one more sequence now")
        return Refusal("no_room", f"{cost.kv_tokens} tokens do not fit now, {max(v.available_tokens for v in sound)} are free")
    scores = POLICIES[policy](facts, candidates)
    draws = [rng.random() for _ in scores]  # a fixed order among equals would send every cold request to the same worker
    best = nsmallest(KEPT_SCORES, zip(scores, draws, range(len(scores)), strict=True))
    chosen = candidates[best[0][2]]
    assert chosen.reservable_tokens is not None
    usual = usual_rates(candidates)
    prediction = predict(facts, chosen, usual)
    runner_up = candidates[best[1][2]] if len(best) > 1 else None
    is_tie = len(best) > 1 and best[0][0] == best[1][0]
    return Placement(
        chosen.worker,
        chosen.reservable_tokens,
        prediction.ttft_ms,
        _reason(policy, chosen, runner_up, is_tie=is_tie, is_avoided=chosen.worker in avoid, is_alone=len(routable) == 1),
        None if runner_up is None else runner_up.worker,
        None if runner_up is None else predict(facts, runner_up, usual).ttft_ms,
        min(chosen.cached_tokens, cost.prompt_tokens - 1),
        prediction.tpot_ms,
        policy,
        tuple((candidates[at], score) for score, _, at in best),
        len(candidates),
    )


def _reason(
    policy: PolicyName, chosen: WorkerView, runner_up: WorkerView | None, *, is_tie: bool, is_avoided: bool, is_alone: bool
) -> PlacementReason:
    if is_avoided:
        return PlacementReason.LAST_RESORT
    if runner_up is None:
        return PlacementReason.ONLY_WORKER if is_alone else PlacementReason.ONLY_WITH_ROOM
    if is_tie:
        return PlacementReason.DRAWN
    if policy in (PolicyName.PREDICTED, PolicyName.PREFIX) and chosen.cached_tokens > runner_up.cached_tokens:
        return PlacementReason.CACHED_PREFIX
    return PlacementReason.LEAST_WAIT if policy is PolicyName.PREDICTED else PlacementReason.LOWEST_SCORE


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
