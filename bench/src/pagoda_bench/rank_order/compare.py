"""Does a real router rank policies as the simulator does? Runs both with the same users, and says where they differ.

Twice: paced workers behind real sessions (paced_fleet.py), and two real workers of one core each (real_workers.py). Called by __main__.py.
"""

import asyncio
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from random import Random
from statistics import median

from pagoda_bench.rank_order import paced_fleet, real_workers
from pagoda_bench.rank_order.asking import Answer
from pagoda_bench.results import Row
from pagoda_bench.sim.demand import Conversation
from pagoda_bench.sim.engine_profile import EngineProfile
from pagoda_bench.sim.figures import percentile
from pagoda_bench.sim.run import first_turns, played

POLICIES = ("predicted", "least-loaded", "round-robin")
EVENLY = "round-robin"
"""While workers are measured."""
WORKLOADS = ("mixed", "shared-prefix")
SEED = 1
TIES = 5
"""Simulated runs of the same users, which differ in how the router breaks ties."""
RESAMPLED = 200
APART = 1.25
"""Times as long at the 95th percentile: policies nearer to each other than that the simulator does not claim to tell apart."""
SYSTEMS = "all"
"""Of a row about the policies' order."""
TTFTS = dict[str, list[float]]
"""Sorted, by policy."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Of a p95, in seconds."""

    value: float
    low: float
    high: float

    def overlaps(self, other: "Spread") -> bool:
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True, slots=True)
class Agreement:
    told_apart: int
    """Pairs whose simulated p95s differ APART-fold and by more than their spread."""
    tied: int
    """Of these, whose real p95s lie within each other's spread: they say nothing."""
    in_order: int
    """Of the others, as simulated."""


def paced(duration_s: float, folder: Path) -> Iterator[Row]:
    for name in WORKLOADS:
        users = first_turns(name, paced_fleet.PROFILE, paced_fleet.WORKERS, duration_s, SEED)
        real: TTFTS = {}
        rows: list[Row] = []
        case = f"{name} paced"
        for policy in POLICIES:
            own = folder / f"{name}-{policy}"
            own.mkdir()
            found = asyncio.run(paced_fleet.run(users, policy, own))
            real[policy] = _ttfts(found.answers)
            rows += [*_told(case, policy, found.answers), _row(case, policy, "step_late_ms", found.late_ms, "ms")]
        yield from _compared(case, rows, real, users, paced_fleet.PROFILE, paced_fleet.WORKERS)


def real(duration_s: float, folder: Path, names: Sequence[str] = WORKLOADS) -> Iterator[Row]:
    found: dict[str, TTFTS] = {name: {} for name in names}
    rows: dict[str, list[Row]] = {name: [] for name in names}
    with real_workers.stack(EVENLY, folder) as running:
        profile = asyncio.run(real_workers.measure(running))
        _say(f"real workers: step {1000 * profile.base_s:.2f} ms + {1000 * profile.row_s:.3f} a sequence + "
             f"{1e6 * profile.context_token_s:.2f} µs a token of context, prompt token {1e6 * profile.prompt_token_s:.0f} µs "
             f"+ {1e6 * profile.prompt_pair_s:.3f} for each before it, "
             f"{profile.kv_tokens} tokens of KV cache")  # fmt: skip
        users = {name: real_workers.users_of(name, profile, duration_s, SEED) for name in names}
        for run, policy in enumerate(POLICIES):
            real_workers.route_by(policy, running, folder)
            for name in names:
                answers = asyncio.run(real_workers.ask(running, users[name], run))
                found[name][policy] = _ttfts(answers)
                rows[name] += _told(f"{name} real", policy, answers)
    for name in names:
        yield from _compared(f"{name} real", rows[name], found[name], users[name], profile, real_workers.WORKERS)
        yield from _measured(f"{name} real", profile)


def _measured(case: str, profile: EngineProfile) -> Iterator[Row]:
    """What the simulator's workers were made of."""
    yield _row(case, "engine", "step_base_s", profile.base_s, "s")
    yield _row(case, "engine", "step_row_s", profile.row_s, "s")
    yield _row(case, "engine", "step_context_token_s", profile.context_token_s, "s")
    yield _row(case, "engine", "step_prompt_token_s", profile.prompt_token_s, "s")
    yield _row(case, "engine", "step_prompt_pair_s", profile.prompt_pair_s, "s")


