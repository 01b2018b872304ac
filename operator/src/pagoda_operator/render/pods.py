"""Pod templates of routers and workers: environment, probes, resources and the restricted security profile.

The environment is the processes' whole configuration; its names are those of their settings. Called by `objects`.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pagoda_operator.labels import LABEL_TEMPLATE
from pagoda_operator.manifest.engine import Engine, Resources
from pagoda_operator.manifest.quantities import format_bytes, format_cores
from pagoda_operator.manifest.spec import InferenceModel, Variant
from pagoda_operator.render.installation import Settings
from pagoda_operator.render.weights import Weights, draft_source, weights_of, with_draft

HTTP_PORT = 8000
INTERNAL_PORT = 8001
GRPC_PORT = 9000
WORKER_HTTP_PORT = 9001

TOKEN_KEY = "token"  # noqa: S105  the name of a key
URL_KEY = "url"
API_KEY_SECRET = ("pagoda-api-key", "key")
"""(Secret, key). The Secrets of tokens must exist before the pods start. This one is optional; without it a router bound beyond loopback
stops."""

ROUTED_GATE = "pagoda.dev/routed"
"""A worker's pod is ready only when the operator says that every router counts it: so a rollout waits for the routers."""

ROUTER_STARTUP_S = 60
WORKER_STARTUP_S = 3600
"""Loading takes as long as weights take: the startup probe is what bounds it."""
SPARE_GRACE_S = 15
"""Between the end of a drain and SIGKILL: a drain that ends on time must never be cut short."""

CACHES = {"HOME": "/tmp", "XDG_CACHE_HOME": "/tmp/cache", "HF_HOME": "/tmp/huggingface"}  # noqa: S108  a volume of the pod's own
"""The root file system is read-only: what libraries write on their own goes to the pod's /tmp."""

Object = dict[str, Any]


def router_pod(namespace: str, settings: Settings, *, account: str, selector: Mapping[str, str]) -> Object:
    container = {
        "name": "router",
        "image": settings.router_image_reference,
        "command": ["python", "-m", "pagoda_router"],
        "env": [
            *plain(
                PAGODA_BIND_HOST="0.0.0.0",  # noqa: S104  the pod's own address; the router insists on an API key for it
                PAGODA_HTTP_PORT=HTTP_PORT,
                PAGODA_INTERNAL_PORT=INTERNAL_PORT,
                PAGODA_DISCOVERY="kubernetes",
                PAGODA_CACHE_DIR="/var/cache/pagoda",
                PAGODA_LINGER_S=settings.linger_s,
                PAGODA_DRAIN_S=settings.drain_s,
                **({"PAGODA_OTLP_ENDPOINT": settings.otlp_endpoint} if settings.otlp_endpoint else {}),
                **({"PAGODA_CORS_ORIGINS": ",".join(settings.cors_origins)} if settings.cors_origins else {}),
                **dict(settings.router_settings),
            ),
            _field("PAGODA_POD_NAME", "metadata.name"),
            _field("PAGODA_NAMESPACE", "metadata.namespace"),
            _secret("PAGODA_SESSION_TOKEN", settings.session_secret(namespace), TOKEN_KEY),
            _secret("PAGODA_INTERNAL_TOKEN", settings.internal_secret(namespace), TOKEN_KEY),
            _secret("PAGODA_API_KEY", *API_KEY_SECRET, optional=True),
            *([_secret("PAGODA_DATABASE", settings.database.secret, URL_KEY)] if settings.database else []),
            *([_secret("PAGODA_REDIS", settings.redis.secret, URL_KEY)] if settings.redis else []),
            *plain(**CACHES),
        ],
        "ports": [container_port("http", HTTP_PORT), container_port("internal", INTERNAL_PORT)],
        "resources": {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}},
        # The internal port's probes need no API key.
        **probes("internal", startup_s=ROUTER_STARTUP_S),
    }
    folders = {"tmp": "/tmp", "cache": "/var/cache/pagoda"}  # noqa: S108  volumes of the pod's own
    pod = pod_of([restricted(container, settings, folders)], folders, settings, account=account)
    # Two routers on one node, or in one zone, go away together.
    spread = [
        {"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": dict(selector)}}
        for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
    ]
    return pod | {
        "terminationGracePeriodSeconds": settings.linger_s + settings.drain_s + SPARE_GRACE_S,
        # The token of an account that may only look at its namespace's models and endpoints.
        "automountServiceAccountToken": True,
        "topologySpreadConstraints": spread,
    }


