"""One run or all of them: draws the users, simulates, reduces to figures. Called by the command, by report.py, and by the regression test.

Runs are independent, so several processes share them; every one follows from its job alone.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context

from pagoda_bench.sim.demand import Conversation, conversations
from pagoda_bench.sim.engine_profile import EngineProfile, conversations_per_s, profile_named
from pagoda_bench.sim.figures import Slo, Window, figures, kept_shares
from pagoda_bench.sim.fleet import Fault, Simulation
from pagoda_bench.sim.parameters import Workload, read_parameters
from pagoda_bench.sim.requests import SimRequest
from pagoda_router.placement.scores import PolicyName

WARM_UP = 1 / 4
"""Of a run's duration."""
SAMPLE_PER_S, SAMPLE_S = 100.0, 20.0
"""Conversations whose lengths say how dear one is: always the same, whatever the seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    workload: str
    policy: PolicyName
    seed: int
    workers: int = 8
    duration_s: float = 60.0
    profile: str = "h100-8b"
    load: float | None = None
    """None: the workload's own."""
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    job: Job
    figures: Mapping[str, float]


def simulate(job: Job) -> Outcome:
    """Raises SettingsError for a profile that there is not."""
    workload, profile = read_parameters().workloads[job.workload], profile_named(job.profile)
    size = profile.block_size
    rate_per_s = arrivals_per_s(workload, profile, job.workers)
    if job.load is not None:
        rate_per_s *= job.load / workload.load
    duration_s = job.duration_s * workload.times_longer
    users = conversations(workload, rate_per_s, duration_s, job.seed, size)
    requests = Simulation(users, profile, job.workers, job.policy, seed=job.seed, faults=job.faults, until_s=duration_s).run()
    window = Window(duration_s * WARM_UP, duration_s)
    found = figures(requests, window, Slo())
    if workload.tenant_shares:
        victim = min(range(workload.tenants), key=lambda tenant: workload.tenant_shares[tenant])
        of_victim = [request for request in requests if request.conversation.tenant == victim]
        found["victim_share_ratio"] = kept_shares(requests, window).get(victim, 0.0)
        found |= {f"victim_{name}": value for name, value in figures(of_victim, window, Slo()).items() if name in VICTIM_FIGURES}
    return Outcome(job, found)


Shape = Callable[[Conversation], Conversation]


def _as_it_is(user: Conversation) -> Conversation:
    return user


def _lengths(workload: Workload, block_size: int, shape: Shape = _as_it_is) -> list[list[tuple[int, int]]]:
    """Of the turns of conversations like those to come."""
    sample = (shape(conversation) for conversation in conversations(workload, SAMPLE_PER_S, SAMPLE_S, 0, block_size))
    return [[(turn.prompt_tokens, turn.output_tokens) for turn in conversation.turns] for conversation in sample]


def arrivals_per_s(workload: Workload, profile: EngineProfile, workers: int) -> float:
    """Conversations that ask for `workload.load` of these workers' capacity."""
    return conversations_per_s(workload, profile, workers, _lengths(workload, profile.block_size))


def first_turns(
    workload_name: str,
    profile: EngineProfile,
    workers: int,
    duration_s: float,
    seed: int,
    shape: Shape = _as_it_is,
    most_tenants: int | None = None,
) -> list[Conversation]:
    """Users whose first turns ask for the workload's part of this fleet's capacity, for a run outside of the simulator. `shape`: makes each
    as long as the workers there can take it; `most_tenants`: for a fleet smaller than the workload's."""
    workload, size = read_parameters().workloads[workload_name], profile.block_size
    if most_tenants is not None:
        workload = replace(workload, tenants=min(workload.tenants, most_tenants))

    def alone(user: Conversation) -> Conversation:
        return shape(replace(user, turns=user.turns[:1], _own_hashes=[]))

    rate_per_s = conversations_per_s(workload, profile, workers, _lengths(workload, size, alone))
    return [alone(user) for user in conversations(workload, rate_per_s, duration_s, seed, size)]


def played(users: Sequence[Conversation], profile: EngineProfile, workers: int, policy: str, seed: int) -> list[SimRequest]:
    """Given users on given workers, simulated."""
    return Simulation(users, profile, workers, PolicyName(policy), seed=seed).run()


VICTIM_FIGURES = ("ttft_p95_s", "shed_ratio")


def simulate_all(jobs: Iterable[Job], processes: int) -> list[Outcome]:
    if processes == 1:
        return [simulate(job) for job in jobs]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(simulate, jobs))
