"""How many workers a variant should have, from what its routers saw. `decide` and `sample_of` are pure; `ScalingHistory` remembers.

Called by local/supervisor.py and cluster/loop.py once per answer of the routers. What nobody knows is never taken for no demand.

    up       at once, to what the pressure needs: at most double, at least one more; workers that still load count as there
    down     one at a time, when fewer would have done at every moment of the stable window
    to zero  when every router has been idle for idleSeconds, and for the whole window
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from pagoda_operator.conditions import rfc3339
from pagoda_operator.observed import LABEL_COMPONENT, LABEL_MODEL, LABEL_VARIANT, ModelReport, Observed, PodView
from pagoda_operator.spec import InferenceModel, Scaling, Variant

FRESH_S = 5.0
"""A sample older than this tells nothing of now."""
GAP_S = 10.0
"""A longer silence in the stable window makes it incomplete."""
TTFT_WINDOW_S = 60.0
"""Routers tell the TTFT of the last minute: it judges a fleet only when that stood as it is for as long."""
HELD_WINDOWS = 10
"""After a number of workers proved too small, so many stable windows pass before it is tried again under load; twice as many each time."""
LONGEST_HOLD_S = 86_400.0
DECISIONS = 5
LARGEST_BUCKET_S = 5.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at one variant's demand."""

    at_s: float
    queued_tokens: int
    waiting: int
    """Requests that wait for a worker."""
    in_flight: int
    kv_use: float | None
    """Share of the ready workers' KV caches, 0 to 1. None: no worker told."""
    ttft_p95_s: float | None
    """Of the last minute. None: nothing was answered in it."""
    idle_s: float | None
    """Since the busiest router last had anything to do. None: a router did not answer, so nobody knows."""
    ready: int
    """Workers that take requests."""


@dataclass(frozen=True, slots=True)
class ScalingDecision:
    replicas: int
    reason: str
    """One sentence with the numbers."""


def decide(policy: Scaling, current: int, samples: Sequence[Sample], now_s: float) -> ScalingDecision:
    """`current`: workers wanted until now, those that still load included. `samples`: oldest first."""
    if policy.fixed is not None:
        return ScalingDecision(policy.fixed, f"spec.scaling asks for {policy.fixed}")
    if current < policy.min:
        return ScalingDecision(policy.min, f"spec.scaling.min is {policy.min}")
    if current > policy.max:
        return ScalingDecision(policy.max, f"spec.scaling.max is {policy.max}")
    if not samples or now_s - samples[-1].at_s > FRESH_S:
        return ScalingDecision(current, "no router has answered lately: nothing changes")
    need, why = _need(policy, current, samples, now_s)
    if need > current:
        wanted = max(current + 1, min(need, 2 * current))
        return (
            ScalingDecision(min(wanted, policy.max), why)
            if current < policy.max
            else ScalingDecision(current, f"{why}; max is {policy.max}")
        )
    return _fewer(policy, current, samples, now_s)


def _need(policy: Scaling, current: int, samples: Sequence[Sample], now_s: float) -> tuple[int, str]:
    """Workers that the latest sample asks for, and why."""
    latest, target = samples[-1], policy.target
    wishes = [
        (_for_presence(latest), f"{latest.waiting} requests wait and {latest.in_flight} are in flight"),
        (_for_queue(policy, latest), f"{latest.queued_tokens} tokens wait, {target.queued_tokens} per worker are allowed"),
        (_for_kv(policy, latest), f"KV caches are {latest.kv_use or 0:.0%} full, {target.kv_use_percent}% is allowed"),
        (_for_ttft(policy, current, samples, now_s), f"TTFT p95 is {latest.ttft_p95_s or 0:.2f} s, {target.ttft_s or 0:g} s is allowed"),
    ]
    return max(wishes, key=lambda wish: wish[0])


def _for_presence(sample: Sample) -> int:
    return 1 if sample.waiting or sample.in_flight or sample.queued_tokens else 0


