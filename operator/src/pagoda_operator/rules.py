"""What each field of an InferenceModel takes, and the sentence for a value it does not take. One table.

The CRD states the same fields, and each rule's message again beside a CEL expression of the same meaning; a test compares the two, and
both are tried on one table of bad manifests. Adding a field: one entry here, one attribute in `spec.py`, one property in the CRD.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pagoda_operator.errors import InvalidQuantity
from pagoda_operator.quantities import parse_quantity

Kind = Literal["object", "string", "integer", "boolean", "quantity", "list"]

KIND_MESSAGES: Mapping[Kind, str] = {
    "object": "write an object: its fields indented below it",
    "string": "write a string; quote it when it looks like a number",
    "integer": "write a whole number, without quotes",
    "boolean": "write true or false, without quotes",
    "quantity": "write a whole number or a quoted quantity",
    "list": "write a list",
}
"""For values of the wrong type. The API server has its own words for these; only the field agrees."""


@dataclass(frozen=True, slots=True)
class Rule:
    holds: Callable[[Any], bool]
    """Called only with values of the field's kind."""
    message: str


@dataclass(frozen=True, slots=True)
class Field:
    kind: Kind
    rules: tuple[Rule, ...] = ()
    required: bool = False
    max_size: int | None = None
    """Characters of a string, items of a list. Bounds the cost of the CRD's expressions."""


def one_of(*values: Any) -> Callable[[Any], bool]:
    return lambda given: given in values


def between(low: int, high: int) -> Callable[[Any], bool]:
    return lambda given: low <= given <= high


def matches(pattern: str) -> Callable[[Any], bool]:
    """RE2 and Python agree on what these patterns use."""
    compiled = re.compile(pattern)
    return lambda given: compiled.fullmatch(given) is not None


def at_least(quantity: str) -> Callable[[Any], bool]:
    least = parse_quantity(quantity)

    def holds(given: Any) -> bool:
        try:
            return parse_quantity(given) >= least
        except InvalidQuantity:
            return False

    return holds


def _max_is_min(scaling: Mapping[str, Any]) -> bool:
    low, high = scaling.get("min", 1), scaling.get("max")
    return high is None or low == high


NAME = Rule(
    matches("[a-z]([-a-z0-9]{0,38}[a-z0-9])?"),
    "metadata.name: write 1 to 40 lower-case letters, digits and dashes, beginning with a letter and not ending with a dash",
)
"""Shorter than Kubernetes allows: worker pods add a variant and two hashes to it, and labels end at 63."""

SPEC = "spec"
FIELDS: Mapping[str, Field] = {
    "spec": Field("object", required=True),
    "spec.model": Field("object", required=True),
    "spec.model.source": Field(
        "string",
        (
            Rule(
                matches("builtin://[a-z0-9-]+|hf://[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?|file://.+"),
                "write builtin://NAME, hf://ORG/NAME or file:///FOLDER (s3:// and pvc:// are not available in this version)",
            ),
            Rule(
                lambda given: not given.startswith("file://") or given.startswith("file:///"),
                "write an absolute folder, file:///FOLDER: only `pagoda` on one machine takes a relative one",
            ),
        ),
        required=True,
        max_size=1024,
    ),
    "spec.servedNames": Field(
        "list",
        (
            Rule(lambda given: len(given) >= 1, "write at least one name, or leave servedNames out to serve under metadata.name"),
            Rule(lambda given: all(given.count(name) == 1 for name in given), "write each name once"),
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
    "spec.engine": Field("object"),
    "spec.engine.dtype": Field("string", (Rule(one_of("auto", "bf16", "fp16", "fp32"), "write auto, bf16, fp16 or fp32"),), max_size=32),
    "spec.engine.attention": Field("string", (Rule(one_of("auto", "sdpa", "eager"), "write auto, sdpa or eager"),), max_size=32),
    "spec.engine.maxModelLen": Field(
        "integer", (Rule(between(16, 4_194_304), "write 16 to 4194304 tokens, or leave it out to use what the checkpoint was made for"),)
    ),
    "spec.engine.maxBatchTokens": Field("integer", (Rule(between(1, 1_048_576), "write 1 to 1048576 tokens"),)),
    "spec.engine.maxRunning": Field("integer", (Rule(between(1, 4096), "write 1 to 4096 sequences"),)),
    "spec.engine.prefixCaching": Field("boolean"),
    "spec.engine.kvCache": Field("object"),
    "spec.engine.kvCache.blockSize": Field("integer", (Rule(one_of(8, 16, 32, 64, 128), "write 8, 16, 32, 64 or 128 tokens"),)),
    "spec.resources": Field("object"),
    "spec.resources.gpus": Field(
        "integer",
        (
            Rule(
                between(0, 1),
                "write 0 for a CPU worker or 1 for a GPU worker: several GPUs in one worker are not available in this version",
            ),
        ),
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
    "spec.scaling": Field(
        "object",
        (
            Rule(
                _max_is_min,
                "write the same number for max as for min, or leave max out: automatic scaling is not available in this version",
            ),
        ),
    ),
    "spec.scaling.min": Field("integer", (Rule(between(1, 1000), "write 1 to 1000: sleeping at zero is not available in this version"),)),
    "spec.scaling.max": Field("integer"),
    "spec.routing": Field("object"),
    "spec.routing.maxQueueTokens": Field("integer", (Rule(between(0, 1_000_000_000), "write 0 to 1000000000 tokens"),)),
}
"""By path; [] stands for each item of a list. An object's rules are tried only when its own fields have the right types."""

NOT_YET = frozenset(
    {
        "spec.adapters",
        "spec.cost",
        "spec.engine.backend",
        "spec.engine.kvCache.dtype",
        "spec.engine.kvCache.hostTier",
        "spec.engine.kvCache.swap",
        "spec.engine.quantization",
        "spec.engine.speculative",
        "spec.engine.tensorParallel",
        "spec.fallback",
        "spec.model.cache",
        "spec.model.revision",
        "spec.model.tokenSecretRef",
        "spec.routing.classes",
        "spec.scaling.idleSeconds",
        "spec.scaling.target",
        "spec.slo",
        "spec.variants",
    }
)
"""Fields that the format foresees and nothing carries out yet: refused rather than ignored, and absent from the CRD."""

NOT_YET_MESSAGE = "is not available in this version; remove it"


def children_of(path: str) -> tuple[str, ...]:
    """Names of the fields directly below an object, in the table's order."""
    prefix = f"{path}."
    names = (field.removeprefix(prefix) for field in FIELDS if field.startswith(prefix))
    return tuple(name for name in names if "." not in name and not name.endswith("[]"))
