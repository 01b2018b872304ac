"""What each field of an InferenceModel takes, and the sentence for a value it does not take. One table, of the parts beside it.

The CRD states the same fields, and each rule's message again beside a CEL expression of the same meaning; a test compares the two, and
both are tried on one table of bad manifests. Adding a field: one entry in its section's part, one attribute in the section's dataclass
(`../engine.py`, …), one property in the CRD, one row in docs/manifest.md.
"""

from collections.abc import Mapping

from pagoda_operator.manifest.rules.adapters import ADAPTER_FIELDS, ADAPTER_RULES
from pagoda_operator.manifest.rules.backends import BACKEND_RULES
from pagoda_operator.manifest.rules.engine import ENGINE_FIELDS, ENGINE_RULES, RESOURCE_FIELDS, RESOURCE_RULES
from pagoda_operator.manifest.rules.predicates import Field, Rule, matches, unique
from pagoda_operator.manifest.rules.promises import PROMISE_FIELDS
from pagoda_operator.manifest.rules.routing import DRAFTING_RULES, ROUTING_FIELDS
from pagoda_operator.manifest.rules.scaling import ROLLOUT_FIELDS, SCALING_FIELDS, SCALING_RULES
from pagoda_operator.manifest.rules.sources import MODEL_FIELDS
from pagoda_operator.manifest.rules.variants import VARIANT_FIELDS, in_variant, overrides

NAME = Rule(
    matches("[a-z]([-a-z0-9]{0,38}[a-z0-9])?"),
    "metadata.name: write 1 to 40 lower-case letters, digits and dashes, beginning with a letter and not ending with a dash",
)
"""Shorter than Kubernetes allows: worker pods add a variant and two hashes to it, and labels end at 63."""

OWN_FALLBACK = "spec.routing.fallback: write the name of another model, not its own"
OWN_DRAFTS = "spec.routing.draftModel: write the name of another model, not its own"
"""Said of the whole object, the only one that knows its name."""

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

FIELDS: Mapping[str, Field] = {
    "spec": Field(
        "object", (*SCALING_RULES, *RESOURCE_RULES, *BACKEND_RULES, *ENGINE_RULES, *DRAFTING_RULES, *ADAPTER_RULES), required=True
    ),
    **MODEL_FIELDS,
    **ADAPTER_FIELDS,
    **_NAMES,
    **ENGINE_FIELDS,
    **RESOURCE_FIELDS,
    **SCALING_FIELDS,
    **VARIANT_FIELDS,
    **overrides(ENGINE_FIELDS, RESOURCE_FIELDS, SCALING_FIELDS),
    **ROLLOUT_FIELDS,
    **ROUTING_FIELDS,
    **PROMISE_FIELDS,
}
"""By path; [] stands for each item of a list. An object's rules are tried only when its own fields have the right types."""

_NOT_YET = {
    "spec.routing.classes",
}
NOT_YET = frozenset(_NOT_YET | {in_variant(path) for path in _NOT_YET if path.startswith("spec.engine.")})
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
