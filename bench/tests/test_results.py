import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda_bench.errors import ResultFormatError
from pagoda_bench.results import FOLDER, Result, Row, read, result_here, write

numbers = st.floats(allow_nan=False, allow_infinity=False)
rows = st.builds(
    Row,
    case=st.text(),
    system=st.text(),
    metric=st.text(),
    value=numbers,
    unit=st.text(),
    low=st.none() | numbers,
    high=st.none() | numbers,
)
results = st.builds(
    Result,
    benchmark=st.text(),
    commit=st.text(),
    date=st.text(),
    hardware=st.dictionaries(st.text(), st.text()),
    command=st.text(),
    rows=st.lists(rows).map(tuple),
    notes=st.lists(st.text()).map(tuple),
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results") / "deep" / "router.json"


@given(result=results)
def test_what_is_written_is_read_back(path: Path, result: Result) -> None:
    write(result, path)
    assert read(path) == result


def test_a_result_says_where_it_was_measured(path: Path) -> None:
    result = result_here("engine", [], command="pagoda bench engine", packages=("pagoda-bench",))
    assert result.hardware["cores"] >= 1
    assert result.hardware["packages"]["pagoda-bench"] != "absent"
    assert result.commit
    assert result.date


GOOD = {"benchmark": "b", "commit": "c", "date": "d", "hardware": {}, "command": "x", "rows": []}
ROW = {"case": "a", "system": "s", "metric": "m", "value": 1, "unit": "s"}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is not JSON"),
        ("[]", "a JSON object is expected"),
        (json.dumps({key: GOOD[key] for key in GOOD if key != "commit"}), "lacks commit"),
        (json.dumps(GOOD | {"colour": 1}), "unknown colour"),
        (json.dumps(GOOD | {"rows": [{**ROW, "value": "fast"}]}), "row 0 has the value 'fast'"),
        (json.dumps(GOOD | {"rows": [{"case": "a"}]}), "row 0 lacks metric, system, unit, value"),
        (json.dumps(GOOD | {"rows": 3}), "no result file"),
    ],
)
def test_a_file_of_another_format_is_refused_with_the_reason(tmp_path: Path, content: str, sentence: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(content)
    with pytest.raises(ResultFormatError, match=sentence):
        read(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultFormatError, match="cannot be read"):
        read(tmp_path / "none.json")


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.json")), ids=lambda file: file.stem)
def test_every_committed_result_has_this_format_and_its_own_name(file: Path) -> None:
    assert read(file).benchmark == file.stem
