"""The rules of one model, read as text; what they do over time is tested with promtool in ops/boards/tests."""

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda_operator.manifest.promises import Slo
from pagoda_operator.render.slo_rules import ALERTS, BAD_RATIO, BURNS, LONG_WINDOWS, MOST_RATIO, SHORT_WINDOWS, slo_groups

objectives = st.integers(50_001, 99_999).map(lambda thousandths: Fraction(thousandths, 100_000))


def rules(slo: Slo) -> list[dict[str, Any]]:
    return [rule for group in slo_groups("models", "chat", slo) for rule in group["rules"]]


def alerts(slo: Slo) -> list[dict[str, Any]]:
    return [rule for rule in rules(slo) if "alert" in rule]


def threshold(alert: dict[str, Any]) -> float:
    first = alert["expr"].splitlines()[0]
    return float(first.rpartition("> ")[2])


def test_every_window_that_an_alert_looks_at_is_recorded() -> None:
    recorded = {rule["record"] for rule in rules(Slo()) if "record" in rule}
    looked_at = {f"{BAD_RATIO}{window}" for burn in BURNS for window in (burn.long, burn.short)}
    assert looked_at <= recorded
    assert {f"{BAD_RATIO}{window}" for window in (*SHORT_WINDOWS, *LONG_WINDOWS)} <= recorded


def test_a_short_window_is_about_a_twelfth_of_its_long_one() -> None:
    seconds = {"5m": 300, "30m": 1800, "1h": 3600, "6h": 21_600, "3d": 259_200}
    assert [(burn.long_s, seconds[burn.long] / seconds[burn.short]) for burn in BURNS] == [(seconds[b.long], 12) for b in BURNS]


@pytest.mark.parametrize(
    ("slo", "names"),
    [
        (Slo(), {"PagodaAvailabilityBurn"}),
        (Slo(ttft_s=1.0), {"PagodaAvailabilityBurn", "PagodaTtftBurn"}),
        (Slo(ttft_s=1.0, tpot_s=0.1), set(ALERTS.values())),
    ],
    ids=str,
)
def test_only_what_is_promised_alerts_over_three_pairs_of_windows(slo: Slo, names: set[str]) -> None:
    found = alerts(slo)
    assert {alert["alert"] for alert in found} == names
    assert len(found) == len(BURNS) * len(names)
    assert {(alert["labels"]["window"], alert["labels"]["severity"]) for alert in found} == {
        ("1h", "page"),
        ("6h", "page"),
        ("3d", "ticket"),
    }


@pytest.mark.parametrize(
    ("objective", "thresholds"),
    [
        (Fraction(99, 100), [0.144, 0.06, 0.01]),
        (Fraction(999, 1000), [0.0144, 0.006, 0.001]),
        (Fraction(90, 100), [0.9, 0.6, 0.1]),
    ],
    ids=str,
)
def test_thresholds_are_the_budget_times_the_burn(objective: Fraction, thresholds: list[float]) -> None:
    assert [threshold(alert) for alert in alerts(Slo(objective=objective))] == thresholds


@given(objectives)
def test_a_total_outage_is_above_every_threshold_whatever_the_objective(objective: Fraction) -> None:
    found = [threshold(alert) for alert in alerts(Slo(objective=objective))]
    assert found == sorted(found, reverse=True)
    assert all(0 < each <= float(MOST_RATIO) < 1 for each in found)


def test_the_budget_that_an_alert_names_is_that_of_the_workbook() -> None:
    told = [alert["annotations"]["description"].partition("cost ")[2].partition(" of")[0] for alert in alerts(Slo())]
    assert told == ["2%", "5%", "10%"]


@given(objectives)
def test_every_query_asks_for_this_model_alone(objective: Fraction) -> None:
    for rule in rules(Slo(ttft_s=1.0, tpot_s=0.1, objective=objective)):
        assert rule["expr"].count("{") == rule["expr"].count('{namespace="models",model="chat"')