def _for_queue(policy: Scaling, sample: Sample) -> int:
    return math.ceil(sample.queued_tokens / policy.target.queued_tokens)


def _for_kv(policy: Scaling, sample: Sample) -> int:
    """What the ready workers hold, spread so that each stays at the target. Those that load will take their share: no second call."""
    if sample.kv_use is None:
        return 0
    return math.ceil(round(sample.kv_use * sample.ready * 100 / policy.target.kv_use_percent, 6))


def _for_ttft(policy: Scaling, current: int, samples: Sequence[Sample], now_s: float) -> int:
    latest, target_s = samples[-1], policy.target.ttft_s
    if target_s is None or latest.ttft_p95_s is None or latest.ttft_p95_s <= target_s:
        return 0
    minute = _window(samples, TTFT_WINDOW_S, now_s)
    if minute is None or any(sample.ready != current for sample in minute):
        return 0
    return max(current + 1, math.ceil(current * min(2.0, latest.ttft_p95_s / target_s)))


def _fewer(policy: Scaling, current: int, samples: Sequence[Sample], now_s: float) -> ScalingDecision:
    if current == policy.min:
        return ScalingDecision(current, f"spec.scaling.min is {policy.min}")
    latest = samples[-1]
    if _bound(policy, latest) >= current and current > 1:
        return ScalingDecision(
            current, f"{current} workers carry {latest.in_flight} requests in flight and {latest.queued_tokens} waiting tokens"
        )
    window = _window(samples, policy.stable_s, now_s)
    if window is None:
        return ScalingDecision(current, f"{policy.stable_s:g} s without a gap have not been seen yet")
    if current == 1:
        return _asleep(policy, window)
    if any(sample.ready > current and _for_presence(sample) for sample in window):
        # one more was there for a part of the window: whether these are enough under load is not known yet
        return ScalingDecision(current, f"{current} workers have not been alone for {policy.stable_s:g} s")
    if all(_bound(policy, sample) < current for sample in window):
        return ScalingDecision(current - 1, f"for {policy.stable_s:g} s {current - 1} would have been enough")
    return ScalingDecision(current, f"{current} workers were needed within the last {policy.stable_s:g} s")


def _bound(policy: Scaling, sample: Sample) -> int:
    """Workers without which a sample would have been over a target. A TTFT above half its target speaks against fewer."""
    strained = policy.target.ttft_s is not None and (sample.ttft_p95_s or 0.0) > policy.target.ttft_s / 2
    return max(_for_presence(sample), _for_queue(policy, sample), _for_kv(policy, sample), sample.ready if strained else 0)


def _asleep(policy: Scaling, window: Sequence[Sample]) -> ScalingDecision:
    """The last one ends: only for a model that may sleep, being the case when 1 is above min."""
    idle_s = window[-1].idle_s
    if idle_s is None or any(_for_presence(sample) or sample.idle_s is None for sample in window):
        return ScalingDecision(1, "requests came within the stable window, or a router did not answer")
    if idle_s < policy.idle_s:
        return ScalingDecision(1, f"idle for {idle_s:.0f} s, asleep after {policy.idle_s:g} s")
    return ScalingDecision(0, f"no request for {idle_s:.0f} s, spec.scaling.idleSeconds is {policy.idle_s:g}")


def _window(samples: Sequence[Sample], length_s: float, now_s: float) -> Sequence[Sample] | None:
    """The samples of the last `length_s` seconds, the one before them included. None: they do not cover it."""
    first = len(samples) - 1
    while first > 0 and samples[first].at_s > now_s - length_s:
        if samples[first].at_s - samples[first - 1].at_s > GAP_S:
            return None
        first -= 1
    return samples[first:] if samples[first].at_s <= now_s - length_s else None


# ---------------------------------------------------------------- from the world to a sample


