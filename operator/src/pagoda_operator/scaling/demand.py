"""From the world as executors report it to one sample of a variant's demand. Pure; called by history.py."""

import math
from collections.abc import Sequence
from typing import Any

from pagoda_operator.labels import LABEL_COMPONENT, LABEL_MODEL, LABEL_VARIANT
from pagoda_operator.manifest.spec import InferenceModel, Variant
from pagoda_operator.observed.world import ModelReport, Observed, PodView, WorkerReport
from pagoda_operator.scaling.decide import Sample


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
    used = capacity = 0
    for name in names:
        told = [report.workers[name] for report in reports if name in report.workers and report.workers[name].kv_capacity_tokens]
        if told:
            all_tokens = max(worker.kv_capacity_tokens for worker in told)
            capacity += all_tokens
            used += min(all_tokens, _used_tokens(told))
    return used / capacity if capacity else None


def _used_tokens(told: Sequence[WorkerReport]) -> int:
    """Of one worker, by all routers: what they reserved for their requests together, or what it says itself if that is more. What each may
    still reserve says nothing of it: it is a share of what is free."""
    reserved = [worker.kv_reserved_tokens for worker in told if worker.kv_reserved_tokens is not None]
    if not reserved:
        return max(worker.kv_capacity_tokens - worker.kv_available_tokens for worker in told)
    return max(sum(reserved), *(worker.kv_used_tokens for worker in told))
