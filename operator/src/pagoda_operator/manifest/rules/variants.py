"""The part of the table that is about spec.variants, and what a variant's overrides make of the sections that they write again.

Below the sections' own rules, which ask of every variant what its workers really get.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pagoda_operator.manifest.rules.predicates import Field, Rule, between, matches, merged, unique

SPEC = "spec"
VARIANT = "spec.variants[]"
OVERRIDABLE = ("engine", "resources", "scaling")
"""Sections that a variant may write again in part: its fields are those of the section itself."""

VARIANT_FIELDS: Mapping[str, Field] = {
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


def overrides(*sections: Mapping[str, Field]) -> dict[str, Field]:
    """A section's fields again, below a variant. Rules over the whole section are asked of the merged one, by `spec` itself."""
    again = {in_variant(path): field for section in sections for path, field in section.items()}
    return again | {f"{VARIANT}.{section}": Field("object") for section in OVERRIDABLE}


def in_variant(path: str) -> str:
    """The path of the same field below a variant."""
    return f"{VARIANT}{path.removeprefix(SPEC)}"


def with_overrides(spec: Mapping[str, Any], variant: Mapping[str, Any], section: str) -> dict[str, Any]:
    """A section as the variant's workers have it."""
    section_of_variant: dict[str, Any] = merged(spec.get(section, {}), variant.get(section, {}))
    return section_of_variant


def of_each_variant(spec: Mapping[str, Any], *sections: str) -> Iterator[tuple[dict[str, Any], ...]]:
    """These sections of every variant, once its overrides are in; without variants, the model's own."""
    for variant in spec.get("variants") or [{}]:
        yield tuple(with_overrides(spec, variant, section) for section in sections)


def of_each_engine(holds: Callable[[Mapping[str, Any], Mapping[str, Any]], bool]) -> Callable[[Any], bool]:
    """Of spec: `holds(engine, spec)` is true of the engine of every variant."""
    return lambda spec: all(holds(engine, spec) for (engine,) in of_each_variant(spec, "engine"))