def sample_of(model: InferenceModel, variant: Variant, observed: Observed, at_s: float) -> Sample | None:
    """None: no router of the model's namespace answered, so nobody knows."""
    reports = {name: report for (namespace, name), report in observed.reports.items() if namespace == model.namespace}
    told = [report.models[model.name] for report in reports.values() if model.name in report.models]
    if not told:
        return None
    workers = [pod for pod in observed.pods if _is_of(pod, model, variant)]
    names = {pod.name for pod in workers}
    share = _share(model, variant)
    return Sample(
        at_s=at_s,
        queued_tokens=math.ceil(sum(each.queued_tokens for each in told) * share),
        waiting=sum(_waiting(each, variant.name, share) for each in told),
        in_flight=sum(worker.in_flight for report in reports.values() for name, worker in report.workers.items() if name in names),
        kv_use=_kv_use(reports.values(), {pod.name for pod in workers if pod.ready}),
        ttft_p95_s=max((each.ttft_p95_s for each in told if each.ttft_p95_s is not None), default=None),
        idle_s=min(each.idle_s for each in told) if len(told) >= _routers(model, observed) else None,
        ready=sum(pod.ready for pod in workers if not pod.terminating),
    )


def _is_of(pod: PodView, model: InferenceModel, variant: Variant) -> bool:
    labels = pod.labels
    return (pod.namespace, labels.get(LABEL_MODEL), labels.get(LABEL_VARIANT)) == (model.namespace, model.name, variant.name)


def _routers(model: InferenceModel, observed: Observed) -> int:
    """Those that take requests, and must all be asked before a model sleeps."""
    routers = (pod for pod in observed.pods if pod.namespace == model.namespace and pod.labels.get(LABEL_COMPONENT) == "router")
    return sum(pod.serving for pod in routers)


def _share(model: InferenceModel, variant: Variant) -> float:
    return variant.weight / total if (total := sum(each.weight for each in model.variants)) else 0.0


def _waiting(report: ModelReport, variant: str, share: float) -> int:
    """Of those that asked for this variant; else the variant's share of all, rounded up: one request wakes whoever may answer it."""
    if report.waiting_by_variant is not None:
        unbound = report.waiting - sum(count for name, count in report.waiting_by_variant.items() if name)
        return report.waiting_by_variant.get(variant, 0) + math.ceil(max(0, unbound) * share)
    return math.ceil(report.waiting * share)


def _kv_use(reports: Any, names: set[str]) -> float | None:
    """Each router hears the same of a worker; the least free is the latest."""
    used = capacity = 0
    for name in names:
        told = [report.workers[name] for report in reports if name in report.workers and report.workers[name].kv_capacity_tokens]
        if told:
            worst = min(told, key=lambda worker: worker.kv_available_tokens)
            capacity += worst.kv_capacity_tokens
            used += max(0, worst.kv_capacity_tokens - worst.kv_available_tokens)
    return used / capacity if capacity else None


# ---------------------------------------------------------------- what is remembered


