"""The router benchmark: its tables judge as they say, and the compiled rig carries real requests through a real router."""

import os
import platform
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from pagoda_bench.errors import SettingsError
from pagoda_bench.peers.baseline import commit_of, files_of
from pagoda_bench.results import Result, Row
from pagoda_bench.router_load import program as program_module
from pagoda_bench.router_load.interpreter import described
from pagoda_bench.router_load.measure import LoadFailed, Measured, measured
from pagoda_bench.router_load.pinned import Pinned, two_cores
from pagoda_bench.router_load.program import SOURCE, NoProgram, build
from pagoda_bench.router_load.report import cautions, markdown, rows, scaling_rows
from pagoda_bench.router_load.run import Options, run, start_mocks
from pagoda_bench.router_load.scenarios import (
    BESIDE_LONG,
    DIRECT,
    OURS,
    PACED_200,
    RELAYING,
    SCALING,
    SHORT_MOST,
    SHORT_RATE,
    SOAK,
    TWICE,
    with_aim,
)
from pagoda_bench.router_load.systems import STARTERS, direct, fleet, pagoda, pagoda_before_vllm
from pagoda_bench.router_load.vocabulary import PATTERN
from pagoda_router.text.forms import LLAMA_3_PATTERN

needs_go = pytest.mark.skipif(shutil.which("go") is None, reason="Go ≥ 1.25 is not on PATH (go.dev/dl): the rig cannot be compiled")


def one(**fields: object) -> Measured:
    usual = {
        "requests": 1000, "errors": 0, "first_error": "", "tokens": 8000, "seconds": 2.0, "ttft_p50_s": 0.002, "ttft_p99_s": 0.004,
        "late_p99_s": 0.0, "router_cpu_s": 0.5, "rig_cpu_s": 0.05, "rss_bytes": (100, 103),
    }  # fmt: skip
    return Measured(**{**usual, **fields})  # type: ignore[arg-type]


def value(found: list[Row], system: str, metric: str) -> Row:
    (row,) = (row for row in found if (row.system, row.metric) == (system, metric))
    return row


def test_added_latency_is_against_the_same_round_without_a_router():
    bare = [one(ttft_p50_s=0.001), one(ttft_p50_s=0.003), one(ttft_p50_s=0.001)]
    ours = [one(ttft_p50_s=0.0015), one(ttft_p50_s=0.0037), one(ttft_p50_s=0.0016)]
    found = rows([SHORT_RATE], {(SHORT_RATE.case, DIRECT): bare, (SHORT_RATE.case, OURS): ours})
    added = value(found, OURS, "added_ttft_p50_s")
    assert added.value == pytest.approx(0.0006)
    assert (added.low, added.high) == (pytest.approx(0.0005), pytest.approx(0.0007))
    assert (added.aim, added.met) == ("< 0.001", True)
    assert value(found, OURS, "cpu_per_1k_requests_s").value == 0.5
    assert not [row for row in found if row.system == DIRECT and row.metric.startswith("added")]


def test_two_processes_are_judged_by_what_a_request_takes_of_them():
    taken = {(SCALING[0].case, OURS): [one(router_cpu_s=0.5)], (SCALING[0].case, TWICE): [one(router_cpu_s=0.4, requests=750)]}
    (row,) = scaling_rows(SCALING, taken)
    assert row.value == pytest.approx(2 * 0.5 / 1000 / (0.4 / 750))
    assert (row.system, row.met) == (TWICE, True)
    taken[SCALING[0].case, TWICE] = [one(router_cpu_s=0.6)]
    (row,) = scaling_rows(SCALING, taken)
    assert row.met is False


def test_where_streams_are_counted_by_process_two_processes_get_twice_as_many():
    asked = [scenario.load_arguments("u", "k", warm_up_s=1, window_s=1, processes=2) for scenario in SCALING]
    assert [next(each for each in arguments if "connections" in each) for arguments in asked] == [
        "-connections=64",
        "-connections=128",
        "-connections=200",
        "-connections=400",
    ]


