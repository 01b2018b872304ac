"""The supervisor in this process, with stand-ins for router and worker: objects in, processes and fleet.json out."""

import asyncio
import json
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from stacks import behave, eventually, free_port, model_folder, stand_in_environment

from pagoda_operator.local.client import call
from pagoda_operator.local.errors import BadSettings, NotRunning, Refused, Unwritable
from pagoda_operator.local.files import write_json
from pagoda_operator.local.home import Home
from pagoda_operator.local.orphans import processes_of
from pagoda_operator.local.pod import Pod
from pagoda_operator.local.server import Server
from pagoda_operator.local.supervisor import Supervisor


@dataclass
class Running:
    supervisor: Supervisor
    model: Path
    port: int

    def apply(self, name: str = "m", **spec: Any) -> dict[str, Any]:
        return self.supervisor.apply([document(self.model, name, **spec)], {"port": self.port}, None)

    def status(self, name: str = "m") -> dict[str, Any]:
        return self.supervisor.store.objects[name].get("status", {})

    def settled(self, name: str = "m") -> bool:
        status = self.status(name)
        current = status.get("observedGeneration") == self.supervisor.store.objects[name]["metadata"]["generation"]
        return current and status["ready"] == "True" and status["conditions"][-1]["reason"] == "Settled"

    def pods(self, component: str = "worker") -> list[Pod]:
        return [pod for pod in self.supervisor.executor.pods if pod.template.component == component]

    def fleet(self) -> dict[str, Any]:
        fleet: dict[str, Any] = json.loads(self.supervisor.home.fleet_file.read_text())
        return fleet

    def told(self) -> list[str]:
        return [f"{event['subject']}: {event['message']}" for event in self.supervisor.journal.about()]


def document(folder: Path, name: str = "m", /, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "pagoda.dev/v1alpha1",
        "kind": "InferenceModel",
        "metadata": {"name": name},
        "spec": {"model": {"source": f"file://{folder}"}, **spec},
    }


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    home = Home(tmp_path / "home")
    home.create()
    supervisor = Supervisor(home, home.new_run_id(), stand_in_environment(home.path), python=sys.executable, has_gpu=False)
    task = asyncio.create_task(supervisor.run())
    yield Running(supervisor, model_folder(tmp_path / "model"), free_port())
    supervisor.stop()
    await task
    assert processes_of(home) == []


async def test_a_model_becomes_ready_and_the_fleet_names_its_worker(running: Running) -> None:
    assert running.apply()["outcomes"] == {"m": "created"}
    await eventually(running.settled)
    [pod] = running.pods()
    [endpoints] = running.fleet()["endpointSlices"]
    assert endpoints["metadata"]["name"] == pod.name == "m-default-0"
    assert endpoints["metadata"]["labels"]["pagoda.dev/model"] == "m"
    assert pod.now.launch is not None
    ports = {port["name"]: port["port"] for port in endpoints["ports"]}
    assert ports == {name: pod.now.launch.ports[port] for name, port in pod.template.ports.items()}
    [endpoint] = endpoints["endpoints"]
    assert endpoint["addresses"] == ["127.0.0.1"]
    assert endpoint["conditions"] == {"ready": True, "serving": True, "terminating": False}
    [model] = running.fleet()["models"]
    assert model["metadata"]["uid"]
    assert model["status"]["ready"] == "True"
    assert running.status()["endpoint"] == f"http://127.0.0.1:{running.port}/v1"


async def test_the_same_object_again_changes_no_process(running: Running) -> None:
    running.apply()
    await eventually(running.settled)
    before = [pod.now.pid for pod in running.supervisor.executor.pods]
    assert running.apply()["outcomes"] == {"m": "unchanged"}
    await running.supervisor.round()
    assert [pod.now.pid for pod in running.supervisor.executor.pods] == before


async def test_a_changed_spec_starts_the_new_worker_before_it_ends_the_old(running: Running) -> None:
    running.apply()
    await eventually(running.settled)
    [old] = running.pods()
    ready: list[int] = []
    terminating_before_exit: list[bool] = []

    def watch() -> bool:
        ready.append(sum(pod.view().ready for pod in running.pods()))
        slices = running.fleet()["endpointSlices"]
        flagged = any(s["endpoints"][0]["conditions"]["terminating"] for s in slices if s["metadata"]["name"] == old.name)
        terminating_before_exit.append(flagged and old.now.pid is not None)
        return running.settled() and old.gone

    assert running.apply(engine={"maxRunning": 3})["outcomes"] == {"m": "configured"}
    await eventually(watch)
    assert min(ready) >= 1
    assert any(terminating_before_exit)
    [new] = running.pods()
    assert new.name != old.name
    assert '"maxRunning":3' in new.template.env["PAGODA_ENGINE"]


