"""The last placements, each with what was known, and what came of it: kept for GET /internal/v1/decisions, replayed to say what was lost.

Pure, bounded in number and in candidates. choosing.py appends; what a worker told of a request is read from its WorkerTimes when asked.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from random import Random
from statistics import median
from typing import NamedTuple

from pagoda_router.generation import ModelName, WorkerId
from pagoda_router.placement.facts import RequestFacts, WorkerView
from pagoda_router.placement.policy import Placement, PlacementReason, place
from pagoda_router.placement.prediction import Prediction, predict, usual_rates
from pagoda_router.placement.scores import TPOT_TOKENS, PolicyName
from pagoda_router.records import record
from pagoda_router.tracing.record import WorkerTimes

FEWEST_OUTCOMES = 3
"""Of a worker, before its predictions are corrected by them."""


@record(frozen=True, slots=True, kw_only=True)
class Decision:
    at_s: float
    request_id: str
    model: ModelName
    facts: RequestFacts
    policy: PolicyName
    reason: PlacementReason
    candidates: tuple[tuple[WorkerView, float], ...]
    """The best of them with their scores; the first was taken."""
    candidate_count: int
    times: WorkerTimes

    @property
    def worker(self) -> WorkerId:
        return self.candidates[0][0].worker

    def predictions(self) -> list[Prediction]:
        """Of each candidate, by what was known then."""
        usual = usual_rates([view for view, _ in self.candidates])
        return [predict(self.facts, view, usual) for view, _ in self.candidates]

    def actual(self) -> Prediction | None:
        """None: it has not ended, failed, or its worker tells no times. A pace of 0: one token only."""
        times = self.times
        if not times.told or not times.first_token_us:
            return None
        tokens = times.output_tokens
        tpot_ms = (times.last_token_us - times.first_token_us) / 1000 / (tokens - 1) if tokens > 1 else 0.0
        return Prediction((times.first_token_us - times.received_us) / 1000, tpot_ms)


def decision_of(placement: Placement, facts: RequestFacts, request_id: str, model: ModelName, now_s: float, times: WorkerTimes) -> Decision:
    turn_of = {view.worker: facts.turn_of.get(view.worker, 0) for view, _ in placement.scores}  # turns go on under way
    return Decision(
        at_s=now_s,
        request_id=request_id,
        model=model,
        facts=RequestFacts(facts.cost, facts.lane, facts.lane_of, turn_of),
        policy=placement.policy,
        reason=placement.reason,
        candidates=placement.scores,
        candidate_count=placement.candidates,
        times=times,
    )


class DecisionRing:
    def __init__(self, size: int) -> None:
        """`size`: decisions; 0 keeps none."""
        self._decisions: deque[Decision] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self._decisions)

    def append(self, decision: Decision) -> None:
        self._decisions.append(decision)

    def latest(self, limit: int, model: str | None = None) -> list[Decision]:
        """Newest first."""
        found: list[Decision] = []
        for decision in reversed(self._decisions):
            if len(found) >= limit:
                break
            if model in (None, decision.model):
                found.append(decision)
        return found


# ---------------------------------------------------------------- what was lost


class Regret(NamedTuple):
    """In milliseconds of first token plus the pace of the next ones, per decision."""

    decisions: int
    """Those with an outcome and a choice."""
    mean_ms: float
    p95_ms: float
    share: float
    """Of the decisions, those where another worker would have been faster."""


def regret(decisions: Iterable[Decision], policy: PolicyName | None = None) -> Regret:
    """What the choices cost over the best candidate, replayed against the outcomes: each candidate's prediction, corrected by how wrong
    that worker's predictions were, and the real time for the one that was taken. `policy`: as if that one had chosen among them."""
    ended = [(each, actual) for each in decisions if len(each.candidates) > 1 and (actual := each.actual()) is not None]
    corrections = _corrections(ended)
    lost = sorted(_lost_ms(each, actual, corrections, policy) for each, actual in ended)
    if not lost:
        return Regret(0, 0.0, 0.0, 0.0)
    return Regret(len(lost), sum(lost) / len(lost), lost[int(0.95 * (len(lost) - 1))], sum(each > 0 for each in lost) / len(lost))


def _lost_ms(decision: Decision, actual: Prediction, corrections: dict[WorkerId, float], policy: PolicyName | None) -> float:
    costs = [
        _cost_ms(decision, prediction) * corrections.get(view.worker, 1.0)
        for prediction, (view, _) in zip(decision.predictions(), decision.candidates, strict=True)
    ]
    costs[0] = _cost_ms(decision, actual)
    chosen = 0 if policy is None else _choice_of(decision, policy)
    return max(0.0, costs[chosen] - min(costs))


def _choice_of(decision: Decision, policy: PolicyName) -> int:
    views = [view for view, _ in decision.candidates]
    found = place(decision.facts, views, Random(0), policy=policy)
    assert isinstance(found, Placement), "they were candidates"
    return next(at for at, view in enumerate(views) if view.worker == found.worker)


def _corrections(ended: Sequence[tuple[Decision, Prediction]]) -> dict[WorkerId, float]:
    ratios: defaultdict[WorkerId, list[float]] = defaultdict(list)
    for decision, actual in ended:
        predicted = _cost_ms(decision, decision.predictions()[0])
        if predicted > 0:
            ratios[decision.worker].append(_cost_ms(decision, actual) / predicted)
    return {worker: median(found) for worker, found in ratios.items() if len(found) >= FEWEST_OUTCOMES}


def _cost_ms(decision: Decision, times: Prediction) -> float:
    return times.ttft_ms + min(decision.facts.cost.output_tokens, TPOT_TOKENS) * times.tpot_ms
