"""Every query of boards and rules, evaluated by a real Prometheus that scrapes the running product. Fails on one that returns nothing.

What a healthy stack does not have is looked at in another way. Alerts return nothing while all is well: each series that they select must
be there. Panels of rare events are empty until there is one: their names must be exposed. Sources that the machine lacks are recordings.
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import traffic
import yaml
from prometheus import Prometheus, eventually, prometheus
from promql import OF_HISTOGRAM, selected

from boards.files import BOARDS, OPS
from boards.grafana import Choice, Variable
from pagoda_bench.local_stack import local_stack

HERE = Path(__file__).parent
FILLED_S = 40.0
"""For the rate windows to fill and the rules to be evaluated."""
VALUES = {"__rate_interval": "10s", "__range_s": "30", "__range": "30s"}
CHOSEN = {"namespace": ".*", "model": "tiny", "node": ".*"}
ANY_LABELS = {"pagoda_router_rejected_total", "pagoda_operator_reconcile_seconds_count"}
"""Selected by reasons and outcomes that a short test may not see; of some reason and outcome they must be there."""

PANELS = {
    f"{board.uid}: {row.title}: {panel.title}: {query.legend}": query.expr
    for board in BOARDS
    for row in board.rows
    for panel in row.panels
    for query in panel.queries
}
RARE = {query.expr for board in BOARDS for panel in board.panels if panel.rare for query in panel.queries}
OFFERED = {f"{board.uid}: {each.name}": each.metric for board in BOARDS for each in board.variables if isinstance(each, Variable)}


@dataclass(frozen=True)
class Filled:
    """What was found once the stack had run for a while under traffic."""

    server: Prometheus
    rules: list[dict[str, str]]
    """The running model's own, then those for all."""
    unknown: set[str]
    """Names in queries that nothing exposes and no rule records: wrong, or not there yet."""
    empty: set[str]
    """Queries that still return nothing."""


@pytest.fixture(scope="module")
def filled(prometheus_program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    with (
        local_stack(HERE / "stack.yaml", extra_env={"PAGODA_DEVICE": "cpu"}) as stack,
        httpx.Client(base_url=stack.url, trust_env=False, timeout=60, limits=httpx.Limits(max_connections=64)) as client,
        prometheus(prometheus_program, stack.home, tmp_path_factory.mktemp("prometheus")) as server,
    ):
        assert traffic.once(client) >= {200, 400, 404, 429}
        with traffic.going_on(client):
            rules = rules_of(stack.home)
            every = {*PANELS.values(), *series_of(rules), *recorded(rules), *OFFERED.values()}
            eventually(lambda: not unknown_names(server, every), within_s=15.0)  # it takes up its targets within five seconds
            unknown = unknown_names(server, every)
            # no need to wait for what cannot come
            hopeless = {expr for expr in every if unknown & {each.name for each in selected(expr)}}
            yield Filled(server, rules, unknown, hopeless | still_empty(server, every - hopeless - RARE))


def rules_of(home: Path) -> list[dict[str, str]]:
    groups = [
        group for path in (home / "prometheus/rules.yml", OPS / "rules/alerts.yaml") for group in yaml.safe_load(path.read_text())["groups"]
    ]
    return [rule for group in groups for rule in group["rules"]]


def substituted(expr: str) -> str:
    choices = {each.name: each.values[0] for board in BOARDS for each in board.variables if isinstance(each, Choice)}
    return re.sub(r"\$([a-z_]+)", lambda match: {**VALUES, **CHOSEN, **choices}[match[1]], expr)


def has_data(server: Prometheus, expr: str) -> bool:
    return any(math.isfinite(float(each["value"][1])) for each in server.query(substituted(expr)))


def still_empty(server: Prometheus, exprs: set[str]) -> set[str]:
    """When everything had the time to fill."""
    left = set(exprs)

    def all_answered() -> bool:
        left.difference_update({expr for expr in left if has_data(server, expr)})
        return not left

    eventually(all_answered, within_s=FILLED_S, every_s=1.0)
    return left


def unknown_names(server: Prometheus, exprs: Iterable[str]) -> set[str]:
    """A family without samples is exposed all the same: its kind is told. What a rule records is not there when its sources are not."""
    exposed = set(server.get("metadata")) | set(server.get("label/__name__/values"))
    names = {each.name for expr in exprs for each in selected(expr) if not each.name.startswith("slo:")}
    return {name for name in names if not {name, OF_HISTOGRAM.sub("", name)} & exposed}


def recorded(rules: list[dict[str, str]]) -> set[str]:
    return {text for rule in rules if "record" in rule for text in (rule["record"], rule["expr"])}


def series_of(rules: list[dict[str, str]]) -> set[str]:
    """What alerts look at, each by itself."""
    found = {each for rule in rules if "alert" in rule for each in selected(rule["expr"])}
    return {each.name if each.name in ANY_LABELS else each.instant for each in found}


def test_every_target_is_up(filled: Filled) -> None:
    jobs = {"pagoda-router", "pagoda-worker", *(f"recorded {path.stem}" for path in (OPS / "expositions").glob("*.prom"))}
    assert {each["metric"]["job"] for each in filled.server.query("up == 1")} == jobs


def test_every_name_in_a_query_is_exposed(filled: Filled) -> None:
    assert filled.unknown == set()


def test_every_panel_shows_something(filled: Filled) -> None:
    empty = {name: substituted(expr) for name, expr in PANELS.items() if expr in filled.empty}
    assert list(empty) == [], "\n".join(f"{name}\n    {expr}" for name, expr in empty.items())


def test_every_variable_offers_something(filled: Filled) -> None:
    assert [name for name, metric in OFFERED.items() if metric in filled.empty] == []


def test_every_recording_rule_records_something(filled: Filled) -> None:
    assert recorded(filled.rules)
    assert recorded(filled.rules) & filled.empty == set()


def test_every_series_that_an_alert_looks_at_is_there(filled: Filled) -> None:
    assert series_of(filled.rules) & filled.empty == set()


def test_prometheus_evaluates_every_rule_without_an_error(filled: Filled) -> None:
    rules = [rule for group in filled.server.get("rules")["groups"] for rule in group["rules"]]
    assert rules
    assert {(rule["name"], rule.get("lastError", "")) for rule in rules if rule["health"] == "err"} == set()
