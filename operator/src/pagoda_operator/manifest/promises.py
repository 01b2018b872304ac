"""What a manifest promises to clients and says of money, `spec.slo` and `spec.cost`: parsed, without I/O.

Called by `spec.parse` with values that are known to be right. Routers read the same fields themselves; `render/slo_rules.py` makes
alerts of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pagoda_operator.manifest.quantities import parse_duration, parse_percentage

DEFAULT_OBJECTIVE = Fraction(99, 100)


@dataclass(frozen=True, kw_only=True, slots=True)
class Slo:
    """Per request: it ends as it should (availability, always promised) and, where a time is given, keeps it."""

    ttft_s: float | None = None
    """Time to the first token. None: not promised."""
    tpot_s: float | None = None
    """Time per output token after the first, the mean of one request. None: not promised."""
    objective: Fraction = DEFAULT_OBJECTIVE
    """Share of the requests that keep each promise, over 30 days. Exact, because 1 - objective is the budget that rules divide by."""

    @property
    def indicators(self) -> tuple[str, ...]:
        """Values of the label `sli`."""
        times = {"ttft": self.ttft_s, "tpot": self.tpot_s}
        return ("availability", *(name for name, bound_s in times.items() if bound_s is not None))


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    gpu_hour_usd: float | None = None
    """US dollars; a worker costs it times its GPUs."""
    worker_hour_usd: float | None = None
    """In place of gpu_hour_usd, whatever the worker has."""
    million_input_usd: float | None = None
    """What keys pay for a million prompt tokens. None: nothing."""
    million_cached_usd: float | None = None
    """For those that the worker had in its cache. None: as the others."""
    million_output_usd: float | None = None


def slo(written: Mapping[str, Any]) -> Slo:
    objective = parse_percentage(written["objective"]) if "objective" in written else DEFAULT_OBJECTIVE
    return Slo(ttft_s=_seconds(written, "ttft"), tpot_s=_seconds(written, "tpot"), objective=objective)


def cost(written: Mapping[str, Any]) -> Cost:
    return Cost(
        gpu_hour_usd=_price(written, "gpuHourUsd"),
        worker_hour_usd=_price(written, "workerHourUsd"),
        million_input_usd=_price(written, "millionInputUsd"),
        million_cached_usd=_price(written, "millionCachedUsd"),
        million_output_usd=_price(written, "millionOutputUsd"),
    )


def _seconds(written: Mapping[str, Any], name: str) -> float | None:
    return float(parse_duration(written[name])) if name in written else None


def _price(written: Mapping[str, Any], name: str) -> float | None:
    return float(written[name]) if name in written else None
