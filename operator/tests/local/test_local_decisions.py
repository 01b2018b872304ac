"""The supervisor's small pure decisions: backoff, what is stored, paths, choices, verdicts of waiting."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda_operator.local.backoff import LONGEST_DELAY_S, STEADY_S, Backoff
from pagoda_operator.local.errors import BadSettings
from pagoda_operator.local.home import SOCKET_PATH_BYTES, Home, home_from
from pagoda_operator.local.machine import Choices, check_choices
from pagoda_operator.local.processes import describe_exit, plain
from pagoda_operator.local.store import Outcome, accept
from pagoda_operator.terminal.progress import verdict

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@given(st.lists(st.floats(0, STEADY_S - 1), min_size=1, max_size=40))
def test_short_lives_wait_longer_each_time_up_to_a_bound(lives: list[float]) -> None:
    delays, backoff = [], Backoff()
    for lasted_s in lives:
        backoff = backoff.after_run(lasted_s)
        delays.append(backoff.delay_s)
    assert delays == sorted(delays)
    assert 0 < delays[0] <= 1
    assert delays[-1] <= LONGEST_DELAY_S
    assert backoff.loops == (len(lives) > 1)


def test_a_long_life_forgives_the_failures_before_it() -> None:
    assert Backoff(9).after_run(STEADY_S) == Backoff(1)


def submitted(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": "pagoda.dev/v1alpha1", "kind": "InferenceModel", "metadata": {"name": "m"}, "spec": spec}


def test_a_generation_counts_changes_of_the_spec_only() -> None:
    first = accept(submitted(a=1), None, uid="u1", now=NOW)
    same = accept(submitted(a=1), first.document, uid="u2", now=NOW)
    changed = accept(submitted(a=2), same.document | {"status": {"ready": "True"}}, uid="u3", now=NOW)
    assert [each.outcome for each in (first, same, changed)] == [Outcome.CREATED, Outcome.UNCHANGED, Outcome.CONFIGURED]
    assert [each.document["metadata"]["generation"] for each in (first, same, changed)] == [1, 1, 2]
    assert changed.document["metadata"]["uid"] == "u1"
    assert changed.document["status"] == {"ready": "True"}


def test_a_new_label_is_a_change_without_a_new_generation() -> None:
    first = accept(submitted(a=1), None, uid="u", now=NOW).document
    labelled = submitted(a=1)
    labelled["metadata"]["labels"] = {"team": "x"}
    second = accept(labelled, first, uid="u", now=NOW)
    assert second.outcome == Outcome.CONFIGURED
    assert second.document["metadata"]["generation"] == 1


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"PAGODA_HOME": "/x/y"}, "/x/y"),
        ({"XDG_STATE_HOME": "/state"}, "/state/pagoda"),
        ({"XDG_STATE_HOME": "relative"}, str(Path.home() / ".local/state/pagoda")),
        ({}, str(Path.home() / ".local/state/pagoda")),
    ],
)
def test_the_state_folder_follows_the_environment(environment: dict[str, str], expected: str) -> None:
    assert str(home_from(environment).path) == expected


@given(st.integers(1, 300))
def test_the_socket_path_always_fits(length: int) -> None:
    home = Home(Path("/" + "x" * length))
    assert len(str(home.socket)) <= max(SOCKET_PATH_BYTES, 60)


def test_a_run_id_names_its_folder() -> None:
    one, other = Home(Path("/one")), Home(Path("/other"))
    assert one.owns_run(one.new_run_id())
    assert not other.owns_run(one.new_run_id())
    assert not one.owns_run("")


@pytest.mark.parametrize(
    ("choices", "key", "complaint"),
    [
        (Choices(host="0.0.0.0"), None, "PAGODA_API_KEY"),
        (Choices(host="0.0.0.0"), "", "PAGODA_API_KEY"),
        (Choices(port=0), None, "1 to 65535"),
        (Choices(port=70000), None, "1 to 65535"),
        (Choices(device="gpu"), None, "auto, cpu, cuda"),
    ],
)
def test_choices_that_cannot_work_are_refused_with_what_to_do(choices: Choices, key: str | None, complaint: str) -> None:
    with pytest.raises(BadSettings, match=complaint):
        check_choices(choices, key)


@pytest.mark.parametrize("choices", [Choices(), Choices(host="::1"), Choices(host="0.0.0.0")])
def test_choices_that_work_pass(choices: Choices) -> None:
    check_choices(choices, "key")


@pytest.mark.parametrize(
    ("host", "endpoint"),
    [("127.0.0.1", "http://127.0.0.1:8000/v1"), ("0.0.0.0", "http://127.0.0.1:8000/v1"), ("::1", "http://[::1]:8000/v1")],
)
def test_the_endpoint_is_one_that_this_machine_can_reach(host: str, endpoint: str) -> None:
    assert Choices(host=host).endpoint == endpoint


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('time=2026-01-01T00:00:00Z level=error logger=x msg="no \\"config.json\\" here" trace="…"', 'no "config.json" here'),
        ("pagoda_worker: PAGODA_ENGINE is not JSON", "pagoda_worker: PAGODA_ENGINE is not JSON"),
        ('time=1 level=info msg="cut off', 'time=1 level=info msg="cut off'),
    ],
)
def test_the_message_of_a_log_line_is_what_people_read(line: str, message: str) -> None:
    assert plain(line) == message


@pytest.mark.parametrize(("status", "text"), [(2, "exit status 2"), (-9, "signal SIGKILL"), (-200, "signal 200")])
def test_an_exit_is_named(status: int, text: str) -> None:
    assert describe_exit(status) == text


def state(
    ready: str = "Loading", progressing: str = "Loading", message: str = "it loads", *, observed: int = 1, **pod: Any
) -> dict[str, Any]:
    worker = {
        "model": "m",
        "component": "worker",
        "ready": False,
        "terminating": False,
        "phase": "Failed",
        "failures": 0,
        "lastExit": None,
        "message": "",
    }
    conditions = [
        {"type": "Accepted", "status": "True", "reason": "Accepted", "message": "fine"},
        {"type": "Ready", "status": "True" if ready == "True" else "False", "reason": ready, "message": message},
        {"type": "Progressing", "status": "False", "reason": progressing, "message": "…"},
    ]
    status = {"observedGeneration": observed, "ready": ready, "conditions": conditions}
    return {"objects": [{"metadata": {"name": "m", "generation": 1}, "status": status}], "pods": [worker | pod]}


VERDICTS = {
    "ready and settled": (state("True", "Settled"), True, False, "ready"),
    "ready, but an older spec": (state("True", "RollingOut"), False, False, ""),
    "ready, but of the generation before": (state("True", "Settled", observed=0), False, False, "planning"),
    "loading": (state(), False, False, "it loads"),
    "crashed once": (state("EngineCrash", failures=1, lastExit=1), False, False, ""),
    "crashes again and again": (state("EngineCrash", failures=3, lastExit=1), True, True, "it loads"),
    "bad configuration": (state("EngineCrash", failures=2, lastExit=2), True, True, ""),
    "bad configuration, perhaps mended": (state("EngineCrash", failures=1, lastExit=2), False, False, ""),
    "no such model": (state("ModelNotFound"), True, True, ""),
    "crashed often, loading again": (state(phase="Running", failures=3, lastExit=1), False, False, ""),
    "deleted": ({"objects": [], "pods": []}, True, True, "deleted"),
}


@pytest.mark.parametrize(("observed", "done", "failed", "said"), VERDICTS.values(), ids=VERDICTS.keys())
def test_waiting_ends_when_ready_or_in_vain(observed: dict[str, Any], done: bool, failed: bool, said: str) -> None:
    result = verdict("m", observed)
    assert (result.done, result.failed) == (done, failed)
    assert said in result.line
