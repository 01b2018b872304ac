"""How many workers a variant should have, from samples of its demand. Pure; called by history.py. What nobody knows is never taken for no
demand.

    up       at once, to what the pressure needs: at most double, at least one more; workers that still load count as there
    down     one at a time, when fewer would have done at every moment of the stable window
    to zero  when every router has been idle for idleSeconds, and for the whole window
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pagoda_operator.manifest.scaling import Scaling

FRESH_S = 5.0
"""A sample older than this tells nothing of now."""
GAP_S = 10.0
"""A longer silence in the stable window makes it incomplete."""
TTFT_WINDOW_S = 60.0
"""Routers tell the TTFT of the last minute: it judges a fleet only when that stood as it is for as long."""


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
        (presence(latest), f"{latest.waiting} requests wait and {latest.in_flight} are in flight"),
        (_for_queue(policy, latest), f"{latest.queued_tokens} tokens wait, {target.queued_tokens} per worker are allowed"),
        (_for_kv(policy, latest), f"KV caches are {latest.kv_use or 0:.0%} full, {target.kv_use_percent}% is allowed"),
        (_for_ttft(policy, current, samples, now_s), f"TTFT p95 is {latest.ttft_p95_s or 0:.2f} s, {target.ttft_s or 0:g} s is allowed"),
    ]
    return max(wishes, key=lambda wish: wish[0])


def presence(sample: Sample) -> int:
    """Workers that somebody's being there asks for: one or none."""
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
    if any(sample.ready > current and presence(sample) for sample in window):
        # one more was there for a part of the window: whether these are enough under load is not known yet
        return ScalingDecision(current, f"{current} workers have not been alone for {policy.stable_s:g} s")
    if all(_bound(policy, sample) < current for sample in window):
        return ScalingDecision(current - 1, f"for {policy.stable_s:g} s {current - 1} would have been enough")
    return ScalingDecision(current, f"{current} workers were needed within the last {policy.stable_s:g} s")


def _bound(policy: Scaling, sample: Sample) -> int:
    """Workers without which a sample would have been over a target. A TTFT above half its target speaks against fewer."""
    strained = policy.target.ttft_s is not None and (sample.ttft_p95_s or 0.0) > policy.target.ttft_s / 2
    return max(presence(sample), _for_queue(policy, sample), _for_kv(policy, sample), sample.ready if strained else 0)


def _asleep(policy: Scaling, window: Sequence[Sample]) -> ScalingDecision:
    """The last one ends: only for a model that may sleep, being the case when 1 is above min."""
    idle_s = window[-1].idle_s
    if idle_s is None or any(presence(sample) or sample.idle_s is None for sample in window):
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
