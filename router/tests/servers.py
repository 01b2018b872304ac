"""A real PostgreSQL and a real Redis for tests, each in a folder of its own, reached by a socket in it and by nobody else.

The end-to-end tests have both listen at an address too, behind a password: there the clients are pods.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

POSTGRES_FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name), reverse=True)
START_S = 60
SETTINGS = ("fsync=off", "listen_addresses=", "shared_buffers=16MB", "max_connections=20")
PASSWORD = "hush-hush"


def program(name: str, package: str, folders: list[Path]) -> str:
    """Its path; skips the test where there is none, or fails it where all tests must run."""
    found = shutil.which(name, path=os.pathsep.join([*map(str, folders), os.environ.get("PATH", "")]))
    if found is None:
        reason = f"{name} is not installed: apt install {package}"
        if os.environ.get("PAGODA_REQUIRE_ALL"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@contextmanager
def folder() -> Iterator[Path]:
    """Short, because a socket's path may have 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="pgd-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _free_port(address: str) -> int:
    from pagoda_bench.local_stack import free_port

    return free_port(address)


@contextmanager
def postgres_at(address: str) -> Iterator[tuple[str, str]]:
    """URLs: for clients at any address, with a password, and for this test."""
    import psycopg

    port = _free_port(address)
    with postgres_server(f"listen_addresses={address}", f"port={port}", "password_encryption=scram-sha-256") as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"ALTER USER pagoda PASSWORD '{PASSWORD}'")
            folder = Path(str(connection.execute("SHOW hba_file").fetchone()[0]))  # type: ignore[index]
            folder.write_text(folder.read_text() + "host all all 0.0.0.0/0 scram-sha-256\n")
            connection.execute("SELECT pg_reload_conf()")
        yield f"postgresql://pagoda:{PASSWORD}@{address}:{port}/postgres", url


@contextmanager
def postgres_server(*more: str) -> Iterator[str]:
    """Its URL; `more` are settings. PostgreSQL refuses to run as root, so there it runs as nobody."""
    initdb = program("initdb", "postgresql", POSTGRES_FOLDERS)
    postgres = program("postgres", "postgresql", POSTGRES_FOLDERS)
    user = "nobody" if os.geteuid() == 0 else None
    with folder() as path:
        if user is not None:
            os.chown(path, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
        data = path / "data"
        made = [initdb, "-D", str(data), "-U", "pagoda", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]
        subprocess.run(made, user=user, check=True, capture_output=True, cwd=path, timeout=START_S)
        command = [postgres, "-D", str(data), "-k", str(path), *(part for each in (*SETTINGS, *more) for part in ("-c", each))]
        port = next((each.removeprefix("port=") for each in more if each.startswith("port=")), "5432")
        url = f"postgresql://pagoda@:{port}/postgres?host={path}"
        with subprocess.Popen(command, user=user, cwd=path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                until(lambda: answers(url), process)
                yield url
            finally:
                process.send_signal(signal.SIGINT)  # it ends its clients' sessions; at SIGTERM it would wait for them
                process.wait(START_S)


def answers(url: str) -> bool:
    import psycopg

    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


@dataclass
class RedisServer:
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    address: str = ""
    """Where it listens too, behind a password. Empty: nowhere."""
    port: int = 0

    @property
    def url(self) -> str:
        return f"redis://:{PASSWORD}@{self.address}:{self.port}/0" if self.address else f"unix://{self.folder}/redis.sock"

    def start(self) -> None:
        command = [
            program("redis-server", "redis-server", []),
            "--port",
            str(self.port),
            *(["--bind", self.address, "--requirepass", PASSWORD] if self.address else []),
            "--unixsocket",
            str(self.folder / "redis.sock"),
            "--save",
            "",
        ]
        self.process = subprocess.Popen(command, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until((self.folder / "redis.sock").exists, self.process)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(START_S)
            (self.folder / "redis.sock").unlink(missing_ok=True)
            self.process = None


@contextmanager
def redis_server(address: str = "") -> Iterator[RedisServer]:
    with folder() as path:
        server = RedisServer(path, address=address, port=_free_port(address) if address else 0)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def until(is_there: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + START_S
    while not is_there():
        assert process.poll() is None, f"{process.args} ended with status {process.returncode}"
        assert time.monotonic() < deadline_s, f"{process.args} does not answer"
        time.sleep(0.02)
