"""The operator admits exactly the policies that routers know, and refuses the rest at kubectl apply."""

import re
from pathlib import Path

import pytest

from pagoda_operator.manifest.rules.table import FIELDS
from pagoda_router.placement.scores import POLICIES, PolicyName

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", PolicyName)
def test_every_policy_of_the_router_may_be_asked_for(name: PolicyName) -> None:
    assert name in POLICIES
    assert all(rule.holds(name) for rule in FIELDS["spec.routing.policy"].rules)


def test_the_definition_and_the_page_name_the_same_ones() -> None:
    crd = (ROOT / "crds/inferencemodels.yaml").read_text()
    (listed,) = re.findall(r"rule: self in \[([^\]]*'round-robin'[^\]]*)\]", crd)
    assert set(re.findall(r"'([\w-]+)'", listed)) == set(PolicyName)
    page = (ROOT / "docs/routing.md").read_text()
    assert {name for name in PolicyName if f"\n| `{name}`" in page} == set(PolicyName)
