"""`python -m pagoda_worker` as a process: one line and status 2 for what cannot work, status 0 after a drain, nothing left behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from front_support import TINY

BASE = {"PAGODA_MODEL_NAME": "tiny", "PAGODA_MODEL_SOURCE": "builtin://tiny", "PAGODA_GRPC_PORT": "0", "PAGODA_HTTP_PORT": "0"}


def start(env: dict[str, str]) -> "subprocess.Popen[str]":
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PAGODA_")}
    return subprocess.Popen([sys.executable, "-m", "pagoda_worker"], env={**clean, **BASE, **env}, stderr=subprocess.PIPE, text=True)


def until_line(process: "subprocess.Popen[str]", part: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if part in line:
            return
    raise AssertionError(f"the worker ended without a line with {part!r}")


def folder_with(tmp_path: Path, **changes: object) -> Path:
    """The tiny model's folder with a changed config.json."""
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(TINY / name)
    (tmp_path / "config.json").write_text(json.dumps(json.loads((TINY / "config.json").read_text()) | changes))
    return tmp_path


def test_a_bad_variable_is_one_line_and_status_2():
    process = start({"PAGODA_ENGIN": "{}"})
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (2, "pagoda-worker: PAGODA_ENGIN is not a setting of the worker; the closest is PAGODA_ENGINE\n")


def test_a_model_that_cannot_be_served_is_one_line_and_status_2_not_a_crash_loop(tmp_path: Path):
    folder = folder_with(tmp_path, architectures=["MambaForCausalLM"], model_type="mamba")
    process = start({"PAGODA_MODEL_SOURCE": str(folder), "PAGODA_LOG_LEVEL": "error"})
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert stderr.count("\n") == 1, stderr
    assert "MambaForCausalLM" in stderr


def test_a_folder_without_a_tokenizer_is_one_line_and_status_2(tmp_path: Path):
    folder = folder_with(tmp_path)
    (folder / "tokenizer.json").unlink()
    process = start({"PAGODA_MODEL_SOURCE": str(folder)})
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "tokenizer.json does not exist: routers need" in stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_stop_while_loading_ends_with_status_0_and_leaves_nothing(number: signal.Signals):
    process = start({})
    until_line(process, "engine process")
    children = psutil.Process(process.pid).children()
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(children) == 1
    assert not children[0].is_running()


def test_a_killed_front_takes_its_engine_along():
    process = start({})
    until_line(process, "engine process")
    children = psutil.Process(process.pid).children()
    process.kill()
    process.communicate(timeout=60)
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert len(gone) == 1, alive
