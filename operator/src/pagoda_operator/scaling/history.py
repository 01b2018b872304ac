"""Owns what is remembered of demand and of decisions, of all models.

Called by local/supervisor.py and cluster/loop.py once per answer of the routers; what follows from it is decide.py's to say.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from pagoda_operator.conditions import rfc3339
from pagoda_operator.manifest.scaling import Scaling
from pagoda_operator.manifest.spec import InferenceModel, Variant
from pagoda_operator.observed.world import Observed
from pagoda_operator.scaling.decide import GAP_S, TTFT_WINDOW_S, Sample, ScalingDecision, decide, presence
from pagoda_operator.scaling.demand import sample_of

HELD_WINDOWS = 10
"""After a number of workers proved too small, so many stable windows pass before it is tried again under load; twice as many each time."""
LONGEST_HOLD_S = 86_400.0
DECISIONS = 5
LARGEST_BUCKET_S = 5.0


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
    busy = any(presence(sample) for sample in memory.samples)
    if busy and until_s > at_s:
        return ScalingDecision(
            current, f"{decision.replicas} were not enough lately: tried again in {until_s - at_s:.0f} s, or when no request runs"
        )
    for size in [size for size, (until, hold_s) in memory.too_small.items() if at_s - until > hold_s]:
        del memory.too_small[size]
    return decision
