"""Real child processes: how they start, die with their parent, and are found again."""

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from random import Random

import psutil
import pytest

from pagoda_operator.local.home import Home
from pagoda_operator.local.orphans import end_processes, processes_of
from pagoda_operator.local.ports import PortPool, holder, is_free, ports_beside
from pagoda_operator.local.processes import SPAWN, ChildProcess, last_lines, rotate
from pagoda_operator.local.secret_files import SecretFiles
from pagoda_operator.local.template import SecretKey

SLEEP = [sys.executable, "-I", "-S", "-c", "import signal; print('up', flush=True); signal.pause()"]
ENV = {"PATH": os.environ["PATH"]}


async def test_output_is_appended_to_the_log_and_the_exit_status_is_told(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("before\n")
    program = [sys.executable, "-I", "-S", "-c", "import sys; print('out', flush=True); sys.exit('err')"]
    child = await ChildProcess.start(program, ENV, cwd=tmp_path, log=log)
    assert await child.wait() == 1
    assert last_lines(log, 10) == ["before", "out", "err"]
    assert last_lines(log, 1) == ["err"]


async def test_when_the_first_process_ends_its_group_ends(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    program = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL).pid)"
    child = await ChildProcess.start([sys.executable, "-I", "-S", "-c", program, *SLEEP], ENV, cwd=tmp_path, log=log)
    await child.wait()
    grandchild = int(last_lines(log, 1)[0])
    psutil.wait_procs([psutil.Process(grandchild)] if psutil.pid_exists(grandchild) else [], timeout=5)
    assert not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == psutil.STATUS_ZOMBIE


def test_a_child_dies_with_its_parent_even_when_that_is_killed() -> None:
    parent_program = textwrap.dedent(
        """
        import os, subprocess, sys
        child = subprocess.Popen([sys.executable, "-I", "-S", sys.argv[1], "--die-with", str(os.getpid()), "--", *sys.argv[2:]],
                                 stdout=subprocess.PIPE)
        child.stdout.readline()
        print(child.pid, flush=True)
        child.wait()
        """
    )
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", parent_program, SPAWN, *SLEEP], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        gone, _ = psutil.wait_procs([child], timeout=10)
    assert gone


def test_a_child_whose_parent_is_already_gone_does_not_start() -> None:
    done = subprocess.run([sys.executable, "-I", "-S", SPAWN, "--die-with", "1", "--", "true"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "the parent 1 is gone" in done.stderr


def test_processes_are_found_by_the_run_id_of_their_folder_and_ended(tmp_path: Path) -> None:
    home, other = Home(tmp_path / "home"), Home(tmp_path / "other")
    stubborn = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True); signal.pause()",
    ]
    children = [_start(SLEEP, home), _start(stubborn, home), _start(SLEEP, other)]
    try:
        assert sorted(process.pid for process in processes_of(home)) == sorted(child.pid for child in children[:2])
        ended = end_processes(home, grace_s=0.3)
        assert (ended.terminated, ended.killed, ended.left) == (1, 1, ())
        assert processes_of(home) == []
        assert children[2].poll() is None
    finally:
        for child in children:
            child.kill()
            child.wait()
            assert child.stdout is not None
            child.stdout.close()


def _start(program: list[str], home: Home) -> "subprocess.Popen[bytes]":
    child = subprocess.Popen(program, env={**ENV, "PAGODA_RUN_ID": home.new_run_id()}, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    return child


def test_a_log_is_moved_aside_when_it_is_too_long(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("12345")
    rotate(log, keep_up_to_bytes=5)
    assert log.exists()
    rotate(log)
    assert not log.exists()
    assert (tmp_path / "x.log.1").read_text() == "12345"


def test_the_end_of_a_long_log_is_read_without_the_rest(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_bytes(b"x" * 500_000 + b"\nlast \xff line\n\n")
    assert last_lines(log, 1) == ["last � line"]
    assert last_lines(tmp_path / "none.log", 1) == []


def test_a_busy_port_is_noticed_and_its_holder_named() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert not is_free("127.0.0.1", port)
        assert f"(pid {os.getpid()})" in holder(port)
    assert is_free("127.0.0.1", port)


def test_ports_handed_out_together_differ() -> None:
    pool = PortPool()
    assert len({pool.free() for _ in range(50)}) == 50


def test_ports_are_none_of_those_that_the_kernel_gives_to_connections() -> None:
    assert ports_beside(32768, 60999) == range(10240, 32768)
    assert ports_beside(12000, 40000) == range(40001, 65536)
    assert ports_beside(1024, 65535) == range(10240, 65536), "it has them all"


def test_a_port_that_is_taken_is_passed_over() -> None:
    first = PortPool(Random(1)).free()
    with socket.socket() as server:
        server.bind(("127.0.0.1", first))
        server.listen()
        assert PortPool(Random(1)).free() != first


def test_a_host_that_is_not_this_machines_raises() -> None:
    with pytest.raises(OSError, match="assign"):
        is_free("192.0.2.1", 8000)


def test_a_required_secret_is_made_once_for_the_user_alone_and_an_optional_one_never(tmp_path: Path) -> None:
    required, optional = SecretKey("s", "token", optional=False), SecretKey("k", "key", optional=True)
    value = SecretFiles(tmp_path).reveal(required)
    assert value
    assert SecretFiles(tmp_path).reveal(required) == value
    assert (tmp_path / "s.token").stat().st_mode & 0o777 == 0o600
    assert SecretFiles(tmp_path).reveal(optional) is None
    assert [path.name for path in tmp_path.iterdir()] == ["s.token"]
