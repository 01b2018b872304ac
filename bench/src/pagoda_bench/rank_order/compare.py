"""Does a real router rank policies as the simulator does? Runs both with the same users, and says where they differ.

Twice: paced workers behind real sessions (paced_fleet.py), and two real tiny workers (tiny_workers.py). Called by __main__.py.
"""

import asyncio
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from pagoda_bench.rank_order import paced_fleet, tiny_workers
from pagoda_bench.rank_order.asking import Answer
from pagoda_bench.results import Row
from pagoda_bench.sim.demand import Conversation
from pagoda_bench.sim.engine_profile import EngineProfile
from pagoda_bench.sim.figures import percentile
from pagoda_bench.sim.run import first_turns, played

POLICIES = ("predicted", "least-loaded", "round-robin")
WORKLOADS = ("mixed", "shared-prefix")
SEED = 1
APART = 1.25
"""Times as long at the 95th percentile: policies nearer to each other than that the simulator does not claim to tell apart."""
SYSTEMS = "all"
"""Of a row about the policies' order."""
TTFTS = dict[str, list[float]]
"""Sorted, by policy."""


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


def tiny(duration_s: float, folder: Path) -> Iterator[Row]:
    real: dict[str, TTFTS] = {name: {} for name in WORKLOADS}
    rows: dict[str, list[Row]] = {name: [] for name in WORKLOADS}
    users: dict[str, list[Conversation]] = {}
    profile: EngineProfile | None = None
    for policy in reversed(POLICIES):  # the first spreads requests evenly: what measuring needs
        with tiny_workers.stack(policy, folder) as running:
            if profile is None:
                profile = asyncio.run(tiny_workers.measure(running))
                _say(f"tiny workers: step {1000 * profile.base_s:.2f} ms + {1000 * profile.row_s:.3f} a sequence, "
                     f"prompt token {1e6 * profile.prompt_token_s:.0f} µs")  # fmt: skip
                users = {
                    name: first_turns(name, profile, tiny_workers.WORKERS, duration_s, SEED, shape=tiny_workers.shorter)
                    for name in WORKLOADS
                }
            for name in WORKLOADS:
                answers = asyncio.run(tiny_workers.ask(running, users[name]))
                real[name][policy] = _ttfts(answers)
                rows[name] += _told(f"{name} tiny", policy, answers)
    assert profile is not None
    for name in WORKLOADS:
        yield from _compared(f"{name} tiny", rows[name], real[name], users[name], profile, tiny_workers.WORKERS)


def _compared(
    case: str, rows: Sequence[Row], real: TTFTS, users: Sequence[Conversation], profile: EngineProfile, workers: int
) -> Iterator[Row]:
    simulated = {
        policy: sorted(request.ttft_s for request in played(users, profile, workers, policy, SEED) if request.ttft_s is not None)
        for policy in POLICIES
    }
    yield from rows
    for where, ttfts in (("", real), ("simulated_", simulated)):
        for policy, found in ttfts.items():
            yield from (_row(case, policy, f"{where}ttft_p{percent}_s", percentile(found, percent), "s") for percent in (50, 95) if found)
    in_order, pairs = agreement(
        {policy: percentile(found, 95) for policy, found in simulated.items()},
        {policy: percentile(found, 95) for policy, found in real.items() if found},
    )
    yield _row(case, SYSTEMS, "pairs_told_apart", pairs, "1")
    if pairs:
        yield Row(
            case=case, system=SYSTEMS, metric="pairs_in_order_ratio", value=in_order / pairs, unit="1", aim="≥ 1", met=in_order == pairs
        )
    for policy in POLICIES:
        simulated_s, real_s = (percentile(found[policy], 95) if found[policy] else float("nan") for found in (simulated, real))
        _say(f"{case} {policy}: TTFT p95 {simulated_s:.3f} s simulated, {real_s:.3f} s real")
    _say(f"{case}: {in_order} of {pairs} pairs in the simulator's order")


def agreement(simulated: Mapping[str, float], real: Mapping[str, float]) -> tuple[int, int]:
    """Pairs that come in the same order in both, and those that the simulator tells apart."""
    pairs = [
        (better, worse) if simulated[better] < simulated[worse] else (worse, better)
        for better, worse in combinations(simulated, 2)
        if max(simulated[better], simulated[worse]) >= APART * min(simulated[better], simulated[worse])
    ]
    return sum(better in real and worse in real and real[better] < real[worse] for better, worse in pairs), len(pairs)


def _ttfts(answers: Sequence[Answer]) -> list[float]:
    return sorted(answer.first_s for answer in answers if answer.first_s is not None)


def _told(case: str, policy: str, answers: Sequence[Answer]) -> Iterator[Row]:
    yield _row(case, policy, "requests", len(answers), "1")
    yield _row(case, policy, "failed", sum(bool(answer.failure) for answer in answers), "1")
    for failure in sorted({answer.failure for answer in answers if answer.failure}):
        _say(f"{case} {policy}: {failure}")


def _row(case: str, system: str, metric: str, value: float, unit: str) -> Row:
    return Row(case=case, system=system, metric=metric, value=value, unit=unit)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