async def test_a_rollout_to_a_broken_worker_keeps_the_old_one_serving(running: Running) -> None:
    running.apply()
    await eventually(running.settled)
    [old] = running.pods()
    behave(running.model, exit=2, say="maxRunning is too large")
    running.apply(engine={"maxRunning": 3})
    await eventually(lambda: any(pod.view().reason == "CrashLoopBackOff" for pod in running.pods()))
    await eventually(lambda: "maxRunning is too large" in running.status()["conditions"][-1]["message"])
    assert old.view().ready
    assert running.status()["ready"] == "True"
    running.apply()
    await eventually(running.settled)
    await eventually(lambda: [pod.name for pod in running.pods()] == [old.name])
    assert old.now.restarts == 0


async def test_more_replicas_get_ports_of_their_own(running: Running) -> None:
    running.apply(scaling={"min": 3, "max": 3})
    await eventually(running.settled)
    slices = running.fleet()["endpointSlices"]
    assert sorted(each["metadata"]["name"] for each in slices) == ["m-default-0", "m-default-1", "m-default-2"]
    assert len({port["port"] for each in slices for port in each["ports"]}) == 6


async def test_a_killed_worker_comes_back(running: Running) -> None:
    running.apply()
    await eventually(running.settled)
    [pod] = running.pods()
    os.kill(pod.now.pid or 0, signal.SIGKILL)
    await eventually(lambda: not running.settled())
    await eventually(running.settled)
    assert pod.view().restarts == 1


async def test_a_crashing_worker_is_told_in_the_status_with_its_last_words(running: Running) -> None:
    behave(running.model, exit=1, say="no such tensor: lm_head.weight")
    running.apply()
    await eventually(lambda: running.status().get("ready") == "EngineCrash")
    ready = next(each for each in running.status()["conditions"] if each["type"] == "Ready")
    assert "no such tensor: lm_head.weight" in ready["message"]
    assert "unavailable" not in running.status(), "the first ends may have been bad luck: requests wait"
    await eventually(lambda: "no such tensor: lm_head.weight" in running.status().get("unavailable", ""))
    behave(running.model)
    await eventually(running.settled)
    assert "unavailable" not in running.status()


async def test_a_missing_model_folder_is_told_without_starting_anything(running: Running) -> None:
    running.supervisor.apply([document(running.model / "none")], {"port": running.port}, None)
    await eventually(lambda: running.status().get("ready") == "ModelNotFound")
    assert all(pod.now.pid is None for pod in running.pods())


async def test_a_deleted_model_leaves_no_process_and_no_endpoint(running: Running) -> None:
    running.apply("a")
    running.apply("b")
    await eventually(lambda: running.settled("a") and running.settled("b"))
    running.supervisor.delete("a")
    await eventually(lambda: [pod.name for pod in running.pods()] == ["b-default-0"])
    await eventually(lambda: [each["metadata"]["name"] for each in running.fleet()["endpointSlices"]] == ["b-default-0"])
    assert [model["metadata"]["name"] for model in running.fleet()["models"]] == ["b"]
    assert len(running.pods("router")) == 1


async def test_another_port_moves_the_router_and_no_worker(running: Running) -> None:
    running.apply()
    await eventually(running.settled)
    [worker] = running.pods()
    moved = free_port()
    running.supervisor.apply([document(running.model)], {"port": moved}, None)
    await eventually(lambda: running.status().get("endpoint") == f"http://127.0.0.1:{moved}/v1" and running.settled())
    assert running.pods() == [worker]


