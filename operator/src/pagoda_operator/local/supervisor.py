"""The local supervisor: one per state folder. Keeps objects, runs the reconcile loop, answers the command line.

Owns the store, the executor and the journal. Does not know the socket (server.py) nor how it is started (__main__.py, launch.py).
"""

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from pagoda_operator.errors import InvalidManifest
from pagoda_operator.labels import LABEL_MODEL
from pagoda_operator.local.errors import Refused
from pagoda_operator.local.executor import LocalExecutor
from pagoda_operator.local.files import write_whole
from pagoda_operator.local.home import Home
from pagoda_operator.local.journal import Journal
from pagoda_operator.local.machine import Machine, check_choices, inherited_environment, named_programs, router_settings
from pagoda_operator.local.pod import Pod
from pagoda_operator.local.scrape import ScrapeFiles
from pagoda_operator.local.secret_files import api_key_file, read_api_key
from pagoda_operator.local.sources import SourceMissing, check_here
from pagoda_operator.local.store import ObjectStore
from pagoda_operator.local.version import code_version, distribution_version
from pagoda_operator.manifest.spec import parse
from pagoda_operator.reconcile import reconcile
from pagoda_operator.render.installation import Settings
from pagoda_operator.scaling.history import ScalingHistory

log = logging.getLogger(__name__)

NAMESPACE = "default"
"""One machine has one."""
TICK_S = 1.0
"""A round at least this often; every change makes one at once."""


