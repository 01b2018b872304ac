"""`python -m pagoda_worker` as a process: one line and status 2 for what cannot work, status 0 after a drain, nothing left behind."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import psutil
import pytest
from front_support import TINY, Router
from grpc import aio

from pagoda_worker.wire import worker_pb2 as pb
from pagoda_worker.wire.worker_pb2_grpc import WorkerStub

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


def test_a_model_that_cannot_be_served_is_one_line_and_status_3_not_a_crash_loop(tmp_path: Path):
    folder = folder_with(tmp_path, architectures=["MambaForCausalLM"], model_type="mamba")
    process = start({"PAGODA_MODEL_SOURCE": str(folder), "PAGODA_LOG_LEVEL": "error"})
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 3
    assert stderr.count("\n") == 1, stderr
    assert stderr.startswith("pagoda-worker: ModelNotFound: architecture 'MambaForCausalLM' is not supported")


def test_a_folder_without_a_tokenizer_is_one_line_and_status_3(tmp_path: Path):
    folder = folder_with(tmp_path)
    (folder / "tokenizer.json").unlink()
    process = start({"PAGODA_MODEL_SOURCE": str(folder)})
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "pagoda-worker: ModelNotFound: " in stderr.splitlines()[-1]
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


async def test_a_stop_drains_as_long_as_something_runs_and_no_longer():
    """A drain of two minutes: probes and routers know at once, the running request ends by itself, then so does the process."""
    process = start({"PAGODA_DRAIN_S": "120", "PAGODA_CPUS": "1"})
    assert process.stderr is not None
    ports = next(line for line in process.stderr if "gRPC on port" in line)
    grpc_port, http_port = (int(found) for found in re.findall(r"port (\d+)", ports))
    reading = threading.Thread(target=process.stderr.read)  # a full pipe would stop the worker
    reading.start()
    async with aio.insecure_channel(f"127.0.0.1:{grpc_port}") as channel, httpx.AsyncClient() as http:
        router = await Router(WorkerStub(channel)).connect()
        await router.until(lambda: router.state.ready)
        await router.submit(1, [3] * 10, max_tokens=800, ignore_eos=True)
        await router.until(lambda: router.tokens)
        process.send_signal(signal.SIGTERM)
        await router.until(lambda: router.state.draining)
        assert (1, 0) not in router.finishes, "it knows while the request still runs"
        ready = await http.get(f"http://127.0.0.1:{http_port}/ready")
        assert (ready.status_code, ready.json()["reason"]) == (503, "Draining")
        assert ready.json()["message"] == "the worker drains and takes no new requests; 1 is still running"
        await router.submit(2, [3])
        assert (await router.refusal(2)).code == pb.Refused.DRAINING
        finish = await router.finish(1)
        assert (finish.reason, len(router.tokens[1, 0])) == (pb.FINISH_LENGTH, 800)
        await router.leave()
    assert await asyncio.to_thread(process.wait, 60) == 0
    reading.join()
    process.stderr.close()
