"""The part of Grafana's dashboard JSON that our boards use: typed, laid out by rows, nothing else.

Knows no metric. Called by the modules that each describe one board; `files` writes the result. Why not a library: docs/decisions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

WIDTH = 24
"""Columns of Grafana's grid."""
HEIGHT = 8
STAT_HEIGHT = 4
SCHEMA_VERSION = 39
"""Grafana 11; newer ones migrate it when they load it."""
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Query:
    expr: str
    legend: str = ""
    """Grafana's template, such as {{model}}. Empty: the labels as they are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    title: str
    description: str
    """What the figure says and what a bad value looks like: shown at the panel's corner."""
    unit: str
    """Grafana's name of it: s, reqps, percentunit, bytes, short, currencyUSD, or suffix:WORDS."""
    queries: Sequence[Query]
    kind: Literal["timeseries", "stat"] = "timeseries"
    stacked: bool = False
    most: float | None = None
    """Upper end of the axis. None: what the data need."""
    decimals: int | None = None
    rare: bool = False
    """Its series come only with an event that a healthy stack may never see; until then the panel is empty."""


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, kw_only=True, slots=True)
class Variable:
    name: str
    label: str
    metric: str
    """Whose label's values are offered, with its selector."""
    of_label: str
    many: bool = True
    """Several, or all, at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A variable with values of our own."""

    name: str
    label: str
    values: Sequence[str]
    """The first is chosen at first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Board:
    uid: str
    title: str
    description: str
    variables: Sequence[Variable | Choice]
    rows: Sequence[Row]
    tags: Sequence[str] = field(default=("pagoda",))
    since: str = "now-3h"

    @property
    def panels(self) -> Iterator[Panel]:
        return (panel for row in self.rows for panel in row.panels)

    def json(self) -> Json:
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": list(self.tags),
            "schemaVersion": SCHEMA_VERSION,
            "editable": False,
            "graphTooltip": 1,  # one crosshair for all panels: a spike is looked up in the others
            "refresh": "30s",
            "time": {"from": self.since, "to": "now"},
            "timezone": "",
            "links": [
                {"type": "dashboards", "tags": ["pagoda"], "title": "Pagoda", "asDropdown": True, "keepTime": True, "includeVars": True}
            ],
            "annotations": {"list": []},
            "templating": {"list": [_datasource(), *map(_variable, self.variables)]},
            "panels": list(_laid_out(self.rows)),
        }


def _laid_out(rows: Sequence[Row]) -> Iterator[Json]:
    """A row's panels share its width; more than four go on below, three to a line."""
    number, y = 1, 0
    for row in rows:
        yield {"id": number, "type": "row", "title": row.title, "collapsed": False, "panels": [], "gridPos": _place(0, y, WIDTH, 1)}
        number, y = number + 1, y + 1
        for line in _lines(row.panels):
            height = STAT_HEIGHT if all(panel.kind == "stat" for panel in line) else HEIGHT
            width = WIDTH // len(line)
            for column, panel in enumerate(line):
                yield _panel(panel, number, _place(column * width, y, width, height))
                number += 1
            y += height


def _lines(panels: Sequence[Panel]) -> Iterator[Sequence[Panel]]:
    stats = [panel for panel in panels if panel.kind == "stat"]
    if stats:
        yield stats
    charts = [panel for panel in panels if panel.kind != "stat"]
    per_line = len(charts) if len(charts) <= 4 else 3
    for start in range(0, len(charts), per_line or 1):
        yield charts[start : start + per_line]


def _place(x: int, y: int, width: int, height: int) -> Json:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(panel: Panel, number: int, place: Json) -> Json:
    bounds = (
        {"min": 0} | ({} if panel.most is None else {"max": panel.most}) | ({} if panel.decimals is None else {"decimals": panel.decimals})
    )
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, **bounds, "custom": _look(panel)}, "overrides": []},
        "options": _options(panel),
        "targets": [_target(query, letter, panel) for letter, query in zip("ABCDEFGH", panel.queries, strict=False)],
    }


def _look(panel: Panel) -> Json:
    if panel.kind == "stat":
        return {}
    stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
    return {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 20 if panel.stacked else 5, "showPoints": "never", "stacking": stacking}


def _options(panel: Panel) -> Json:
    if panel.kind == "stat":
        return {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "graphMode": "area", "textMode": "auto"}
    return {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}


def _target(query: Query, letter: str, panel: Panel) -> Json:
    return {
        "refId": letter,
        "datasource": DATASOURCE,
        "expr": query.expr,
        "legendFormat": query.legend or "__auto",
        "instant": panel.kind == "stat",
        "range": panel.kind != "stat",
    }


def _datasource() -> Json:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0, "refresh": 1}


def _variable(variable: Variable | Choice) -> Json:
    common = {"name": variable.name, "label": variable.label, "hide": 0}
    if isinstance(variable, Choice):
        options = [{"text": value, "value": value, "selected": value == variable.values[0]} for value in variable.values]
        return common | {"type": "custom", "query": ",".join(variable.values), "options": options, "current": options[0], "multi": False}
    query = f"label_values({variable.metric}, {variable.of_label})"
    # .* also matches a label that is not there: a Prometheus outside Kubernetes need not add the namespace
    every = (
        {"includeAll": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"}} if variable.many else {"includeAll": False}
    )
    more = {"type": "query", "datasource": DATASOURCE, "query": {"query": query, "refId": variable.name}, "refresh": 2, "sort": 1}
    return common | more | every | {"multi": variable.many}
