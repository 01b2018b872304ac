"""From records to figures, with times chosen by hand."""

from array import array
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda_bench.errors import SettingsError
from pagoda_bench.load.lateness import summarise
from pagoda_bench.load.loops import LoopRun, _closed_window
from pagoda_bench.load.measure import measure
from pagoda_bench.load.records import Record, Window
from pagoda_bench.load.slo import Slo
from pagoda_bench.load.statistic import STATISTICS, Spread, estimate, rate_per_s


def record(due_s: float, arrivals: list[float], **changes: Any) -> Record:
    fields: dict[str, Any] = {
        "name": f"r{due_s}",
        "due_s": due_s,
        "sent_s": due_s,
        "ended_s": arrivals[-1] if arrivals else due_s,
        "arrivals": array("d", arrivals),
        "finished_s": None,
        "prompt_tokens_asked": 10,
        "output_tokens_asked": len(arrivals),
        "prompt_tokens": 10,
        "output_tokens": len(arrivals),
        "cached_tokens": None,
        "error": None,
    }
    return Record(**fields | changes)


def test_latencies_count_from_when_a_request_was_due_not_from_when_it_was_sent() -> None:
    late = record(10.0, [12.0, 12.5, 13.0], sent_s=11.5)
    assert (late.ttft_s, late.tpot_s, late.e2e_s, late.lateness_s) == (2.0, 0.5, 3.0, 1.5)


def test_tpot_counts_the_servers_tokens_when_a_chunk_has_several() -> None:
    one = record(0.0, [1.0, 2.0, 3.0], output_tokens=9)
    assert one.tpot_s == 2.0 / 8
    assert one.gaps_s == [1.0, 1.0]


def test_an_answer_ends_with_its_finish_reason_when_its_last_tokens_had_no_text() -> None:
    one = record(0.0, [1.0, 2.0], output_tokens=5, finished_s=5.0)
    assert (one.tpot_s, one.e2e_s) == (1.0, 5.0)


def test_a_single_token_or_a_single_chunk_has_no_tpot() -> None:
    assert record(0.0, [1.0]).tpot_s is None
    assert record(0.0, [1.0], output_tokens=8).tpot_s is None


def test_warm_up_and_what_was_due_after_the_window_are_in_no_latency() -> None:
    records = [record(0.0, [9.0], warm=True), record(2.0, [3.0]), record(4.9, [60.0]), record(5.0, [5.1])]
    figures = measure([LoopRun(Window(1.0, 5.0), records)], None)
    assert figures.counted == 2
    assert figures.latencies["ttft"]["mean"].value == pytest.approx((1.0 + 55.1) / 2)


def test_tokens_count_when_they_arrive_whosesoever_they_are() -> None:
    records = [record(0.0, [1.5, 2.5, 7.0], warm=True), record(4.0, [4.5, 9.0], output_tokens=4)]
    figures = measure([LoopRun(Window(2.0, 6.0), records)], None)
    assert figures.rates["output_tokens_per_s"].value == pytest.approx((1 + 2) / 4)


@given(start=st.floats(-5, 15), length=st.floats(0.01, 10), weight=st.floats(0.1, 100))
def test_an_event_counts_by_its_part_in_the_window(start: float, length: float, weight: float) -> None:
    inside = max(0.0, min(start + length, 10.0) - max(start, 0.0)) / length
    rate = rate_per_s([Spread(start, start + length, weight)], 0.0, 10.0)
    assert rate.value == pytest.approx(weight * inside / 10.0, abs=1e-9)


def test_goodput_counts_whole_answers_that_keep_every_limit() -> None:
    slo = Slo.parse("ttft=500ms,tpot=0.1s")
    records = [
        record(0.0, [0.4, 0.5]),
        record(0.0, [0.6, 0.7]),  # first token late
        record(0.0, [0.4, 0.6]),  # tokens slow
        record(0.0, [0.4]),  # one token: no TPOT to break
        record(0.0, [0.1, 0.2], error="truncated"),
    ]
    figures = measure([LoopRun(Window(0.0, 1.0), records)], slo)
    assert figures.good_ratio == 2 / 5
    assert figures.rates["goodput_requests_per_s"].value == pytest.approx(2.0)
    assert figures.errors == {"truncated": 1}
    assert str(slo) == "TTFT ≤ 500 ms and TPOT ≤ 100 ms"


