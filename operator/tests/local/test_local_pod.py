"""One pod as a real process: restarts with backoff, hangs, graceful and forced ends."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cases import SETTINGS, inference_model, world
from stacks import behave, eventually, free_port, model_folder, stand_in_environment

from pagoda_operator.local.machine import Launch
from pagoda_operator.local.pod import NotLaunchable, Pod
from pagoda_operator.local.probe import Prober
from pagoda_operator.local.processes import last_lines
from pagoda_operator.local.template import PodTemplate, Probe, read_deployment
from pagoda_operator.plan.plan import plan


@dataclass
class Bench:
    """Makes pods of the stand-in worker; all end with the test."""

    folder: Path
    model: Path
    prober: Prober
    pods: list[Pod]
    told: list[str]

    def pod(self, *, prepare: Any = None, **template: Any) -> Pod:
        changes = asyncio.Event()
        made = Pod(
            f"m-default-{len(self.pods)}",
            replace(worker_template(), **template),
            "identity",
            cwd=self.folder,
            log_file=self.folder / "pod.log",
            prober=self.prober,
            prepare=prepare or self.launch,
            changed=changes.set,
            tell=lambda subject, message: self.told.append(message),
        )
        self.pods.append(made)
        made.start()
        return made

    def launch(self, template: PodTemplate, name: str) -> Launch:
        ports = {port: free_port() for port in template.ports.values()}
        own = {
            "PAGODA_MODEL_SOURCE": str(self.model),
            "PAGODA_BIND_HOST": "127.0.0.1",
            "PAGODA_HTTP_PORT": str(ports[template.ports["http"]]),
        }
        argv = (sys.executable, "-m", "pagoda_worker")
        return Launch(argv=argv, env=stand_in_environment(self.folder) | own, host="127.0.0.1", ports=ports)


def worker_template() -> PodTemplate:
    planned = plan([inference_model("m")], world(), SETTINGS).apply
    return read_deployment(
        next(document for document in planned if document["metadata"]["name"] == "m-default" and document["kind"] == "Deployment")
    )


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path, model_folder(tmp_path / "model"), Prober(), [], [])
    yield made
    for each in made.pods:
        each.template = replace(each.template, grace_s=1)
        each.end()
        await each.join()
    await made.prober.close()


async def test_it_becomes_ready_by_its_own_word(bench: Bench) -> None:
    behave(bench.model, ready=False)
    pod = bench.pod()
    await eventually(lambda: pod.view().progress == 0.5)
    assert (pod.view().ready, pod.view().message) == (False, "the engine is loading")
    behave(bench.model)
    await eventually(lambda: pod.view().ready)
    assert pod.view().phase == "Running"
    behave(bench.model, ready=False, reason="Stalled")
    await eventually(lambda: not pod.view().ready)
    assert pod.view().reason == "Stalled"
    assert pod.now.served


async def test_it_is_restarted_after_a_crash_and_then_runs(bench: Bench) -> None:
    behave(bench.model, exit=1, crashes=2, say="no such tensor")
    pod = bench.pod()
    await eventually(lambda: pod.now.last_exit == 1)
    assert pod.view().message == "no such tensor"
    await eventually(lambda: pod.view().ready)
    assert pod.view().restarts == 2
    assert bench.told.count("ended with exit status 1: no such tensor") == 2
    assert [told.partition(",")[0] for told in bench.told if told.startswith("restart")] == ["restart 1", "restart 2"]


async def test_crashing_again_and_again_is_a_crash_loop_with_its_last_words(bench: Bench) -> None:
    behave(bench.model, exit=2, say="spec.engine.dtype: fp7 is not known")
    pod = bench.pod()
    await eventually(lambda: pod.view().reason == "CrashLoopBackOff")
    assert pod.view().message == "spec.engine.dtype: fp7 is not known"
    assert not pod.view().ready


async def test_a_lasting_cause_stays_in_sight_while_the_next_try_begins(bench: Bench) -> None:
    said = "pagoda-worker: ModelNotFound: there is no tokenizer.json"
    behave(bench.model, exit=3, crashes=1, say=said, ready=False, reason="Loading")
    pod = bench.pod()
    await eventually(lambda: pod.view().restarts == 1)
    await eventually(lambda: pod.view().progress == 0.5)
    assert (pod.view().reason, pod.view().message) == ("ModelNotFound", "there is no tokenizer.json")
    behave(bench.model, ready=False, reason="Loading", bytesDone=5)
    await eventually(lambda: pod.view().reason == "Loading")
    behave(bench.model)
    await eventually(lambda: pod.view().ready)
    assert pod.view().reason == ""


async def test_a_death_is_noticed_long_before_the_restart(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pagoda_operator.local.backoff.FIRST_DELAY_S", 30)
    pod = bench.pod()
    await eventually(lambda: pod.view().ready)
    os.kill(pod.now.pid or 0, signal.SIGKILL)
    await eventually(lambda: not pod.view().ready)
    assert "memory" in pod.view().message
    pod.retry()
    await eventually(lambda: pod.view().ready)


async def test_one_that_hangs_is_restarted(bench: Bench) -> None:
    impatient = Probe("/health", worker_template().ports["http"], period_s=0.05, failure_threshold=2)
    pod = bench.pod(liveness=impatient)
    await eventually(lambda: pod.view().ready)
    first = pod.now.pid
    behave(bench.model, healthy=False)
    await eventually(lambda: pod.now.pid not in (first, None))
    behave(bench.model)
    assert any("no token moved" in told for told in bench.told)
    await eventually(lambda: pod.view().ready)


async def test_one_that_never_starts_is_restarted(bench: Bench) -> None:
    behave(bench.model, ready=False)
    pod = bench.pod(startup=Probe("/ready", worker_template().ports["http"], period_s=0.1, failure_threshold=3))
    await eventually(lambda: pod.view().restarts == 1)
    assert any("not started for" in told for told in bench.told)


async def test_an_end_lets_it_drain(bench: Bench) -> None:
    pod = bench.pod()
    await eventually(lambda: pod.view().ready)
    pod.end()
    await pod.join()
    assert pod.gone
    assert pod.now.last_exit == 0
    assert last_lines(pod.log_file, 1) == ["drained"]
    assert pod.view().restarts == 0


async def test_one_that_will_not_end_is_killed_after_its_grace(bench: Bench) -> None:
    behave(bench.model, stubborn=True)
    pod = bench.pod(grace_s=0.2)
    await eventually(lambda: pod.view().ready)
    pod.end()
    await pod.join()
    assert pod.now.last_exit == -9
    assert any("killed" in told for told in bench.told)


async def test_an_end_during_backoff_does_not_wait_for_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pagoda_operator.local.backoff.FIRST_DELAY_S", 30)
    behave(bench.model, exit=1)
    pod = bench.pod()
    await eventually(lambda: pod.now.last_exit == 1)
    pod.end()
    async with asyncio.timeout(20):
        await pod.join()


async def test_a_new_submission_starts_one_that_waits_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pagoda_operator.local.backoff.FIRST_DELAY_S", 30)
    behave(bench.model, exit=1)
    pod = bench.pod()
    await eventually(lambda: pod.now.backoff.failures == 1)
    behave(bench.model)
    pod.retry()
    await eventually(lambda: pod.view().ready)


async def test_what_cannot_be_launched_says_why_and_is_tried_again(bench: Bench) -> None:
    missing = True

    def prepare(template: PodTemplate, name: str) -> Launch:
        if missing:
            raise NotLaunchable("ModelNotFound", "there is no folder /x")
        return bench.launch(template, name)

    pod = bench.pod(prepare=prepare)
    await eventually(lambda: pod.view().reason == "ModelNotFound")
    assert (pod.view().message, pod.now.pid) == ("there is no folder /x", None)
    missing = False
    await eventually(lambda: pod.view().ready)
    assert pod.view().reason == ""


async def test_the_environment_of_the_process_is_the_launchs(bench: Bench) -> None:
    pod = bench.pod()
    await eventually(lambda: pod.view().ready)
    seen = json.loads(last_lines(pod.log_file, 1)[0].removeprefix("environment "))
    assert pod.now.launch is not None
    assert seen == {name: value for name, value in pod.now.launch.env.items() if name.startswith("PAGODA_")}