class Supervisor:
    def __init__(self, home: Home, run_id: str, environment: Mapping[str, str], *, python: str, has_gpu: bool) -> None:
        self.home = home
        self.run_id = run_id
        self.stopped = asyncio.Event()
        """Asked to stop: no further round begins."""
        self.store = ObjectStore(home.state_file)
        self.store.load()
        self.journal = Journal()
        self._scrape_files = ScrapeFiles(home)
        self._settings = Settings(
            version=distribution_version(),
            host_paths=True,
            otlp_endpoint=environment.get("PAGODA_OTLP_ENDPOINT") or None,
            cors_origins=tuple(filter(None, environment.get("PAGODA_CORS_ORIGINS", "").split(","))),
        )
        self._history = ScalingHistory()
        self._told: deque[tuple[str, str, str]] = deque(maxlen=1000)
        """Decisions that stand in the journal."""
        self._wake = asyncio.Event()
        self._wake.set()
        machine = Machine(
            choices=self.store.choices,
            home=str(home.path),
            fleet_file=str(home.fleet_file),
            cache_dir=str(home.cache),
            run_id=run_id,
            log_level=environment.get("PAGODA_LOG_LEVEL"),
            inherited=inherited_environment(environment),
            programs=named_programs(environment),
            router_settings=router_settings(environment),
        )
        self.executor = LocalExecutor(home, machine, python=python, changed=self._wake.set, tell=self.journal.tell, has_gpu=has_gpu)

    async def run(self) -> None:
        """Until stop(); then everything is ended in order."""
        self.executor.start()
        stopping = asyncio.create_task(self.stopped.wait())
        while not stopping.done():
            waking = asyncio.create_task(self._wake.wait())
            await asyncio.wait([stopping, waking], timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
            waking.cancel()
            self._wake.clear()
            if not stopping.done():
                await self._guarded_round()
        await self.executor.shut_down()

    def stop(self) -> None:
        self.stopped.set()

    async def _guarded_round(self) -> None:
        try:
            await self.round()
        except Exception:
            # the outermost line of the loop: a fault in one round must not end the models that run; the next tick tries again
            log.exception("a round failed")

    async def round(self) -> None:
        self.executor.settle()
        done = await reconcile(list(self.store.objects.values()), self.executor, self._settings, self._history, time.monotonic())
        for reason in done.plan.reasons:
            self.journal.tell("plan", reason)
        self._tell_decisions()
        changed = False
        for document in done.documents:
            name = document["metadata"]["name"]
            # an object deleted or replaced while this round ran keeps its newer state
            if name in self.store.objects and self.store.objects[name]["metadata"] == document["metadata"]:
                changed |= self.store.objects[name].get("status") != document["status"]
                self.store.objects[name]["status"] = document["status"]
        if changed:
            self.store.save()
        self.executor.publish(list(self.store.objects.values()))
        self._scrape_files.publish(done.plan.models, self.executor.pods)

    def _tell_decisions(self) -> None:
        for name in self.store.objects:
            for each in reversed(self._history.decisions(f"{NAMESPACE}/{name}")):
                line = f"{each['variant']} from {each['from']} to {each['to']} workers: {each['reason']}"
                if (name, each["time"], line) not in self._told:
                    self._told.append((name, each["time"], line))
                    self.journal.tell(name, line)

    # ------------------------------------------------------------ what the command line asks for

    def hello(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "version": code_version(),
            "runId": self.run_id,
            "endpoint": self.store.choices.endpoint,
            "choices": asdict(self.store.choices),
        }

    def apply(self, objects: list[dict[str, Any]], choices: Mapping[str, Any] | None, api_key: str | None) -> dict[str, Any]:
        """All or nothing: one broken object refuses the whole submission."""
        names = [document.get("metadata", {}).get("name") for document in objects]
        if twice := sorted({str(name) for name in names if names.count(name) > 1}):
            raise Refused(f"{', '.join(twice)} is there twice in one submission: give each InferenceModel its own metadata.name")
        for document in objects:
            try:
                parse(document)
                check_here(document["spec"]["model"]["source"])
            except (InvalidManifest, SourceMissing) as error:
                raise Refused(str(error)) from error
        now = datetime.now(UTC)
        with self.store.kept():
            if choices is not None:
                self._choose(choices, api_key)
            outcomes = {document["metadata"]["name"]: self.store.submit(document, now) for document in objects}
        if choices is not None:
            self.executor.use(self.store.choices)
        for name, outcome in outcomes.items():
            self.journal.tell(name, f"submitted: {outcome}")
        with suppress(OSError):  # the round writes it again; until then routers would act on the old spec
            self.executor.publish(list(self.store.objects.values()))
        self.executor.retry()
        self._wake.set()
        return {"outcomes": outcomes, "endpoint": self.store.choices.endpoint}

    def delete(self, name: str) -> dict[str, Any]:
        if name not in self.store.objects:
            known = ", ".join(sorted(self.store.objects)) or "none"
            raise Refused(f"there is no InferenceModel {name}; there are: {known}")
        with self.store.kept():
            del self.store.objects[name]
        self._history.forget(f"{NAMESPACE}/{name}")
        self.journal.tell(name, "deleted")
        self._wake.set()
        return {}

    def get(self) -> dict[str, Any]:
        return {"objects": list(self.store.objects.values()), "pods": [self._pod(pod) for pod in self.executor.pods]}

    def router(self) -> dict[str, Any]:
        """Its internal port, for commands that ask it something."""
        router = self.executor.router()
        if router is None:
            raise Refused("the router is not ready: see `pagoda get`")
        return {"url": router.url, "token": router.token}

    def events(self, subjects: list[str] | None) -> dict[str, Any]:
        return {"events": self.journal.about(subjects)}

    def shutdown(self, *, forget: bool) -> dict[str, Any]:
        """forget: the objects too; else a later supervisor takes them up again."""
        if forget:
            self.store.objects.clear()
            with suppress(OSError):  # a full disk keeps nobody from stopping, and who asks this removes the file
                self.store.save()
        self.stop()
        return {"pid": os.getpid()}

    def _choose(self, values: Mapping[str, Any], api_key: str | None) -> None:
        choices = replace(self.store.choices, **values)
        check_choices(choices, api_key or read_api_key(self.home.secrets))
        if api_key:
            write_whole(api_key_file(self.home.secrets), api_key)
        if choices != self.store.choices:
            self.journal.tell("machine", f"router at {choices.endpoint}, device {choices.device}")
        self.store.choices = choices

    def _pod(self, pod: Pod) -> dict[str, Any]:
        view, now = self.executor.view(pod), pod.now
        ports = {name: now.launch.ports[port] for name, port in pod.template.ports.items()} if now.launch else {}
        return {
            "name": pod.name,
            "model": pod.template.labels.get(LABEL_MODEL),
            "component": pod.template.component,
            "pid": now.pid,
            "ports": ports,
            "ready": view.ready,
            "terminating": view.terminating,
            "phase": view.phase,
            "reason": view.reason,
            "message": view.message,
            "restarts": view.restarts,
            "failures": now.backoff.failures,
            "progress": view.progress,
            "lastExit": now.last_exit,
            "log": str(pod.log_file),
        }