@pytest.mark.parametrize("text", ["", "ttft", "ttft=5", "speed=1s", "ttft=500ms;tpot=1s"])
def test_an_objective_that_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(SettingsError):
        Slo.parse(text)


def test_mismatches_between_both_sides_are_counted() -> None:
    records = [
        record(0.0, [1.0, 2.0], prompt_tokens=11),
        record(0.0, [1.0, 2.0], output_tokens=1, client_output_tokens=2),
        record(0.0, [1.0, 2.0], output_tokens=None, prompt_tokens=None),
    ]
    counting = measure([LoopRun(Window(0.0, 3.0), records)], None).counting
    assert (counting.prompt_mismatches, counting.output_mismatches, counting.without_usage) == (1, 1, 1)
    assert (counting.more_chunks_than_tokens, counting.client_differs) == (1, 1)
    assert not counting.one_token_a_chunk


def test_over_rounds_rates_are_the_median_with_the_extremes() -> None:
    rounds = [LoopRun(Window(0.0, 1.0), [record(0.0, [0.5] * n)]) for n in (4, 9, 5)]
    rate = measure(rounds, None).rates["output_tokens_per_s"]
    assert (rate.value, rate.low, rate.high) == pytest.approx((5.0, 4.0, 9.0))


@pytest.mark.parametrize(
    ("slowly", "behind"),
    [(lambda i: 0.1, False), (lambda i: 0.1 + i / 10, True)],
)
def test_a_growing_queue_is_told(slowly: Any, behind: bool) -> None:
    records = [record(float(i), [i + slowly(i), i + slowly(i) + 0.1]) for i in range(40)]
    assert measure([LoopRun(Window(0.0, 40.0), records)], None).is_falling_behind is behind


def test_the_closed_window_ends_when_the_first_user_is_idle() -> None:
    records = [record(0.0, [1.0], warm=True), record(1.0, [2.0]), record(2.0, [3.0]), record(3.0, [7.0])]
    assert _closed_window(records, 1.0, 4.0) == Window(1.0, 4.0)


def test_without_a_request_inside_the_window_all_count_and_it_says_so() -> None:
    records = [record(0.0, [1.0], warm=True), record(1.0, [5.0])]
    assert _closed_window(records, 2.0, 3.0) == Window(1.0, 5.0, is_steady=False)


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=50))
def test_percentiles_lie_within_the_values_and_ascend(values: list[float]) -> None:
    found = [STATISTICS[name](np.asarray(values)) for name in ("p50", "p90", "p95", "p99")]
    assert found == sorted(found)
    assert min(values) <= found[0] <= found[-1] <= max(values)
    assert STATISTICS["p50"](np.asarray([1.0, 2.0, 3.0, 4.0])) == 2.5


def test_an_interval_of_equal_values_is_a_point_and_of_spread_ones_holds_the_estimate() -> None:
    equal = estimate([3.0] * 20, "p95")
    assert (equal.value, equal.low, equal.high) == (3.0, 3.0, 3.0)
    spread = estimate([float(i) for i in range(200)], "mean")
    assert spread.low < spread.value < spread.high
    assert spread.high - spread.low == pytest.approx(2 * 1.96 * 57.7 / 200**0.5, rel=0.2)


def test_lateness_has_bounds() -> None:
    assert summarise(array("d", [0.0001] * 100)).is_within_bounds
    assert not summarise(array("d", [0.0001] * 98 + [0.02] * 2)).is_within_bounds
    assert not summarise(array("d", [0.002] * 100)).is_within_bounds
