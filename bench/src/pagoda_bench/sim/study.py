"""`pagoda bench sim`: which runs make the study, and what is written of them. The command calls it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pagoda_bench.errors import SettingsError
from pagoda_bench.results import Row, result_here, write
from pagoda_bench.sim.engine_profile import profile_named
from pagoda_bench.sim.fleet import Fault
from pagoda_bench.sim.pages import write_page
from pagoda_bench.sim.parameters import read_parameters
from pagoda_bench.sim.plots import LOAD, draw
from pagoda_bench.sim.report import WORKLOADS, document, rows_of
from pagoda_bench.sim.run import Job, simulate_all
from pagoda_router.placement.scores import PolicyName

LOADS = (0.4, 0.6, 0.8, 0.9, 1.0)
LOAD_POLICIES = (PolicyName.PREDICTED, PolicyName.LENGTH, PolicyName.LEAST_LOADED, PolicyName.ROUND_ROBIN)
WITHIN_CAPACITY = 0.8
"""Of the fleet without any cache: nobody is overloaded for want of one."""
SLOWER = 20
"""Times that a worker of the measured profile 0.45b needs for what an H100 does in one, roughly: as many requests in a run."""
FLOOD_POLICIES = (PolicyName.PREDICTED, PolicyName.LEAST_LOADED, PolicyName.ROUND_ROBIN)
"""What a flooded tenant keeps is the queue's to decide, not the policy's."""
FLEETS = {10: 60.0, 100: 12.0, 1000: 0.5}
"""Workers, and the most seconds of arrivals: what a decision costs grows with the fleet, and so does the number of decisions."""
FLEET_POLICIES = (PolicyName.PREDICTED, PolicyName.LEAST_LOADED)
FAULT_POLICIES = (PolicyName.PREDICTED, PolicyName.LEAST_LOADED, PolicyName.ROUND_ROBIN)


def study(
    *,
    workloads: Sequence[str],
    workers: int,
    duration_s: float,
    profile: str,
    processes: int,
    output: Path,
    plots: Path | None,
    command: str,
) -> None:
    """Runs, prints tables, writes them and the result file and, with `plots`, pictures into that folder. Raises SettingsError."""
    if unknown := set(workloads) - set(WORKLOADS):
        raise SettingsError(f"there is no workload {', '.join(sorted(unknown))}; there is: {', '.join(WORKLOADS)}")
    engine = profile_named(profile)
    cases = list(_cases(workloads or WORKLOADS, workers, duration_s, profile))
    outcomes = iter(simulate_all([job for _, jobs in cases for job in jobs], processes))
    rows: list[Row] = []
    for case, jobs in cases:
        rows += rows_of(case, [next(outcomes) for _ in jobs])
    parameters = read_parameters()
    unseen, tuning = _list(parameters.unseen_seeds), _list(parameters.tuning_seeds)
    notes = [
        f"simulated: {workers} workers for {duration_s:g} s (flood: three times as long), of which the first quarter is warm-up",
        f"profile {engine.name}: {engine.source}",
        f"values are means over the seeds {unseen}, on which nothing was tuned; low and high are the extremes",
        f"cases with tuning (seed {tuning}), a fault, a load, a fleet or a profile in their names are single runs",
        "an aim is met when the mean meets it; SLO of goodput: TTFT ≤ 1 s and TPOT ≤ 50 ms",
        "real: the router's price, output prediction, waiting room, credits, chooser, policies, prefix index, lanes, health",
        "models: users, workers and what passes between workers and router",
    ]
    result = result_here("sim", rows, command=command, packages=("pagoda-bench", "pagoda-router"), notes=notes)
    write(result, output)
    output.with_suffix(".md").write_text(document(result))
    print(document(result), f"wrote {output} {output.with_suffix('.md')}", sep="\n")
    if plots is not None:
        draw(result, plots)
        write_page(result)


def _cases(workloads: Sequence[str], workers: int, duration_s: float, profile: str) -> Iterator[tuple[str, list[Job]]]:
    parameters = read_parameters()
    common = Job(workload="mixed", policy=PolicyName.PREDICTED, seed=0, workers=workers, duration_s=duration_s, profile=profile)
    for workload in workloads:
        yield (
            workload,
            [
                replace(common, workload=workload, policy=policy, seed=seed)
                for policy in (FLOOD_POLICIES if workload == "flood" else PolicyName)
                for seed in parameters.unseen_seeds
            ],
        )
        yield (
            f"{workload} tuning",
            [
                replace(common, workload=workload, policy=policy, seed=seed)
                for policy in (PolicyName.PREDICTED, PolicyName.LEAST_LOADED)
                for seed in parameters.tuning_seeds
            ],
        )
    seed = parameters.unseen_seeds[0]
    if "shared-prefix" in workloads:
        within = replace(common, workload="shared-prefix", seed=seed, load=WITHIN_CAPACITY)
        yield f"shared-prefix load={WITHIN_CAPACITY:g}", [replace(within, policy=policy) for policy in FAULT_POLICIES]
    if "mixed" not in workloads:
        return
    for load in LOADS:
        yield f"{LOAD}{load:g}", [replace(common, policy=policy, seed=seed, load=load) for policy in LOAD_POLICIES]
    yield (
        "mixed profile=0.45b",
        [replace(common, policy=policy, seed=seed, profile="0.45b", duration_s=SLOWER * duration_s) for policy in FAULT_POLICIES],
    )
    for fleet, most_s in FLEETS.items():
        large = replace(common, workers=fleet, seed=seed, duration_s=min(duration_s, most_s))
        yield f"mixed workers={fleet}", [replace(large, policy=policy) for policy in FLEET_POLICIES]
    third = duration_s / 3
    faults = {
        "death": Fault(0, third, 2 * third),
        "slow": Fault(0, third, 2 * third, slowness=4.0),
        "late": Fault(0, 0.0, 2 * third),  # it joins when the others are busy
    }
    for name, fault in faults.items():
        yield f"mixed fault={name}", [replace(common, policy=policy, seed=seed, load=0.6, faults=(fault,)) for policy in FAULT_POLICIES]


def _list(seeds: Sequence[int]) -> str:
    return ", ".join(str(seed) for seed in seeds)
