"""The part of the table that is about how many workers there are and how one takes another's place: spec.scaling and spec.rollout."""

from collections.abc import Callable, Mapping
from typing import Any

from pagoda_operator.manifest.rules.predicates import Field, Rule, between, lasts, one_of
from pagoda_operator.manifest.rules.variants import with_overrides


def _most_is_enough(scaling: Mapping[str, Any]) -> bool:
    return "max" not in scaling or bool(scaling["max"] >= scaling.get("min", 1))


def _idles_only_to_zero(scaling: Mapping[str, Any]) -> bool:
    return "idleSeconds" not in scaling or scaling.get("min", 1) == 0


def _counted_elsewhere(scaling: Mapping[str, Any]) -> bool:
    return "replicas" not in scaling or scaling.get("mode", "auto") == "external"


SCALING_FIELDS: Mapping[str, Field] = {
    "spec.scaling": Field(
        "object",
        (
            Rule(_most_is_enough, "write max as at least min (left out, min is 1), or leave max out"),
            Rule(_idles_only_to_zero, "idleSeconds says when workers go to zero: write min: 0 beside it, or remove it"),
            Rule(_counted_elsewhere, "replicas is set from outside: write mode: external beside it, or remove it with replicas: null"),
        ),
    ),
    "spec.scaling.min": Field("integer", (Rule(between(0, 1000), "write 0 to 1000 workers; 0 lets an idle model sleep"),)),
    "spec.scaling.max": Field("integer", (Rule(between(1, 1000), "write 1 to 1000 workers"),)),
    "spec.scaling.mode": Field(
        "string",
        (Rule(one_of("auto", "external"), "write auto, or external when an autoscaler or a person sets replicas"),),
        max_size=32,
    ),
    "spec.scaling.replicas": Field("integer", (Rule(between(0, 1000), "write 0 to 1000 workers"),)),
    "spec.scaling.idleSeconds": Field("integer", (Rule(between(1, 604_800), "write 1 to 604800 seconds"),)),
    "spec.scaling.stableSeconds": Field("integer", (Rule(between(1, 3600), "write 1 to 3600 seconds"),)),
    "spec.scaling.target": Field("object"),
    "spec.scaling.target.queuedTokens": Field("integer", (Rule(between(1, 1_000_000_000), "write 1 to 1000000000 tokens a worker"),)),
    "spec.scaling.target.kvUsePercent": Field("integer", (Rule(between(1, 100), "write 1 to 100 percent"),)),
    "spec.scaling.target.ttft": Field("string", (Rule(lasts("1ms", "1h"), "write a time of 1ms to 1h, such as 500ms or 2s"),), max_size=16),
}
ROLLOUT_FIELDS: Mapping[str, Field] = {
    "spec.rollout": Field("object"),
    "spec.rollout.strategy": Field(
        "string", (Rule(one_of("surge", "replace"), "write surge, or replace for nodes without room for one worker more"),), max_size=32
    ),
}


def _of_merged_scaling(holds: Callable[[Mapping[str, Any]], bool], written: str | None = None) -> Callable[[Any], bool]:
    """Of spec: every variant's scaling obeys once the overrides are in; `written`: only where the variant itself writes this field."""

    def all_hold(spec: Mapping[str, Any]) -> bool:
        asked = [one for one in spec.get("variants", ()) if written is None or written in one.get("scaling", {})]
        return all(holds(with_overrides(spec, one, "scaling")) for one in asked if "scaling" in one)

    return all_hold


SCALING_RULES = (
    Rule(_of_merged_scaling(_most_is_enough), "variants: with a variant's overrides, max is below min: write both in the variant"),
    Rule(
        _of_merged_scaling(_idles_only_to_zero, "idleSeconds"),
        "variants: a variant's idleSeconds needs min: 0, in the variant or in spec.scaling",
    ),
    Rule(
        _of_merged_scaling(_counted_elsewhere, "replicas"),
        "variants: a variant's replicas needs mode: external, in the variant or in spec.scaling",
    ),
)
"""Over the whole of spec."""
