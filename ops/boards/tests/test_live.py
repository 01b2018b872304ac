"""Every query of boards and rules, evaluated by a real Prometheus that scrapes the running product. Fails on one that returns nothing.

What a healthy stack does not have is looked at in another way. Alerts return nothing while all is well: each series that they select must be
there. Panels of rare events are empty until there is one: their names must be exposed. Sources that the machine lacks are recordings.
"""

import math
import re
from collections.abc import Iterator, Mapping
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
RARE_IN_ALERTS = {"pagoda_router_rejected_total"}
"""Selected by reasons that a short test may not see; rejected for some reason there must be."""

PANELS = {
    f"{board.uid}: {row.title}: {panel.title}: {query.legend}": (panel.rare, query.expr)
    for board in BOARDS
    for row in board.rows
    for panel in row.panels
    for query in panel.queries
}


@pytest.fixture(scope="module")
def filled(prometheus_program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, Path]]:
    """Prometheus, and the state folder of the stack that it scrapes."""
    with (
        local_stack(HERE / "stack.yaml", extra_env={"PAGODA_DEVICE": "cpu"}) as stack,
        httpx.Client(base_url=stack.url, trust_env=False, timeout=60, limits=httpx.Limits(max_connections=64)) as client,
        prometheus(prometheus_program, stack.home, tmp_path_factory.mktemp("prometheus")) as started,
    ):
        assert traffic.once(client) >= {200, 400, 404, 429}
        with traffic.going_on(client):
            yield started, stack.home


def rules_of(home: Path) -> list[dict[str, str]]:
    groups = [
        group
        for path in (home / "prometheus/rules.yml", OPS / "rules/alerts.yaml")
        for group in yaml.safe_load(path.read_text())["groups"]
    ]
    return [rule for group in groups for rule in group["rules"]]


def substituted(expr: str) -> str:
    choices = {each.name: each.values[0] for board in BOARDS for each in board.variables if isinstance(each, Choice)}
    return re.sub(r"\$([a-z_]+)", lambda match: {**VALUES, **CHOSEN, **choices}[match[1]], expr)


def has_data(server: Prometheus, expr: str) -> bool:
    return any(math.isfinite(float(each["value"][1])) for each in server.query(substituted(expr)))


def failing(server: Prometheus, queries: Mapping[str, str]) -> dict[str, str]:
    """Those that still return nothing when everything had the time to fill."""
    left = dict(queries)

    def all_answered() -> bool:
        for name, expr in list(left.items()):
            if has_data(server, expr):
                del left[name]
        return not left

    eventually(all_answered, within_s=FILLED_S, every_s=1.0)
    return left


def unknown_names(server: Prometheus, exprs: list[str]) -> set[str]:
    """Metrics that nothing exposes and no rule records: wrong, or not there yet."""
    exposed = set(server.get("metadata")) | set(server.get("label/__name__/values"))
    names = {each.name for expr in exprs for each in selected(expr)}
    return {name for name in names if not {name, OF_HISTOGRAM.sub("", name), name.removesuffix("_total")} & exposed}


def test_every_target_is_up(filled: tuple[Prometheus, Path]) -> None:
    server, _ = filled
    jobs = {"pagoda-router", "pagoda-worker", *(f"recorded {path.stem}" for path in (OPS / "expositions").glob("*.prom"))}
    assert eventually(lambda: {each["metric"]["job"] for each in server.query("up == 1")} == jobs, within_s=FILLED_S), server.query("up")


def test_every_name_in_a_query_is_exposed(filled: tuple[Prometheus, Path]) -> None:
    server, home = filled
    exprs = [expr for _, expr in PANELS.values()] + [rule["expr"] for rule in rules_of(home)]
    exprs += [each.metric for board in BOARDS for each in board.variables if isinstance(each, Variable)]
    assert eventually(lambda: not unknown_names(server, exprs), within_s=5.0), f"nothing exposes {sorted(unknown_names(server, exprs))}"


def test_every_panel_shows_something(filled: tuple[Prometheus, Path]) -> None:
    server, _ = filled
    left = failing(server, {name: expr for name, (rare, expr) in PANELS.items() if not rare})
    assert list(left) == [], "\n".join(f"{name}\n    {substituted(expr)}" for name, expr in left.items())


def test_every_variable_offers_something(filled: tuple[Prometheus, Path]) -> None:
    server, _ = filled
    offered = {
        f"{board.uid}: {each.name}": server.get(f"label/{each.of_label}/values", **{"match[]": substituted(each.metric)})
        for board in BOARDS
        for each in board.variables
        if isinstance(each, Variable)
    }
    assert [name for name, values in offered.items() if not values] == []


def test_every_recording_rule_records_something(filled: tuple[Prometheus, Path]) -> None:
    server, home = filled
    recorded = {rule["record"]: rule["expr"] for rule in rules_of(home) if "record" in rule}
    assert recorded
    assert list(failing(server, {f"{name} = {expr}": expr for name, expr in recorded.items()} | {name: name for name in recorded})) == []


def test_every_series_that_an_alert_looks_at_is_there(filled: tuple[Prometheus, Path]) -> None:
    server, home = filled
    series = {
        f"{rule['alert']}: {each.instant}": each.name if each.name in RARE_IN_ALERTS else each.instant
        for rule in rules_of(home)
        if "alert" in rule
        for each in selected(rule["expr"])
    }
    rare = {name: expr for name, expr in series.items() if 'outcome="failed"' in name}
    left = failing(server, {name: expr for name, expr in series.items() if name not in rare})
    assert list(left) == []
    assert unknown_names(server, list(rare.values())) == set()


def test_prometheus_evaluates_every_rule_without_an_error(filled: tuple[Prometheus, Path]) -> None:
    server, _ = filled
    rules = [rule for group in server.get("rules")["groups"] for rule in group["rules"]]
    assert rules
    assert {(rule["name"], rule.get("lastError", "")) for rule in rules if rule["health"] == "err"} == set()
