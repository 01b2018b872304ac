"""`python -m pagoda_worker.fetch` as a process: killed at any point, twice at once, on a full disk, and what its folder then serves."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copy
from typing import Any

import pytest
from front_support import TINY, running_front
from hub_server import ModelServer, Repository, model_server

from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.front.engine_link import ENGINE_COMMAND
from pagoda_worker.settings.model_cache import MARKER
from pagoda_worker.settings.sources import resolve_source

MODEL = "pagoda/small"
SIZE = 12 << 20
IN_FLIGHT_BYTES = 8 << 20
"""Sent by the server and not yet written by a killed client: socket buffers of both ends, and one chunk for each connection."""
KILLS = 10


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server() as server:
        files = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": random.Random(5).randbytes(SIZE)}
        server.repositories[MODEL] = Repository(files)
        yield server


def start(server: ModelServer, cache: Path, **env: str) -> "subprocess.Popen[str]":
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PAGODA_", "HF_"))}
    own = {
        "PAGODA_MODEL_SOURCE": f"hf://{MODEL}",
        "PAGODA_MODEL_ENDPOINT": server.url,
        "PAGODA_MODEL_CACHE": str(cache),
        "PAGODA_HTTP_PORT": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return subprocess.Popen([sys.executable, "-m", "pagoda_worker.fetch"], env=clean | own | env, stderr=subprocess.PIPE, text=True)


def finish(process: "subprocess.Popen[str]") -> str:
    _, stderr = process.communicate(timeout=100)
    return stderr


def left_in(cache: Path) -> set[str]:
    return {path.name for path in cache.rglob("*") if path.is_file()}


def wait_for(condition: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    """Polls; ends when the process does."""
    while not condition() and process.poll() is None:
        time.sleep(0.002)


def test_killed_at_any_point_it_goes_on_and_leaves_nothing_behind(server: ModelServer, tmp_path: Path):
    points = sorted(random.Random(int(os.environ.get("PAGODA_SEED", "11"))).uniform(0.02, 0.97) for _ in range(KILLS))
    server.behaviour.bytes_per_s = 40e6
    killed = 0
    for share in points:
        process = start(server, tmp_path)
        wait_for(lambda share=share: _on_disk(tmp_path) >= share * SIZE, process)  # type: ignore[misc]
        process.kill()
        finish(process)
        killed += process.returncode == -signal.SIGKILL
    assert killed >= KILLS - 1, "it was to be killed, not to end"
    server.behaviour.bytes_per_s = None
    process = start(server, tmp_path)
    stderr = finish(process)
    assert process.returncode == 0, stderr
    folder = resolve_source(f"hf://{MODEL}", cache=tmp_path)
    assert (folder / "model.safetensors").read_bytes() == server.repositories[MODEL].files["model.safetensors"]
    assert left_in(tmp_path) == {"config.json", "tokenizer.json", "model.safetensors", MARKER, "lock", "main"}
    refetched = server.sent["model.safetensors"] - SIZE
    print(f"{KILLS} kills: {refetched / KILLS / 1e6:.2f} MB refetched per kill")
    assert refetched <= KILLS * IN_FLIGHT_BYTES


def _on_disk(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.glob("*/*/model.safetensors*"))


@pytest.mark.parametrize("step", range(1, 9))
def test_killed_between_two_writes_of_its_publication_it_still_completes(server: ModelServer, tmp_path: Path, step: int):
    """The n-th rename or fsync never returns."""
    server.repositories[MODEL].files["model.safetensors"] = few = random.Random(6).randbytes(1 << 20)
    killer = tmp_path / "killer"
    killer.mkdir()
    (killer / "sitecustomize.py").write_text(
        "import os, signal\n"
        "from pathlib import Path\n"
        f"left = [{step}]\n"
        "def dying(call):\n"
        "    def run(*args, **more):\n"
        "        left[0] -= 1\n"
        "        if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return call(*args, **more)\n"
        "    return run\n"
        "os.fsync = dying(os.fsync)\n"
        "Path.replace = dying(Path.replace)\n"
        "Path.rename = dying(Path.rename)\n"
    )
    cache = tmp_path / "cache"
    killed = start(server, cache, PYTHONPATH=str(killer))
    finish(killed)
    assert killed.returncode == -signal.SIGKILL
    process = start(server, cache)
    stderr = finish(process)
    assert process.returncode == 0, stderr
    assert (resolve_source(f"hf://{MODEL}", cache=cache) / "model.safetensors").read_bytes() == few
    assert left_in(cache) == {"config.json", "tokenizer.json", "model.safetensors", MARKER, "lock", "main"}
    assert server.sent["model.safetensors"] <= 2 * len(few)


def test_two_replicas_fetch_once(server: ModelServer, tmp_path: Path):
    server.behaviour.pause_at = 2 << 20
    first = start(server, tmp_path)
    assert server.behaviour.standing.wait(60)
    second = start(server, tmp_path)
    _until_line(second, "another replica fetches hf://pagoda/small; waiting for it")
    server.behaviour.go_on.set()
    assert (finish(first), first.returncode)[1] == 0
    assert (finish(second), second.returncode)[1] == 0
    assert server.sent["model.safetensors"] == SIZE


def test_a_replica_whose_neighbour_is_killed_takes_over(server: ModelServer, tmp_path: Path):
    server.behaviour.pause_at = 2 << 20
    first = start(server, tmp_path)
    assert server.behaviour.standing.wait(60)
    second = start(server, tmp_path)
    _until_line(second, "waiting for it")
    server.behaviour.pause_at = None
    first.kill()
    finish(first)
    assert (finish(second), second.returncode)[1] == 0
    assert server.sent["model.safetensors"] <= SIZE + IN_FLIGHT_BYTES


def test_progress_is_told_over_http_in_bytes_and_as_a_share(server: ModelServer, tmp_path: Path, unused_tcp_port: int):
    server.behaviour.pause_at = 6 << 20
    process = start(server, tmp_path, PAGODA_HTTP_PORT=str(unused_tcp_port))
    assert server.behaviour.standing.wait(60)
    ready = f"http://127.0.0.1:{unused_tcp_port}/ready"
    wait_for(lambda: _get(ready)[1]["bytesDone"] >= 5 << 20, process)
    status, body = _get(ready)
    total = SIZE + 4
    assert (status, body["ready"], body["reason"]) == (503, False, "WeightsDownload")
    assert (body["bytesTotal"], body["progress"]) == (total, round(body["bytesDone"] / total, 4))
    assert 5 << 20 <= body["bytesDone"] <= (6 << 20) + 4
    assert body["message"].startswith("hf://pagoda/small: fetching commit")
    assert body["message"].endswith(f"{body['bytesDone'] / 1e6:.1f} MB of 12.6 MB")
    assert _get(f"http://127.0.0.1:{unused_tcp_port}/health")[0] == 200
    process.terminate()
    assert finish(process).splitlines()[-1] == "pagoda-fetch: stopped; the next start goes on from what is there"
    assert process.returncode == 128 + signal.SIGTERM


def test_a_model_that_is_not_there_is_the_last_line_and_status_3(server: ModelServer, tmp_path: Path):
    process = start(server, tmp_path, PAGODA_MODEL_SOURCE="hf://pagoda/none", PAGODA_HF_TOKEN="hf_canary")
    stderr = finish(process)
    assert process.returncode == 3
    assert stderr.splitlines()[-1] == f"pagoda-fetch: ModelNotFound: hf://pagoda/none is not on {server.url}: correct the name"
    assert "hf_canary" not in stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_disk_that_is_really_full_is_told_and_left_empty(server: ModelServer, tmp_path: Path):
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("this root may not mount")
    try:
        process = start(server, tmp_path)
        stderr = finish(process)
        assert process.returncode == 3
        last = stderr.splitlines()[-1]
        assert last.startswith("pagoda-fetch: DiskFull: hf://pagoda/small needs 12.6 MB, ")
        assert last.endswith("has 4.2 MB free")
        assert left_in(tmp_path) == {"lock"}
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


async def test_a_fetched_checkpoint_serves(server: ModelServer, tmp_path: Path, checkpoint: Callable[..., Path]):
    source = checkpoint("fetched", shard_size="20KB")
    copy(TINY / "tokenizer.json", source)
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    server.repositories["pagoda/random"] = Repository(files)
    process = start(server, tmp_path, PAGODA_MODEL_SOURCE="hf://pagoda/random")
    assert (finish(process), process.returncode)[1] == 0
    folder = resolve_source("hf://pagoda/random", cache=tmp_path)
    settings: dict[str, Any] = {"device": "cpu", "dtype": "fp32", "max_running": 8, "threads": 1}
    expected = Engine(EngineConfig(model_dir=source, **settings)).generate([[3, 1, 4]], max_tokens=8, ignore_eos=True)[0].token_ids
    async with running_front(command=ENGINE_COMMAND, config=EngineConfig(model_dir=folder, **settings)) as bench:
        router = await bench.router()
        await router.submit(1, [3, 1, 4], max_tokens=8, ignore_eos=True)
        await router.finish(1)
        assert router.tokens[1, 0] == expected


def _until_line(process: "subprocess.Popen[str]", part: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if part in line:
            return
    raise AssertionError(f"the fetch step ended without a line with {part!r}")


def _get(url: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)