def test_pauses_are_told_where_they_are_what_is_asked():
    taken = {(BESIDE_LONG.case, OURS): [one(itl_p99_s=0.02)], (PACED_200.case, OURS): [one(itl_p99_s=0.02)]}
    found = rows([BESIDE_LONG, PACED_200], taken)
    assert [row.case for row in found if row.metric == "itl_p99_s"] == [BESIDE_LONG.case]
    assert "-beside-rate=5" in BESIDE_LONG.load_arguments("u", "k", warm_up_s=1, window_s=1)


@pytest.mark.parametrize(
    ("case", "metric", "figure", "met"),
    [
        (SHORT_MOST.case, "requests_per_s", 2600, True),
        (SHORT_MOST.case, "requests_per_s", 2599, False),
        (PACED_200.case, "cpu_per_1k_tokens_s", 0.031, False),
        (SOAK.case, "rss_growth_ratio", 1.01, True),
    ],
)
def test_an_aim_is_judged_for_our_router_alone_whoever_its_workers_are(case: str, metric: str, figure: float, met: bool):
    row = Row(case=case, system=OURS, metric=metric, value=figure, unit="")
    assert with_aim(row).met is met
    assert with_aim(replace(row, system=RELAYING)).met is met
    assert with_aim(replace(row, system="nginx")).met is None


def test_a_rig_that_bounds_a_figure_and_failed_requests_are_said():
    rounds = {(SHORT_MOST.case, "nginx"): [one(rig_cpu_s=1.9, errors=1000)], (SHORT_MOST.case, OURS): [one()]}
    found = rows([SHORT_MOST], rounds)
    bound, failed = cautions([SHORT_MOST], found)
    assert "nginx: the rig could do 526 requests/s" in bound
    assert "nginx: 50 % of the requests failed" in failed
    result = Result(
        benchmark="router", commit="c", date="d", hardware={"cpu": "x", "cores": 2}, command="make", rows=tuple(found), notes=(bound,)
    )
    text = markdown(result, {"litellm": "no wheel"})
    assert "| short c=64 | pagoda | requests_per_s | ≥ 2600 | 500 |" in text
    assert "- litellm: not measured: no wheel" in text


def test_a_system_that_answered_nothing_has_only_its_errors():
    (row,) = rows([SHORT_MOST], {(SHORT_MOST.case, "litellm"): [one(requests=0, errors=9)]})
    assert (row.metric, row.value) == ("error_share", 1)


def test_what_router_and_rig_took_is_the_difference_of_the_windows_ends():
    told = {"requests": 4, "errors": 0, "first_error": "", "tokens": 32, "seconds": 1.0, "cpu_s": 0.25}
    told |= {name: {"p50": 1.0, "p99": 2.0, "max": 3.0} for name in ("ttft_ms", "whole_ms", "late_ms", "itl_ms")}
    found = measured(told, [(1.0, 10.0, 100), (1.5, 10.125, 110)])
    assert (found.router_cpu_s, found.rig_cpu_s, found.rss_bytes) == (0.5, 0.375, (100, 110))
    assert (found.itl_p50_s, found.itl_p99_s, found.itl_max_s) == (0.001, 0.002, 0.003)


def test_without_go_the_reason_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PAGODA_PEERS_HOME", str(tmp_path / "peers"))
    monkeypatch.setattr(program_module.shutil, "which", lambda name: None)
    with pytest.raises(NoProgram, match=r"Go ≥ 1\.25 is not on PATH"):
        build()


def test_every_peer_has_a_recipe():
    assert {"none", "nginx", "pagoda", "pagoda before vLLM", "sglang-router", "vllm-router", "litellm"} == set(STARTERS)
    for peer in ("sglang-router", "vllm-router", "litellm"):
        assert "==" in (SOURCE.parent / "peers" / peer / "requirements.txt").read_text()


def test_a_fleet_of_mocks_names_each_worker_once():
    document = fleet({"mock-0ms": [1, 2], "mock-1ms": [3]})
    assert [model["metadata"]["name"] for model in document["models"]] == ["mock-0ms", "mock-1ms"]  # type: ignore[attr-defined]
    assert [part["ports"][0]["port"] for part in document["endpointSlices"]] == [1, 2, 3]  # type: ignore[attr-defined]


