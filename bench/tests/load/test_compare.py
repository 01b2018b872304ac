from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda_bench.errors import ResultFormatError
from pagoda_bench.load.compare import compare, compare_files, ratio_of_rows, ratio_of_samples, table
from pagoda_bench.results import Result, Row, write


def row(value: float, low: float | None = None, high: float | None = None, **changes: str) -> Row:
    fields = {"case": "c", "system": "a", "metric": "output_tokens_per_s", "unit": "tokens/s"} | changes
    return Row(value=value, low=low, high=high, **fields)


def result(*rows: Row, commit: str = "x") -> Result:
    return Result(benchmark="b", commit=commit, date="d", hardware={"cpu": "A", "cores": 2}, command="", rows=rows)


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        (row(100, 95, 105), row(101, 96, 106), "no difference beyond noise"),
        (row(150, 145, 155), row(100, 95, 105), "A is higher by 50.0%"),
        (row(50, 49, 51), row(100, 95, 105), "A is lower by 50.0%"),
        (row(150), row(100, 95, 105), "one value each: noise unknown"),
        (row(150, 0, 155), row(100, 95, 105), "no difference beyond noise"),
    ],
)
def test_a_difference_is_told_only_beyond_the_noise(a: Row, b: Row, verdict: str) -> None:
    assert ratio_of_rows(a, b).verdict == verdict


@given(st.floats(1, 100), st.floats(0.01, 0.9), st.floats(0.01, 0.9))
def test_the_interval_is_wider_than_either_sides_and_narrower_than_both_together(value: float, down: float, up: float) -> None:
    a, b = row(value, value * (1 - down), value * (1 + up)), row(1.0, 1 - down, 1 + up)
    ratio = ratio_of_rows(a, b)
    assert ratio.low is not None
    assert ratio.high is not None
    assert value * (1 - down) / (1 + up) <= ratio.low <= value * (1 - down) * 1.0000001
    assert value * (1 + up) * 0.9999999 <= ratio.high <= value * (1 + up) / (1 - down)


def test_requests_are_compared_by_bootstrap() -> None:
    slow, fast = [1.0 + i / 100 for i in range(100)], [0.5 + i / 200 for i in range(100)]
    assert ratio_of_samples(slow, fast, "p50").value == pytest.approx(2.0)
    assert ratio_of_samples(slow, fast, "p50").verdict == "A is higher by 100.0%"
    assert ratio_of_samples(slow, slow, "p95").verdict == "no difference beyond noise"


def test_raw_values_are_preferred_where_both_have_them() -> None:
    a, b = (result(row(1.0, metric="ttft_p50_s", unit="s")) for _ in range(2))
    raw = {("c", "ttft"): [1.0, 1.1, 1.2]}
    assert [line.by_requests for line in compare(a, b, raw, raw)] == [True]
    assert [line.by_requests for line in compare(a, b, raw, {})] == [False]


def test_two_systems_are_compared_with_each_other_and_several_each_with_itself() -> None:
    vllm = row(2.0, system="vllm")
    assert [line.systems for line in compare(result(row(1.0)), result(vllm), {}, {})] == [("a", "vllm")]
    both = result(row(1.0), vllm)
    assert [line.systems for line in compare(both, both, {}, {})] == [("a", "a"), ("vllm", "vllm")]


def test_files_are_compared_with_cautions(tmp_path: Path) -> None:
    write(result(row(100, 99, 101), row(0.02, metric="generator_late_p99_s", unit="s")), tmp_path / "a.json")
    write(result(row(50, 49, 51), commit="y"), tmp_path / "b.json")
    lines, cautions = compare_files(tmp_path / "a.json", tmp_path / "b.json")
    assert "| c | output_tokens_per_s | 100 tokens/s | 50 tokens/s | 2.000 |" in table(lines)
    assert cautions[0] == "A is commit x, B is commit y"
    assert cautions[1].startswith("A was measured on a busy machine")


def test_files_without_a_common_figure_are_refused(tmp_path: Path) -> None:
    write(result(row(100)), tmp_path / "a.json")
    write(result(row(50, case="other")), tmp_path / "b.json")
    with pytest.raises(ResultFormatError, match="in common"):
        compare_files(tmp_path / "a.json", tmp_path / "b.json")