def worker_pod(model: InferenceModel, variant: Variant, settings: Settings, *, account: str) -> Object:
    weights = with_draft(weights_of(model), variant.engine.speculative)
    container = {
        "name": "worker",
        "image": settings.worker_image_reference,
        "command": ["python", "-m", "pagoda_worker"],
        "env": [
            *plain(
                PAGODA_MODEL_NAME=model.name,
                PAGODA_MODEL_SOURCE=weights.source,
                **weights.env,
                PAGODA_ENGINE=json.dumps(engine_settings(variant.engine), separators=(",", ":")),
                PAGODA_DEVICE="cuda" if variant.resources.gpus else "cpu",
                PAGODA_BIND_HOST="0.0.0.0",  # noqa: S104  the pod's own address; sessions carry a token
                PAGODA_GRPC_PORT=GRPC_PORT,
                PAGODA_HTTP_PORT=WORKER_HTTP_PORT,
                PAGODA_DRAIN_S=settings.drain_s,
                **_bounds(variant.resources),
            ),
            _field("PAGODA_POD_NAME", "metadata.name"),
            _secret("PAGODA_SESSION_TOKEN", settings.session_secret(model.namespace), TOKEN_KEY),
            *plain(**CACHES),
        ],
        "ports": [container_port("grpc", GRPC_PORT), container_port("http", WORKER_HTTP_PORT)],
        "resources": worker_resources(variant.resources),
        **probes("http", startup_s=WORKER_STARTUP_S),
    }
    folders = {"tmp": "/tmp", "shm": "/dev/shm"}  # noqa: S108  volumes of the pod's own
    pod = pod_of([restricted(container, settings, folders, weights.mounts)], folders, settings, account=account)
    pod["volumes"] += weights.volumes
    pod["readinessGates"] = [{"conditionType": ROUTED_GATE}]
    if weights.fetch:
        pod["initContainers"] = [_fetch_container(weights, variant.resources, settings)]
    return pod


def _fetch_container(weights: Weights, resources: Resources, settings: Settings) -> Object:
    """Brings the weights before the worker starts, and is the only one to hold the hub's token. Tells its progress as the worker does."""
    container = {
        "name": "fetch",
        "image": settings.worker_image_reference,
        "command": ["python", "-m", "pagoda_worker.fetch"],
        "env": [
            *plain(
                PAGODA_MODEL_SOURCE=weights.source,
                **weights.env,
                PAGODA_BIND_HOST="0.0.0.0",  # noqa: S104  the pod's own address; it only tells its progress
                PAGODA_HTTP_PORT=WORKER_HTTP_PORT,
            ),
            *weights.fetch_env,
            *plain(**CACHES),
        ],
        # Its port is the worker's, which comes later, and is declared there: twice, the API server warns.
        # The resources too: the pod needs no more for it, and keeps its quality of service.
        "resources": worker_resources(resources, gpus=False),
    }
    writable = [{name: value for name, value in mount.items() if name != "readOnly"} for mount in weights.mounts]
    return restricted(container, settings, {"tmp": "/tmp"}, writable)  # noqa: S108


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
    if engine.load != "eager":  # a worker knows that by itself, and running ones need not be replaced for it
        settings["load"] = engine.load
    if engine.max_batch_tokens is not None:
        settings["maxBatchTokens"] = engine.max_batch_tokens
    if engine.long_prefill_tokens is not None:
        settings["longPrefillTokens"] = engine.long_prefill_tokens
    if engine.kv_cache.dtype != "auto":  # as with load
        settings["kvCache"]["dtype"] = engine.kv_cache.dtype
    if engine.kv_cache.swap_bytes:
        settings["kvCache"]["swap"] = engine.kv_cache.swap_bytes
    if engine.kv_cache.host_tier_bytes:
        settings["kvCache"]["hostTier"] = engine.kv_cache.host_tier_bytes
    room = {"slots": engine.adapter_slots, "maxRank": engine.max_adapter_rank}
    if given := {name: value for name, value in room.items() if value is not None}:
        settings["adapters"] = given
    if engine.batch_invariant:
        settings["batchInvariant"] = True
    if engine.compile:
        settings["compile"] = True
    if engine.tensor_parallel != 1:
        settings["tensorParallel"] = engine.tensor_parallel
    if engine.quantization != "none":
        settings["quantization"] = engine.quantization
    if (speculative := engine.speculative).method != "none":
        settings["speculative"] = {"method": speculative.method, "tokens": speculative.tokens}
        if speculative.draft is not None:
            settings["speculative"]["draft"] = draft_source(speculative.draft)
    return settings


