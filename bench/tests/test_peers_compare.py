"""From rounds to rows, table and verdict."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda_bench.errors import SettingsError
from pagoda_bench.peers.baseline import choose
from pagoda_bench.peers.cases import Case, prompts_for, threads_for
from pagoda_bench.peers.compare import Measured, change, percentile, rows, same_text, speedup, spread
from pagoda_bench.peers.gate import OLD, verdicts
from pagoda_bench.peers.rounds import measure, turned
from pagoda_bench.peers.system import PeerUnavailable, Round
from pagoda_bench.peers.table import render
from pagoda_bench.results import Row

speeds = st.lists(st.floats(min_value=0.1, max_value=1e6), min_size=3, max_size=12)


def test_a_ratio_is_taken_within_a_round_so_that_a_slow_minute_touches_neither_side():
    assert speedup([100, 50, 100], [50, 25, 50]) == spread([2, 2, 2])


def test_a_system_that_is_faster_than_ours_has_a_ratio_below_one():
    found = rows([Measured("tiny c=1", "pagoda", (50.0, 60.0, 70.0)), Measured("tiny c=1", "vllm", (100.0, 100.0, 100.0))])
    ratio = next(row for row in found if row.metric == "pagoda_speedup")
    assert (ratio.system, ratio.value, ratio.low, ratio.high) == ("vllm", 0.6, 0.5, 0.7)


def test_quantized_systems_are_held_against_each_other_and_against_vllm():
    speeds = {"pagoda": 100.0, "pagoda-int8": 200.0, "pagoda-int4": 220.0, "vllm": 100.0, "vllm-int8": 160.0}
    found = rows([Measured("0.45b c=1", system, (speed,) * 3) for system, speed in speeds.items()])
    between = {(row.system, row.metric): row for row in found if row.metric.startswith("speedup_over_")}
    assert {key: row.value for key, row in between.items()} == {
        ("pagoda-int8", "speedup_over_vllm"): 2.0,
        ("pagoda-int8", "speedup_over_vllm-int8"): 1.25,
        ("pagoda-int4", "speedup_over_pagoda-int8"): 1.1,
    }
    assert [row.met for row in between.values()] == [False, None, False]
    assert "- 0.45b c=1: pagoda-int8 ÷ vllm 2.00 (aim >= 2.5: missed)" in render(found, {}, command="c", hardware_line="h", notes=())


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([3.0], 0.95, 3.0), ([1.0, 2.0], 0.5, 1.0), ([4.0, 1.0, 3.0, 2.0], 0.5, 2.0), ([float(i) for i in range(1, 101)], 0.95, 95.0)],
)
def test_a_percentile_is_a_value_that_was_measured(values: list[float], share: float, expected: float):
    assert percentile(values, share) == expected


@pytest.mark.parametrize(
    ("texts", "expected"),
    [(["abcd", "xy"], 1.0), (["abXX", "xy"], 0.75), (["", "xy"], 0.5), (["abcdefgh", "xy"], 0.75), (["Xbcd", "Yy"], 0.0)],
)
def test_same_text_counts_what_is_shared_before_the_first_difference(texts: list[str], expected: float):
    assert same_text(["abcd", "xy"], texts) == expected


@pytest.mark.parametrize(
    ("new", "old", "fell"),
    [
        ([50, 51, 49, 50, 50, 51], [100, 101, 99, 100, 100, 99], True),
        ([95, 96, 94, 95, 95, 96], [100, 101, 99, 100, 100, 99], True),
        ([100, 101, 99, 100, 98, 100], [100, 99, 101, 100, 100, 99], False),
        ([80, 120, 70, 130, 60, 90], [100, 100, 100, 100, 100, 100], False),
        ([200, 201, 199], [100, 100, 100], False),
    ],
    ids=["half", "five per cent, quiet", "the same", "lower, but the noise is wider", "twice as fast"],
)
def test_only_a_fall_beyond_the_noise_of_the_run_is_one(new: list[float], old: list[float], fell: bool):
    assert change(new, old).fell is fell


@given(speeds)
def test_nothing_falls_against_itself(values: list[float]):
    assert not change(values, values).fell


@given(speeds, st.floats(min_value=0.01, max_value=0.99))
def test_a_fall_in_every_round_alike_is_found_however_the_rounds_differ(values: list[float], factor: float):
    found = change([value * factor for value in values], values)
    assert found.ratio == pytest.approx(factor)
    assert found.fell


def test_two_rounds_tell_no_noise():
    with pytest.raises(ValueError, match="three rounds"):
        change([1, 2], [1, 2])


def test_the_gate_judges_speed_and_the_time_to_the_first_token():
    new = Measured("tiny c=2", "pagoda", (100.0, 100.0, 100.0), (0.2, 0.2) * 3)
    old = Measured("tiny c=2", OLD, (100.0, 100.0, 100.0), (0.1, 0.1) * 3)
    found = {verdict.metric: verdict for verdict in verdicts([new, old])}
    assert not found["output_tokens_per_s"].change.fell
    assert found["1/ttft"].change.fell
    assert "FELL" in found["1/ttft"].line()


@pytest.mark.parametrize(
    ("facts", "commit"),
    [
        ({"given": "abc", "last_tag": "v1"}, "abc"),
        ({"last_tag": "v1", "dirty": True}, "v1"),
        ({"dirty": True, "merge_base": "base"}, "base"),
        ({"dirty": True, "merge_base": "head"}, "head"),
        ({"merge_base": "head"}, "parent"),
        ({}, "parent"),
    ],
    ids=str,
)
def test_the_baseline_is_the_last_release_or_else_the_last_thing_that_differs(facts: dict[str, object], commit: str):
    known = {"given": None, "last_tag": None, "dirty": False, "head": "head", "merge_base": None, "parent": "parent", **facts}
    assert choose(**known).commit == commit  # type: ignore[arg-type]


def test_a_first_commit_has_nothing_to_be_compared_with():
    with pytest.raises(SettingsError, match="--against"):
        choose(given=None, last_tag=None, dirty=False, head="head", merge_base=None, parent=None)


def test_the_table_has_a_line_for_what_could_not_be_measured():
    row = Row(case="tiny c=1", system="pagoda", metric="output_tokens_per_s", value=12.34, unit="tokens/s", low=10, high=14)
    text = render([row], {"sglang": "needs a CUDA device | none"}, command="make bench-peers", hardware_line="a machine", notes=["a note"])
    assert "| tiny c=1 | pagoda | 12.3 | 10.0–14.0 |" in text
    assert "| all | sglang | not measured: needs a CUDA device / none |" in text
    assert "- a note" in text


def test_systems_take_turns_in_going_first():
    assert [turned(["a", "b", "c"], by)[0] for by in range(4)] == ["a", "b", "c", "a"]


def test_no_two_rounds_share_a_prompt_and_every_system_gets_the_same():
    case = Case("tiny", 8)
    assert prompts_for(case, seed=(1,)) == prompts_for(case, seed=(1,))
    first, second = prompts_for(case, seed=(1,)), prompts_for(case, seed=(2,))
    assert not {tuple(p[:16]) for p in first} & {tuple(p[:16]) for p in second}


def test_the_tiny_model_gets_one_thread_as_pagoda_gives_it():
    assert (threads_for("tiny", 8), threads_for("0.45b", 8)) == (1, 8)


class Scripted:
    """A system that fails from its nth round on."""

    def __init__(self, last: int, seen: list[str], name: str) -> None:
        self.left, self.seen, self.name = last, seen, name

    def round(self, prompts: object, output_tokens: int) -> Round:
        self.seen.append(self.name)
        self.left -= 1
        if self.left < 0:
            raise PeerUnavailable("out of memory")
        return Round(seconds=2.0, texts=("same",))

    def stop(self) -> None:
        pass


def test_a_system_that_fails_midway_leaves_with_its_reason_and_the_others_go_on():
    seen: list[str] = []
    unavailable: dict[str, str] = {}
    systems = {"pagoda": Scripted(9, seen, "pagoda"), "peer": Scripted(2, seen, "peer")}
    found = measure(Case("tiny", 1), systems, 3, reference="pagoda", unavailable=unavailable, say=lambda line: None)
    assert [(one.system, one.tokens_per_s) for one in found] == [("pagoda", (32.0, 32.0, 32.0))]
    assert unavailable == {"peer (tiny c=1)": "out of memory"}
    assert seen == ["pagoda", "peer", "peer", "pagoda", "pagoda", "peer", "pagoda"]
