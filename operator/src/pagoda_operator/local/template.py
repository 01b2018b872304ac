"""Reads the parts of a planned Deployment that a local process can be made of. Pure; called by executor.py.

Every field of a planned template is either read here (READ) or left aside with a reason (IGNORED); a test walks all planned templates and
fails on a field that is in neither, so that nothing is dropped by accident.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pagoda_operator.labels import LABEL_COMPONENT, LABEL_TEMPLATE
from pagoda_operator.local.errors import UnknownTemplate

READ = (
    "metadata.labels",
    "spec.containers[].name",
    "spec.containers[].command",
    "spec.containers[].args",
    "spec.containers[].env[].name",
    "spec.containers[].env[].value",
    "spec.containers[].env[].valueFrom.secretKeyRef",
    "spec.containers[].env[].valueFrom.fieldRef.fieldPath",
    "spec.containers[].ports[].name",
    "spec.containers[].ports[].containerPort",
    "spec.containers[].startupProbe",
    "spec.containers[].readinessProbe",
    "spec.containers[].livenessProbe",
    "spec.initContainers[].name",
    "spec.initContainers[].command",
    "spec.initContainers[].args",
    "spec.initContainers[].env[].name",
    "spec.initContainers[].env[].value",
    "spec.initContainers[].env[].valueFrom.secretKeyRef",
    "spec.initContainers[].ports[].name",
    "spec.initContainers[].ports[].containerPort",
    "spec.terminationGracePeriodSeconds",
)
IGNORED: Mapping[str, str] = {
    "metadata.annotations": "for people and other controllers",
    "spec.containers[].env[].valueFrom.fieldRef.apiVersion": "one version",
    "spec.containers[].image": "the installed distribution runs instead",
    "spec.containers[].imagePullPolicy": "no image",
    "spec.containers[].ports[].protocol": "TCP always",
    "spec.containers[].lifecycle.preStop": "other backends' own way to end is what there is",
    "spec.containers[].resources": "the machine's own limits hold; what a worker must know of them is in its environment",
    "spec.containers[].securityContext": "processes run as the user who started them",
    "spec.containers[].volumeMounts": "paths come from PAGODA_* variables",
    "spec.containers[].terminationMessagePolicy": "the last log line is shown instead",
    "spec.initContainers[].image": "the installed distribution runs instead",
    "spec.initContainers[].imagePullPolicy": "no image",
    "spec.initContainers[].ports[].protocol": "TCP always",
    "spec.initContainers[].resources": "the machine's own limits hold",
    "spec.initContainers[].securityContext": "processes run as the user who started them",
    "spec.initContainers[].volumeMounts": "paths come from PAGODA_* variables",
    "spec.initContainers[].terminationMessagePolicy": "the last log line is shown instead",
    "spec.volumes": "folders of the state folder",
    "spec.securityContext": "as above",
    "spec.serviceAccountName": "no API server",
    "spec.automountServiceAccountToken": "no API server",
    "spec.enableServiceLinks": "no Services",
    "spec.shareProcessNamespace": "no process 1 here",
    "spec.nodeSelector": "one node",
    "spec.tolerations": "one node",
    "spec.affinity": "one node",
    "spec.topologySpreadConstraints": "one node",
    "spec.readinessGates": "the router's acknowledgement is waited for by the executor itself",
    "spec.imagePullSecrets": "no image",
    "spec.priorityClassName": "no scheduler",
}


FETCH = "fetch"
"""The one init container that is known here."""


@dataclass(frozen=True, slots=True)
class SecretKey:
    secret: str
    key: str
    optional: bool


@dataclass(frozen=True, slots=True)
class Probe:
    path: str
    port: int
    """As the template has it; the process listens on the port that stands for it."""
    period_s: float
    failure_threshold: int

    @property
    def patience_s(self) -> float:
        """How long it may fail before something is done."""
        return self.period_s * self.failure_threshold


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchStep:
    """The init container that brings the weights: a process that ends before the pod's own starts."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    secret_env: Mapping[str, SecretKey]


@dataclass(frozen=True, slots=True, kw_only=True)
class PodTemplate:
    deployment: str
    namespace: str
    component: str
    """router | worker"""
    labels: Mapping[str, str]
    hash: str
    """The planner's own, of the pod template."""
    replicas: int
    surge: int
    """Pods beyond the wanted number during a rollout. 0: an old one ends first."""
    argv: tuple[str, ...]
    env: Mapping[str, str]
    secret_env: Mapping[str, SecretKey]
    pod_name_env: tuple[str, ...]
    """Variables that hold the pod's own name."""
    ports: Mapping[str, int]
    startup: Probe | None
    readiness: Probe | None
    liveness: Probe | None
    grace_s: float
    fetch: FetchStep | None = None


