"""Do waves pay? Throughput of simulated fleets that are never idle, waves off and on, each with the settings that one and the same search
finds best for it.

    every setting × off, on ─▶ tokens/s on the tuning seed ─▶ the best of each arm ─▶ tokens/s on the unseen seeds ─▶ on over off

Drives the router's real waiting room, prices, credits and policies (sim/). Called by __main__.py.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context
from statistics import fmean

from pagoda_bench.results import Row
from pagoda_bench.sim.demand import conversations
from pagoda_bench.sim.engine_profile import profile_named
from pagoda_bench.sim.fleet import Simulation
from pagoda_bench.sim.parameters import read_parameters
from pagoda_bench.sim.router import Room
from pagoda_bench.sim.run import arrivals_per_s
from pagoda_router.placement.scores import PolicyName

WORKLOAD = "mixed"
LOAD = 6.0
"""Times what the fleet can do, so that batches are full soon and the queue only grows."""
WORKERS = 4
WARM_UP = 1 / 2
"""Of a run: batches and queue fill."""
AIM = 1.5
PROFILES = {"h100-8b": 60.0, "0.45b": 900.0}
"""And seconds of arrivals: about as many requests in each."""
POLICIES = (PolicyName.PREDICTED, PolicyName.LENGTH, PolicyName.LEAST_LOADED)
MAX_RUNNING = {"h100-8b": (64, 256), "0.45b": (8, 32)}
PREFILL_SHARES = (1 / 4, 1)
"""Of maxBatchTokens: prompt tokens of a step in which something decodes (`longPrefillTokens`)."""
ENDLESS = Room(max_tokens=2**40, timeout_s=math.inf)
"""Nobody is refused: who waits and who is turned away must not differ between the arms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    profile: str
    waves: bool
    policy: PolicyName = PolicyName.PREDICTED
    max_running: int | None = None
    """None: the profile's own."""
    long_prefill_tokens: int | None = None

    def __str__(self) -> str:
        own = "defaults" if self.max_running is None else f"maxRunning {self.max_running}, longPrefillTokens {self.long_prefill_tokens}"
        return f"{self.policy.value}, {own}"


@dataclass(frozen=True, slots=True)
class Trial:
    setting: Setting
    seed: int
    tokens_per_s: float
    """Prompt and output tokens of the requests that ended in the window."""
    requests_per_s: float
    waited: int
    """Requests in the queue at the end: saturation is when there are any."""


def settings_of(profile: str, *, waves: bool) -> Iterator[Setting]:
    """What is searched: the same for both arms."""
    most = profile_named(profile).max_batch_tokens
    for policy, running, share in product(POLICIES, MAX_RUNNING[profile], PREFILL_SHARES):
        yield Setting(profile=profile, waves=waves, policy=policy, max_running=running, long_prefill_tokens=int(most * share))


def run(setting: Setting, seed: int, seconds: float) -> Trial:
    """Raises SettingsError for a profile that there is not."""
    usual, workload = profile_named(setting.profile), replace(read_parameters().workloads[WORKLOAD], load=LOAD)
    profile = replace(
        usual,
        max_running=setting.max_running or usual.max_running,
        long_prefill_tokens=setting.long_prefill_tokens or usual.long_prefill_tokens,
    )
    # As the usual profile has it: what a setting makes of the same users is the question.
    users = conversations(workload, arrivals_per_s(workload, usual, WORKERS), seconds, seed, profile.block_size)
    room = replace(ENDLESS, waves=setting.waves)
    simulation = Simulation(users, profile, WORKERS, setting.policy, seed=seed, room=room)
    requests = simulation.run(stop_s=seconds)
    begin_s = WARM_UP * seconds
    ended = [request for request in requests if request.ended_s is not None and request.ended_s >= begin_s]
    tokens = sum(request.prompt_tokens + request.output_tokens for request in ended)
    took_s = seconds - begin_s
    return Trial(setting, seed, tokens / took_s, len(ended) / took_s, simulation.waiting)


def search(profile: str, processes: int) -> Iterator[Row]:
    """Raises SettingsError."""
    seconds, parameters = PROFILES[profile], read_parameters()
    case = f"{WORKLOAD} {profile}"
    found: dict[bool, Setting] = {}
    tried = _run([(setting, seed, seconds) for waves in (False, True) for setting in settings_of(profile, waves=waves)
                  for seed in parameters.tuning_seeds], processes)  # fmt: skip
    for waves in (False, True):
        of_arm: dict[Setting, list[float]] = {}
        for trial in tried:
            if trial.setting.waves is waves:
                of_arm.setdefault(trial.setting, []).append(trial.tokens_per_s)
        found[waves] = max(of_arm, key=lambda setting: fmean(of_arm[setting]))
        yield Row(case=case, system=_name(waves), metric="settings_tried", value=len(of_arm), unit="1")
    arms = {
        f"{_name(waves=False)}, defaults": Setting(profile=profile, waves=False),
        f"{_name(waves=True)}, defaults": Setting(profile=profile, waves=True),
        _name(waves=False): found[False],
        _name(waves=True): found[True],
    }
    unseen = _run([(setting, seed, seconds) for setting in arms.values() for seed in parameters.unseen_seeds], processes)
    by_arm = {name: [trial for trial in unseen if trial.setting == setting] for name, setting in arms.items()}
    for name, trials in by_arm.items():
        yield _row(case, name, "tokens_per_s", "tokens/s", [trial.tokens_per_s for trial in trials])
        yield _row(case, name, "requests_per_s", "requests/s", [trial.requests_per_s for trial in trials])
        yield _row(case, name, "left_waiting", "1", [trial.waited for trial in trials])
    for ours, theirs in ((_name(waves=True), _name(waves=False)), (f"{_name(waves=True)}, defaults", f"{_name(waves=False)}, defaults")):
        ratios = [on.tokens_per_s / off.tokens_per_s for on, off in zip(by_arm[ours], by_arm[theirs], strict=True)]
        ratio = _row(case, f"{ours} / {theirs}", "tokens_per_s_ratio", "1", ratios)
        yield replace(ratio, aim=f"≥ {AIM:g}", met=ratio.value >= AIM) if ours == _name(waves=True) else ratio


def best_of(rows: Iterable[Row]) -> float:
    """The largest gain of tuned waves over tuned none."""
    return max(row.value for row in rows if row.aim is not None)


def _name(waves: bool) -> str:
    return f"waves {'on' if waves else 'off'}"


def _row(case: str, system: str, metric: str, unit: str, values: Sequence[float]) -> Row:
    return Row(case=case, system=system, metric=metric, value=fmean(values), unit=unit, low=min(values), high=max(values))


def _run(jobs: Sequence[tuple[Setting, int, float]], processes: int) -> list[Trial]:
    """In the order of the jobs."""
    if processes == 1:
        return [run(*job) for job in jobs]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(run, *zip(*jobs, strict=True)))