def template_with_hash(labels: Mapping[str, str], pod: Object) -> Object:
    """The template with a label that changes exactly when something else in it does: it names a generation of pods in a rollout."""
    text = json.dumps({"labels": dict(labels), "spec": pod}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    return {"metadata": {"labels": {**labels, LABEL_TEMPLATE: digest}}, "spec": pod}


def restricted(container: Object, settings: Settings, folders: Mapping[str, str], mounts: Sequence[Object] = ()) -> Object:
    return container | {
        "imagePullPolicy": settings.image_pull_policy,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [*({"name": name, "mountPath": path} for name, path in folders.items()), *mounts],
    }


def pod_of(containers: list[Object], folders: Mapping[str, str], settings: Settings, *, account: str) -> Object:
    pod: Object = {
        "serviceAccountName": account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        # As process 1 a program that has no handler yet never sees SIGTERM: a pod deleted while it starts would hold its cores and GPUs for
        # the whole grace period.
        "shareProcessNamespace": True,
        "terminationGracePeriodSeconds": settings.drain_s + SPARE_GRACE_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "fsGroup": 10001,
            # Not every file of a large cache again at each start.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": containers,
        # Shared memory between a worker's processes counts against the pod's memory limit.
        "volumes": [{"name": name, "emptyDir": {"medium": "Memory"} if name == "shm" else {}} for name in folders],
    }
    if settings.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
    return pod


def _bounds(resources: Resources) -> Object:
    """What the worker must know of its limits, as it cannot ask the kernel in the same words everywhere."""
    bounds: Object = {}
    if resources.cpu_cores is not None:
        bounds["PAGODA_CPUS"] = max(1, math.floor(resources.cpu_cores))
    if resources.memory_bytes is not None:
        bounds["PAGODA_MEMORY_BYTES"] = resources.memory_bytes
    return bounds


def worker_resources(resources: Resources, *, gpus: bool = True) -> Object:
    """Requests equal limits. With cpu and memory given the pod is Guaranteed: the last to be evicted, and with whole cores it can be
    pinned to them. A worker that computes all day gains nothing from borrowing."""
    bounds: Object = {}
    if resources.cpu_cores is not None:
        bounds["cpu"] = format_cores(resources.cpu_cores)
    if resources.memory_bytes is not None:
        bounds["memory"] = format_bytes(resources.memory_bytes)
    if resources.gpus and gpus:
        bounds[resources.gpu_resource] = str(resources.gpus)
    return {"requests": dict(bounds), "limits": dict(bounds)} if bounds else {}


def probes(port: str, *, startup_s: int, ready: str = "/ready") -> Object:
    """Of our own, no preStop hook: SIGTERM itself turns /ready off, and a router lingers before it drains."""

    def probe(path: str, period_s: int, failures: int) -> Object:
        return {
            "httpGet": {"path": path, "port": port, "scheme": "HTTP"},
            "periodSeconds": period_s,
            "timeoutSeconds": 2,
            "failureThreshold": failures,
            "successThreshold": 1,
        }

    return {
        "startupProbe": probe(ready, 2, startup_s // 2),
        "readinessProbe": probe(ready, 2, 2),
        # Five minutes: the worker restarts its own engine, and loading again must not be taken for being stuck.
        "livenessProbe": probe("/health", 5, 60),
    }


def plain(**values: object) -> list[Object]:
    return [{"name": name, "value": str(value)} for name, value in values.items()]


def _field(name: str, path: str) -> Object:
    return {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}


def _secret(name: str, secret: str, key: str, *, optional: bool = False) -> Object:
    ref: Object = {"name": secret, "key": key}
    return {"name": name, "valueFrom": {"secretKeyRef": ref | {"optional": True} if optional else ref}}


def container_port(name: str, port: int) -> Object:
    return {"name": name, "containerPort": port, "protocol": "TCP"}
