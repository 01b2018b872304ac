"""Which worker runs a request: a pure function of the request's facts, what is known of each worker, and chance.

    routable → large enough → not shunned → open now → not avoided → score → lowest, at random among equals → Placement, with its reason

The scores are a policy's (scores.py), chosen by spec.routing.policy; the frame around them is the same for all. No I/O; called by
choosing.py for every request, and by the simulator.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Literal

from pagoda_router.admission.credits import Price
from pagoda_router.generation import WorkerId
from pagoda_router.placement.facts import RequestFacts, WorkerView
from pagoda_router.placement.prediction import predict, usual_rates
from pagoda_router.placement.scores import POLICIES, POLICY, PolicyName
from pagoda_router.records import record

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


@record(frozen=True, slots=True)
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
    cost, least_tokens = facts.cost, facts.cost.least_kv_tokens
    # One pass where nobody is to be left out, which is nearly always.
    candidates = [view for view in workers if view.routable and view.reservable_tokens is not None and view.capacity_tokens >= least_tokens]
    if shunned or avoid or not candidates:
        left = _left_over(cost, workers, avoid, shunned)
        if isinstance(left, Refusal):
            return left
        candidates = left
    usual = usual_rates(candidates)
    scores = POLICIES[policy](facts, candidates, usual)
    best = _best(scores, rng)
    chosen = candidates[best[0]]
    assert chosen.reservable_tokens is not None
    prediction = predict(facts, chosen, usual)
    runner_up = candidates[best[1]] if len(best) > 1 else None
    is_tie = len(best) > 1 and scores[best[0]] == scores[best[1]]
    is_alone = runner_up is None and sum(view.routable for view in workers) == 1
    return Placement(
        chosen.worker,
        chosen.reservable_tokens,
        prediction.ttft_ms,
        _reason(policy, chosen, runner_up, is_tie=is_tie, is_avoided=chosen.worker in avoid, is_alone=is_alone),
        None if runner_up is None else runner_up.worker,
        None if runner_up is None else predict(facts, runner_up, usual).ttft_ms,
        min(chosen.cached_tokens, cost.prompt_tokens - 1),
        policy,
        tuple([(candidates[at].copied(), scores[at]) for at in best]),
        len(candidates),
    )


def _left_over(
    cost: Price, workers: Sequence[WorkerView], avoid: Collection[WorkerId], shunned: Collection[WorkerId]
) -> list[WorkerView] | Refusal:
    """Step by step: who is a candidate when somebody is to be left alone, or why there is none."""
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
    if not open_now:
        if all(view.batch_full for view in routable):
            return Refusal("batches_full", "no worker takes one more sequence now")
        return Refusal("no_room", f"{cost.kv_tokens} tokens do not fit now, {max(v.available_tokens for v in sound)} are free")
    return ([view for view in open_now if view.worker not in avoid] or open_now) if avoid else open_now


def _best(scores: Sequence[float], rng: Random) -> list[int]:
    """Where the lowest KEPT_SCORES are, lowest first and equals in any order: a fixed one among them would send every cold request to the
    same worker."""
    last = sorted(scores)[:KEPT_SCORES][-1]
    kept = [(score, rng.random(), at) for at, score in enumerate(scores) if score <= last]
    return [at for _, _, at in sorted(kept)[:KEPT_SCORES]]


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