async def test_a_bind_beyond_loopback_needs_a_key_and_hands_it_to_the_router_only(running: Running) -> None:
    with pytest.raises(BadSettings, match="PAGODA_API_KEY"):
        running.supervisor.apply([document(running.model)], {"port": running.port, "host": "0.0.0.0"}, None)
    assert running.supervisor.store.objects == {}
    running.supervisor.apply([document(running.model)], {"port": running.port, "host": "0.0.0.0"}, "sesame")
    await eventually(running.settled)
    [router], [worker] = running.pods("router"), running.pods()
    assert router.now.launch is not None
    assert worker.now.launch is not None
    assert router.now.launch.env["PAGODA_BIND_HOST"] == "0.0.0.0"
    assert router.now.launch.env["PAGODA_API_KEY"] == "sesame"
    assert worker.now.launch.env["PAGODA_BIND_HOST"] == "127.0.0.1"
    assert "PAGODA_API_KEY" not in worker.now.launch.env
    assert "sesame" not in running.supervisor.home.state_file.read_text()


async def test_one_broken_object_refuses_the_whole_submission(running: Running) -> None:
    good, bad = document(running.model, "good"), document(running.model, "bad", engine={"dtype": "fp7"})
    with pytest.raises(Refused, match=r"spec\.engine\.dtype"):
        running.supervisor.apply([good, bad], None, None)
    with pytest.raises(Refused, match="twice"):
        running.supervisor.apply([good, good], None, None)
    assert running.supervisor.store.objects == {}


async def test_objects_and_choices_survive_the_supervisor(running: Running) -> None:
    running.apply()
    await eventually(running.settled)
    successor = Supervisor(running.supervisor.home, "r-2", {}, python="python", has_gpu=False)
    assert successor.store.objects == running.supervisor.store.objects
    assert successor.store.choices == running.supervisor.store.choices
    await successor.executor.shut_down()


def demand(running: Running, **facts: Any) -> None:
    told = {"inFlight": 0, "waiting": 0, "queuedTokens": 0, "idleS": 0.0, "ttftS": None} | facts
    write_json(running.supervisor.home.path / "demand.json", {"m": told})


async def test_an_idle_model_sleeps_and_a_waiting_request_wakes_it(running: Running) -> None:
    running.apply(scaling={"min": 0, "max": 2, "idleSeconds": 1, "stableSeconds": 1})
    await eventually(lambda: running.status().get("ready") == "Asleep")
    assert running.pods() == []
    demand(running, waiting=1)
    await eventually(lambda: running.status().get("ready") == "True")
    assert len(running.pods()) == 1
    demand(running, idleS=9.0)
    await eventually(lambda: running.status().get("ready") == "Asleep")
    decisions = running.status()["scaling"]["decisions"]
    assert [(each["from"], each["to"]) for each in decisions] == [(1, 0), (0, 1)]
    assert "m: default from 0 to 1 workers: 1 requests wait and 0 are in flight" in running.told()


async def test_a_queue_brings_more_workers_up_to_max(running: Running) -> None:
    running.apply(scaling={"min": 1, "max": 3, "target": {"queuedTokens": 100}})
    await eventually(running.settled)
    demand(running, queuedTokens=1000, waiting=10, inFlight=5)
    await eventually(lambda: running.settled() and running.status()["routedReplicas"] == 3)


async def test_each_variant_has_its_own_workers_under_one_name(running: Running) -> None:
    running.apply(variants=[{"name": "stable", "weight": 90}, {"name": "canary", "weight": 10, "engine": {"maxRunning": 2}}])
    await eventually(running.settled)
    assert sorted(pod.name for pod in running.pods()) == ["m-canary-0", "m-stable-0"]
    assert [(each["name"], each["ready"]) for each in running.status()["variants"]] == [("stable", 1), ("canary", 1)]
    running.apply()
    await eventually(lambda: running.settled() and [pod.name for pod in running.pods()] == ["m-default-0"])


async def test_weights_are_fetched_before_the_worker_starts_and_only_that_step_has_the_token(running: Running) -> None:
    (running.supervisor.home.secrets / "hub.token").write_text("hf_abc")
    running.apply(model={"source": "hf://org/name", "revision": "v2", "tokenSecretRef": {"name": "hub"}})
    await eventually(running.settled)
    (worker,) = running.pods()
    log = worker.log_file.read_text()
    assert "PAGODA_HF_TOKEN=hf_abc" in log
    assert "PAGODA_MODEL_REVISION=v2" in log
    assert "PAGODA_HF_TOKEN" not in worker.now.launch.env
    timeline = await eventually(lambda: "routed" in (told := running.status().get("timeline", {})) and told)
    assert list(timeline) == ["created", "scheduled", "image", "weights", "engine", "routed"]
    assert list(timeline.values()) == sorted(timeline.values())


