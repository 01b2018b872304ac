"""What each field of an InferenceModel takes, and the sentence for a value it does not take. One table.

The CRD states the same fields, and each rule's message again beside a CEL expression of the same meaning; a test compares the two, and
both are tried on one table of bad manifests. Adding a field: one entry here, one attribute in `../spec.py`, one property in the CRD, one
row in docs/manifest.md.
"""

from collections.abc import Mapping
from typing import Any

from pagoda_operator.manifest.rules.adapters import ADAPTER_FIELDS, ADAPTER_ROOM, ADAPTER_RULES
from pagoda_operator.manifest.rules.backends import BACKEND_FIELDS, BACKEND_RULES
from pagoda_operator.manifest.rules.predicates import Field, Rule, at_least, between, lasts, matches, merged, one_of, share_between, unique
from pagoda_operator.manifest.rules.sources import MODEL_FIELDS

NAME = Rule(
    matches("[a-z]([-a-z0-9]{0,38}[a-z0-9])?"),
    "metadata.name: write 1 to 40 lower-case letters, digits and dashes, beginning with a letter and not ending with a dash",
)
"""Shorter than Kubernetes allows: worker pods add a variant and two hashes to it, and labels end at 63."""

OWN_FALLBACK = "spec.routing.fallback: write the name of another model, not its own"
"""Said of the whole object, the only one that knows its name."""

SPEC = "spec"
VARIANT = "spec.variants[]"
OVERRIDABLE = ("engine", "resources", "scaling")
"""Sections that a variant may write again in part: its fields are those of the section itself."""

_NAMES: Mapping[str, Field] = {
    "spec.servedNames": Field(
        "list",
        (
            Rule(lambda given: len(given) >= 1, "write at least one name, or leave servedNames out to serve under metadata.name"),
            Rule(unique, "write each name once"),
        ),
        max_size=16,
    ),
    "spec.servedNames[]": Field(
        "string",
        (
            Rule(
                matches("[A-Za-z0-9][A-Za-z0-9._:/-]*"),
                "write letters, digits and . _ : / - only, beginning with a letter or a digit",
            ),
        ),
        max_size=128,
    ),
}

HOST_MEMORY = "write memory of the host, such as 8Gi, or 0 for none"

_ENGINE: Mapping[str, Field] = {
    "spec.engine": Field("object"),
    **BACKEND_FIELDS,
    "spec.engine.dtype": Field("string", (Rule(one_of("auto", "bf16", "fp16", "fp32"), "write auto, bf16, fp16 or fp32"),), max_size=32),
    "spec.engine.attention": Field(
        "string",
        (Rule(one_of("auto", "triton", "flash", "native", "sdpa", "eager"), "write auto, triton, flash, native, sdpa or eager"),),
        max_size=32,
    ),
    "spec.engine.maxModelLen": Field(
        "integer", (Rule(between(16, 4_194_304), "write 16 to 4194304 tokens, or leave it out to use what the checkpoint was made for"),)
    ),
    "spec.engine.maxBatchTokens": Field("integer", (Rule(between(1, 1_048_576), "write 1 to 1048576 tokens"),)),
    "spec.engine.longPrefillTokens": Field("integer", (Rule(between(0, 1_048_576), "write 0 to 1048576 tokens; 0 is no cap"),)),
    "spec.engine.maxRunning": Field("integer", (Rule(between(1, 4096), "write 1 to 4096 sequences"),)),
    "spec.engine.load": Field("string", (Rule(one_of("eager", "lazy", "warm"), "write eager, lazy or warm"),), max_size=32),
    "spec.engine.prefixCaching": Field("boolean"),
    "spec.engine.batchInvariant": Field("boolean"),
    "spec.engine.compile": Field("boolean"),
    "spec.engine.tensorParallel": Field("integer", (Rule(between(1, 64), "write 1 to 64 processes that share each layer"),)),
    "spec.engine.pipelineParallel": Field(
        "integer", (Rule(one_of(1), "write 1, or leave it out: layers spread over a pipeline are not available in this version"),)
    ),
    "spec.engine.quantization": Field(
        "string", (Rule(one_of("none", "int8", "int4", "fp8"), "write none, int8, int4 or fp8"),), max_size=32
    ),
    **ADAPTER_ROOM,
    "spec.engine.speculative": Field(
        "object",
        (Rule(lambda given: (given.get("method") == "draft") == ("draft" in given), "write draft, a source, beside method: draft only"),),
    ),
    "spec.engine.speculative.method": Field(
        "string", (Rule(one_of("none", "ngram", "suffix", "draft"), "write none, ngram, suffix or draft"),), max_size=32
    ),
    "spec.engine.speculative.tokens": Field("integer", (Rule(between(1, 16), "write 1 to 16 tokens"),)),
    "spec.engine.speculative.draft": Field(
        "string",
        (Rule(matches("builtin://[a-z0-9-]+|file:///.+"), "write builtin://NAME or file:///FOLDER: a draft model is not fetched"),),
        max_size=1024,
    ),
    "spec.engine.kvCache": Field("object"),
    "spec.engine.kvCache.blockSize": Field("integer", (Rule(one_of(8, 16, 32, 64, 128), "write 8, 16, 32, 64 or 128 tokens"),)),
    "spec.engine.kvCache.dtype": Field("string", (Rule(one_of("auto", "int8", "fp8"), "write auto, int8 or fp8"),), max_size=32),
    "spec.engine.kvCache.swap": Field("quantity", (Rule(at_least("0"), HOST_MEMORY),), max_size=32),
    "spec.engine.kvCache.hostTier": Field("quantity", (Rule(at_least("0"), HOST_MEMORY),), max_size=32),
}

