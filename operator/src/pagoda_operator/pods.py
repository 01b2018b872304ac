"""Pod templates of routers and workers: environment, probes, resources and the restricted security profile.

The environment is the processes' whole configuration; its names are those of their settings. Called by `manifests`.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from pagoda_operator.observed import LABEL_TEMPLATE
from pagoda_operator.quantities import format_bytes, format_cores
from pagoda_operator.spec import Engine, InferenceModel, Resources, Variant

HTTP_PORT = 8000
INTERNAL_PORT = 8001
GRPC_PORT = 9000
WORKER_HTTP_PORT = 9001

SESSION_SECRET = ("pagoda-session", "token")
INTERNAL_SECRET = ("pagoda-internal", "token")
API_KEY_SECRET = ("pagoda-api-key", "key")
"""(Secret, key). The first two must exist before the pods start. The third is optional; without it a router bound beyond loopback stops."""

SPARE_GRACE_S = 15
"""Between the end of a drain and SIGKILL: a drain that ends on time must never be cut short."""

Object = dict[str, Any]


def router_pod(*, image: str, account: str, drain_s: int) -> Object:
    env = [
        *_plain(
            PAGODA_BIND_HOST="0.0.0.0",  # noqa: S104  the pod's own address; the router insists on an API key for it
            PAGODA_HTTP_PORT=HTTP_PORT,
            PAGODA_INTERNAL_PORT=INTERNAL_PORT,
            PAGODA_FLEET_FILE="/run/pagoda/fleet.json",
            PAGODA_CACHE_DIR="/var/cache/pagoda",
            PAGODA_DRAIN_S=drain_s,
        ),
        _pod_name(),
        _secret("PAGODA_SESSION_TOKEN", SESSION_SECRET),
        _secret("PAGODA_INTERNAL_TOKEN", INTERNAL_SECRET),
        _secret("PAGODA_API_KEY", API_KEY_SECRET, optional=True),
    ]
    container = {
        "name": "router",
        "image": image,
        "command": ["python", "-m", "pagoda_router"],
        "env": env,
        "ports": [_container_port("http", HTTP_PORT), _container_port("internal", INTERNAL_PORT)],
        "resources": {"requests": {"cpu": "500m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}},
        # The internal port's probes need no API key.
        **_probes("internal", startup_s=60),
    }
    folders = {"tmp": "/tmp", "fleet": "/run/pagoda", "cache": "/var/cache/pagoda"}  # noqa: S108  a volume of the pod's own
    return _pod(container, account=account, drain_s=drain_s, folders=folders)


def worker_pod(model: InferenceModel, variant: Variant, *, image: str, account: str, drain_s: int, host_paths: bool) -> Object:
    resources = variant.resources
    bounds: Object = {}
    if resources.cpu_cores is not None:
        bounds["PAGODA_CPUS"] = max(1, math.floor(resources.cpu_cores))
    if resources.memory_bytes is not None:
        bounds["PAGODA_MEMORY_BYTES"] = resources.memory_bytes
    env = [
        *_plain(
            PAGODA_MODEL_NAME=model.name,
            PAGODA_MODEL_SOURCE=model.spec.model.source,
            PAGODA_ENGINE=json.dumps(engine_settings(variant.engine), separators=(",", ":")),
            PAGODA_DEVICE="cuda" if resources.gpus else "cpu",
            PAGODA_BIND_HOST="0.0.0.0",  # noqa: S104  the pod's own address; sessions carry a token
            PAGODA_GRPC_PORT=GRPC_PORT,
            PAGODA_HTTP_PORT=WORKER_HTTP_PORT,
            PAGODA_DRAIN_S=drain_s,
            **bounds,
        ),
        _pod_name(),
        _secret("PAGODA_SESSION_TOKEN", SESSION_SECRET),
    ]
    container = {
        "name": "worker",
        "image": image,
        "command": ["python", "-m", "pagoda_worker"],
        "env": env,
        "ports": [_container_port("grpc", GRPC_PORT), _container_port("http", WORKER_HTTP_PORT)],
        "resources": _worker_resources(resources),
        # Loading takes as long as weights take: the startup probe is what bounds it, at an hour.
        **_probes("http", startup_s=3600),
    }
    folders = {"tmp": "/tmp", "shm": "/dev/shm"}  # noqa: S108  volumes of the pod's own
    pod = _pod(container, account=account, drain_s=drain_s, folders=folders)
    if host_paths and model.spec.model.scheme == "file":
        folder = model.spec.model.location
        pod["volumes"].append({"name": "model", "hostPath": {"path": folder, "type": "Directory"}})
        container["volumeMounts"].append({"name": "model", "mountPath": folder, "readOnly": True})
    return pod


def engine_settings(engine: Engine) -> Object:
    """PAGODA_ENGINE: spec.engine with its defaults, in the manifest's spelling."""
    settings: Object = {
        "attention": engine.attention,
        "dtype": engine.dtype,
        "kvCache": {"blockSize": engine.kv_cache.block_size},
        "maxRunning": engine.max_running,
        "prefixCaching": engine.prefix_caching,
    }
    if engine.max_model_len is not None:
        settings["maxModelLen"] = engine.max_model_len
    if engine.max_batch_tokens is not None:
        settings["maxBatchTokens"] = engine.max_batch_tokens
    return settings


