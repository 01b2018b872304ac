"""The control plane alone: started, used and ended as a fixture of another component's tests does it."""

import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Command, found

from devcluster import processes, programs


class Running:
    def __init__(self, folder: Path, *flags: str) -> None:
        command = [sys.executable, "-I", str(ROOT), "control-plane", "--dir", str(folder), *flags]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts = self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        return dict(json.loads(line)) if line else {}

    def say(self, words: str) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(f"{words}\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> int:
        self.process.communicate(timeout=20)
        return self.process.returncode

    def get(self, path: str, token: str | None = None) -> Any:
        context = ssl.create_default_context(cafile=self.facts["ca"])
        request = urllib.request.Request(f"{self.facts['url']}{path}", headers={"Authorization": f"Bearer {token or self.facts['token']}"})
        with urllib.request.urlopen(request, context=context, timeout=10) as response:
            return json.load(response)


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Running]:
    found(programs.CONTROL_PLANE)
    running = Running(tmp_path / "plane")
    yield running
    running.close()


def _gone(running: Running) -> bool:
    return not Path(running.facts["folder"]).exists() and not any(processes.start_time(pid) for pid in running.facts["pids"].values())


def test_it_answers_with_the_admin_token_and_refuses_others(plane: Running) -> None:
    assert {item["metadata"]["name"] for item in plane.get("/api/v1/namespaces")["items"]} >= {"default", "kube-system"}
    with pytest.raises(urllib.error.HTTPError, match="401"):
        plane.get("/api/v1/namespaces", token="wrong")


def test_its_audit_log_names_who_called_what(plane: Running) -> None:
    plane.get("/api/v1/namespaces/default/configmaps")
    entries = [json.loads(line) for line in Path(plane.facts["auditLog"]).read_text().splitlines()]
    calls = {(entry["user"]["username"], entry["verb"], entry.get("objectRef", {}).get("resource")) for entry in entries}
    assert ("admin", "list", "configmaps") in calls
    assert not {user for user, _, _ in calls if user.startswith("system:") and user != "system:anonymous"}


def test_kubectl_reads_its_kubeconfig(plane: Running) -> None:
    kubectl = [f"{plane.facts['programs']}/kubectl", "--kubeconfig", plane.facts["kubeconfig"], "auth", "can-i", "*", "*"]
    assert subprocess.run(kubectl, capture_output=True, text=True, check=True).stdout.strip() == "yes"


def test_the_api_server_can_be_taken_away_and_given_back_with_its_objects(plane: Running) -> None:
    before = plane.get("/api/v1/namespaces/default")["metadata"]["uid"]
    assert plane.say("stop kube-apiserver") == {"stopped": "kube-apiserver"}
    with pytest.raises(urllib.error.URLError, match="refused"):
        plane.get("/api/v1/namespaces/default")
    assert plane.say("start kube-apiserver")["started"] == "kube-apiserver"
    assert plane.get("/api/v1/namespaces/default")["metadata"]["uid"] == before


def test_an_unknown_request_is_answered_with_the_known_ones(plane: Running) -> None:
    assert plane.say("stop kubelet") == {"error": "say stop or start and one of etcd kube-apiserver"}


def test_it_leaves_nothing_when_its_standard_input_closes(plane: Running) -> None:
    assert plane.close() == 0
    assert _gone(plane)


def test_it_leaves_nothing_on_sigterm(plane: Running) -> None:
    plane.process.terminate()
    assert plane.close() == 0
    assert _gone(plane)


def test_its_components_die_with_it_when_it_is_killed_and_the_next_run_takes_the_folder(plane: Running) -> None:
    plane.process.kill()
    plane.process.wait()
    deadline = time.monotonic() + 10
    while any(processes.start_time(pid) for pid in plane.facts["pids"].values()):  # the kernel's own signal to them
        assert time.monotonic() < deadline
    again = Running(Path(plane.facts["folder"]))
    assert again.facts["url"]
    assert again.close() == 0
    assert _gone(again)


def test_a_component_that_dies_ends_it_with_the_name_of_the_log(plane: Running) -> None:
    os.kill(plane.facts["pids"]["etcd"], signal.SIGKILL)
    assert plane.process.wait(20) == 1
    assert (Path(plane.facts["folder"]) / "etcd.log").exists()
    assert not any(processes.start_time(pid) for pid in plane.facts["pids"].values())


def test_with_controllers_a_namespace_gets_its_service_account(tmp_path: Path) -> None:
    found((*programs.CONTROL_PLANE, "kube-controller-manager"))
    running = Running(tmp_path / "plane", "--controller-manager")
    kubectl = [f"{running.facts['programs']}/kubectl", "--kubeconfig", running.facts["kubeconfig"]]
    wait = [*kubectl, "wait", "--for=create", "serviceaccount/default", "--timeout=30s"]
    assert subprocess.run(wait, capture_output=True, text=True, check=False).returncode == 0
    assert running.close() == 0


def test_it_never_empties_a_folder_that_it_did_not_make(devcluster: Command, tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    ended = devcluster("control-plane", "--dir", str(tmp_path))
    assert ended.returncode == 1
    assert ended.stderr == f"devcluster: {tmp_path} is not empty and was not made by control-plane: give --dir a folder of its own\n"
    assert (tmp_path / "precious").exists()


def test_missing_programs_are_named_with_the_way_to_get_them(devcluster: Command, tmp_path: Path) -> None:
    ended = devcluster("control-plane", "--dir", str(tmp_path / "plane"), PAGODA_KUBE_BIN=str(tmp_path), XDG_CACHE_HOME=str(tmp_path))
    assert ended.returncode == 1
    assert ended.stderr == (
        f"devcluster: {tmp_path} lacks etcd kube-apiserver kubectl: set PAGODA_KUBE_BIN to a folder that has them, "
        "or build them with `make devcluster-build`\n"
    )