async def test_a_fetch_that_fails_says_why_in_status(running: Running) -> None:
    running.apply(model={"source": "hf://org/gated"})
    await eventually(lambda: running.status().get("ready") == "Unauthorized")
    assert "org/gated is gated" in running.status()["conditions"][1]["message"]


async def test_a_fetch_whose_token_is_missing_names_the_file_to_write(running: Running) -> None:
    running.apply(model={"source": "hf://org/name", "tokenSecretRef": {"name": "hub"}})
    await eventually(lambda: running.status().get("ready") == "ContainerConfig")
    assert "secrets/hub.token: write the secret's value into it" in running.status()["conditions"][2]["message"]


async def test_replace_ends_the_old_worker_before_its_successor_starts(running: Running) -> None:
    running.apply(rollout={"strategy": "replace"})
    await eventually(running.settled)
    (old,) = running.pods()
    running.apply(rollout={"strategy": "replace"}, engine={"maxRunning": 3})
    await eventually(lambda: running.settled() and old.gone)
    ended = next(i for i, line in enumerate(running.told()) if line.startswith(f"{old.name}: ended with"))
    started = [i for i, line in enumerate(running.told()) if line.startswith("m-default-0: started")]
    assert started[0] < ended < started[1]


async def test_claims_of_a_cluster_are_refused_here(running: Running) -> None:
    with pytest.raises(Refused, match="one machine has no PersistentVolumeClaims"):
        running.apply(model={"source": "pvc://claim/model"})


async def test_a_round_that_fails_does_not_end_the_loop(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    running.apply()
    await eventually(running.settled)
    failures = []

    def fail(models: object) -> None:
        failures.append(models)
        raise RuntimeError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(running.supervisor.executor, "publish", fail)
        await eventually(lambda: failures)
    running.apply(scaling={"min": 2, "max": 2})
    await eventually(running.settled)


async def test_what_cannot_be_kept_is_refused_and_did_not_happen(running: Running) -> None:
    home = running.supervisor.home
    running.apply("kept")
    await eventually(lambda: running.settled("kept"))
    home.state_file.unlink()
    home.state_file.mkdir()  # nothing can be renamed to it, as nothing can be written to a full disk
    with pytest.raises(Unwritable, match=r"the state folder .* cannot be written \(Is a directory\): make room there, or set PAGODA_HOME"):
        running.apply("m")
    with pytest.raises(Unwritable):
        running.supervisor.delete("kept")
    assert list(running.supervisor.store.objects) == ["kept"]
    assert not [path.name for path in home.path.iterdir() if path.name.startswith(".state.json")]
    home.state_file.rmdir()
    running.supervisor.delete("kept")
    assert json.loads(home.state_file.read_text())["objects"] == []


def test_a_state_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unwritable, match=r"file/home cannot be written \(Not a directory\)"):
        Home(tmp_path / "file" / "home").create()


async def test_the_socket_is_the_users_alone_and_answers_errors_as_sentences(running: Running) -> None:
    home, server = running.supervisor.home, Server(running.supervisor)
    await server.listen(home.socket)
    try:
        assert stat.S_IMODE(home.socket.stat().st_mode) == 0o600
        answers = await asyncio.to_thread(lambda: call(home, "hello"))
        assert answers["pid"] == os.getpid()
        with pytest.raises(Refused, match="no InferenceModel x; there are: none"):
            await asyncio.to_thread(lambda: call(home, "delete", name="x"))
        with pytest.raises(Refused, match="no operation 'dance'"):
            await asyncio.to_thread(lambda: call(home, "dance"))
        with pytest.raises(Refused, match="could not read"):
            await asyncio.to_thread(lambda: call(home, "delete"))
    finally:
        await server.close()
    with pytest.raises(NotRunning, match="pagoda up"):
        await asyncio.to_thread(lambda: call(home, "hello"))


@pytest.mark.parametrize("line", [b"not json\n", b"[]\n", b'"x"\n', b"{}\n", b'{"op": {}}\n'])
async def test_a_line_that_is_no_request_is_answered_not_fatal(running: Running, line: bytes) -> None:
    answer = Server(running.supervisor).answer(line)
    assert answer["ok"] is False
    assert answer["error"]