@needs_go
def test_the_compiled_rig_is_sound():
    """With cgo off as `build` has it: Go compiles its own library once for both."""
    env = {**os.environ, "CGO_ENABLED": "0"}
    command = ["go", "test", "-vet=all", "./..."]
    done = subprocess.run(command, cwd=SOURCE, env=env, capture_output=True, text=True, check=False, timeout=290)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_go
def test_a_real_router_carries_the_rigs_requests_and_nothing_is_left(tmp_path: Path):
    cores = two_cores()
    with ExitStack() as closing:
        rig, site = start_mocks(build(), tmp_path, cores, cores, closing)
        systems = [direct(site), pagoda(site), pagoda_before_vllm(site)]
        for system in systems:
            closing.callback(system.stop)
        for system in systems:
            for scenario in (SHORT_MOST, replace(PACED_200, tokens=8, connections=8)):
                found = rig.measure(scenario, system, warm_up_s=0.3, window_s=0.5)
                assert found.errors == 0, found.first_error
                assert found.requests > 0
                assert found.tokens > 0
                assert found.rig_cpu_s > 0
                assert (found.router_cpu_s > 0) == (system.name != DIRECT)
        systems[1].stop()
        refused = rig.measure(SHORT_MOST, systems[1], warm_up_s=0.1, window_s=0.2)
        assert refused.errors > 0
        assert "refused" in refused.first_error
        with pytest.raises(LoadFailed, match="is no URL"):
            rig.measure(SHORT_MOST, replace(systems[0], url="nowhere"), warm_up_s=0.1, window_s=0.1)
    assert all(process.ended() for process in (*systems[1].processes, *systems[2].processes, *rig.mocks.values()))


def test_a_system_that_waits_for_its_turn_is_stopped_and_ends_all_the_same(tmp_path: Path):
    process = Pinned(["sleep", "1000"], two_cores(), log=tmp_path / "log")
    try:
        process.pause()
        assert os.waitid(os.P_PID, process.pid, os.WSTOPPED) is not None
        process.resume()
        assert os.waitid(os.P_PID, process.pid, os.WCONTINUED) is not None
        process.pause()
    finally:
        process.stop()
    assert process.ended()


def test_what_a_process_took_counts_when_it_has_ended(tmp_path: Path):
    """A server that replaces a worker of its own would else have taken less than nothing."""
    done = tmp_path / "done"
    process = Pinned(["sh", "-c", f"sh -c 'while [ ! -e {done} ]; do :; done'; sleep 1000"], two_cores(), log=tmp_path / "log")
    try:
        while (busy_s := process.cpu_s()) < 0.02:
            pass
        done.touch()
        while "sleep" not in [each.name() for each in process._family()]:
            pass
        assert process.cpu_s() >= busy_s
    finally:
        process.stop()


def test_a_commit_that_is_none_is_one_line_before_anything_starts(tmp_path: Path):
    with pytest.raises(SettingsError, match="--before no-such: no such commit here"):
        run(Options(before="no-such", output=tmp_path / "router"), command="")


def test_an_interpreter_that_cannot_run_a_router_is_one_line_before_anything_starts(tmp_path: Path):
    with pytest.raises(SettingsError, match="is no interpreter that answers"):
        run(Options(interpreter=tmp_path / "python", output=tmp_path / "router"), command="")
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E -s "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(SettingsError, match=r"cannot run a router .*: install pagoda-router there"):
        run(Options(interpreter=bare, output=tmp_path / "router"), command="")


def test_a_result_says_what_python_the_routers_ran_on():
    assert described(Path(sys.executable)).startswith(f"Python {platform.python_version()}, {platform.python_compiler()}, built ")


def test_the_files_of_a_commit_are_there_and_then_gone(tmp_path: Path):
    commit = commit_of("HEAD", "--before")
    with files_of(commit, tmp_path / "checkout") as checkout:
        assert (checkout / "router/src/pagoda_router/__main__.py").is_file()
    assert not (tmp_path / "checkout").exists()
    listed = subprocess.run(["git", "worktree", "list"], cwd=SOURCE, capture_output=True, text=True, check=True)
    assert str(tmp_path) not in listed.stdout


def test_the_trained_vocabulary_splits_as_the_router_knows_it() -> None:
    assert PATTERN == LLAMA_3_PATTERN
