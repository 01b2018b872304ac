"""A benchmark that is ended leaves nothing running, at whatever moment and by whatever signal."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pagoda_bench.lifeline import Lifeline, Mark, end_all

PATIENCE_S = 60.0


def in_folder(folder: Path, module: str = "") -> list[psutil.Process]:
    """Whose state is somewhere in it, zombies left out."""
    found = []
    for process in psutil.process_iter():
        try:
            home = process.environ().get("PAGODA_HOME", "")
            if home.startswith(f"{folder}/") and process.status() != psutil.STATUS_ZOMBIE and (not module or module in process.cmdline()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def await_true(condition: Callable[[], bool], what: str) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until_s, what
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_no_process_of_an_ended_benchmark_is_left(number: signal.Signals, tmp_path: Path):
    command = [sys.executable, "-m", "pagoda_bench.load.quick", "--output", str(tmp_path / "load")]
    env = {**os.environ, "TMPDIR": str(tmp_path), "PAGODA_DEVICE": "cpu"}
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, env=env, stdout=log, stderr=log) as benchmark:
        try:
            # the hardest moment: `pagoda up` still waits for what it has started
            await_true(lambda: bool(in_folder(tmp_path, "pagoda_worker")), (tmp_path / "log").read_text())
            benchmark.send_signal(number)
            status = benchmark.wait(PATIENCE_S)
        finally:
            benchmark.kill()
    await_true(lambda: not in_folder(tmp_path), "these are left: " + ", ".join(map(str, in_folder(tmp_path))))
    await_true(lambda: not list(tmp_path.glob("pagoda-*")), "the state folder is left")
    assert status == (128 + number if number == signal.SIGTERM else -number)


RIG = """
import signal, sys, time
from pathlib import Path
from pagoda_bench.peers.process import PeerProcess
signal.signal(signal.SIGINT, signal.default_int_handler)  # what is started in the background ignores it
child = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], env={})"
command = [sys.executable, "-c", child + "; print('up', flush=True); sys.stdin.read()"]
peer = PeerProcess(command, log=Path(sys.argv[1]), env={}, pipes=True)
assert peer.stdout.readline() == b"up\\n"
print(peer.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_a_peer_and_a_child_that_hides_its_environment_end_with_their_benchmark(number: signal.Signals, tmp_path: Path):
    command = [sys.executable, "-c", RIG, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as benchmark:
        assert benchmark.stdout is not None
        peer = psutil.Process(int(benchmark.stdout.readline()))
        [child] = peer.children()
        benchmark.send_signal(number)
    _, left = psutil.wait_procs([peer, child], timeout=PATIENCE_S)
    assert not left


def test_what_ignores_sigterm_is_killed_after_the_grace():
    mark = Mark.fresh()
    program = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); sys.stdin.read()"
    lifeline = Lifeline(mark)
    with subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, mark.name: mark.value}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as stubborn:
        assert stubborn.stdout is not None
        stubborn.stdout.readline()
        end_all(mark, grace_s=0.0)
        assert stubborn.poll() is not None
    lifeline.close()
