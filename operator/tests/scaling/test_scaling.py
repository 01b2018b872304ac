"""Numbers of workers from demand: a table of situations, promises that hold for any history, and a fleet that is simulated."""

import itertools
import math
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cases import NOW, TINY, inference_model, router, settled, worker
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pagoda_operator.manifest.scaling import Scaling, ScalingTarget
from pagoda_operator.manifest.spec import parse
from pagoda_operator.observed.world import ModelReport, Observed, RouterReport, WorkerReport
from pagoda_operator.scaling.decide import FRESH_S, Sample, ScalingDecision, decide
from pagoda_operator.scaling.demand import sample_of
from pagoda_operator.scaling.history import DECISIONS, ScalingHistory

T = 1000.0
"""Now, on the monotonic clock of the tests."""
POLICY = Scaling(min=1, max=8, stable_s=30, target=ScalingTarget(queued_tokens=1000, kv_use_percent=80))
SLEEPER = replace(POLICY, min=0, idle_s=60)
CALM: dict[str, Any] = {"queued_tokens": 0, "waiting": 0, "in_flight": 0, "kv_use": 0.0, "ttft_p95_s": None, "idle_s": 100.0, "ready": 1}


def sample(at_s: float = T, **facts: Any) -> Sample:
    return Sample(at_s=at_s, **{**CALM, **facts})


def minute(**facts: Any) -> list[Sample]:
    """The same for a minute until now."""
    return [sample(T - 60 + i, **facts) for i in range(61)]


SITUATIONS: dict[str, tuple[Scaling, int, list[Sample], int, str]] = {
    "nothing known": (POLICY, 3, [], 3, "no router has answered lately"),
    "nothing known for long": (POLICY, 3, [sample(T - FRESH_S - 1)], 3, "no router has answered lately"),
    "below min": (replace(POLICY, min=2), 1, [], 2, "spec.scaling.min is 2"),
    "above max": (POLICY, 12, [], 8, "spec.scaling.max is 8"),
    "external": (replace(POLICY, mode="external", replicas=12), 3, minute(queued_tokens=9999), 12, "spec.scaling asks for 12"),
    "fixed": (Scaling(min=2, max=2), 5, minute(), 2, "spec.scaling asks for 2"),
    "a queue": (POLICY, 2, [sample(queued_tokens=2500, ready=2)], 3, "2500 tokens wait, 1000 per worker are allowed"),
    "a long queue doubles at most": (POLICY, 2, [sample(queued_tokens=90_000, ready=2)], 4, "90000 tokens wait"),
    "a queue at max": (POLICY, 8, [sample(queued_tokens=90_000, ready=8)], 8, "max is 8"),
    "a queue, and workers on their way": (POLICY, 4, [sample(queued_tokens=3500, ready=1)], 4, "4 workers carry"),
    "full caches": (POLICY, 2, [sample(kv_use=0.9, in_flight=9, ready=2)], 3, "KV caches are 90% full, 80% is allowed"),
    "full caches, and a worker on its way": (POLICY, 3, [sample(kv_use=0.9, in_flight=9, ready=2)], 3, "3 workers carry"),
    "caches at the target": (POLICY, 2, [sample(kv_use=0.8, in_flight=9, ready=2)], 2, "2 workers carry"),
    "slow first tokens": (
        replace(POLICY, target=replace(POLICY.target, ttft_s=1.0)),
        2,
        minute(ttft_p95_s=1.2, ready=2, in_flight=1),
        3,
        "TTFT p95 is 1.20 s, 1 s is allowed",
    ),
    "slow first tokens of a fleet that was smaller a moment ago": (
        replace(POLICY, target=replace(POLICY.target, ttft_s=1.0)),
        2,
        [*minute(ttft_p95_s=1.2, in_flight=1)[:-5], *minute(ttft_p95_s=1.2, ready=2, in_flight=1)[-5:]],
        2,
        "2 workers carry",
    ),
    "calm for long": (POLICY, 3, minute(ready=3), 2, "for 30 s 2 would have been enough"),
    "calm, but not long enough": (POLICY, 3, minute(ready=3)[-20:], 3, "30 s without a gap have not been seen yet"),
    "calm, with a gap": (POLICY, 3, [*minute(ready=3)[:40], *minute(ready=3)[-8:]], 3, "without a gap"),
    "calm since a moment": (
        POLICY,
        3,
        [*minute(queued_tokens=2500, ready=3)[:50], *minute(ready=3)[50:]],
        3,
        "were needed within the last 30 s",
    ),
    "fewer since a moment": (
        POLICY,
        3,
        [*minute(in_flight=1, ready=4)[:50], *minute(in_flight=1, ready=3)[50:]],
        3,
        "3 workers have not been alone for 30 s",
    ),
    "the last of a model that never sleeps": (POLICY, 1, minute(), 1, "min is 1"),
    "idle long enough": (SLEEPER, 1, minute(), 0, "no request for 100 s, spec.scaling.idleSeconds is 60"),
    "idle not long enough": (SLEEPER, 1, minute(idle_s=59.0), 1, "idle for 59 s, asleep after 60 s"),
    "idle, says one router, and the other nothing": (SLEEPER, 1, minute(idle_s=None), 1, "a router did not answer"),
    "a request in the stable window": (SLEEPER, 1, [*minute(in_flight=1)[:40], *minute()[40:]], 1, "requests came"),
    "asleep": (SLEEPER, 0, minute(ready=0), 0, "min is 0"),
    "asleep, and somebody waits": (SLEEPER, 0, [sample(waiting=1, ready=0, kv_use=None, idle_s=0.0)], 1, "1 requests wait"),
    "asleep, and many wait": (SLEEPER, 0, [sample(waiting=90, queued_tokens=9000, ready=0, idle_s=0.0)], 1, "9000 tokens wait"),
}


