"""The part of the table that is about routers: spec.routing."""

from collections.abc import Mapping
from typing import Any

from pagoda_operator.manifest.rules.predicates import Field, Rule, between, lasts, matches, one_of

ROUTING_FIELDS: Mapping[str, Field] = {
    "spec.routing": Field("object"),
    "spec.routing.draftModel": Field(
        "string", (Rule(matches("[a-z]([-a-z0-9]{0,38}[a-z0-9])?"), "write the metadata.name of another InferenceModel"),), max_size=40
    ),
    "spec.routing.fallback": Field(
        "string", (Rule(matches("[a-z]([-a-z0-9]{0,38}[a-z0-9])?"), "write the metadata.name of another InferenceModel"),), max_size=40
    ),
    "spec.routing.fallbackAfter": Field("string", (Rule(lasts("0s", "1h"), "write a time of 0s to 1h, such as 10s"),), max_size=16),
    "spec.routing.maxQueueTokens": Field("integer", (Rule(between(0, 1_000_000_000), "write 0 to 1000000000 tokens"),)),
    "spec.routing.maxWaiting": Field("integer", (Rule(between(0, 100_000), "write 0 to 100000 requests"),)),
    "spec.routing.policy": Field(
        "string",
        (
            Rule(
                one_of("predicted", "round-robin", "least-loaded", "gpu-aware", "prefix", "length"),
                "write predicted, round-robin, least-loaded, gpu-aware, prefix or length",
            ),
        ),
        max_size=32,
    ),
    "spec.routing.wakeTimeout": Field("string", (Rule(lasts("1s", "1h"), "write a time of 1s to 1h, such as 120s or 5m"),), max_size=16),
}


def _somebody_verifies(spec: Mapping[str, Any]) -> bool:
    engines = [spec.get("engine", {}), *(variant.get("engine", {}) for variant in spec.get("variants", ()))]
    return any(engine.get("speculative", {}).get("method") == "remote" for engine in engines)


DRAFTING_RULES = (
    Rule(
        lambda spec: "draftModel" not in spec.get("routing", {}) or _somebody_verifies(spec),
        "routing.draftModel: its drafts need workers that verify them: write engine.speculative.method: remote, here or in a variant",
    ),
)
"""Over the whole of spec."""
