"""Gauges that are read off the fleet at each scrape: workers by state, what models promise, what they cost now.

Nothing is kept, so nothing can be stale: a deleted model has no series. `__main__` registers it beside RouterMetrics.
"""

from collections import Counter
from collections.abc import Iterable

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from pagoda_router.backends.base import WorkerLink
from pagoda_router.discovery.model_object import ModelObject
from pagoda_router.dispatch.choosing import WorkerChooser
from pagoda_router.fleet import Fleet
from pagoda_router.placement.health import Cause

ROUTABLE, UNREADY, DRAINING = STATES = ("routable", "unready", "draining")


class FleetCollector(Collector):
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def collect(self) -> Iterable[GaugeMetricFamily]:
        workers = GaugeMetricFamily(
            "pagoda_router_workers", "Workers with an endpoint, as this router sees them", labels=("model", "variant", "state")
        )
        thresholds = GaugeMetricFamily("pagoda_router_slo_threshold_seconds", "Of spec.slo", labels=("model", "sli"))
        objectives = GaugeMetricFamily("pagoda_router_slo_objective_ratio", "Of spec.slo", labels=("model",))
        costs = GaugeMetricFamily(
            "pagoda_router_model_cost_usd_per_hour", "Workers with an endpoint times their price in spec.cost", labels=("model",)
        )
        for model in self._fleet.models():
            links = self._fleet.links(model.name)
            for (variant, state), count in _by_state(model, links).items():
                workers.add_metric((model.name, variant, state), count)
            if model.slo is not None:
                for sli, threshold_s in (("ttft", model.slo.ttft_s), ("tpot", model.slo.tpot_s)):
                    if threshold_s is not None:
                        thresholds.add_metric((model.name, sli), threshold_s)
                objectives.add_metric((model.name,), model.slo.objective)
            if model.prices:
                prices = dict(model.prices)
                costs.add_metric((model.name,), sum(prices.get(link.endpoint.variant, 0.0) for link in links))
        return workers, thresholds, objectives, costs


def _by_state(model: ModelObject, links: Iterable[WorkerLink]) -> Counter[tuple[str, str]]:
    """With a 0 for every state of every variant that the model names."""
    counts = Counter({(variant, state): 0 for variant, _ in model.variants for state in STATES})
    for link in links:
        state = DRAINING if not link.accepting else ROUTABLE if link.routable else UNREADY
        counts[link.endpoint.variant, state] += 1
    return counts


class PlacementCollector(Collector):
    """Lanes and shunned workers, read off the chooser in the same way."""

    def __init__(self, fleet: Fleet, chooser: WorkerChooser) -> None:
        self._fleet = fleet
        self._chooser = chooser

    def collect(self) -> Iterable[GaugeMetricFamily]:
        shunned = GaugeMetricFamily(
            "pagoda_router_workers_shunned", "Workers that get no new requests for a while", labels=("model", "variant", "cause")
        )
        cuts = GaugeMetricFamily(
            "pagoda_router_lane_longest_tokens", "Longest uncached prompt and output of a length lane", labels=("model", "variant", "lane")
        )
        workers = GaugeMetricFamily("pagoda_router_lane_workers", "Workers of a length lane", labels=("model", "variant", "lane"))
        for model in self._fleet.models():
            counts = self._chooser.shunned(model.name)
            for variant, _ in model.variants:
                for cause in Cause:
                    shunned.add_metric((model.name, variant, cause), counts[variant, cause])
            for report in self._chooser.lanes(model.name):
                manned = Counter(lane for _, lane in report.workers)
                for lane, longest in enumerate((*report.cuts, float("inf"))):
                    labels = (model.name, report.variant, str(lane))
                    cuts.add_metric(labels, longest)
                    workers.add_metric(labels, manned[lane])
        return shunned, cuts, workers