_RESOURCES: Mapping[str, Field] = {
    "spec.resources": Field("object"),
    "spec.resources.gpus": Field(
        "integer",
        (Rule(between(0, 64), "write 0 for a CPU worker or 1 for a GPU worker; with engine.tensorParallel, as many as that"),),
    ),
    "spec.resources.gpuResource": Field(
        "string",
        (
            Rule(
                matches("[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"),
                "write the name under which the device plugin offers the GPUs, such as nvidia.com/gpu",
            ),
        ),
        max_size=128,
    ),
    "spec.resources.cpu": Field("quantity", (Rule(at_least("1m"), 'write cores above zero, such as "8" or "500m"'),), max_size=32),
    "spec.resources.memory": Field("quantity", (Rule(at_least("64Mi"), "write at least 64Mi, with a unit, such as 16Gi"),), max_size=32),
}


def _most_is_enough(scaling: Mapping[str, Any]) -> bool:
    return "max" not in scaling or bool(scaling["max"] >= scaling.get("min", 1))


def _idles_only_to_zero(scaling: Mapping[str, Any]) -> bool:
    return "idleSeconds" not in scaling or scaling.get("min", 1) == 0


def _counted_elsewhere(scaling: Mapping[str, Any]) -> bool:
    return "replicas" not in scaling or scaling.get("mode", "auto") == "external"