@dataclass(slots=True)
class _Memory:
    """Of one variant."""

    samples: deque[Sample] = field(default_factory=deque)
    """Oldest first; several looks of one bucket of time are kept as their worst."""
    too_small: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Numbers of workers that were not enough: until when they are not tried under load, and how long that hold was."""


class ScalingHistory:
    """Samples and decisions of all models, in memory only: after a restart nothing goes down until a window is full again."""

    def __init__(self) -> None:
        self._memories: dict[str, dict[str, _Memory]] = {}
        """By model and variant."""
        self._decisions: dict[str, deque[dict[str, Any]]] = {}

    def decide(self, model: InferenceModel, current: Mapping[str, int], observed: Observed, at_s: float) -> dict[str, ScalingDecision]:
        """By variant. `current`: the replicas of its Deployment now; variants without one are left out. `at_s`: a monotonic clock's."""
        decided = {}
        for variant in model.variants:
            if variant.name in current:
                decided[variant.name] = self._decide(model, variant, current[variant.name], observed, at_s)
        self._forget_variants(model)
        return decided

    def record(self, key: str, variant: str, before: int, decision: ScalingDecision, now: datetime) -> None:
        """Once it has been carried out."""
        entry = {"time": rfc3339(now), "from": before, "to": decision.replicas, "reason": decision.reason, "variant": variant}
        self._decisions.setdefault(key, deque(maxlen=DECISIONS)).appendleft(entry)

    def decisions(self, key: str) -> list[dict[str, Any]]:
        """For status, the latest first."""
        return list(self._decisions.get(key, ()))

    def forget(self, key: str) -> None:
        """The model is gone."""
        self._decisions.pop(key, None)
        self._memories.pop(key, None)

    def _decide(self, model: InferenceModel, variant: Variant, current: int, observed: Observed, at_s: float) -> ScalingDecision:
        memory = self._memories.setdefault(model.key, {}).setdefault(variant.name, _Memory())
        sample = sample_of(model, variant, observed, at_s)
        decision = decide(variant.scaling, current, [*memory.samples, *([sample] if sample else ())], at_s)
        if sample is not None:
            _remember(memory.samples, sample, variant.scaling)
        if variant.scaling.fixed is None:
            complete = sample is not None and sample.ready >= current
            decision = _held(memory, variant.scaling, current, decision, at_s, complete=complete)
        return decision

    def _forget_variants(self, model: InferenceModel) -> None:
        memories = self._memories.get(model.key, {})
        for name in memories.keys() - {variant.name for variant in model.variants}:
            del memories[name]


def _remember(samples: deque[Sample], sample: Sample, policy: Scaling) -> None:
    bucket_s = min(LARGEST_BUCKET_S, max(1.0, policy.stable_s / 120))
    if samples and samples[-1].at_s // bucket_s == sample.at_s // bucket_s:
        sample = _worst(samples.pop(), sample)
    samples.append(sample)
    kept_s = max(policy.stable_s, TTFT_WINDOW_S if policy.target.ttft_s is not None else 0.0) + GAP_S
    while sample.at_s - samples[0].at_s > kept_s:
        samples.popleft()


def _worst(old: Sample, new: Sample) -> Sample:
    """What speaks most against fewer workers."""
    return replace(
        new,
        queued_tokens=max(old.queued_tokens, new.queued_tokens),
        waiting=max(old.waiting, new.waiting),
        in_flight=max(old.in_flight, new.in_flight),
        kv_use=max((each for each in (old.kv_use, new.kv_use) if each is not None), default=None),
        ttft_p95_s=max((each for each in (old.ttft_p95_s, new.ttft_p95_s) if each is not None), default=None),
        idle_s=None if old.idle_s is None or new.idle_s is None else new.idle_s,
    )


def _held(memory: _Memory, policy: Scaling, current: int, decision: ScalingDecision, at_s: float, *, complete: bool) -> ScalingDecision:
    """A load that needs a fraction of a worker more than n would otherwise go n, n + 1, n, … once per window for ever. `complete`: all
    that are wanted are ready, so that too few is what they are."""
    if complete and policy.min <= current < decision.replicas and current:
        _, hold_s = memory.too_small.get(current, (0.0, 0.0))
        again_s = min(LONGEST_HOLD_S, max(2 * hold_s, HELD_WINDOWS * policy.stable_s))
        memory.too_small[current] = (at_s + again_s, again_s)
    if decision.replicas >= current or current > policy.max or decision.replicas == 0:
        return decision
    until_s = max((until for size, (until, _) in memory.too_small.items() if size >= decision.replicas), default=0.0)
    busy = any(_for_presence(sample) for sample in memory.samples)
    if busy and until_s > at_s:
        return ScalingDecision(
            current, f"{decision.replicas} were not enough lately: tried again in {until_s - at_s:.0f} s, or when no request runs"
        )
    for size in [size for size, (until, hold_s) in memory.too_small.items() if at_s - until > hold_s]:
        del memory.too_small[size]
    return decision
