"""The profile: who a second belongs to, what is told of it, and that both recipes run."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pagoda_bench.profile.costs import Profiled, costs_of, slug
from pagoda_bench.profile.engine import profile_engine
from pagoda_bench.profile.router import Load, profile_router
from pagoda_bench.profile.stages import IN_C, OTHER, stage_of, stage_seconds

ROUTER = "/somewhere/pagoda_router"
SOURCES = Path(__file__).parents[2]
TINY = SOURCES / "worker/src/pagoda_worker/builtin/tiny"


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ("/v/site-packages/uvicorn/protocols/http/httptools_impl.py", "HTTP server"),
        (f"{ROUTER}/openai/schemas.py", "checking the request"),
        (f"{ROUTER}/openai/sequence.py", "tokens to text"),
        (f"{ROUTER}/openai/formats.py", "writing events"),
        (f"{ROUTER}/openai/models.py", "surface"),
        (f"{ROUTER}/dispatch/dispatcher.py", "admission and placement"),
        (f"{ROUTER}/backends/streams.py", "session with the worker"),
        (f"{ROUTER}/http/direct.py", "HTTP server"),
        (f"{ROUTER}/text/chunks.py", "template and tokens in"),
        ("/v/site-packages/grpc/aio/_call.py", "session with the worker"),
        ("/usr/lib/python3.11/asyncio/events.py", "event loop in Python"),
        ("/usr/lib/python3.11/json/encoder.py", OTHER),
        ("~", OTHER),
    ],
)
def test_a_file_belongs_to_one_stage(file: str, stage: str):
    assert stage_of(file) == stage


def test_every_file_of_the_router_has_a_stage_or_is_known_to_have_none():
    files = (SOURCES / "router/src/pagoda_router").rglob("*.py")
    without = {path.name for path in files if stage_of(str(path)) == OTHER}
    start_up = {
        "__init__.py",
        "sleep.py",
        "__main__.py",
        "artifacts.py",
        "errors.py",
        "heap.py",
        "internal.py",
        "logs.py",
        "records.py",
        "setting_values.py",
        "settings.py",
    }
    discovery = {"api.py", "file.py", "kubernetes.py", "model_object.py", "snapshot.py"}
    assert without <= start_up | discovery | {"pages.py"}, "give the new file a stage in profile/stages.py"


def function(file: str, *, calls: int = 1, own_s: float, callers: list[list[Any]] | None = None) -> dict[str, Any]:
    return {"file": file, "line": 1, "name": "f", "calls": calls, "own_s": own_s, "callers": callers or []}


def test_time_in_c_belongs_to_the_stage_that_called_it():
    caller = f"{ROUTER}/openai/answers.py"
    functions = [function(caller, own_s=1.0), function("~", own_s=2.0, callers=[[caller, 1, "f", 1, 2.0]])]
    assert stage_seconds({"process_s": 5.0, "functions": functions}, plain_s=5.0) == {"writing events": 3.0, IN_C: 2.0}


def test_what_the_profiler_added_is_taken_off_by_calls():
    loop, reader = f"{ROUTER}/http/app.py", f"{ROUTER}/backends/streams.py"
    functions = [function(loop, calls=1, own_s=10.0), function(reader, calls=9, own_s=10.0, callers=[[loop, 1, "f", 9, 10.0]])]
    seconds = stage_seconds({"process_s": 30.0, "functions": functions}, plain_s=20.0)
    # 10 calls cost 10 s more: half a second for each side of each call; the one from nowhere is the loop's.
    assert seconds == {"surface": 10.0 - 4.5 - 0.5, "session with the worker": 10.0 - 4.5, IN_C: 10.0 - 0.5}
    assert sum(seconds.values()) == 20.0


def test_costs_are_ordered_and_say_what_could_be_won():
    costs = costs_of({"small": [1.0, 1.0, 1.0], "large": [3.0, 2.0, 4.0]})
    assert [cost.name for cost in costs] == ["large", "small"]
    assert (costs[0].low_s, costs[0].median_s, costs[0].high_s, costs[0].share) == (2.0, 3.0, 4.0, 0.75)
    assert costs[0].bound == 4.0


def test_a_case_tells_three_costs_and_writes_all():
    seconds = {f"cost {i}": [float(i)] for i in range(5)}
    profiled = Profiled("engine tiny c=1", "step", [10.0, 12.0, 11.0], costs_of(seconds))
    assert len(profiled.lines()) == 4
    assert [row.metric for row in profiled.rows()] == ["step_s", *(f"step_cost_{i}_s" for i in (4, 3, 2, 1, 0))]
    assert (profiled.rows()[0].low, profiled.rows()[0].value, profiled.rows()[0].high) == (10.0, 11.0, 12.0)
    assert slug("norms, rotary, gate") == "norms_rotary_gate"


def test_a_module_is_profiled_between_two_signals_only(tmp_path: Path):
    (tmp_path / "served.py").write_text("import sys\ndef work(): print('done', flush=True)\nfor line in sys.stdin: work()\n")
    command = [sys.executable, "-m", "pagoda_bench.profile.under_profile", str(tmp_path), "served"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for sent in (None, signal.SIGUSR1, None, signal.SIGUSR2, None):
            if sent:
                process.send_signal(sent)  # taken before the next line is: there is one thread
            print(file=process.stdin, flush=True)
            assert process.stdout.readline() == "done\n"
        process.stdin.close()
    profile = json.loads((tmp_path / "profile.json").read_text())
    (work,) = [each for each in profile["functions"] if each["name"] == "work"]
    assert work["calls"] == 2, "of five"
    assert profile["process_s"] > 0


def test_the_engine_recipe_tells_phases_and_leaves_a_trace(tmp_path: Path):
    profiled, lines = profile_engine("tiny", TINY, sequences=2, prompt_tokens=20, steps=2, repeats=1, traces=tmp_path)
    assert {"attention", "matrix products", "schedule", "sampling", "settle"} <= {cost.name for cost in profiled.costs}
    assert all(cost.median_s > 0 for cost in profiled.costs)
    (trace,) = tmp_path.iterdir()
    assert str(trace) in lines[-1]


def test_the_router_recipe_tells_stages_that_add_up_to_a_request():
    load = Load(alone=1, rounds=2, output_tokens=4, repeats=1)
    (profiled,) = profile_router("0.004b", "builtin://tiny", streams=[2], load=load)
    assert {"HTTP server", "session with the worker", "writing events", IN_C} <= {cost.name for cost in profiled.costs}
    assert profiled.case == "router 0.004b c=2"
