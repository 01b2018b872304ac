"""How many workers there are and how one takes another's place, `spec.scaling` and `spec.rollout`: parsed, without I/O.

Called by `spec.parse` with values that are known to be right. What follows of demand is decided in `pagoda_operator/scaling/`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pagoda_operator.manifest.given import given
from pagoda_operator.manifest.quantities import parse_duration


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalingTarget:
    """What one worker may carry before another is started."""

    queued_tokens: int = 4096
    """Tokens that wait for a worker."""
    kv_use_percent: int = 80
    """Of its KV cache."""
    ttft_s: float | None = None
    """95th percentile of the time to the first token. None: not looked at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaling:
    min: int = 1
    """0: an idle model sleeps."""
    max: int = 1
    mode: str = "auto"
    """auto: between min and max by the target. external: `replicas`, whatever min and max say."""
    replicas: int | None = None
    """Set by people or an autoscaler through the scale subresource. None in mode external: min, until somebody sets it."""
    idle_s: float = 600.0
    """Without a request for this long, all workers end; only where min is 0."""
    stable_s: float = 60.0
    """How long fewer workers must have been enough before one ends."""
    target: ScalingTarget = field(default_factory=ScalingTarget)

    @property
    def at_first(self) -> int:
        """Workers of a Deployment that is made now."""
        return self.min if self.replicas is None or self.mode != "external" else self.replicas

    @property
    def fixed(self) -> int | None:
        """The number of workers where no demand can change it. None: the autoscaler's choice, from min to max."""
        if self.mode == "external":
            return self.at_first
        return self.min if self.min == self.max else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    strategy: str = "surge"
    """surge: a new worker is routed before an old one ends. replace: an old one ends first, for nodes without room for one more."""


def scaling(written: Mapping[str, Any]) -> Scaling:
    least, target = written.get("min", 1), written.get("target", {})
    ttft: dict[str, Any] = {"ttft_s": float(parse_duration(target["ttft"]))} if "ttft" in target else {}
    return Scaling(
        min=least,
        max=written.get("max", max(least, 1)),
        **given(written, mode="mode", replicas="replicas", idle_s="idleSeconds", stable_s="stableSeconds"),
        target=ScalingTarget(**given(target, queued_tokens="queuedTokens", kv_use_percent="kvUsePercent"), **ttft),
    )


def rollout(written: Mapping[str, Any]) -> Rollout:
    return Rollout(**given(written, strategy="strategy"))
