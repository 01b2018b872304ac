"""The part of the table in `table.py` that is about LoRA adapters: spec.adapters, and the room for them in spec.engine.adapters."""

from collections.abc import Mapping
from typing import Any

from pagoda_operator.manifest.rules.predicates import Field, Rule, between, matches, only_with, unique
from pagoda_operator.manifest.rules.sources import CLAIM

ADAPTER_FIELDS: Mapping[str, Field] = {
    "spec.adapters": Field(
        "list",
        (Rule(lambda given: unique([one.get("name") for one in given]), "give each adapter a name of its own"),),
        max_size=64,
    ),
    "spec.adapters[]": Field("object", (Rule(only_with("revision", "hf"), "revision goes with hf:// sources only: remove it"),)),
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
    "spec.adapters[].source": Field(
        "string",
        (
            Rule(
                matches(
                    f"hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*|pvc://{CLAIM}(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*/?|file://.+"
                ),
                "write hf://ORG/NAME, pvc://CLAIM/FOLDER or file:///FOLDER: an adapter from elsewhere goes onto a claim first",
            ),
            Rule(
                lambda given: not given.startswith("file://") or given.startswith("file:///"),
                "write an absolute folder, file:///FOLDER: only `pagoda` on one machine takes a relative one",
            ),
        ),
        required=True,
        max_size=1024,
    ),
    "spec.adapters[].revision": Field(
        "string",
        (Rule(matches("[A-Za-z0-9][A-Za-z0-9_-]*([./][A-Za-z0-9_-]+)*"), "write a branch, a tag or a commit of the hub, such as main"),),
        max_size=128,
    ),
}
ADAPTER_ROOM: Mapping[str, Field] = {
    "spec.engine.adapters": Field("object"),
    "spec.engine.adapters.slots": Field("integer", (Rule(between(0, 256), "write 0 to 256 adapters that may run at once; 0 takes none"),)),
    "spec.engine.adapters.maxRank": Field("integer", (Rule(between(1, 64), "write 1 to 64, the largest rank of an adapter"),)),
}


def _names_differ(spec: Mapping[str, Any]) -> bool:
    served = spec.get("servedNames", ())
    return all(one.get("name") not in served for one in spec.get("adapters", ()))


def _only_own_backends(spec: Mapping[str, Any]) -> bool:
    usual = spec.get("engine", {})
    engines = [{**usual, **one.get("engine", {})} for one in spec.get("variants") or [{}]]
    foreign = [engine for engine in engines if engine.get("backend", "pagoda") != "pagoda"]
    return not foreign or not (spec.get("adapters") or any("adapters" in engine for engine in foreign))


ADAPTER_RULES = (
    Rule(_names_differ, "adapters: a name is one of servedNames too: a client could not tell them apart, choose another"),
    Rule(
        _only_own_backends,
        "adapters: only workers of backend pagoda take adapters from here: remove them, or write what the other backend calls them into "
        "args",
    ),
)
"""Over the whole of spec."""
