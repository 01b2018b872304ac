"""The boards as files: current, of the shape that Grafana reads, and without the mistakes that boards of this field make.

They were not rendered in Grafana; that their queries return data is test_live.py.
"""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from promql import divisors, is_counter, selected

from boards.files import BOARDS, CHART, OPS, ROOT, outdated
from boards.grafana import Board

SCHEMA = json.loads((Path(__file__).parent / "board_schema.json").read_text())
QUERIES = [(board, panel, query) for board in BOARDS for panel in board.panels for query in panel.queries]
IDS = [f"{board.uid}: {panel.title}" for board, panel, _ in QUERIES]
each_query = pytest.mark.parametrize("expr", [query.expr for _, _, query in QUERIES], ids=IDS)
each_board = pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)

RATES = {"rate", "increase", "irate"}


def loaded(board: Board) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CHART / f"dashboards/{board.uid.removeprefix('pagoda-')}.json").read_text())
    return found


def test_everything_generated_is_up_to_date() -> None:
    assert [str(path.relative_to(ROOT)) for path in outdated()] == [], "run make boards"


@each_board
def test_a_board_has_the_shape_that_grafana_reads(board: Board) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(loaded(board))


def test_the_schema_refuses_a_panel_without_its_datasource() -> None:
    broken = loaded(BOARDS[0])
    del broken["panels"][1]["datasource"]
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(broken)


def test_boards_are_told_apart() -> None:
    assert len({board.uid for board in BOARDS}) == len({board.title for board in BOARDS}) == len(BOARDS)


@each_board
def test_panels_do_not_overlap_and_have_a_number_and_a_title_each(board: Board) -> None:
    panels = loaded(board)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)
    for row in board.rows:
        assert len({panel.title for panel in row.panels}) == len(row.panels), row.title


@each_board
def test_every_variable_is_used_and_every_one_used_is_there(board: Board) -> None:
    there = {variable.name for variable in board.variables}
    chained = json.dumps(loaded(board)["templating"])
    used = {name for panel in board.panels for query in panel.queries for name in re.findall(r"\$([a-z_]+)", query.expr)}
    used |= set(re.findall(r"\$([a-z_]+)", chained))
    assert used - {"__rate_interval", "__range", "__range_s", "__all", "__"} == there


@each_query
def test_a_counter_is_looked_at_by_its_rate(expr: str) -> None:
    """Never by its lifetime's sum."""
    plain = [each.name for each in selected(expr) if is_counter(each.name) and each.inside not in RATES]
    assert plain == []


@each_query
def test_windows_are_grafanas(expr: str) -> None:
    windows = {each.range for each in selected(expr) if each.range}
    assert windows <= {"[$__rate_interval]", "[$__range]"}


@each_query
def test_nothing_is_divided_by_nothing(expr: str) -> None:
    assert [divisor for divisor in divisors(expr) if not (divisor.endswith("> 0") or divisor.isdigit())] == []


@each_query
def test_a_query_is_narrowed_by_the_boards_variables(expr: str) -> None:
    """All but the operator's own, which has neither namespace nor model of its own."""
    open_ones = {each.name for each in selected(expr) if "$" not in each.labels and not each.name.startswith("pagoda_operator_")}
    assert open_ones == set()


@pytest.mark.parametrize(
    ("expr", "names"),
    [
        ('sum by (le, model) (rate(a_bucket{x="}("}[5m])) / on (x) group_left () b', ["a_bucket", "b"]),
        ("histogram_quantile(0.9, c:d) > 3 and absent(e)", ["c:d", "e"]),
        ("0 * f offset 5m or vector(0)", ["f"]),
    ],
)
def test_series_are_found_in_queries(expr: str, names: list[str]) -> None:
    assert [each.name for each in selected(expr)] == names


def test_divisors_are_found_in_queries() -> None:
    assert divisors('a{x="/"} / (b(c) > 0) / on () group_left () (1 - d > 0) / 1000') == ["b(c) > 0", "1 - d > 0", "1000"]


@pytest.mark.parametrize("path", sorted((OPS / "expositions").glob("*.prom")), ids=lambda path: path.stem)
def test_an_exposition_says_where_it_comes_from(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert re.match(r"# (Recorded from|Written, not recorded: )", first)


def test_the_workers_figures_of_gpus_are_those_that_it_documents() -> None:
    written = set(re.findall(r"^# TYPE (\S+)", (OPS / "expositions/worker-gpu.prom").read_text(), re.MULTILINE))
    documented = set(re.findall(r"^\| `(pagoda_gpu_\w+)`", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE))
    assert written == documented
