"""`control-plane`: etcd and an API server on free loopback ports, without root, for as long as this process runs.

A test's fixture starts it, reads one JSON line, and closes its standard input or sends SIGTERM when done. While it runs, a line
`stop NAME` or `start NAME` on its standard input stops or starts one component (kube-apiserver for an outage of the API); the answer is one
JSON line too.
"""

import json
import os
import selectors
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from devcluster import access, api, certificates, components, processes, programs
from devcluster.components import Command, Site
from devcluster.errors import DevclusterError, NotStarted

START_TIMEOUT_S = 60.0
_MARK = ".pagoda-control-plane"


@dataclass(frozen=True, kw_only=True)
class Options:
    folder: Path
    controller_manager: bool = False
    scheduler: bool = False
    kwok_stages: Path | None = None
    """kwok's configuration; None: no kwok."""


@dataclass
class ControlPlane:
    """Owns the folder and every process started for it."""

    site: Site
    commands: dict[str, Command]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str) -> None:
        if name in self.running and self.running[name].poll() is None:
            return
        environment = processes.clean_environment(self.site.programs)
        process = processes.start(self.commands[name], self._log(name), environment=environment, die_with_parent=True)
        self.running[name] = process
        if name in _READY:
            answers = _READY[name]
            alive: Callable[[], bool] = lambda: process.poll() is None  # noqa: E731
            processes.wait_until(lambda: answers(self.site), alive, name=name, log=self._log(name), timeout_s=START_TIMEOUT_S)

    def stop(self, name: str, grace_s: float = 5.0) -> None:
        if name in self.running:
            processes.stop(self.running.pop(name), grace_s)

    def stop_all(self) -> None:
        """At once: nothing here is worth a graceful end."""
        for process in self.running.values():
            process.kill()
        for process in self.running.values():
            process.wait()
        self.running.clear()

    def check(self) -> None:
        for name, process in self.running.items():
            if process.poll() is not None:
                raise NotStarted(f"{name} ended with status {process.returncode}", self._log(name))

    def _log(self, name: str) -> Path:
        return self.site.folder / f"{name}.log"

    def description(self) -> dict[str, object]:
        return {
            "kubeconfig": str(self.site.kubeconfig()),
            "url": self.site.url,
            "ca": str(self.site.certificates / "ca.crt"),
            "token": access.token(self.site.folder),
            "auditLog": str(self.site.audit_log),
            "folder": str(self.site.folder),
            "programs": str(self.site.programs),
            "pids": {name: process.pid for name, process in self.running.items()},
        }


_READY: dict[str, Callable[[Site], bool]] = {
    "etcd": api.etcd_ready,
    "kube-apiserver": api.ready,
}


def run(options: Options) -> None:
    """Start, announce, serve commands until told to end, remove everything."""
    programs.require("openssl")
    wanted = [*programs.CONTROL_PLANE]
    wanted += ["kube-controller-manager"] if options.controller_manager else []
    wanted += ["kube-scheduler"] if options.scheduler else []
    wanted += ["kwok"] if options.kwok_stages else []
    folder = _fresh(options.folder)
    ended = _Ended()
    plane = ControlPlane(_site(folder, programs.find(wanted), options), {})
    try:
        _write_files(plane.site)
        plane.commands = _commands(plane.site, options)
        for name in plane.commands:
            plane.start(name)
        print(json.dumps(plane.description()), flush=True)
        _serve(plane, ended)
    except _Stopped:
        pass
    except NotStarted:
        plane.stop_all()
        raise  # its message names a log: the folder stays until the next run takes it
    except BaseException:
        _remove(plane)
        raise
    _remove(plane)


def _remove(plane: ControlPlane) -> None:
    plane.stop_all()
    shutil.rmtree(plane.site.folder, ignore_errors=True)


def _fresh(folder: Path) -> Path:
    """An empty folder of ours; what a killed run left in it is removed, what somebody else put there is not."""
    folder = folder.resolve()
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARK).exists():
        raise DevclusterError(f"{folder} is not empty and was not made by control-plane: give --dir a folder of its own")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    (folder / _MARK).touch()
    return folder


def _site(folder: Path, found: Path, options: Options) -> Site:
    api, client, peer = _free_ports(3)
    return Site(
        folder=folder, programs=found, api_port=api, etcd_port=client, etcd_peer_port=peer, with_controllers=options.controller_manager
    )


def _free_ports(count: int) -> list[int]:
    """Free now; all held at once so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for held in sockets:
            held.bind(("127.0.0.1", 0))
        return [held.getsockname()[1] for held in sockets]
    finally:
        for held in sockets:
            held.close()


def _write_files(site: Site) -> None:
    certificates.make_all(site.certificates, ("127.0.0.1", components.KUBERNETES_SERVICE))
    access.make_all(site.folder, site.url)
    (site.folder / "audit-policy.yaml").write_text(components.AUDIT_POLICY)


def _commands(site: Site, options: Options) -> dict[str, Command]:
    commands = [components.etcd(site), components.api_server(site)]
    if options.controller_manager:
        commands.append(components.controller_manager(site))
    if options.scheduler:
        commands.append(components.scheduler(site))
    if options.kwok_stages:
        commands.append(components.kwok(site, options.kwok_stages))
    return {command.name: command for command in commands}


class _Stopped(Exception):
    """A signal asked us to end."""


class _Ended:
    """Turns SIGTERM and SIGINT into _Stopped, wherever we are: starting takes seconds and must be left as cleanly as serving."""

    def __init__(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._raise)

    def _raise(self, number: int, frame: object) -> None:
        for again in (signal.SIGTERM, signal.SIGINT):
            signal.signal(again, signal.SIG_IGN)
        raise _Stopped


def _serve(plane: ControlPlane, ended: _Ended) -> None:
    with selectors.DefaultSelector() as selector:
        if _closes(sys.stdin.fileno()):
            selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        buffer = b""
        while True:
            if selector.get_map():
                ready = selector.select(timeout=0.2)
            else:
                time.sleep(0.2)
                ready = []
            plane.check()
            if ready:
                read = os.read(sys.stdin.fileno(), 4096)
                if not read:
                    return
                *lines, buffer = (buffer + read).split(b"\n")
                for line in lines:
                    print(json.dumps(_obey(plane, line.decode().split())), flush=True)


def _closes(descriptor: int) -> bool:
    """Whether the end of our standard input means that our caller has gone: so for pipes, sockets and terminals, not for /dev/null."""
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)


def _obey(plane: ControlPlane, words: list[str]) -> dict[str, object]:
    match words:
        case ["stop", name] if name in plane.commands:
            plane.stop(name)
            return {"stopped": name}
        case ["start", name] if name in plane.commands:
            plane.start(name)
            return {"started": name, "pid": plane.running[name].pid}
        case _:
            return {"error": f"say stop or start and one of {' '.join(plane.commands)}"}
