"""spec.slo and spec.cost as a router reads them, and what one request says about a promise."""

from typing import Any

import pytest

from pagoda_router.discovery.snapshot import read_models
from pagoda_router.http.surface import RequestOutcome
from pagoda_router.objectives import Slo, tpot_of, verdicts
from pagoda_router.usage.amounts import TokenPrices


def read(**spec: Any) -> tuple[Any, list[str]]:
    problems: list[str] = []
    (model,) = read_models([{"metadata": {"name": "tiny"}, "spec": spec}], problems, "tiny")
    return model, problems


SLOS = [
    ({"ttft": "500ms", "tpot": "50ms", "objective": "99.5%"}, Slo(ttft_s=0.5, tpot_s=0.05, objective=0.995)),
    ({"ttft": "1.5s"}, Slo(ttft_s=1.5)),
    ({"ttft": 2}, Slo(ttft_s=2.0)),
    ({}, Slo()),
    (None, None),
]


@pytest.mark.parametrize(("given", "slo"), SLOS, ids=str)
def test_a_promise_is_read_exactly(given, slo):
    model, problems = read(slo=given)
    assert (model.slo, problems) == (slo, [])


COSTS = [
    # spec → $ per hour of one worker
    ({"cost": {"workerHourUsd": 0.4}}, {"default": 0.4}),
    ({"cost": {"gpuHourUsd": 2.5}, "resources": {"gpus": 2}}, {"default": 5.0}),
    ({"cost": {"gpuHourUsd": 2.5, "workerHourUsd": 0.4}, "resources": {"gpus": 2}}, {"default": 0.4}),
    ({"cost": {"gpuHourUsd": "2.5"}}, {"default": 0.0}),
    (
        {"cost": {"gpuHourUsd": 2}, "resources": {"gpus": 1}, "variants": [{"name": "a"}, {"name": "b", "resources": {"gpus": 4}}]},
        {"a": 2.0, "b": 8.0},
    ),
    ({"cost": {}}, {}),
    ({}, {}),
]


@pytest.mark.parametrize(("spec", "prices"), COSTS, ids=str)
def test_a_worker_costs_what_its_variant_uses(spec, prices):
    model, problems = read(**spec)
    assert (dict(model.prices), problems) == (prices, [])


TOKENS = [
    (
        {"millionInputUsd": 1, "millionOutputUsd": "2.5"},
        TokenPrices(input_pico_usd=1_000_000, cached_pico_usd=1_000_000, output_pico_usd=2_500_000),
    ),
    ({"millionInputUsd": 1, "millionCachedUsd": 0.1}, TokenPrices(input_pico_usd=1_000_000, cached_pico_usd=100_000)),
    ({"gpuHourUsd": 2}, None),
    (None, None),
]


@pytest.mark.parametrize(("cost", "prices"), TOKENS, ids=str)
def test_tokens_cost_what_the_manifest_says(cost, prices):
    model, problems = read(cost=cost)
    assert (model.token_prices, problems) == (prices, [])


UNREADABLE = [
    ({"cost": {"millionInputUsd": "cheap"}}, "tiny: spec.cost.millionInputUsd 'cheap' cannot be read and is ignored"),
    ({"slo": {"ttft": "soon", "tpot": "50ms"}}, "tiny: spec.slo.ttft 'soon' cannot be read and is ignored"),
    ({"slo": {"objective": "110%"}}, "tiny: spec.slo.objective '110%' cannot be read and is ignored"),
    ({"slo": "fast"}, "tiny: spec.slo is no object and is ignored"),
    ({"cost": {"workerHourUsd": "cheap"}}, "tiny: spec.cost.workerHourUsd 'cheap' cannot be read and is ignored"),
    ({"cost": {"workerHourUsd": -1}}, "tiny: spec.cost.workerHourUsd '-1' cannot be read and is ignored"),
    ({"cost": {"workerHourUsd": True}}, "tiny: spec.cost.workerHourUsd 'True' cannot be read and is ignored"),
    ({"cost": {"gpuHourUsd": 1}, "resources": {"gpus": "two"}}, "tiny: spec.resources.gpus 'two' is no number of GPUs and counts as 0"),
]


@pytest.mark.parametrize(("spec", "complaint"), UNREADABLE, ids=str)
def test_what_cannot_be_read_is_said_and_hides_no_model(spec, complaint):
    _, problems = read(**spec)
    assert problems == [complaint]


def test_the_rest_of_a_promise_stands():
    model, _ = read(slo={"ttft": "soon", "tpot": "50ms"})
    assert model.slo == Slo(tpot_s=0.05)


PROMISE = Slo(ttft_s=0.5, tpot_s=0.05)
GOOD = {"status": 200, "finish_reasons": ("stop",), "ttft_s": 0.5, "last_token_s": 0.95, "longest_completion_tokens": 10}
VERDICTS = [
    ("at the thresholds exactly", {}, {"availability": True, "ttft": True, "tpot": True}),
    ("late", {"ttft_s": 0.5001, "last_token_s": 0.9}, {"availability": True, "ttft": False, "tpot": True}),
    ("slow", {"last_token_s": 0.96}, {"availability": True, "ttft": True, "tpot": False}),
    ("one token has no pace", {"longest_completion_tokens": 1}, {"availability": True, "ttft": True}),
    ("broken off after its 200", {"status": 502, "finish_reasons": ()}, {"availability": False}),
    ("a 200 without an end", {"finish_reasons": ()}, {"availability": False}),
    ("turned away", {"status": 429, "finish_reasons": ()}, {"availability": False}),
    ("no worker", {"status": 503, "finish_reasons": ()}, {"availability": False}),
    ("the router was stopped", {"status": 0, "finish_reasons": ()}, {"availability": False}),
    ("the client's own error", {"status": 400, "finish_reasons": ()}, {}),
    ("the client left", {"status": 499, "finish_reasons": ()}, {}),
]


@pytest.mark.parametrize(("fields", "expected"), [row[1:] for row in VERDICTS], ids=[row[0] for row in VERDICTS])
def test_a_request_says_about_the_promise(fields, expected):
    outcome = RequestOutcome(endpoint="chat", request_id="r", model="tiny", **{**GOOD, **fields})
    assert dict(verdicts(outcome, PROMISE)) == expected
    assert dict(verdicts(outcome, None)) == {sli: good for sli, good in expected.items() if sli == "availability"}


def test_the_pace_is_that_between_tokens():
    outcome = RequestOutcome(endpoint="chat", request_id="r", ttft_s=1.0, last_token_s=1.9, longest_completion_tokens=10)
    assert tpot_of(outcome) == pytest.approx(0.1)
