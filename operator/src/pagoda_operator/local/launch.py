"""Starts and stops the supervisor from outside. Called by the command line; leaves no child behind.

ensure   a supervisor of this code answers: started, or restarted when an older one ran
stop     asked to end, then everything of this folder that is left is found by run id and ended
"""

import fcntl
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from pagoda_operator.local.client import call
from pagoda_operator.local.errors import BadSettings, LocalError, NotRunning, PortTaken, Refused
from pagoda_operator.local.home import Home
from pagoda_operator.local.machine import Choices, check_choices
from pagoda_operator.local.orphans import Ended, end_processes, wait_until_gone
from pagoda_operator.local.ports import holder, is_free
from pagoda_operator.local.processes import SPAWN, last_lines, rotate
from pagoda_operator.local.secret_files import api_key_file, read_api_key
from pagoda_operator.local.store import ObjectStore
from pagoda_operator.local.version import code_version

START_S = 30.0
STOP_S = 45.0
"""Longer than the 30 s for which routers and workers finish their streams."""


@dataclass(frozen=True, slots=True)
class Supervised:
    pid: int
    version: str
    choices: Choices


def running(home: Home) -> Supervised | None:
    try:
        return _supervised(call(home, "hello"))
    except NotRunning:
        return None


@contextmanager
def exclusive(home: Home) -> Iterator[None]:
    """Two commands that start at once would each take the other's supervisor for a leftover: one after the other they share one."""
    home.create()
    with home.launch_lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def stored_objects(home: Home) -> int:
    """How many objects a supervisor would take up again."""
    store = ObjectStore(home.state_file)
    store.load()
    return len(store.objects)


def stored_choices(home: Home) -> Choices:
    """Those of the last `up` whose objects are still kept."""
    store = ObjectStore(home.state_file)
    store.load()
    return store.choices


def ensure(
    home: Home, environment: Mapping[str, str], wishes: Mapping[str, Any], api_key: str | None, say: Callable[[str], None]
) -> Supervised:
    """Raises PortTaken or BadSettings before anything is started when the wished choices cannot work."""
    supervised = running(home)
    if supervised is not None and supervised.version != code_version():
        say(f"The supervisor runs other code ({supervised.version}, this is {code_version()}): restarting it.")
        _shut_down(home, forget=False)
        supervised = None
    if supervised is None:
        _end_earlier_run(home, say)
    before = supervised.choices if supervised is not None else stored_choices(home)
    choices = replace(before, **wishes)
    check_choices(choices, api_key or read_api_key(home.secrets))
    if supervised is None or (choices.host, choices.port) != (before.host, before.port):
        check_port(choices)
    return supervised or _start(home, environment)


def check_port(choices: Choices) -> None:
    try:
        if is_free(choices.host, choices.port):
            return
    except OSError as error:
        raise BadSettings(f"--host {choices.host}: nothing can listen there: {error.strerror}") from None
    by = f" by {who}" if (who := holder(choices.port)) else ""
    raise PortTaken(f"port {choices.port} is taken{by}: choose another with --port {choices.port + 1} or PORT={choices.port + 1} make up")


def stop(home: Home, *, forget: bool = True) -> Ended:
    """Works whether or not the supervisor lives. With forget the objects are gone too; logs, cache and secrets stay."""
    asked = _shut_down(home, forget=forget)
    left = end_processes(home, grace_s=STOP_S)
    for path in (home.socket, home.supervisor_file, home.fleet_file, *(_forgotten(home) if forget else ())):
        path.unlink(missing_ok=True)
    return Ended(left.terminated + asked, left.killed, left.left)


def _shut_down(home: Home, *, forget: bool) -> int:
    """1 when a supervisor was asked and ended in time, with all its children."""
    try:
        pid = call(home, "shutdown", forget=forget)["pid"]
        return 0 if wait_until_gone([psutil.Process(pid)], STOP_S) else 1
    except psutil.NoSuchProcess:
        return 1
    except (NotRunning, Refused):
        return 0  # one that does not answer is ended with the rest


def _forgotten(home: Home) -> tuple[Path, ...]:
    """The next `up` starts without objects, and says anew who may ask."""
    return (home.state_file, api_key_file(home.secrets))


def _end_earlier_run(home: Home, say: Callable[[str], None]) -> None:
    earlier = end_processes(home, grace_s=STOP_S)
    if count := earlier.terminated + earlier.killed:
        say(f"Ended {count} processes that an earlier run had left behind.")


def _start(home: Home, environment: Mapping[str, str]) -> Supervised:
    home.create()
    rotate(home.supervisor_log)
    answer = _spawn(home, {**environment, "PAGODA_HOME": str(home.path), "PAGODA_RUN_ID": home.new_run_id()})
    if answer not in ("ready", "taken"):
        cause = answer.removeprefix("error: ") or next(iter(last_lines(home.supervisor_log, 1)), "it logged nothing")
        raise LocalError(f"the supervisor did not start: {cause}")
    return _supervised(call(home, "hello"))


def _spawn(home: Home, environment: Mapping[str, str]) -> str:
    """What the new supervisor said: ready, taken, error: …; empty when it died wordless."""
    reading, writing = os.pipe()
    supervisor = [sys.executable, "-m", "pagoda_operator.local", "--ready-fd", str(writing)]
    command = [sys.executable, "-I", "-S", SPAWN, "--detach", "--", *supervisor]
    with home.supervisor_log.open("ab") as log, os.fdopen(reading, "rb") as answers:
        try:
            subprocess.run(
                command,
                env=dict(environment),
                cwd=home.path,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[writing],
                check=True,
            )
        finally:
            os.close(writing)
        if not select.select([answers], [], [], START_S)[0]:
            return f"error: it said nothing for {START_S:g} s; see {home.supervisor_log}"
        return answers.read().decode()


def _supervised(hello: Mapping[str, Any]) -> Supervised:
    return Supervised(hello["pid"], hello["version"], Choices(**hello["choices"]))
