"""GET /internal/v1/decisions and /internal/v1/lanes: why requests went where they went, what that cost, and who is left alone.

Pure answers to a path and a query; internal.py checks the token and speaks HTTP, admin.py does it on the public port.
"""

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

from pagoda_router.dispatch.choosing import WorkerChooser
from pagoda_router.fleet import Fleet
from pagoda_router.http.internal import error_document
from pagoda_router.placement.decisions import Decision, DecisionRing, Regret, regret
from pagoda_router.placement.policy import PolicyName
from pagoda_router.placement.prediction import Prediction

DECISIONS, LANES = "/internal/v1/decisions", "/internal/v1/lanes"
USUAL_LIMIT, MOST = 100, 1000
FILTERS = ("model", "limit", "replay")
MOST_REPLAYED = 200
"""For each policy: some milliseconds in which no request is served."""


class PlacementAdmin:
    def __init__(self, fleet: Fleet, chooser: WorkerChooser, ring: DecisionRing, clock: Callable[[], float]) -> None:
        """`clock`: the dispatcher's."""
        self._fleet = fleet
        self._chooser = chooser
        self._ring = ring
        self._clock = clock

    def __call__(self, path: str, query: bytes) -> tuple[int, dict[str, Any]] | None:
        if path == DECISIONS:
            return self.decisions(query)
        if path == LANES:
            return 200, self.lanes()
        return None

    def lanes(self) -> dict[str, Any]:
        return {"models": {model.name: self._lanes(model.name) for model in self._fleet.models()}}

    def decisions(self, query: bytes) -> tuple[int, dict[str, Any]]:
        given = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
        unknown = given.keys() - set(FILTERS)
        if unknown:
            return 400, error_document(f"decisions know no {min(unknown)[:40]!r}: they take {', '.join(FILTERS)}", "unknown_filter")
        try:
            limit = min(MOST, max(0, int(given.get("limit", USUAL_LIMIT))))
        except ValueError:
            return 400, error_document("limit is a whole number", "bad_filter")
        replay = given.get("replay")
        if replay is not None and replay not in tuple(PolicyName):
            return 400, error_document(f"replay is one of {', '.join(PolicyName)}", "bad_filter")
        found, now_s = self._ring.latest(limit, given.get("model")), self._clock()
        answer: dict[str, Any] = {"regret": _regret_document(regret(found))}
        if replay is not None:
            answer["replay"] = {"policy": replay, **_regret_document(regret(found[:MOST_REPLAYED], PolicyName(replay)))}
        return 200, answer | {"decisions": [document(each, now_s) for each in found]}

    def _lanes(self, model: Any) -> dict[str, Any]:
        return {
            report.variant: {
                "cutsTokens": list(report.cuts),
                "lanes": [[worker for worker, lane in report.workers if lane == at] for at in range(len(report.cuts) + 1)],
                "shunned": {link.worker: cause for link in self._fleet.links(model) if (cause := self._chooser.cause(link.worker))},
            }
            for report in self._chooser.lanes(model)
        }


def document(decision: Decision, now_s: float) -> dict[str, Any]:
    cost, actual = decision.facts.cost, decision.actual()
    return {
        "requestId": decision.request_id,
        "model": decision.model,
        "ageS": round(now_s - decision.at_s, 3),
        "policy": decision.policy,
        "reason": decision.reason,
        "worker": decision.worker,
        "runnerUp": decision.candidates[1][0].worker if len(decision.candidates) > 1 else None,
        "promptTokens": cost.prompt_tokens,
        "predictedOutputTokens": cost.output_tokens,
        "lane": decision.facts.lane,
        "candidateCount": decision.candidate_count,
        "candidates": [
            {"worker": view.worker, "score": round(score, 3), "cachedTokens": view.cached_tokens, **_milliseconds(prediction)}
            for (view, score), prediction in zip(decision.candidates, decision.predictions(), strict=True)
        ],
        "actual": None if actual is None else _milliseconds(actual) | {"cachedTokens": decision.times.cached_tokens},
    }


def _milliseconds(times: Prediction) -> dict[str, float]:
    return {"ttftMs": round(times.ttft_ms, 3), "tpotMs": round(times.tpot_ms, 3)}


def _regret_document(found: Regret) -> dict[str, Any]:
    return {
        "decisions": found.decisions,
        "meanMs": round(found.mean_ms, 3),
        "p95Ms": round(found.p95_ms, 3),
        "share": round(found.share, 4),
    }
