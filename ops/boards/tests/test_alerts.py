"""Every alert, by promtool over made-up series: it fires, it does not, it is quiet without traffic and without the series; and its page."""

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from alert_cases import CASES, Case, judged
from promql import selected

from boards.files import OPS

RULE_FILES = sorted((OPS / "rules").glob("*.yaml"))
GROUPS = [group for path in RULE_FILES for group in yaml.safe_load(path.read_text())["groups"]]
RULES = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]
PAGES = {path.stem: path.read_text() for path in (OPS / "runbooks").glob("*.md") if path.stem != "README"}
NAMES = sorted({rule["alert"] for rule in ALERTS})


@pytest.fixture(scope="module")
def failures(promtool: str, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """What promtool said of each case that failed. One run for all cases of an interval: starting it takes longer than a case."""
    found: dict[str, str] = {}
    for interval in sorted({case.interval for case in CASES}):
        tests = [written(case) for case in CASES if case.interval == interval]
        done = rules_test(promtool, tmp_path_factory.mktemp("rules") / "test.yaml", interval, tests)
        told = re.findall(r'expr: ".* # (.+?)", (time:.*\n.*\n.*)', done.stdout + done.stderr)
        assert (done.returncode == 0) == (not told), done.stdout + done.stderr
        found |= dict(told)
    return found


def written(case: Case) -> dict[str, Any]:
    by = "window" if case.alert.endswith("Burn") else "severity"
    expected = [{"labels": f'{{{by}="{value}"}}', "value": 1} for value in case.fires]
    # promtool repeats the query of what fails, comment included, and nothing else that would tell cases apart
    expr = f'max by ({by}) (ALERTS{{alertname="{case.alert}",alertstate="firing"}}) # {case}'
    asked = {"expr": expr, "eval_time": case.at, "exp_samples": expected}
    return {
        "interval": case.interval,
        "input_series": [{"series": series, "values": values} for series, values in case.series.items()],
        "promql_expr_test": [asked],
    }


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_alert_fires_exactly_when_it_should(case: Case, failures: Mapping[str, str]) -> None:
    assert failures.get(str(case), "") == ""


def test_an_alert_says_what_where_and_how_bad(promtool: str, tmp_path: Path) -> None:
    expected = {
        "exp_labels": {"namespace": "models", "model": "chat", "sli": "availability", "severity": "page", "window": "1h"},
        "exp_annotations": {
            "summary": "models/chat: requests end in an error, are refused for lack of room, or break off",
            "description": (
                "20% of the requests of 1h broke the promise, and of 5m as well: 99% were to keep it. "
                "1h like this cost 2% of 30 days' budget, or more."
            ),
            "runbook_url": "ops/runbooks/PagodaAvailabilityBurn.md",
        },
    }
    others = [
        {
            "exp_labels": expected["exp_labels"] | {"severity": severity, "window": window},
            "exp_annotations": expected["exp_annotations"]
            | {
                "description": (
                    f"20% of the requests of {window} broke the promise, and of {short} as well: 99% were to keep it. "
                    f"{window} like this cost {cost} of 30 days' budget, or more."
                )
            },
        }
        for window, short, severity, cost in (("6h", "30m", "page", "5%"), ("3d", "6h", "ticket", "10%"))
    ]
    test = {
        "interval": "1m",
        "input_series": [{"series": series, "values": values} for series, values in judged("availability", "0+40x60", "0+20x60").items()],
        "alert_rule_test": [{"alertname": "PagodaAvailabilityBurn", "eval_time": "1h", "exp_alerts": [expected, *others]}],
    }
    done = rules_test(promtool, tmp_path / "test.yaml", "1m", [test])
    assert done.returncode == 0, done.stdout + done.stderr


def rules_test(promtool: str, path: Path, interval: str, tests: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    document = {
        "rule_files": [str(path) for path in RULE_FILES],
        "evaluation_interval": interval,
        # else promtool takes them in any order, and with steps longer than five minutes an alert would not see what was recorded before
        "group_eval_order": [group["name"] for group in GROUPS],
        "tests": tests,
    }
    path.write_text(yaml.safe_dump(document))
    return subprocess.run([promtool, "test", "rules", str(path)], capture_output=True, text=True, check=False, timeout=120)


def test_every_alert_is_seen_to_fire_and_not_to_fire() -> None:
    for fires in (True, False):
        assert {case.alert for case in CASES if bool(case.fires) == fires} == set(NAMES)
    assert {
        case.alert for case in CASES if case.what.endswith(("without its series", "without the series", "without any operator"))
    } == set(NAMES)


def test_promtool_has_nothing_against_the_rules(promtool: str) -> None:
    done = subprocess.run([promtool, "check", "rules", "--lint=all", *map(str, RULE_FILES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: f"{rule['alert']} {rule['labels'].get('window', '')}".strip())
def test_an_alert_names_its_page_its_severity_and_whom_it_concerns(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"ops/runbooks/{rule['alert']}.md"


def test_every_alert_has_a_page_and_every_page_an_alert() -> None:
    assert sorted(PAGES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_page_says_what_it_means_how_to_look_and_what_to_do(name: str) -> None:
    page = PAGES[name]
    assert page.startswith(f"# {name}\n")
    assert re.findall("^## .*$", page, re.MULTILINE) == ["## What it means", "## How to look", "## What to do"]
    assert re.search(r"^```sh\n(kubectl|curl|pagoda)", page, re.MULTILINE), "no command to look with"


@pytest.mark.parametrize("name", NAMES)
def test_a_page_shows_the_series_that_the_alert_looks_at(name: str) -> None:
    looked_at = {each.name for rule in ALERTS if rule["alert"] == name for each in selected(rule["expr"])}
    raw = {each if not each.startswith("slo:") else "pagoda_router_slo_requests_total" for each in looked_at}
    assert [each for each in raw if each not in PAGES[name]] == []