def _compared(
    case: str, rows: Sequence[Row], real: TTFTS, users: Sequence[Conversation], profile: EngineProfile, workers: int
) -> Iterator[Row]:
    plays = {policy: [_simulated(users, profile, workers, policy, seed) for seed in range(SEED, SEED + TIES)] for policy in POLICIES}
    simulated = {policy: _over_runs([percentile(ttfts, 95) for ttfts in runs]) for policy, runs in plays.items()}
    measured = {policy: _resampled(ttfts) for policy, ttfts in real.items() if ttfts}
    yield from rows
    for policy, ttfts in real.items():
        if ttfts:
            yield _row(case, policy, "ttft_p50_s", percentile(ttfts, 50), "s")
            yield _row(case, policy, "ttft_p95_s", measured[policy], "s")
    for policy, runs in plays.items():
        yield _row(case, policy, "simulated_ttft_p50_s", _over_runs([percentile(ttfts, 50) for ttfts in runs]), "s")
        yield _row(case, policy, "simulated_ttft_p95_s", simulated[policy], "s")
    found = agreement(simulated, measured)
    yield _row(case, SYSTEMS, "pairs_told_apart", found.told_apart, "1")
    yield _row(case, SYSTEMS, "pairs_tied", found.tied, "1")
    if (decided := found.told_apart - found.tied) > 0:
        ratio = found.in_order / decided
        yield Row(case=case, system=SYSTEMS, metric="pairs_in_order_ratio", value=ratio, unit="1", aim="≥ 1", met=ratio == 1)
    for policy in POLICIES:
        one, other = simulated[policy], measured.get(policy)
        told = "nothing" if other is None else f"{other.value:.3f} s ({other.low:.3f} to {other.high:.3f})"
        _say(f"{case} {policy}: TTFT p95 {one.value:.3f} s ({one.low:.3f} to {one.high:.3f}) simulated, {told} real")
    _say(f"{case}: {found.in_order} of {found.told_apart} pairs in the simulator's order, {found.tied} tied")


def _simulated(users: Sequence[Conversation], profile: EngineProfile, workers: int, policy: str, seed: int) -> list[float]:
    return sorted(request.ttft_s for request in played(users, profile, workers, policy, seed) if request.ttft_s is not None)


def _over_runs(values: Sequence[float]) -> Spread:
    return Spread(median(values), min(values), max(values))


def _resampled(ttfts: Sequence[float]) -> Spread:
    """The middle four fifths of p95s of as many requests drawn with replacement. Requests that wait in one queue are not independent, so it
    is rather too narrow."""
    rng = Random(0)
    p95s = sorted(percentile(sorted(rng.choices(ttfts, k=len(ttfts))), 95) for _ in range(RESAMPLED))
    return Spread(percentile(ttfts, 95), percentile(p95s, 10), percentile(p95s, 90))


def agreement(simulated: Mapping[str, Spread], real: Mapping[str, Spread]) -> Agreement:
    pairs = []
    for one, other in combinations(simulated, 2):
        better, worse = sorted((one, other), key=lambda policy: simulated[policy].value)
        if simulated[worse].value >= APART * simulated[better].value and not simulated[worse].overlaps(simulated[better]):
            pairs.append((better, worse))
    tied = [(better, worse) for better, worse in pairs if better in real and worse in real and real[better].overlaps(real[worse])]
    decided = [pair for pair in pairs if pair not in tied]
    in_order = sum(better in real and worse in real and real[better].value < real[worse].value for better, worse in decided)
    return Agreement(len(pairs), len(tied), in_order)


def _ttfts(answers: Sequence[Answer]) -> list[float]:
    return sorted(answer.first_s for answer in answers if answer.first_s is not None)


def _told(case: str, policy: str, answers: Sequence[Answer]) -> Iterator[Row]:
    yield _row(case, policy, "requests", len(answers), "1")
    yield _row(case, policy, "failed", sum(bool(answer.failure) for answer in answers), "1")
    for failure in sorted({answer.failure for answer in answers if answer.failure}):
        _say(f"{case} {policy}: {failure}")


def _row(case: str, system: str, metric: str, value: float | Spread, unit: str) -> Row:
    if isinstance(value, Spread):
        return Row(case=case, system=system, metric=metric, value=value.value, unit=unit, low=value.low, high=value.high)
    return Row(case=case, system=system, metric=metric, value=value, unit=unit)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