@pytest.mark.parametrize(("policy", "current", "samples", "replicas", "words"), SITUATIONS.values(), ids=SITUATIONS.keys())
def test_each_situation_has_its_number_and_its_sentence(
    policy: Scaling, current: int, samples: list[Sample], replicas: int, words: str
) -> None:
    decision = decide(policy, current, samples, T)
    assert (decision.replicas, words in decision.reason) == (replicas, True), decision


POLICIES = st.builds(
    lambda least, more, **rest: Scaling(min=least, max=least + more, **rest),
    st.integers(0, 4),
    st.integers(0, 8),
    mode=st.just("auto"),
    idle_s=st.sampled_from([5.0, 600.0]),
    stable_s=st.sampled_from([1.0, 10.0, 60.0]),
    target=st.builds(
        ScalingTarget, queued_tokens=st.integers(1, 5000), kv_use_percent=st.integers(1, 100), ttft_s=st.none() | st.just(1.0)
    ),
)
SAMPLES = st.builds(
    Sample,
    at_s=st.floats(T - 100, T),
    queued_tokens=st.integers(0, 100_000),
    waiting=st.integers(0, 100),
    in_flight=st.integers(0, 100),
    kv_use=st.none() | st.floats(0, 1),
    ttft_p95_s=st.none() | st.floats(0, 10),
    idle_s=st.none() | st.floats(0, 1000),
    ready=st.integers(0, 12),
)
HISTORIES = st.lists(SAMPLES, max_size=30).map(lambda samples: sorted(samples, key=lambda each: each.at_s))


@given(POLICIES, st.integers(0, 15), HISTORIES)
def test_whatever_was_seen_the_number_is_allowed_and_steps_are_small(policy: Scaling, current: int, samples: list[Sample]) -> None:
    decision = decide(policy, current, samples, T)
    assert policy.min <= decision.replicas <= policy.max
    assert decision.reason
    if policy.min <= current <= policy.max and policy.fixed is None:
        assert current - 1 <= decision.replicas <= max(current + 1, 2 * current)
    if decision.replicas == 0 < current and policy.max > 0 and policy.fixed is None:
        recent = [each for each in samples if each.at_s > T - policy.stable_s]
        assert not any(each.waiting or each.in_flight or each.queued_tokens for each in recent)
        assert (samples[-1].idle_s or 0) >= policy.idle_s


@given(POLICIES, st.integers(0, 15), HISTORIES)
def test_what_nobody_tells_never_scales_down(policy: Scaling, current: int, samples: list[Sample]) -> None:
    stale = [each for each in samples if each.at_s < T - FRESH_S]
    if policy.fixed is None and current <= policy.max:
        assert decide(policy, current, stale, T).replicas >= current