_SCALING: Mapping[str, Field] = {
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

_VARIANTS: Mapping[str, Field] = {
    "spec.variants": Field(
        "list",
        (
            Rule(lambda given: len(given) >= 1, "write at least one variant, or leave variants out"),
            Rule(lambda given: unique([one.get("name") for one in given]), "give each variant a name of its own"),
            Rule(
                lambda given: not given or any(one.get("weight", 100) > 0 for one in given),
                "give at least one variant a weight above 0: without it no request would go anywhere",
            ),
        ),
        max_size=8,
    ),
    VARIANT: Field("object"),
    "spec.variants[].name": Field(
        "string",
        (
            Rule(matches("[a-z][a-z0-9]{0,19}"), "write 1 to 20 lower-case letters and digits, beginning with a letter"),
            Rule(lambda given: given != "router", "router is the name of Pagoda's own pods: write another"),
        ),
        required=True,
        max_size=64,
    ),
    "spec.variants[].weight": Field("integer", (Rule(between(0, 100), "write 0 to 100; 0 takes only requests that ask for the variant"),)),
}
"""No dashes in a variant's name: MODEL-VARIANT then names one Deployment, whatever dashes the model's own name has."""

_PRICE = Field("number", (Rule(between(0, 100_000), "write 0 to 100000 US dollars for an hour, such as 2.5"),))
_TOKEN_PRICE = Field("number", (Rule(between(0, 100_000), "write 0 to 100000 US dollars for a million tokens, such as 0.15"),))
_PROMISES: Mapping[str, Field] = {
    "spec.slo": Field("object"),
    "spec.slo.ttft": Field("string", (Rule(lasts("1ms", "1h"), "write a time of 1ms to 1h, such as 500ms or 2s"),), max_size=16),
    "spec.slo.tpot": Field("string", (Rule(lasts("1ms", "1m"), "write a time of 1ms to 1m, such as 50ms"),), max_size=16),
    "spec.slo.objective": Field(
        "string",
        (
            Rule(
                share_between("50%", "100%"),
                'write a percentage above 50% and below 100% with a percent sign, such as "99%" or "99.9%"',
            ),
        ),
        max_size=16,
    ),
    "spec.cost": Field(
        "object",
        (
            Rule(
                lambda given: not given.keys().isdisjoint(("gpuHourUsd", "workerHourUsd", "millionInputUsd", "millionOutputUsd")),
                "write gpuHourUsd, workerHourUsd, millionInputUsd or millionOutputUsd, or leave cost out",
            ),
        ),
    ),
    "spec.cost.gpuHourUsd": _PRICE,
    "spec.cost.workerHourUsd": _PRICE,
    "spec.cost.millionInputUsd": _TOKEN_PRICE,
    "spec.cost.millionCachedUsd": _TOKEN_PRICE,
    "spec.cost.millionOutputUsd": _TOKEN_PRICE,
}


def _overrides() -> dict[str, Field]:
    """A section's fields again, below a variant. Rules over the whole section are asked of the merged one, by `spec` itself."""
    sections = {**_ENGINE, **_RESOURCES, **_SCALING}
    again = {f"{VARIANT}{path.removeprefix(SPEC)}": field for path, field in sections.items()}
    return again | {f"{VARIANT}.{section}": Field("object") for section in OVERRIDABLE}


def with_overrides(spec: Mapping[str, Any], variant: Mapping[str, Any], section: str) -> dict[str, Any]:
    """A section as the variant's workers have it."""
    section_of_variant: dict[str, Any] = merged(spec.get(section, {}), variant.get(section, {}))
    return section_of_variant


def _of_merged_scaling(holds: Any, written: str | None = None) -> Any:
    """Of spec: every variant's scaling obeys once the overrides are in; `written`: only where the variant itself writes this field."""

    def all_hold(spec: Mapping[str, Any]) -> bool:
        asked = [one for one in spec.get("variants", ()) if written is None or written in one.get("scaling", {})]
        return all(holds(with_overrides(spec, one, "scaling")) for one in asked if "scaling" in one)

    return all_hold


def _a_gpu_for_each_rank(spec: Mapping[str, Any]) -> bool:
    """Of every variant, once its overrides are in."""
    each = [(with_overrides(spec, one, "resources"), with_overrides(spec, one, "engine")) for one in spec.get("variants") or [{}]]
    return all(resources.get("gpus", 0) in (0, engine.get("tensorParallel", 1)) for resources, engine in each)


FIELDS: Mapping[str, Field] = {
    "spec": Field(
        "object",
        (
            Rule(_of_merged_scaling(_most_is_enough), "variants: with a variant's overrides, max is below min: write both in the variant"),
            Rule(
                _of_merged_scaling(_idles_only_to_zero, "idleSeconds"),
                "variants: a variant's idleSeconds needs min: 0, in the variant or in spec.scaling",
            ),
            Rule(
                _of_merged_scaling(_counted_elsewhere, "replicas"),
                "variants: a variant's replicas needs mode: external, in the variant or in spec.scaling",
            ),
            Rule(
                _a_gpu_for_each_rank,
                "resources.gpus: write 0 for a CPU worker, or the number of engine.tensorParallel (left out, it is 1): each of its "
                "processes has one GPU",
            ),
            *BACKEND_RULES,
            *ADAPTER_RULES,
        ),
        required=True,
    ),
    **MODEL_FIELDS,
    **ADAPTER_FIELDS,
    **_NAMES,
    **_ENGINE,
    **_RESOURCES,
    **_SCALING,
    **_VARIANTS,
    **_overrides(),
    "spec.rollout": Field("object"),
    "spec.rollout.strategy": Field(
        "string", (Rule(one_of("surge", "replace"), "write surge, or replace for nodes without room for one worker more"),), max_size=32
    ),
    "spec.routing": Field("object"),
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
    **_PROMISES,
}
"""By path; [] stands for each item of a list. An object's rules are tried only when its own fields have the right types."""

_NOT_YET = {
    "spec.routing.classes",
}
NOT_YET = frozenset(_NOT_YET | {f"{VARIANT}{path.removeprefix(SPEC)}" for path in _NOT_YET if path.startswith("spec.engine.")})
"""Fields that the format foresees and nothing carries out yet: refused rather than ignored, and absent from the CRD."""

NOT_YET_MESSAGE = "is not available in this version; remove it"


def children_of(path: str) -> tuple[str, ...]:
    """Names of the fields directly below an object, in the table's order."""
    return _CHILDREN.get(path, ())


def _children() -> Mapping[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for path in FIELDS:
        parent, _, name = path.rpartition(".")
        if parent and not name.endswith("[]"):
            found[parent] = (*found.get(parent, ()), name)
    return found


_CHILDREN = _children()
