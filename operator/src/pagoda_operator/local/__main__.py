"""Starts the supervisor of $PAGODA_HOME in the foreground: `python -m pagoda_operator.local`. Called by launch.py, which detaches it."""

import argparse
import asyncio
import fcntl
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import TextIO

from pagoda_operator.local.files import write_json
from pagoda_operator.local.home import Home, home_from
from pagoda_operator.local.server import Server
from pagoda_operator.local.supervisor import Supervisor
from pagoda_operator.local.version import code_version


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m pagoda_operator.local")
    options.add_argument("--ready-fd", type=int, help="written to when the socket listens, or with the reason why it never will")
    ready_fd = options.parse_args().ready_fd
    logging.basicConfig(stream=sys.stderr, level=os.environ.get("PAGODA_LOG_LEVEL", "INFO"), format="%(asctime)s %(levelname)s %(message)s")
    logging.Formatter.converter = time.gmtime
    logging.getLogger("httpx").setLevel(logging.WARNING)
    home = home_from(os.environ)
    home.create()
    lock = lock_home(home)
    if lock is None:
        answer(ready_fd, "taken")
        sys.exit(f"another supervisor runs in {home.path}")
    with lock:
        try:
            asyncio.run(serve(home, ready_fd, has_gpu=Path("/dev/nvidia0").exists()))
        except (ValueError, OSError) as error:
            answer(ready_fd, f"error: {error}")
            sys.exit(str(error))


async def serve(home: Home, ready_fd: int | None, *, has_gpu: bool) -> None:
    run_id = os.environ.get("PAGODA_RUN_ID") or home.new_run_id()
    supervisor = Supervisor(home, run_id, os.environ, python=sys.executable, has_gpu=has_gpu)
    server = Server(supervisor)
    await server.listen(home.socket)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.stop)
    write_json(home.supervisor_file, {"pid": os.getpid(), "startedAt": time.time(), "version": code_version(), "runId": run_id})
    answer(ready_fd, "ready")
    await supervisor.run()
    await server.close()
    for path in (home.socket, home.supervisor_file, home.fleet_file):
        path.unlink(missing_ok=True)


def lock_home(home: Home) -> TextIO | None:
    """Held until the process ends, however it ends. None: somebody else holds it."""
    lock = home.lock_file.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def answer(ready_fd: int | None, text: str) -> None:
    if ready_fd is not None:
        try:
            os.write(ready_fd, text.encode())
            os.close(ready_fd)
        except OSError:
            pass  # answered before, or nobody waits any more


if __name__ == "__main__":
    main()