@given(st.integers(1, 8), st.integers(1, 12))
def test_the_queue_alone_asks_for_no_more_than_it_needs_however_many_load(current: int, ready: int) -> None:
    waiting = [sample(queued_tokens=1000 * current, in_flight=1, ready=min(ready, current))]
    assert decide(POLICY, current, waiting, T).replicas == current


# ---------------------------------------------------------------- from the world to a sample

SPEC = {"model": {"source": TINY}, "scaling": {"min": 0, "max": 4}}
MODEL = parse(inference_model(spec=SPEC))
BASE = settled([inference_model(spec=SPEC)])


def seen(*reports: RouterReport, workers: int = 1, routers: int | None = None) -> Observed:
    pods = [worker(BASE, number=i) for i in range(workers)]
    pods += [router(BASE, name=f"pagoda-router-{i}") for i in range(len(reports) if routers is None else routers)]
    return replace(BASE, pods=pods, reports={("default", f"pagoda-router-{i}"): report for i, report in enumerate(reports)})


def report(*, free: int = 100, reserved: int | None = None, used: int = 0, in_flight: int = 0, **facts: Any) -> RouterReport:
    told = WorkerReport(
        routable=True,
        in_flight=in_flight,
        kv_capacity_tokens=100,
        kv_available_tokens=free,
        kv_reserved_tokens=reserved,
        kv_used_tokens=used,
    )
    return RouterReport(workers={"chat-default-0": told}, models={"chat": ModelReport(**facts)})


def test_demand_is_the_routers_sum_and_sleep_needs_the_word_of_each() -> None:
    both = seen(
        report(in_flight=2, waiting=3, queued_tokens=30, idle_s=0.0, free=50),
        report(in_flight=1, waiting=1, queued_tokens=10, idle_s=9.0, free=40),
    )
    assert sample_of(MODEL, MODEL.variants[0], both, T) == Sample(
        at_s=T, queued_tokens=40, waiting=4, in_flight=3, kv_use=0.6, ttft_p95_s=None, idle_s=0.0, ready=1
    )
    one_silent = sample_of(MODEL, MODEL.variants[0], seen(report(idle_s=9.0), routers=2), T)
    assert one_silent is not None
    assert one_silent.idle_s is None
    assert sample_of(MODEL, MODEL.variants[0], seen(routers=2), T) is None


@pytest.mark.parametrize(
    ("first", "second", "use"),
    [
        ({"free": 50, "reserved": 0}, {"free": 50, "reserved": 0}, 0.0),
        ({"free": 30, "reserved": 20}, {"free": 10, "reserved": 40}, 0.6),
        ({"free": 40, "reserved": 10, "used": 35}, {"free": 50, "reserved": 0, "used": 30}, 0.35),
        ({"free": 0, "reserved": 90}, {"free": 0, "reserved": 90}, 1.0),
        ({"free": 40}, {"free": 50, "reserved": 30}, 0.3),
    ],
    ids=["nobody asks", "both reserve", "the worker knows of more", "never above all", "one router is older"],
)
def test_the_use_of_a_cache_is_what_requests_hold_not_what_a_router_of_several_may_not_reserve(
    first: dict[str, int], second: dict[str, int], use: float
) -> None:
    told = sample_of(MODEL, MODEL.variants[0], seen(report(**first), report(**second)), T)
    assert told is not None
    assert told.kv_use == use


def test_requests_that_ask_for_no_variant_count_by_weight_and_named_ones_where_they_must_go() -> None:
    variants = [{"name": "stable", "weight": 90}, {"name": "canary", "weight": 10}, {"name": "trial", "weight": 0}]
    model = parse(inference_model(spec={**SPEC, "variants": variants}))
    observed = seen(
        RouterReport(workers={}, models={"chat": ModelReport(waiting=10, queued_tokens=100, waiting_by_variant={"": 9, "trial": 1})})
    )
    told = [sample_of(model, variant, observed, T) for variant in model.variants]
    assert [(each.waiting, each.queued_tokens) for each in told if each] == [(9, 90), (1, 10), (1, 0)]


# ---------------------------------------------------------------- a fleet over time


