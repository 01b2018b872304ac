"""What one simulated run comes to: latencies, goodput, cached prefixes, fairness, shed requests. Pure arithmetic over its requests.

All figures are of requests that arrived in the window, from the end of the warm-up to the last arrival of a new conversation. Called by
run.py; report.py says what the figures are called.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pagoda_bench.sim.requests import SimRequest

OUTPUT_WEIGHT = 2
"""Of an output token in service, as in VTC and the router's own fairness."""
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Slo:
    ttft_s: float = 1.0
    tpot_s: float = 0.05


@dataclass(frozen=True, slots=True)
class Window:
    begin_s: float
    end_s: float

    def has(self, at_s: float | None) -> bool:
        return at_s is not None and self.begin_s <= at_s < self.end_s


def figures(requests: Sequence[SimRequest], window: Window, slo: Slo) -> dict[str, float]:
    """By metric name. Percentiles interpolate linearly; what cannot be told of this run is left out."""
    asked = [request for request in requests if window.has(request.arrived_s)]
    answered = [request for request in asked if request.ended_s is not None]
    found: dict[str, float] = {"requests": len(asked)}
    if not answered:
        return found
    for name, values in (("ttft", [r.ttft_s for r in answered]), ("tpot", [r.tpot_s for r in answered])):
        ordered = sorted(value for value in values if value is not None)
        found |= {f"{name}_p{percent}_s": percentile(ordered, percent) for percent in PERCENTILES if ordered}
    good = [r for r in answered if (r.ttft_s or 0.0) <= slo.ttft_s and (r.tpot_s or 0.0) <= slo.tpot_s]
    found["goodput_requests_per_s"] = len(good) / (window.end_s - window.begin_s)
    found["shed_ratio"] = sum(bool(request.refused) for request in asked) / len(asked)
    told = sorted(request.retry_after_s for request in asked if request.refused)
    if told:
        found["retry_after_p50_s"] = percentile(told, 50)
    prompt_tokens = sum(request.prompt_tokens for request in answered)
    cached_tokens = sum(request.cached_tokens for request in answered)
    oracle_tokens = sum(request.oracle_tokens for request in answered)
    found["hit_ratio"] = cached_tokens / prompt_tokens
    if oracle_tokens:
        found["hit_of_oracle_ratio"] = cached_tokens / oracle_tokens
    found["jain_index"] = jain(list(kept_shares(requests, window).values()))
    found["preemptions"] = sum(request.preemptions for request in asked)
    return found


def percentile(ordered: Sequence[float], percent: float) -> float:
    at = percent / 100 * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def service_of(request: SimRequest) -> float:
    return request.prompt_tokens + OUTPUT_WEIGHT * request.output_tokens


def kept_shares(requests: Sequence[SimRequest], window: Window) -> dict[int, float]:
    """By tenant: the service that ended in the window over its max-min fair share of all of it. 1: what it asked for, or its fair part."""
    demand: dict[int, float] = defaultdict(float)
    served: dict[int, float] = defaultdict(float)
    for request in requests:
        tenant = request.conversation.tenant
        if window.has(request.arrived_s):
            demand[tenant] += service_of(request)
        if window.has(request.ended_s):
            served[tenant] += service_of(request)
    fair = fair_shares(demand, sum(served.values()))
    return {tenant: served[tenant] / share for tenant, share in fair.items() if share > 0}


def fair_shares(demand: Mapping[int, float], capacity: float) -> dict[int, float]:
    """Max-min: nobody gets more than asked for, and what is left is split evenly among those who want more."""
    shares: dict[int, float] = {}
    left = capacity
    for at, (tenant, wanted) in enumerate(sorted(demand.items(), key=lambda item: (item[1], item[0]))):
        shares[tenant] = min(wanted, left / (len(demand) - at))
        left -= shares[tenant]
    return shares


def jain(values: Sequence[float]) -> float:
    """(Σx)² ÷ n Σx²: 1 when all are alike, 1/n when one has everything (Jain, Chiu and Hawe, 1984)."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0