def read_deployment(document: Mapping[str, Any]) -> PodTemplate:
    name = document["metadata"]["name"]
    spec, template = document["spec"], document["spec"]["template"]
    pod = template["spec"]
    containers = pod["containers"]
    steps = pod.get("initContainers") or []
    if len(containers) != 1 or [step["name"] for step in steps] not in ([], [FETCH]):
        others = [each["name"] for each in (*steps, *containers)]
        raise UnknownTemplate(f"Deployment {name} has the containers {', '.join(others)}; this machine runs one process for each pod")
    container = containers[0]
    labels = template["metadata"].get("labels", {})
    env, secret_env, pod_name_env = _environment(name, container.get("env", ()))
    ports = {port["name"]: int(port["containerPort"]) for port in container.get("ports", ())}
    return PodTemplate(
        deployment=name,
        namespace=document["metadata"].get("namespace", "default"),
        component=labels.get(LABEL_COMPONENT, ""),
        labels=labels,
        hash=labels.get(LABEL_TEMPLATE, ""),
        replicas=int(spec.get("replicas", 1)),
        surge=_surge(spec.get("strategy", {})),
        argv=(*container.get("command", ()), *container.get("args", ())),
        env=env,
        secret_env=secret_env,
        pod_name_env=pod_name_env,
        ports=ports,
        startup=_probe(name, container.get("startupProbe"), ports),
        readiness=_probe(name, container.get("readinessProbe"), ports),
        liveness=_probe(name, container.get("livenessProbe"), ports),
        grace_s=float(pod.get("terminationGracePeriodSeconds", 30)),
        fetch=_fetch_step(name, steps[0]) if steps else None,
    )


def _surge(strategy: Mapping[str, Any]) -> int:
    if strategy.get("type") == "Recreate":
        return 0
    return int(strategy.get("rollingUpdate", {}).get("maxSurge", 1))


def _fetch_step(name: str, container: Mapping[str, Any]) -> FetchStep:
    env, secret_env, _ = _environment(name, container.get("env", ()))
    return FetchStep(argv=(*container.get("command", ()), *container.get("args", ())), env=env, secret_env=secret_env)


def unread_fields(pod_template: Mapping[str, Any]) -> list[str]:
    """Leaves of a pod template that are neither read nor knowingly ignored."""
    known = (*READ, *IGNORED)
    return sorted({path for path in _leaves(pod_template, "") if not any(_covers(prefix, path) for prefix in known)})


def _environment(name: str, entries: Any) -> tuple[dict[str, str], dict[str, SecretKey], tuple[str, ...]]:
    env: dict[str, str] = {}
    secret_env: dict[str, SecretKey] = {}
    pod_name_env: list[str] = []
    for entry in entries:
        source = entry.get("valueFrom")
        if source is None:
            env[entry["name"]] = entry.get("value", "")
        elif "secretKeyRef" in source:
            ref = source["secretKeyRef"]
            secret_env[entry["name"]] = SecretKey(ref["name"], ref["key"], bool(ref.get("optional", False)))
        elif source.get("fieldRef", {}).get("fieldPath") == "metadata.name":
            pod_name_env.append(entry["name"])
        elif source.get("fieldRef", {}).get("fieldPath") == "metadata.namespace":
            continue  # there is one on this machine, and it is found in the fleet file
        else:
            raise UnknownTemplate(f"Deployment {name}: the value of {entry['name']} comes from {sorted(source)}, unknown on this machine")
    return env, secret_env, tuple(pod_name_env)


def _probe(name: str, probe: Mapping[str, Any] | None, ports: Mapping[str, int]) -> Probe | None:
    if probe is None:
        return None
    if "httpGet" not in probe:
        raise UnknownTemplate(f"Deployment {name} has a probe that is not httpGet; this machine asks over HTTP only")
    get = probe["httpGet"]
    port = ports[get["port"]] if isinstance(get["port"], str) else int(get["port"])
    return Probe(get["path"], port, float(probe.get("periodSeconds", 10)), int(probe.get("failureThreshold", 3)))


def _leaves(node: Any, path: str) -> Iterator[str]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}" if path else key)
    elif isinstance(node, list) and node:
        for value in node:
            yield from _leaves(value, f"{path}[]")
    else:
        yield path


def _covers(prefix: str, path: str) -> bool:
    return path == prefix or path.startswith((f"{prefix}.", f"{prefix}["))
