"""The `pagoda` command as a user runs it: real processes (most by forked_commands.py), with stand-ins for router and worker."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from forked_commands import ForkedCommands
from stacks import PAGODA, Stack, behave, eventually, manifest, model_folder, stand_in_environment, started

from pagoda_operator import commands
from pagoda_operator.local.client import call
from pagoda_operator.local.home import Home
from pagoda_operator.local.orphans import processes_of
from pagoda_operator.terminal import tables


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkedCommands]:
    made = ForkedCommands(stand_in_environment(tmp_path_factory.mktemp("nowhere")))
    yield made
    made.close()


@pytest.fixture
def stack(tmp_path: Path, forked: ForkedCommands) -> Iterator[Stack]:
    made = Stack(Home(tmp_path / "home"), forked)
    yield made
    made.pagoda("down")
    assert processes_of(made.home) == []


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, forked: ForkedCommands) -> Iterator[Stack]:
    """One for all tests that only look at it or ask it: the model m is ready."""
    folder = tmp_path_factory.mktemp("served")
    made = Stack(Home(folder / "home"), forked)
    made.up(str(manifest(model_folder(folder / "model"))))
    yield made
    made.pagoda("down")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return model_folder(tmp_path / "model")


def pids(stack: Stack) -> set[int]:
    return {process.pid for process in processes_of(stack.home)}


def test_up_starts_detached_waits_and_says_how_to_ask(stack: Stack, model: Path) -> None:
    done = stack.up(str(manifest(model)))
    assert "m created" in done.stdout
    assert f"m is ready at http://127.0.0.1:{stack.port}/v1" in done.stdout
    assert f"console     http://127.0.0.1:{stack.port}/" in done.stdout
    assert done.stderr == ""
    [curl] = [line for line in done.stdout.splitlines() if "curl" in line]
    answer = subprocess.run(curl, shell=True, capture_output=True, text=True, timeout=30, check=True)
    assert "27" in answer.stdout
    assert len(pids(stack)) == 3  # supervisor, router, worker: none of them a child of the command, which has ended


def test_up_again_changes_nothing(stack: Stack, model: Path) -> None:
    file = str(manifest(model))
    stack.up(file)
    before = pids(stack)
    assert "m unchanged" in stack.up(file).stdout
    assert pids(stack) == before


def test_up_with_a_changed_file_rolls(stack: Stack, model: Path) -> None:
    stack.up(str(manifest(model)))
    before = pids(stack)
    assert "m configured" in stack.up(str(manifest(model, engine={"maxRunning": 7}))).stdout
    assert len(pids(stack) - before) == 1
    [old] = [process for process in processes_of(stack.home) if process.pid in before and "pagoda_worker" in process.cmdline()] or [None]
    if old is not None:  # it drains while `up` already says ready
        old.wait(10)
    assert len(pids(stack)) == 3


def test_up_without_a_file_goes_on_with_what_was_submitted(stack: Stack, model: Path) -> None:
    stack.pagoda("up", expect=2)
    stack.up(str(manifest(model)))
    [supervisor] = [process for process in processes_of(stack.home) if "pagoda_operator.local" in process.cmdline()]
    supervisor.kill()
    supervisor.wait(10)
    again = stack.pagoda("up")
    assert f"m is ready at http://127.0.0.1:{stack.port}/v1" in again.stdout


def test_up_model_prints_the_manifest_it_used(stack: Stack, model: Path) -> None:
    done = stack.up("--model", str(model), "--name", "chat")
    printed = yaml.safe_load(done.stdout.split("\n\n")[0])
    assert printed["spec"]["model"]["source"] == f"file://{model}"
    assert "chat is ready" in done.stdout


def test_down_ends_everything_and_forgets_the_objects(stack: Stack, model: Path) -> None:
    stack.up(str(manifest(model)))
    children = processes_of(stack.home)
    assert stack.pagoda("down").stdout == "stopped\n"
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    assert "drained" in (stack.home.logs / "m-default-0.log").read_text()
    assert stack.pagoda("down").stdout == "nothing was running\n"
    assert "pagoda up" in stack.pagoda("get", expect=1).stderr
    assert not stack.home.state_file.exists()


def test_down_purge_removes_the_state_folder(stack: Stack, model: Path) -> None:
    stack.up(str(manifest(model)))
    stack.pagoda("down", "--purge")
    assert not stack.home.path.exists()


def test_down_leaves_no_process_when_the_supervisor_was_killed(stack: Stack, model: Path) -> None:
    behave(model, stubborn=True)  # its worker does not even end when told to
    stack.up(str(manifest(model)))
    [supervisor] = [process for process in processes_of(stack.home) if "pagoda_operator.local" in process.cmdline()]
    supervisor.kill()
    supervisor.wait(10)
    # shorter patience than the drain that a real worker may take
    program = (
        "import sys; from pagoda_operator.local import launch; launch.STOP_S = 1; "
        "from pagoda_operator.commands import run; sys.exit(run(['down']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=stand_in_environment(stack.home.path), capture_output=True, text=True, check=True
    )
    assert done.stdout == "stopped, 1 processes had to be killed\n"
    assert processes_of(stack.home) == []


def test_up_after_a_killed_supervisor_mends_itself(stack: Stack, model: Path) -> None:
    file = str(manifest(model))
    stack.up(file)
    [supervisor] = [process for process in processes_of(stack.home) if "pagoda_operator.local" in process.cmdline()]
    supervisor.kill()
    assert "m is ready" in stack.up(file).stdout
    assert len(pids(stack)) == 3


def test_a_busy_port_is_one_line_that_names_who_holds_it(stack: Stack, model: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", stack.port))
        server.listen()
        refused = stack.up(str(manifest(model)), expect=1)
    [line] = refused.stderr.splitlines()
    assert f"port {stack.port} is taken by" in line
    assert f"(pid {os.getpid()})" in line
    assert "PORT=" in line
    assert "--port" in line
    assert pids(stack) == set()


def test_a_worker_that_cannot_start_ends_the_wait_with_its_last_words(stack: Stack, model: Path) -> None:
    behave(model, exit=2, say="PAGODA_ENGINE: dtype fp16 needs a GPU")
    failed = stack.up(str(manifest(model)), expect=1)
    assert "dtype fp16 needs a GPU" in failed.stderr.splitlines()[0]
    assert "describe m" in failed.stderr.splitlines()[-1]
    # Between its ends the worker is tried again, and is Loading while it starts.
    ends = time.monotonic() + 20
    while "EngineCrash" not in (listed := stack.pagoda("get").stdout):
        assert time.monotonic() < ends, listed
    described = stack.pagoda("describe", "m").stdout
    assert "dtype fp16 needs a GPU" in described
    assert "restarts" in described
    behave(model)
    assert "m is ready" in stack.up(str(manifest(model))).stdout


def test_a_wait_that_is_too_long_says_what_it_waited_for(stack: Stack, model: Path) -> None:
    behave(model, ready=False, reason="the engine is loading")
    failed = stack.pagoda("up", "--port", str(stack.port), "--timeout", "1", str(manifest(model)), expect=1)
    assert "the engine is loading" in failed.stderr
    assert re.search(r"waited \d+ s", failed.stderr)


def test_ctrl_c_while_waiting_says_that_the_models_go_on(stack: Stack, model: Path) -> None:
    behave(model, ready=False, reason="the engine is loading")
    command = [str(PAGODA), "up", "--port", str(stack.port), str(manifest(model))]
    with started(command, stand_in_environment(stack.home.path)) as waiting:
        assert waiting.stdout is not None
        while "the engine is loading" not in (line := waiting.stdout.readline()):
            assert line, waiting.communicate()
        waiting.send_signal(signal.SIGINT)
        _, said = waiting.communicate(timeout=30)
    assert (waiting.returncode, said.count("\n")) == (130, 1)
    assert said.startswith("pagoda: m goes on starting: ")
    assert "down` stops" in said
    assert len(pids(stack)) == 3


def test_ctrl_c_while_the_command_is_still_imported_prints_nothing(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'pagoda_operator.commands': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from pagoda_operator.cli import main\n"
        "main()\n"
    )
    with started([sys.executable, "-c", program], stand_in_environment(tmp_path)) as interrupted:
        assert interrupted.communicate(timeout=30) == ("", "")
    assert interrupted.returncode == -signal.SIGINT


def test_a_usage_error_of_several_lines_is_told_in_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Missing(Exception):
        def format_message(self) -> str:
            return "Missing option '--to'. Choose from:\n\tint8,\n\tfp8"

    def app(*_: object, **__: object) -> None:
        raise Missing

    monkeypatch.setattr(commands, "app", app)
    monkeypatch.setattr(commands, "add_extensions", lambda *_: None)
    assert commands.run(["quantize", "m"]) == 2
    assert capsys.readouterr().err == "pagoda: Missing option '--to'. Choose from: int8, fp8 (see pagoda --help)\n"


def test_up_tells_what_a_ready_model_lacks(stack: Stack, model: Path) -> None:
    said = stack.up(str(manifest(model, routing={"fallback": "nobody"}))).stdout
    assert "\nm: routing.fallback: there is no model nobody yet\n" in said


PLANNED = [
    # event, whether `describe chat` tells it
    ("chat", "submitted: created", True),
    ("plan", "create Deployment default/chat-default: InferenceModel default/chat wants it", True),
    ("plan", "update Deployment default/chat-canary: spec.replicas changed", True),
    ("plan", "update Deployment default/chat-2-default: spec.replicas changed", False),
    ("plan", "create NetworkPolicy default/pagoda-default-deny: the namespace has models", False),
    ("plan", "create Service default/pagoda-router: the namespace has models", False),
    ("plan", "update Deployment default/pagoda-router: spec.template changed", True),
]


@pytest.mark.parametrize(("subject", "message", "told"), PLANNED, ids=[message for _, message, _ in PLANNED])
def test_describe_tells_what_was_planned_for_its_model(subject: str, message: str, told: bool) -> None:
    document = {"metadata": {"name": "chat"}, "status": {"variants": [{"name": "default"}, {"name": "canary"}]}}
    event = {"at": "", "subject": subject, "message": message}
    assert tables.events_of(document, [event]) == [event] * told


@pytest.mark.parametrize(("gpus", "has_gpu", "told"), [(0, False, 0), (1, True, 0), (1, False, 1)])
def test_a_model_that_asks_for_a_gpu_says_that_it_runs_without(gpus: int, has_gpu: bool, told: int) -> None:
    notes = tables.notes({"spec": {"resources": {"gpus": gpus}}}, has_gpu=has_gpu)
    assert notes == ["resources.gpus is 1 and this machine has no GPU: it runs on the CPU"] * told


USAGE = {
    "no file": (["up"], 2, "pagoda up FILE"),
    "file and model": (["up", "x.yaml", "--model", "y"], 2, "not both"),
    "no such file": (["up", "none.yaml"], 1, "none.yaml: there is no such file"),
    "missing folder": (["up", "--model", "/no/such/folder"], 1, "there is no folder /no/such/folder"),
    "a claim": (["up", "--model", "pvc://claim/model"], 1, "pvc://"),
    "unknown option": (["up", "--colour"], 2, "--colour"),
    "unknown command": (["dance"], 2, "dance"),
    "odd port": (["up", "--port", "http", "--model", "builtin://tiny"], 2, "--port"),
    "port out of range": (["up", "--port", "99999", "--model", "builtin://tiny"], 1, "1 to 65535"),
    "open without a key": (["up", "--host", "0.0.0.0", "--model", "builtin://tiny"], 1, "PAGODA_API_KEY"),
    "a host of another machine": (["up", "--host", "192.0.2.1", "--model", "builtin://tiny"], 1, "PAGODA_API_KEY"),
    "get while nothing runs": (["get"], 1, "nothing runs here"),
    "chat while nothing runs": (["chat"], 1, "nothing runs here"),
    "delete while nothing runs": (["delete", "m"], 1, "nothing runs here"),
    "sleep while nothing runs": (["sleep", "m"], 1, "nothing runs here"),
    "a sleep that is none": (["sleep", "m", "--level", "3"], 2, "--level"),
    "logs of nothing": (["logs"], 1, "there are no logs"),
    "odd output": (["get", "-o", "xml"], 2, "table, json or yaml"),
    "a command that is broken": (["quantize", "--quick"], 1, "the command quantize cannot be loaded: No module named"),
}


@pytest.mark.parametrize(("arguments", "status", "expected"), USAGE.values(), ids=USAGE.keys())
def test_wrong_usage_is_one_line_and_starts_nothing(
    tmp_path: Path, forked: ForkedCommands, arguments: list[str], status: int, expected: str
) -> None:
    stack = Stack(Home(tmp_path / "home"), forked)
    refused = stack.pagoda(*arguments, expect=status, HF_HOME=str(tmp_path))
    [line] = refused.stderr.splitlines()
    assert expected in line
    assert line.startswith("pagoda: ")
    assert not stack.home.supervisor_file.exists()


def test_every_problem_of_a_manifest_has_its_line(stack: Stack, tmp_path: Path) -> None:
    file = manifest(model_folder(tmp_path / "model"), engine={"dtype": "fp7", "maxRunning": -1})
    lines = stack.up(str(file), expect=1).stderr.splitlines()
    assert [line.split(": ")[2] for line in lines] == ["spec.engine.dtype", "spec.engine.maxRunning"]


def test_get_shows_a_table_json_and_yaml(served: Stack) -> None:
    head, row = served.pagoda("get").stdout.splitlines()
    assert head.split() == ["NAME", "READY", "ROLLOUT", "MODEL", "REPLICAS", "ROUTED", "KV", "TOKENS", "ENDPOINT", "AGE"]
    assert row.split()[:7] == [
        "m",
        "True",
        "Settled",
        f"file://{served.home.path.parent}/model",
        "1/1",
        "1",
        f"http://127.0.0.1:{served.port}/v1",
    ]
    one = json.loads(served.pagoda("get", "m", "-o", "json").stdout)
    assert (one["kind"], one["status"]["ready"]) == ("InferenceModel", "True")
    assert yaml.safe_load(served.pagoda("get", "-o", "yaml").stdout)["items"] == [one]
    assert "there are: m" in served.pagoda("get", "x", expect=1).stderr


def test_get_watch_prints_again_when_something_changes(stack: Stack, model: Path) -> None:
    stack.up(str(manifest(model)))
    command = [str(PAGODA), "get", "--watch"]
    with started(command, stand_in_environment(stack.home.path)) as watching:
        assert watching.stdout is not None
        assert [watching.stdout.readline().split()[0] for _ in range(2)] == ["NAME", "m"]
        stack.pagoda("delete", "m")
        assert watching.stdout.readline().split()[0] == "NAME"
        watching.send_signal(signal.SIGINT)
        assert watching.wait(10) == 130


def test_describe_tells_conditions_processes_and_events(served: Stack) -> None:
    told = served.pagoda("describe", "m").stdout
    for part in (
        "Settled",
        "pagoda-router-0",
        "m-default-0",
        f"http:{served.port}",
        "restarts 0",
        "submitted: created",
        "create Deployment",
    ):
        assert part in told


def test_logs_of_workers_and_router_with_and_without_a_supervisor(stack: Stack, model: Path) -> None:
    stack.up(str(manifest(model)))
    assert "environment" in stack.pagoda("logs", "m").stdout
    assert stack.pagoda("logs", "--router").stdout == "listening\n"
    assert "no logs of x" in stack.pagoda("logs", "x", expect=1).stderr
    stack.pagoda("down")
    assert stack.pagoda("logs", "--router").stdout == "listening\ndrained\n"


def test_logs_follow_what_is_added(served: Stack) -> None:
    command = [str(PAGODA), "logs", "-f", "--tail", "1", "--router"]
    with started(command, stand_in_environment(served.home.path)) as following:
        assert following.stdout is not None
        assert following.stdout.readline() == "listening\n"
        with (served.home.logs / "pagoda-router-0.log").open("a") as log:
            log.write("more\n")
        assert following.stdout.readline() == "more\n"
        following.send_signal(signal.SIGINT)
        assert following.wait(10) == 130


def test_chat_streams_one_answer(served: Stack) -> None:
    assert served.pagoda("chat", "-m", "one two three").stdout == "one two three \n"
    assert "the worker was lost" in served.pagoda("chat", "-m", "break", expect=1).stderr
    assert "one of m" in served.pagoda("chat", "other", "-m", "x", expect=1).stderr


def test_chat_holds_a_conversation_until_the_input_ends(served: Stack) -> None:
    said = served.pagoda("chat", stdin="hello you\n\nmore words here\n").stdout
    assert "hello you" in said
    assert "more words here" in said
    assert "2 tokens" in said
    assert "3 tokens" in said


def test_an_api_key_is_used_by_chat_and_shown_in_curl_only_by_name(stack: Stack, model: Path) -> None:
    done = stack.up(str(manifest(model)), PAGODA_API_KEY="sesame")
    assert '"Authorization: Bearer $PAGODA_API_KEY"' in done.stdout
    assert "sesame" not in done.stdout
    assert stack.pagoda("chat", "-m", "hi").stdout == "hi \n"
    assert "the API key is wrong" in stack.pagoda("chat", "-m", "hi", expect=1, PAGODA_API_KEY="other").stderr
    stack.pagoda("down")
    assert "Bearer" not in stack.up(str(manifest(model))).stdout


def test_sleep_and_wake_ask_the_router_and_tell_each_workers_answer(served: Stack) -> None:
    assert served.pagoda("sleep", "m", "--level", "2").stdout == "w-level-2 sleeps, 8.2 MB are free; the next request wakes it\n"
    assert served.pagoda("wake", "m").stdout == "w-0 is awake after 1.25 s\nw-1 is awake already\n"
    assert served.pagoda("sleep", "broken", expect=1).stderr == "pagoda: w-1: the weights are gone\n"
    assert "there is no model 'nobody'" in served.pagoda("wake", "nobody", expect=1).stderr


async def test_a_model_whose_workers_sleep_is_said_to(served: Stack) -> None:
    served.pagoda("sleep", "m")
    await eventually(lambda: "True asleep" in served.pagoda("get").stdout)
    assert "1 asleep: the next request wakes it" in served.pagoda("describe", "m").stdout
    served.pagoda("wake", "m")
    await eventually(lambda: "asleep" not in served.pagoda("get").stdout)


def test_delete_removes_one_model_and_leaves_the_others(stack: Stack, model: Path) -> None:
    stack.up(str(manifest(model, name="a")), str(manifest(model, name="b")))
    assert stack.pagoda("delete", "a").stdout == "a deleted\n"
    assert [item["metadata"]["name"] for item in json.loads(stack.pagoda("get", "-o", "json").stdout)["items"]] == ["b"]
    assert "there are: b" in stack.pagoda("delete", "a", expect=1).stderr


def test_apply_submits_without_waiting(stack: Stack, model: Path) -> None:
    behave(model, ready=False)
    done = stack.pagoda("apply", "--port", str(stack.port), str(manifest(model)))
    assert done.stdout == "m created\n"


def test_a_supervisor_of_other_code_is_restarted_and_keeps_its_objects(stack: Stack, model: Path) -> None:
    stack.up(str(manifest(model)))
    first = call(stack.home, "hello")
    program = (
        "import sys; from pagoda_operator.local import launch, version; launch.code_version = lambda: '9.9.9'; "
        "from pagoda_operator.commands import run; sys.exit(run(['up']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=stand_in_environment(stack.home.path), capture_output=True, text=True, check=True
    )
    assert f"runs other code ({first['version']}, this is 9.9.9): restarting it" in done.stdout
    assert "m is ready" in done.stdout
    assert call(stack.home, "hello")["pid"] != first["pid"]


def test_two_ups_at_once_share_one_supervisor(stack: Stack, model: Path) -> None:
    command = [str(PAGODA), "up", "--port", str(stack.port), str(manifest(model))]
    both = [
        subprocess.Popen(command, env=stand_in_environment(stack.home.path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    supervisors = [process for process in processes_of(stack.home) if "pagoda_operator.local" in process.cmdline()]
    assert len(supervisors) == 1


def test_doctor_finds_a_healthy_machine_and_a_taken_port(stack: Stack, model: Path) -> None:
    assert "port" in stack.pagoda("doctor", "--port", str(stack.port)).stdout
    with socket.socket() as server:
        server.bind(("127.0.0.1", stack.port))
        server.listen()
        found = stack.pagoda("doctor", "--port", str(stack.port), expect=1).stdout
    assert f"{stack.port} is taken" in next(line for line in found.splitlines() if line.startswith("fail"))
    stack.up(str(manifest(model)))
    assert f"http://127.0.0.1:{stack.port}/v1" in stack.pagoda("doctor", "--port", str(stack.port)).stdout


def test_doctor_names_orphans_and_what_ends_them(stack: Stack, model: Path) -> None:
    stack.home.path.mkdir()
    environment = {**os.environ, "PAGODA_RUN_ID": stack.home.new_run_id()}
    program = "import signal; print('up', flush=True); signal.pause()"
    with started([sys.executable, "-c", program], environment) as orphan:
        assert orphan.stdout is not None
        orphan.stdout.readline()
        found = stack.pagoda("doctor", "--port", str(stack.port)).stdout
        assert f"pid {orphan.pid}" in next(line for line in found.splitlines() if line.startswith("warn"))
        stack.pagoda("down")
        orphan.wait(10)


def test_the_version_is_the_distributions(tmp_path: Path) -> None:
    done = subprocess.run([str(PAGODA), "--version"], env=stand_in_environment(tmp_path), capture_output=True, text=True, check=True)
    assert done.stdout.startswith("pagoda 0.")


def test_a_long_state_folder_name_works(tmp_path: Path, forked: ForkedCommands, model: Path) -> None:
    stack = Stack(Home(tmp_path / ("x" * 120)), forked)
    try:
        stack.up(str(manifest(model)))
        assert len(str(stack.home.socket)) < 108
    finally:
        stack.pagoda("down")
