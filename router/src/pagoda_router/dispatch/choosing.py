"""Chooses a worker for each request, and keeps what choosing needs and teaches: lanes, turns, who is shunned, the last decisions.

Owns one Group per model and variant. The choice itself is policy.place, pure; what a worker can do and has cached its link knows. Called
by the dispatcher, which tells it of placements and settlements; internal.py and the metrics ask it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from pagoda_router.admission.credits import Price
from pagoda_router.backends.base import Settlement, WorkerLink
from pagoda_router.generation import Generation, ModelName, WorkerId
from pagoda_router.placement.decisions import DecisionRing, decision_of
from pagoda_router.placement.facts import RequestFacts, WorkerView
from pagoda_router.placement.health import Cause, HealthBoard
from pagoda_router.placement.length_lanes import Cuts, LengthLanes
from pagoda_router.placement.policy import POLICY, Placement, PolicyName, Refusal, place
from pagoda_router.placement.prefixes import PrefixChain
from pagoda_router.records import record
from pagoda_router.tracing.record import WorkerTimes

FORGET_EVERY = 256
"""Placements, after which what is known of workers that have gone is dropped."""


@dataclass(slots=True)
class Group:
    """The workers of one model's variant, as far as choosing among them goes."""

    lanes: LengthLanes = field(default_factory=LengthLanes)
    health: HealthBoard = field(default_factory=HealthBoard)
    turn: int = 0
    turn_of: dict[WorkerId, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LaneReport:
    variant: str
    cuts: Cuts
    """The longest length of each lane but the last, in tokens."""
    workers: tuple[tuple[WorkerId, int], ...]
    """And their lanes; empty while there is one lane."""


@record(frozen=True, slots=True)
class Choice:
    """A placement and what it was made of: the dispatcher gives it back once the request is on its way."""

    placement: Placement
    facts: RequestFacts
    views: Sequence[WorkerView]
    """Of the links: to be read before the event loop goes on."""
    group: Group


class WorkerChooser:
    def __init__(self, rng: Random, ring: DecisionRing) -> None:
        self._rng = rng
        self._ring = ring
        self._groups: dict[tuple[ModelName, str], Group] = {}
        self._group_of: dict[WorkerId, Group] = {}

    def choose(
        self,
        links: Sequence[WorkerLink],
        cost: Price,
        chain: PrefixChain,
        now_s: float,
        *,
        avoid: frozenset[WorkerId] | set[WorkerId] = frozenset(),
        policy: PolicyName = POLICY,
    ) -> Choice | Refusal:
        """`links`: of one variant."""
        views = [link.view(cost, chain) for link in links]
        if not views:
            return Refusal("no_worker", "no worker is known")
        group = self._group(links[0].endpoint.model, links[0].endpoint.variant)
        lanes = group.lanes
        if lanes.cuts:
            cached = max(view.cached_tokens for view in views)
            facts = RequestFacts(cost, lanes.lane(max(1, cost.prompt_tokens - cached), cost.output_tokens), lanes.lane_of, group.turn_of)
        else:
            facts = RequestFacts(cost, turn_of=group.turn_of)
        found = place(facts, views, self._rng, avoid, policy=policy, shunned=group.health.shunned(views, now_s))
        return found if isinstance(found, Refusal) else Choice(found, facts, views, group)

    def placed(self, choice: Choice, generation: Generation, times: WorkerTimes, now_s: float) -> None:
        """The request is on its way."""
        placement, cost, group = choice.placement, choice.facts.cost, choice.group
        self._group_of[placement.worker] = group
        group.turn += 1
        group.turn_of[placement.worker] = group.turn
        group.health.placed(placement.worker, now_s)
        group.lanes.observe(max(1, cost.prompt_tokens - placement.cached_tokens), cost.output_tokens, choice.views)
        if group.turn % FORGET_EVERY == 0:
            self._forget_gone(group, choice.views)
        self._ring.append(decision_of(placement, choice.facts, generation.request_id, generation.model, now_s, times))

    def settled(self, settlement: Settlement, now_s: float) -> None:
        worker = settlement.worker
        if settlement.failure == "timed_out":
            return  # was told when it happened: a worker that hangs may never settle
        group = None if worker is None else self._group_of.get(worker)
        if worker is not None and group is not None:
            is_failure = settlement.failure in ("engine_error", "worker_lost")
            group.health.ended(worker, now_s, is_failure=is_failure, ran=settlement.ran)

    def timed_out(self, worker: WorkerId, now_s: float) -> None:
        group = self._group_of.get(worker)
        if group is not None:
            group.health.ended(worker, now_s, is_failure=True, ran=False)

    # ------------------------------------------------------------ what is asked

    def lanes(self, model: ModelName) -> list[LaneReport]:
        return [
            LaneReport(variant, group.lanes.cuts, tuple(sorted(group.lanes.lane_of.items())))
            for (name, variant), group in sorted(self._groups.items())
            if name == model
        ]

    def shunned(self, model: ModelName) -> Counter[tuple[str, Cause]]:
        """Workers by variant and cause."""
        return Counter(
            (variant, cause) for (name, variant), group in self._groups.items() if name == model for cause in group.health.causes().values()
        )

    def cause(self, worker: WorkerId) -> Cause | None:
        """Why it is left alone; None: it is not."""
        group = self._group_of.get(worker)
        return None if group is None else group.health.causes().get(worker)

    def _group(self, model: ModelName, variant: str) -> Group:
        group = self._groups.get((model, variant))
        if group is None:
            group = self._groups[model, variant] = Group()
        return group

    def _forget_gone(self, group: Group, views: Sequence[WorkerView]) -> None:
        present = [view.worker for view in views]
        group.health.forget_all_but(present)
        for gone in group.turn_of.keys() - set(present):
            del group.turn_of[gone]
        for gone in [worker for worker, theirs in self._group_of.items() if theirs is group and worker not in group.turn_of]:
            del self._group_of[gone]
