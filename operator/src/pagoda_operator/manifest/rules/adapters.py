"""The part of the table that is about LoRA adapters: spec.adapters, and the room for them in spec.engine.adapters."""

from collections.abc import Mapping
from typing import Any

from pagoda_operator.manifest.rules.backends import is_own
from pagoda_operator.manifest.rules.predicates import Field, Rule, between, matches, unique
from pagoda_operator.manifest.rules.sources import REVISION, REVISION_OF_A_HUB, source_field
from pagoda_operator.manifest.rules.variants import of_each_engine

ADAPTER_FIELDS: Mapping[str, Field] = {
    "spec.adapters": Field(
        "list",
        (Rule(lambda given: unique([one.get("name") for one in given]), "give each adapter a name of its own"),),
        max_size=64,
    ),
    "spec.adapters[]": Field("object", (REVISION_OF_A_HUB,)),
    "spec.adapters[].name": Field(
        "string",
        (
            Rule(
                matches("[A-Za-z0-9][A-Za-z0-9._:-]*"),
                "write letters, digits and . _ : - only, beginning with a letter or a digit",
            ),
        ),
        required=True,
        max_size=128,
    ),
    "spec.adapters[].source": source_field(
        "hf",
        "pvc",
        "file",
        otherwise="write hf://ORG/NAME, pvc://CLAIM/FOLDER or file:///FOLDER: copy an adapter of s3:// or elsewhere to one of them first",
    ),
    "spec.adapters[].revision": REVISION,
}
ADAPTER_ROOM: Mapping[str, Field] = {
    "spec.engine.adapters": Field("object"),
    "spec.engine.adapters.slots": Field("integer", (Rule(between(0, 256), "write 0 to 256 adapters that may run at once; 0 takes none"),)),
    "spec.engine.adapters.maxRank": Field("integer", (Rule(between(1, 64), "write 1 to 64, the largest rank of an adapter"),)),
}


def _names_differ(spec: Mapping[str, Any]) -> bool:
    served = spec.get("servedNames", ())
    return all(one.get("name") not in served for one in spec.get("adapters", ()))


ADAPTER_RULES = (
    Rule(_names_differ, "adapters: a name is one of servedNames too: a client could not tell them apart, choose another"),
    Rule(
        of_each_engine(lambda engine, spec: is_own(engine) or not ("adapters" in engine or spec.get("adapters"))),
        "adapters: only workers of backend pagoda take adapters from here: remove them, or write what the other backend calls them into "
        "args",
    ),
)
"""Over the whole of spec."""