def template_with_hash(labels: Mapping[str, str], pod: Object) -> Object:
    """The template with a label that changes exactly when something else in it does: it names a generation of pods in a rollout."""
    text = json.dumps({"labels": dict(labels), "spec": pod}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    return {"metadata": {"labels": {**labels, LABEL_TEMPLATE: digest}}, "spec": pod}


def _pod(container: Object, *, account: str, drain_s: int, folders: Mapping[str, str]) -> Object:
    container["imagePullPolicy"] = "IfNotPresent"
    container["securityContext"] = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    container["terminationMessagePolicy"] = "FallbackToLogsOnError"
    container["volumeMounts"] = [{"name": name, "mountPath": path} for name, path in folders.items()]
    return {
        "serviceAccountName": account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": drain_s + SPARE_GRACE_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        # Shared memory between a worker's two processes counts against the pod's memory limit.
        "volumes": [{"name": name, "emptyDir": {"medium": "Memory"} if name == "shm" else {}} for name in folders],
    }


def _worker_resources(resources: Resources) -> Object:
    bounds: Object = {}
    if resources.cpu_cores is not None:
        bounds["cpu"] = format_cores(resources.cpu_cores)
    if resources.memory_bytes is not None:
        bounds["memory"] = format_bytes(resources.memory_bytes)
    if resources.gpus:
        bounds[resources.gpu_resource] = str(resources.gpus)
    return {"requests": dict(bounds), "limits": dict(bounds)} if bounds else {}


def _probes(port: str, *, startup_s: int) -> Object:
    """No preStop hook: SIGTERM itself turns /ready off and drains."""

    def probe(path: str, period_s: int, failures: int) -> Object:
        return {
            "httpGet": {"path": path, "port": port, "scheme": "HTTP"},
            "periodSeconds": period_s,
            "timeoutSeconds": 2,
            "failureThreshold": failures,
            "successThreshold": 1,
        }

    return {
        "startupProbe": probe("/ready", 2, startup_s // 2),
        "readinessProbe": probe("/ready", 2, 2),
        # Five minutes: the worker restarts its own engine, and loading again must not be taken for being stuck.
        "livenessProbe": probe("/health", 5, 60),
    }


def _plain(**values: object) -> list[Object]:
    return [{"name": name, "value": str(value)} for name, value in values.items()]


def _pod_name() -> Object:
    return {"name": "PAGODA_POD_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}}


def _secret(name: str, secret: tuple[str, str], *, optional: bool = False) -> Object:
    ref: Object = {"name": secret[0], "key": secret[1]}
    return {"name": name, "valueFrom": {"secretKeyRef": ref | {"optional": True} if optional else ref}}


def _container_port(name: str, port: int) -> Object:
    return {"name": name, "containerPort": port, "protocol": "TCP"}
