"""The local executor: keeps the planned objects, and makes their Deployments true as processes on this machine.

Owns pods, ports, generated secrets and fleet.json. Knows nothing of specs; supervisor.py drives it through reconcile.py.

    apply(plan) → objects change → settle(): next_steps() → start pods, mark pods ending
    publish(models) → fleet.json shows the endings → the marked pods are told to end
"""

import asyncio
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from pagoda_operator.local import machine as local
from pagoda_operator.local.acknowledgement import Acknowledgement, RouterAddress, Worker
from pagoda_operator.local.files import write_json
from pagoda_operator.local.fleet import fleet_document
from pagoda_operator.local.home import Home
from pagoda_operator.local.machine import Launch, Machine
from pagoda_operator.local.pod import NotLaunchable, Pod
from pagoda_operator.local.ports import PortPool
from pagoda_operator.local.probe import Prober
from pagoda_operator.local.rollout import PodFacts, Steps, Wanted, next_steps
from pagoda_operator.local.secret_files import SecretFiles
from pagoda_operator.local.sources import FETCHED, SourceMissing, local_adapter, resolve_source
from pagoda_operator.local.template import FetchStep, PodTemplate, read_deployment
from pagoda_operator.observed.world import ObjectRef, Observed, PodView, RouterReport, ref_of
from pagoda_operator.plan.plan import Plan

log = logging.getLogger(__name__)

FLEET_SEEN_S = 0.25
"""A router reads a changed fleet file within 200 ms; only then is a worker told to end."""