class Fleet:
    """Workers that take 20 s to load, a router that tells of constant or changing demand."""

    def __init__(self, scaling: dict[str, Any]) -> None:
        self.model = parse(inference_model(spec={"model": {"source": TINY}, "scaling": scaling}))
        self.history = ScalingHistory()
        self.desired = self.model.variants[0].scaling.at_first
        self.up_at = [0.0] * self.desired
        self.now = 0.0
        self.counts: list[int] = []

    def run(self, seconds: int, demand: float, *, queue_when_short: int = 500, answers: bool = True) -> None:
        """`demand`: in workers' worth; a fleet of fewer queues, one of more fills its caches in proportion."""
        for _ in range(seconds):
            self.now += 1
            ready = sum(at <= self.now for at in self.up_at)
            short = demand > ready
            idle_s = 0.0 if demand else 100.0
            told = ModelReport(queued_tokens=queue_when_short if short else 0, waiting=1 if short else 0, idle_s=idle_s)
            busy = min(1.0, demand / ready * 0.3) if ready else 0.0
            workers = {
                f"chat-default-{i}": WorkerReport(
                    routable=True, in_flight=1 if demand else 0, kv_capacity_tokens=1000, kv_available_tokens=round(1000 * (1 - busy))
                )
                for i in range(ready)
            }
            observed = seen(*([RouterReport(workers=workers, models={"chat": told})] if answers else []), workers=ready, routers=1)
            decision = self.history.decide(self.model, {"default": self.desired}, observed, self.now)["default"]
            if decision.replicas != self.desired:
                self.history.record(self.model.key, "default", self.desired, decision, NOW + timedelta(seconds=self.now))
            self.up_at = self.up_at[: decision.replicas] + [self.now + 20.0] * (decision.replicas - len(self.up_at))
            self.desired = decision.replicas
            self.counts.append(self.desired)


AUTO = {"min": 1, "max": 8, "stableSeconds": 30, "target": {"queuedTokens": 400}}


def test_a_load_between_two_and_three_workers_settles_at_three_instead_of_swinging() -> None:
    fleet = Fleet(AUTO)
    fleet.run(7200, 2.4, queue_when_short=1100)
    ups = sum(b > a for a, b in zip(fleet.counts, fleet.counts[1:], strict=False))
    assert fleet.desired == 3
    assert ups <= 8
    assert fleet.counts[3600:].count(3) > 0.9 * 3600


def test_after_a_burst_the_fleet_shrinks_to_what_the_rest_needs() -> None:
    fleet = Fleet(AUTO)
    fleet.run(60, 0.5)
    fleet.run(60, 6.0, queue_when_short=5000)
    assert max(fleet.counts) == 8
    fleet.run(600, 0.0)
    assert fleet.desired == 1


def test_a_model_sleeps_when_idle_wakes_at_once_and_stays_awake_while_nobody_knows() -> None:
    fleet = Fleet({"min": 0, "max": 2, "idleSeconds": 30, "stableSeconds": 10})
    assert fleet.desired == 0
    fleet.run(1, 0.5)
    assert fleet.desired == 1
    fleet.run(30, 0.5)
    fleet.run(600, 0.0, answers=False)
    assert fleet.desired == 1
    fleet.run(40, 0.0)
    assert fleet.desired == 0


@hypothesis_settings(max_examples=30)  # each lasts 400 s of the fleet's
@given(st.floats(0.1, 7.9), st.integers(1, 8))
def test_constant_load_gets_enough_workers_whatever_the_start_and_does_not_swing(demand: float, start: int) -> None:
    fleet = Fleet(AUTO)
    fleet.desired, fleet.up_at = start, [0.0] * start
    fleet.run(400, demand, queue_when_short=400 * 8)
    assert math.ceil(demand) <= max(fleet.counts[-100:]) <= 8
    too_few = [count < math.ceil(demand) for count in fleet.counts[100:]]
    assert sum(b and not a for a, b in itertools.pairwise(too_few)) <= 1


def test_the_last_five_decisions_are_kept_the_latest_first_until_the_model_goes() -> None:
    history = ScalingHistory()
    for i in range(DECISIONS + 2):
        history.record("default/chat", "default", i, ScalingDecision(i + 1, "why"), NOW)
    assert [each["to"] for each in history.decisions("default/chat")] == [7, 6, 5, 4, 3]
    history.forget("default/chat")
    assert history.decisions("default/chat") == []