class LocalExecutor:
    def __init__(
        self, home: Home, machine: Machine, *, python: str, changed: Callable[[], None], tell: Callable[[str, str], None], has_gpu: bool
    ) -> None:
        self.machine = machine
        self.pods: list[Pod] = []
        self._home = home
        self._python = python
        self._changed = changed
        self._tell = tell
        self._has_gpu = has_gpu
        self._objects: dict[ObjectRef, Mapping[str, Any]] = {}
        self._templates: dict[str, PodTemplate] = {}
        self._ports = PortPool()
        self._secrets = SecretFiles(home.secrets)
        self._prober = Prober()
        self._endings: set[asyncio.Task[None]] = set()
        self._acknowledgement = Acknowledgement(self.router, self._ready_workers, changed)

    def start(self) -> None:
        self._acknowledgement.start()

    async def observe(self) -> Observed:
        return Observed(
            objects=dict(self._objects),
            pods=[self.view(pod) for pod in self.pods],
            endpoint=self.machine.choices.endpoint if self._templates else None,
            now=datetime.now(UTC),
            reports=self._reports(),
        )

    async def apply(self, wanted: Plan) -> None:
        for document in wanted.apply:
            ref = ref_of(document)
            if ref.kind == "Deployment":
                if ref in self._objects and "replicas" not in document["spec"]:
                    document = document | {"spec": {"replicas": self._objects[ref]["spec"]["replicas"], **document["spec"]}}
                self._templates[ref.name] = read_deployment(document)
            self._objects[ref] = document
        for ref in wanted.delete:
            self._objects.pop(ref, None)
            if ref.kind == "Deployment":
                self._templates.pop(ref.name, None)
        self.settle()

    async def scale(self, ref: ObjectRef, replicas: int) -> bool:
        live = self._objects[ref]
        self._objects[ref] = {**live, "spec": {**live["spec"], "replicas": replicas}}
        self._templates[ref.name] = replace(self._templates[ref.name], replicas=replicas)
        self.settle()
        return True

    def settle(self) -> None:
        """Takes every step towards the wanted pods that is possible now; called again after each change of a pod."""
        self.pods = [pod for pod in self.pods if not pod.gone]
        for pod in self.pods:
            if self._acknowledgement.report is not None and self.view(pod).ready:
                pod.note_routed()
        steps = self._next_steps()
        for name in steps.end:
            self._pod(name).mark_ending()
        for deployment in steps.start:
            self._start(self._templates[deployment])

    def publish(self, models: Sequence[Mapping[str, Any]]) -> None:
        """Writes fleet.json, then lets the pods that it shows as ending know."""
        workers = [pod for pod in self.pods if pod.template.component == "worker"]
        write_json(self._home.fleet_file, fleet_document(models, workers))
        for pod in self.pods:
            if pod.ending and not pod.told_to_end:
                pod.told_to_end = True
                self._later(FLEET_SEEN_S if pod.now.served else 0, pod.end)

    def retry(self) -> None:
        for pod in self.pods:
            pod.retry()

    async def shut_down(self) -> None:
        """Routers first, while their streams still have workers; then everything else."""
        for component in ("router", ""):
            ending = [pod for pod in self.pods if not pod.gone and pod.template.component.startswith(component)]
            for pod in ending:
                pod.end()
            await asyncio.gather(*(pod.join() for pod in ending))
        for task in self._endings:
            task.cancel()
        await self._acknowledgement.close()
        await self._prober.close()

    def use(self, choices: local.Choices) -> None:
        """Another port, host, device or API key: whoever it concerns is replaced in the next round."""
        self.machine = replace(self.machine, choices=choices)
        self._secrets.forget()

    def view(self, pod: Pod) -> PodView:
        view = pod.view()
        if pod.template.component != "worker" or (view.serving and self._acknowledgement.holds(_worker(pod))):
            return view
        return replace(view, routed=False, message="the router has not connected to it yet" if view.serving else view.message)

    def _reports(self) -> dict[tuple[str, str], RouterReport]:
        report = self._acknowledgement.report
        routers = (pod for pod in self.pods if pod.template.component == "router" and pod.now.ready)
        return {(pod.template.namespace, pod.name): report for pod in routers if report is not None}

    def router(self) -> RouterAddress | None:
        for pod in self.pods:
            if pod.template.component == "router" and pod.now.ready and pod.now.launch is not None:
                token = pod.now.launch.env.get("PAGODA_INTERNAL_TOKEN", "")
                return RouterAddress(pod.now.launch.host, pod.now.launch.ports[pod.template.ports["internal"]], token)
        return None

    def _ready_workers(self) -> list[Worker]:
        return [_worker(pod) for pod in self.pods if pod.template.component == "worker" and pod.now.ready and not pod.ending]

    def _next_steps(self) -> Steps:
        wanted = {
            name: Wanted(template.replicas, self._identity(template), recreate=self._recreates(template), surge=template.surge)
            for name, template in self._templates.items()
        }
        facts = [PodFacts(pod.name, pod.template.deployment, pod.identity, self.view(pod).ready, pod.ending) for pod in self.pods]
        return next_steps(wanted, facts)

    def _recreates(self, template: PodTemplate) -> bool:
        # one public port, one GPU: the new process cannot start beside the old one
        uses_gpu = self._has_gpu and self.machine.choices.device != "cpu"
        return template.component == "router" or (uses_gpu and template.surge > 0)

    def _identity(self, template: PodTemplate) -> str:
        return local.identity(template, self.machine, self._secrets.reveal)

    def _start(self, template: PodTemplate) -> None:
        pod = Pod(
            self._free_name(template),
            template,
            self._identity(template),
            cwd=self._home.path,
            log_file=self._home.logs / f"{self._free_name(template)}.log",
            prober=self._prober,
            prepare=self._prepare,
            changed=self._changed,
            tell=self._tell,
        )
        self.pods.append(pod)
        pod.start()

    def _free_name(self, template: PodTemplate) -> str:
        taken = {pod.name for pod in self.pods}
        return next(name for n in range(len(taken) + 1) if (name := f"{template.deployment}-{n}") not in taken)

    def _prepare(self, template: PodTemplate, pod_name: str) -> Launch:
        """Chooses ports anew for each life of a process: one that lost a race for its port gets another the next time."""
        choices = self.machine.choices
        ports = {port: self._ports.free() for port in template.ports.values()} | local.fixed_ports(template, choices)
        env = local.process_environment(template, self.machine, pod_name=pod_name, ports=ports, secret=self._secrets.reveal)
        env |= self._source(env)
        env |= self._adapters(env)
        env |= self._draft(env)
        fetch = None
        sources = (env.get("PAGODA_MODEL_SOURCE", ""), env.get("PAGODA_DRAFT_SOURCE", ""))
        if template.fetch is not None and (any(each.startswith(FETCHED) for each in sources) or "hf://" in env.get("PAGODA_ADAPTERS", "")):
            fetch = self._fetch(template.fetch, env, ports[template.ports["http"]])
        host = choices.client_host if template.component == "router" else "127.0.0.1"
        argv = local.filled_in(self._argv(template.argv), env)
        return Launch(argv=argv, env={**self.machine.inherited, **env}, host=host, ports=ports, fetch=fetch)

    def _source(self, env: Mapping[str, str]) -> dict[str, str]:
        """Where this machine has the weights, or will have them."""
        source, revision = env.get("PAGODA_MODEL_SOURCE"), env.get("PAGODA_MODEL_REVISION")
        if source is None:
            return {}
        try:
            found = resolve_source(source, self.machine.inherited, revision)
        except SourceMissing as error:
            raise NotLaunchable("ModelNotFound", str(error)) from None
        if "PAGODA_BACKEND_MODEL" in env:  # another backend: it reads a folder, or fetches from the hub by itself
            return {"PAGODA_MODEL_SOURCE": found, "PAGODA_BACKEND_MODEL": found.removeprefix("hf://")}
        repository, _, written = found.partition("@")
        if not found.startswith(FETCHED):
            return {"PAGODA_MODEL_SOURCE": found} | ({"PAGODA_MODEL_CACHE": str(self._home.models)} if "PAGODA_MODEL_CACHE" in env else {})
        revisions = {"PAGODA_MODEL_REVISION": written} if written else {}
        return {"PAGODA_MODEL_SOURCE": repository, "PAGODA_MODEL_CACHE": str(self._home.models), **revisions}

    def _adapters(self, env: Mapping[str, str]) -> dict[str, str]:
        """Those of the hub that this machine has in its cache are folders here; the others are fetched as the model is."""
        if "PAGODA_ADAPTERS" not in env:
            return {}
        listed = [local_adapter(each, self.machine.inherited) for each in json.loads(env["PAGODA_ADAPTERS"])]
        return {"PAGODA_ADAPTERS": json.dumps(listed, separators=(",", ":")), "PAGODA_MODEL_CACHE": str(self._home.models)}

    def _draft(self, env: Mapping[str, str]) -> dict[str, str]:
        """A draft model of the hub, as the model itself: a folder where this machine has it, else fetched."""
        if "PAGODA_DRAFT_SOURCE" not in env:
            return {}
        try:
            found = resolve_source(env["PAGODA_DRAFT_SOURCE"], self.machine.inherited)
        except SourceMissing as error:
            raise NotLaunchable("ModelNotFound", str(error)) from None
        engine = json.loads(env["PAGODA_ENGINE"])
        engine["speculative"]["draft"] = found
        return {
            "PAGODA_ENGINE": json.dumps(engine, separators=(",", ":")),
            "PAGODA_DRAFT_SOURCE": found,
            "PAGODA_MODEL_CACHE": str(self._home.models),
        }

    def _fetch(self, step: FetchStep, env: Mapping[str, str], port: int) -> Launch:
        secrets = {}
        for name, key in step.secret_env.items():
            if (given := self._secrets.given(key)) is not None:
                secrets[name] = given
            elif not key.optional:
                raise NotLaunchable(
                    "CreateContainerConfigError", f"there is no {self._secrets.file_of(key)}: write the secret's value into it"
                )
        own = local.fetch_environment(step, self.machine, http_port=port, secrets=secrets)
        same = {
            name: env[name]
            for name in ("PAGODA_MODEL_SOURCE", "PAGODA_MODEL_REVISION", "PAGODA_MODEL_CACHE", "PAGODA_ADAPTERS", "PAGODA_DRAFT_SOURCE")
            if name in env
        }
        return Launch(argv=self._argv(step.argv), env={**self.machine.inherited, **own, **same}, host="127.0.0.1", ports={port: port})

    def _argv(self, argv: tuple[str, ...]) -> tuple[str, ...]:
        if argv[0] in local.PROGRAMS:
            return (self._program(argv[0]), *argv[1:])
        return tuple(self._python if word in ("python", "python3") else word for word in argv)

    def _program(self, name: str) -> str:
        found = shutil.which(self.machine.programs.get(name, name), path=self.machine.inherited.get("PATH"))
        if found is None:
            variable = local.PROGRAMS[name]
            wanted = self.machine.programs.get(name, name)
            message = f"there is no program {wanted} on this machine: install it, or set {variable} to its path before `pagoda up`"
            raise NotLaunchable("CreateContainerConfigError", message)
        return found

    def _pod(self, name: str) -> Pod:
        return next(pod for pod in self.pods if pod.name == name)

    def _later(self, delay_s: float, call: Callable[[], None]) -> None:
        async def wait() -> None:
            await asyncio.sleep(delay_s)
            call()

        task = asyncio.create_task(wait())
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)


def _worker(pod: Pod) -> Worker:
    launch = pod.now.launch
    port = next(iter(pod.template.ports[name] for name in ("grpc", "openai") if name in pod.template.ports))
    return Worker(pod.name, launch.ports[port] if launch is not None else 0)
